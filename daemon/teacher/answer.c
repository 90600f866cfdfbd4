// SPDX-License-Identifier: Apache-2.0
#include "daemon/teacher/answer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/model/head.h"
#include "daemon/teacher/answer_internal.h"
#include "daemon/teacher/batch.h"
#include "daemon/teacher/choice.h"
#include "daemon/teacher/request.h"

#define ARENA_BYTES (16u << 20)    // results of a chunk of rows with k = 1024 and 1024 draws; longer rows go in smaller chunks
#define LINE_ROWS 16               // rows of a feature read at once

static size_t larger(size_t a, size_t b)
{
	return a > b ? a : b;
}

int answer_open(struct backend *be, const struct answer_limits *limits, struct answer **ret_answer, struct error *err)
{
	struct answer *a = calloc(1, sizeof *a);
	if (a) {
		a->backend = be;
		a->limits = *limits;
		a->arena_bytes = larger(ARENA_BYTES, plan_row_bytes(limits->max_top_k, limits->max_gather + 1, limits->max_draws));
		a->line_values = larger(limits->vocab_size, LINE_ROWS * (size_t)limits->widest);
		a->arena = malloc(a->arena_bytes);
		a->line = malloc(a->line_values * sizeof *a->line);
		a->needs = calloc(limits->max_tokens, sizeof *a->needs);
		a->own = calloc(limits->max_tokens, sizeof *a->own);
		a->features = calloc(limits->max_items, sizeof(*a->features));
		a->expected_at = calloc(limits->max_items, sizeof(*a->expected_at));
	}
	if (!a || !a->arena || !a->line || !a->needs || !a->own || !a->features || !a->expected_at) {
		answer_close(a);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for answers of top_k %u", limits->max_top_k);
	}
	*ret_answer = a;
	return 0;
}

struct answer *answer_close(struct answer *a)
{
	if (a) {
		free(a->arena);
		free(a->line);
		free(a->needs);
		free(a->own);
		free(a->features);
		free(a->expected_at);
		free(a->expected);
		free(a);
	}
	return NULL;
}

static void mark_needs(struct answer *a, const struct request_item *item, uint32_t after)
{
	const struct query *q = &item->query;
	memset(a->needs, 0, item->sequence.n_tokens);
	if (query_has_rows(q))
		memset(a->needs + q->first, NEED_ROW, query_rows(q));
	for (uint32_t s = 0; s < q->n_spans; s++)
		for (uint32_t i = q->spans[s].begin; i < q->spans[s].end; i++)
			a->needs[i - after] |= NEED_OWN;
}

static bool expect_item(struct answer *a, const struct batch *batch, uint32_t index, uint32_t after)
{
	const struct request_item *item = batch->items[index].item;
	size_t most = (size_t)a->n_expected + item->sequence.n_tokens;
	a->expected_at[index] = item->query.n_keep ? HEAD_UNEXPECTED : a->n_expected;
	if (item->query.n_keep)      // writes beside the rows of a tile
		return true;
	if (most > a->expected_capacity) {
		uint32_t *expected = realloc(a->expected, 2 * most * sizeof *expected);
		if (!expected)
			return false;
		a->expected = expected;
		a->expected_capacity = 2 * most;
	}
	mark_needs(a, item, after);
	for (uint32_t p = 0; p < item->sequence.n_tokens; p++)
		if (a->needs[p])
			a->expected[a->n_expected++] = batch->rows[batch->items[index].rows + p];
	return true;
}

void answer_expect(struct answer *a, const struct answer_input *in, const struct batch *batch)
{
	a->n_expected = 0;
	if (in->choice->is_mixture || !head_is_apart(in->members[0].head))
		return;
	for (uint32_t i = 0; i < batch->n_items; i++) {
		if (!expect_item(a, batch, i, in->after)) {
			a->n_expected = 0;
			return;
		}
	}
	head_expect(in->members[0].head, in->members[0].hidden, a->expected, a->n_expected);
}

void answer_unexpect(struct answer *a, const struct answer_input *in)
{
	if (a->n_expected)
		head_expect(in->members[0].head, NULL, NULL, 0);
	a->n_expected = 0;
}

// The next rows that anybody needs, from *position on: at most `most`.
static void fill_chunk(struct answer *a, const struct plan *plan, const uint32_t *rows, uint32_t most, uint32_t *position)
{
	uint32_t p = *position;
	for (a->n = 0; p < plan->sequence->n_tokens && a->n < most; p++)
		if (a->needs[p])
			plan_ask(plan, a, a->n++, p, rows[p]);
	*position = p;
}

static void read_dense(struct answer *a, const struct plan *plan, struct real *logits, struct record_rows *rows)
{
	const struct backend_ops *ops = a->backend->ops;
	for (uint32_t i = 0; i < a->n; i++) {
		if (!(a->needs[a->positions[i]] & NEED_ROW) || a->sweep[i].not_finite)
			continue;
		float *to = rows->dense + (a->positions[i] - (size_t)plan->query->first) * plan->V;
		ops->real_read(a->backend, a->line, ops->real_at(logits, (size_t)i * plan->V), plan->V);
		for (uint32_t j = 0; j < plan->V; j++)
			to[j] = (float)a->line[j];
	}
}

static int answer_chunk(struct answer *a, const struct plan *plan, const struct answer_input *in, struct record_rows *rows,
			struct error *err)
{
	const struct query *q = plan->query;
	const struct backend_ops *ops = a->backend->ops;
	const struct choice *c = in->choice;
	struct real *logits = c->is_mixture ? head_mix(in->members, c->n_members, c->rule, a->rows, a->n) :
		head_logits(in->members[0].head, in->members[0].hidden, a->rows, a->n);
	if (q->n_keep)
		logits = head_keep(in->members[0].head, q->keep, q->n_keep, a->n);
	ops->sweep(a->backend, logits, a->n, plan->V, a->sweep);
	int r = backend_sync(a->backend, err);    // results of a failed sweep are not even garbage: ids among them would be followed
	if (r)
		return r;
	plan_cut(plan, a);
	if (plan->cut)
		ops->sweep(a->backend, logits, a->n, plan->V, a->sweep);
	if (q->dense)
		read_dense(a, plan, logits, rows);
	r = backend_sync(a->backend, err);
	for (uint32_t i = 0; i < a->n && !r; i++)
		r = rows_keep(plan, a, i, rows, err);
	return r;
}

static void sum_spans(const struct answer *a, const struct query *q, uint32_t after, struct record_rows *rows)
{
	for (uint32_t s = 0; s < q->n_spans; s++) {
		double sum = 0;
		for (uint32_t i = q->spans[s].begin; i < q->spans[s].end; i++)
			sum += a->own[i - after];
		rows->span_sums[s] = (float)sum;
	}
}

// Everything but the encoding.
static int fill_rows(struct answer *a, const struct answer_input *in, struct request_item *item, struct record_rows *rows,
		     struct answer_counts *counts)
{
	struct plan plan;
	bool not_finite = false;
	uint32_t position = 0, at = a->n_expected ? a->expected_at[in->index] : HEAD_UNEXPECTED;
	struct head *head = in->members[0].head;
	uint32_t tile_rows = head_tile_rows(head);
	plan_init(&plan, a, item, in->choice->is_mixture || item->query.n_keep ? tile_rows / 2 : tile_rows);
	plan.after = in->after;
	mark_needs(a, item, in->after);
	int r = features_keep(a, in->index, rows, &not_finite, &item->error);
	while (!r) {
		uint32_t there = a->n_expected ? head_seek(head, at) : 0;
		fill_chunk(a, &plan, in->rows, there && there < plan.chunk_rows ? there : plan.chunk_rows, &position);
		if (!a->n)
			break;
		at += at == HEAD_UNEXPECTED ? 0 : a->n;
		r = answer_chunk(a, &plan, in, rows, &item->error);
		for (uint32_t i = 0; i < a->n; i++)
			counts->n_not_finite += a->sweep[i].not_finite;
		counts->n_rows += a->n;
	}
	sum_spans(a, &item->query, in->after, rows);
	item->not_finite = not_finite || counts->n_not_finite;
	return r;
}

int answer_make(struct answer *a, const struct answer_input *in, struct request_item *item, struct answer_counts *ret_counts)
{
	struct record_rows *rows = NULL;
	struct answer_counts counts = {0};
	int r = record_rows_new(&in->choice->fingerprint, a->limits.vocab_size, &item->sequence, &item->query, &rows, &item->error);
	if (!r)
		r = fill_rows(a, in, item, rows, &counts);
	if (!r)
		r = record_encode(rows, &item->record, &item->error);
	record_rows_free(rows);
	*ret_counts = counts;
	return r;
}
