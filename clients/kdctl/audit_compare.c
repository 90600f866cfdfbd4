// SPDX-License-Identifier: Apache-2.0
// One answer against the reference's. Ids are compared as sets: two logits that are each wrong by as much as is allowed may change places
// where the reference's own differ by up to twice that, and an id that so came in is a tie.
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/audit.h"

const char *const audit_signal_names[N_AUDIT_SIGNALS] = {"lse", "logits", "own", "entropy"};

static int add_error(struct audit *a, int signal, double have, double want)
{
	struct audit_signal *s = &a->signals[signal];
	if (s->n == s->capacity) {
		size_t capacity = s->capacity ? 2 * s->capacity : 4096;
		double *larger = reallocarray(s->errors, capacity, sizeof *larger);
		if (!larger)
			return kdctl_fail(a->k, "no memory for %zu differences", capacity);
		s->errors = larger;
		s->capacity = capacity;
	}
	// equal infinities are equal; a NaN on one side is as wrong as can be
	double d = isnan(have) && isnan(want) ? 0 : have == want ? 0 : fabs(have - want);
	s->errors[s->n++] = isnan(d) ? INFINITY : d;
	return 0;
}

static uint32_t top_of(const struct kd_rows *rows, uint32_t r)
{
	return rows->n_top ? rows->n_top[r] : rows->top_k;
}

// The ids of each row as lists to gather: lists->offsets is the caller's to free, ids are the answer's own when every row has all.
static int lists_of(const struct kd_rows *rows, struct kd_lists *ret, uint32_t **ret_offsets, uint32_t **ret_ids)
{
	uint32_t *offsets = calloc((size_t)rows->n_rows + 1, sizeof *offsets),
		*ids = calloc((size_t)rows->n_rows * rows->top_k + 1, sizeof *ids);
	*ret_offsets = offsets;
	*ret_ids = ids;
	if (!offsets || !ids)
		return -ENOMEM;
	for (uint32_t r = 0; r < rows->n_rows; r++) {
		uint32_t n = rows->status && rows->status[r] ? 0 : top_of(rows, r);
		memcpy(ids + offsets[r], rows->ids + (size_t)r * rows->top_k, n * sizeof *ids);
		offsets[r + 1] = offsets[r] + n;
	}
	*ret = (struct kd_lists){.n_lists = rows->n_rows, .offsets = offsets, .ids = ids};
	return 0;
}

static int ask(struct audit *a, const struct kd_rows *have, struct kd_answer **ret)
{
	struct kd_query query = KD_QUERY_INIT;
	struct kd_request request = KD_REQUEST_INIT;
	struct kd_sequence sequence = {.tokens = have->tokens, .n_tokens = have->n_tokens};
	struct kd_lists lists = {0};
	struct kd_error err;
	uint32_t *offsets = NULL, *ids = NULL;
	int r = have->top_k ? lists_of(have, &lists, &offsets, &ids) : 0;
	query.first = (int32_t)have->first;
	query.last = (int32_t)(have->first + have->n_rows - 1);
	query.top_k = have->top_k;
	query.n_temperatures = have->n_temperatures;
	query.temperatures = have->temperatures;
	query.own = have->own_logit != NULL;
	query.entropy = have->entropy != NULL;
	if (have->top_k)
		sequence.gather = &lists;
	request.query = &query;
	request.sequences = &sequence;
	request.n_sequences = 1;
	request.flags = KD_NO_STORE;
	int status = r ? kdctl_fail(a->k, "no memory for a question of %u rows", have->n_rows) : 0;
	if (!status && kd_score(a->reference, &request, ret, &err))
		status = kdctl_fail(a->k, "the reference: %s%s%s", err.field, *err.field ? ": " : "", err.message);
	free(offsets);
	free(ids);
	return status;
}

static bool has_id(const uint32_t *ids, uint32_t n, uint32_t id)
{
	for (uint32_t i = 0; i < n; i++)
		if (ids[i] == id)
			return true;
	return false;
}

static int compare_top(struct audit *a, const struct kd_rows *have, const struct kd_rows *want, uint32_t r)
{
	uint32_t n = top_of(have, r);
	const uint32_t *ids = have->ids + (size_t)r * have->top_k, *right = want->ids + (size_t)r * want->top_k;
	const float *logits = have->logits + (size_t)r * have->top_k, *gathered = want->gathered + want->gather_starts[r];
	double last = n ? (double)want->logits[(size_t)r * want->top_k + n - 1] : 0;
	for (uint32_t i = 0; i < n; i++) {
		if (add_error(a, AUDIT_LOGITS, (double)logits[i], (double)gathered[i]))
			return 1;
		if (has_id(right, n, ids[i]))
			continue;
		a->n_ids++;
		a->n_ids_beyond += !(last - (double)gathered[i] <= 2 * a->bound);
	}
	return 0;
}

static int compare_row(struct audit *a, const struct kd_rows *have, const struct kd_rows *want, uint32_t r)
{
	int status = 0;
	for (uint32_t t = 0; have->lse && t < have->n_temperatures && !status; t++) {
		size_t i = (size_t)r * have->n_temperatures + t;
		status = add_error(a, AUDIT_LSE, (double)have->lse[i], (double)want->lse[i]);
	}
	if (!status && have->own_logit && !(isnan(have->own_logit[r]) && isnan(want->own_logit[r])))
		status = add_error(a, AUDIT_OWN, (double)have->own_logit[r], (double)want->own_logit[r]);
	if (!status && have->entropy)
		status = add_error(a, AUDIT_ENTROPY, (double)have->entropy[r], (double)want->entropy[r]);
	return status || !have->top_k ? status : compare_top(a, have, want, r);
}

static int compare_rows(struct audit *a, const struct kd_rows *have, struct kd_answer *reference)
{
	const struct kd_rows *want;
	struct kd_error err;
	int status = 0;
	if (kd_answer_rows(reference, &want, &err))
		return kdctl_fail_with(a->k, err.field, err.message);
	if (want->n_rows != have->n_rows || want->n_temperatures != have->n_temperatures || want->top_k != have->top_k)
		return kdctl_fail(a->k, "the reference answered another question");
	for (uint32_t r = 0; r < have->n_rows && !status; r++) {
		bool bad = have->status && have->status[r], bad_too = want->status && want->status[r];
		a->n_status += bad != bad_too;
		if (!bad && !bad_too)
			status = compare_row(a, have, want, r);
	}
	a->n_sequences++;
	a->n_rows += have->n_rows;
	return status;
}

int audit_compare(struct audit *a, struct kd_answer *have)
{
	const struct kd_rows *rows;
	struct kd_answer *reference = NULL;
	struct kd_error err;
	if (kd_answer_rows(have, &rows, &err))
		return kdctl_fail_with(a->k, err.field, err.message);
	if (rows->n_keep || !rows->n_rows || !rows->status || !(rows->top_k || rows->own_logit || rows->entropy || rows->lse)) {
		a->n_skipped++;
		return 0;
	}
	if (rows->vocab_size != kd_server(a->reference)->vocab_size)
		return kdctl_fail(a->k, "an answer is over %u ids, the reference has %u", rows->vocab_size,
			kd_server(a->reference)->vocab_size);
	int status = ask(a, rows, &reference);
	if (!status)
		status = compare_rows(a, rows, reference);
	kd_answer_free(reference);
	return status;
}

static int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

struct audit_summary audit_summarise(struct audit_signal *s)
{
	struct audit_summary m = {0};
	if (!s->n)
		return m;
	qsort(s->errors, s->n, sizeof *s->errors, compare_doubles);
	for (size_t i = 0; i < s->n; i++)
		m.mean += s->errors[i] / (double)s->n;
	m.p99 = s->errors[(size_t)ceil(0.99 * (double)s->n) - 1];
	m.max = s->errors[s->n - 1];
	return m;
}

void audit_done(struct audit *a)
{
	for (int i = 0; i < N_AUDIT_SIGNALS; i++)
		free(a->signals[i].errors);
}
