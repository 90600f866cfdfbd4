// SPDX-License-Identifier: Apache-2.0
// THE validator. Its one complication: on error the question is untouched, so what becomes canonical is worked out beside it first.
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/query.h"

// The canonical forms of a question under check; goes into the question when all is well.
struct checked {
	int32_t first, last;
	uint32_t n_keep;
	const uint32_t *keep;          // sorted: the question's own, or...
	uint32_t *sorted;              // ...this copy, not NULL then
	const char *prefix;
};

static int check_sequence(const struct sequence *s, const struct query_limits *limits, const char *prefix, struct error *err)
{
	char field[64];
	snprintf(field, sizeof field, "%stokens", prefix);
	if (!s->n_tokens)
		return error_set(err, ERROR_INVALID, field, "the sequence is empty");
	if (s->n_tokens > limits->max_tokens || s->n_tokens > INT32_MAX)
		return error_set(err, ERROR_TOO_LARGE, field, "%" PRIu32 " tokens, the limit is %" PRIu32, s->n_tokens, limits->max_tokens);
	for (uint32_t i = 0; i < s->n_tokens; i++) {
		if (s->tokens[i] < limits->vocab_size)
			continue;
		snprintf(field, sizeof field, "%stokens[%" PRIu32 "]", prefix, i);
		return error_set(err, ERROR_INVALID, field, "id %" PRIu32 " is outside the vocabulary (%" PRIu32 ")", s->tokens[i],
				 limits->vocab_size);
	}
	return 0;
}

static int check_top(const struct query *q, const struct query_limits *limits, struct error *err)
{
	if (q->top_k > limits->vocab_size)
		return error_set(err, ERROR_INVALID, "top_k", "%" PRIu32 " is more than the vocabulary (%" PRIu32 ")", q->top_k,
				 limits->vocab_size);
	if (q->top_k > limits->max_top_k)
		return error_set(err, ERROR_TOO_LARGE, "top_k", "%" PRIu32 " is over the limit (%" PRIu32 ")", q->top_k, limits->max_top_k);
	if (q->top_mass != 0 && !(q->top_mass > 0 && q->top_mass <= 1))    // NaN too
		return error_set(err, ERROR_INVALID, "top_mass", "%g is not a probability above 0, at most 1", (double)q->top_mass);
	if (q->top_mass != 0 && !q->top_k)
		return error_set(err, ERROR_INVALID, "top_mass", "needs top_k, the most ids a row may have");
	if (q->tail && !q->top_k)
		return error_set(err, ERROR_INVALID, "tail", "needs top_k: it is the probability outside those ids");
	if ((unsigned)q->values > QUERY_VALUES_U8)
		return error_set(err, ERROR_INVALID, "values", "unknown value format %d", (int)q->values);
	return 0;
}

static int check_temperatures(const struct query *q, struct error *err)
{
	if (q->n_temperatures > QUERY_MAX_TEMPERATURES)
		return error_set(err, ERROR_TOO_LARGE, "temperatures", "%" PRIu32 " temperatures, the limit is %d", q->n_temperatures,
				 QUERY_MAX_TEMPERATURES);
	for (uint32_t i = 0; i < q->n_temperatures; i++) {
		float t = q->temperatures[i];
		char field[64];
		snprintf(field, sizeof field, "temperatures[%" PRIu32 "]", i);
		if (!(t >= QUERY_MIN_TEMPERATURE && t <= QUERY_MAX_TEMPERATURE))    // NaN fails both
			return error_set(err, ERROR_INVALID, field, "%g is not a temperature from %g to %g", (double)t,
					 (double)QUERY_MIN_TEMPERATURE, (double)QUERY_MAX_TEMPERATURE);
	}
	return 0;
}

static int check_draws(const struct query *q, const struct query_limits *limits, struct error *err)
{
	const struct query_draws *d = &q->draws;
	if (!d->n)
		return d->tail ? error_set(err, ERROR_INVALID, "draws.tail", "needs draws.n") : 0;
	if (d->n > limits->max_draws)
		return error_set(err, ERROR_TOO_LARGE, "draws.n", "%" PRIu32 " is over the limit (%" PRIu32 ")", d->n, limits->max_draws);
	if (!(d->tau >= QUERY_MIN_TAU && d->tau <= QUERY_MAX_TAU))
		return error_set(err, ERROR_INVALID, "draws.tau", "%g is not from %g to %g", (double)d->tau, (double)QUERY_MIN_TAU,
				 (double)QUERY_MAX_TAU);
	if (d->tail && !q->top_k)
		return error_set(err, ERROR_INVALID, "draws.tail", "needs top_k: it draws outside those ids");
	return 0;
}

static int check_feature(const struct query_feature *f, uint32_t i, const struct query_limits *limits, struct error *err)
{
	char field[64];
	snprintf(field, sizeof field, "features[%" PRIu32 "].kind", i);
	if (f->kind > QUERY_FEATURE_V)
		return error_set(err, ERROR_INVALID, field, "unknown kind %d", f->kind);
	snprintf(field, sizeof field, "features[%" PRIu32 "].layer", i);
	if (f->kind == QUERY_FEATURE_FINAL)
		return f->layer ? error_set(err, ERROR_INVALID, field, "%d: what follows the final norm has layer 0", f->layer) : 0;
	uint32_t n = f->kind == QUERY_FEATURE_HIDDEN ? limits->n_layers + 1 : limits->n_layers;    // hidden states also lie before block 0
	if (f->layer >= n)
		return error_set(err, ERROR_INVALID, field, "%d: the teacher has %" PRIu32 " of this kind, from 0", f->layer, n);
	return 0;
}

static int check_features(const struct query *q, const struct query_limits *limits, struct error *err)
{
	int r = 0;
	if (q->n_features > QUERY_MAX_FEATURES)
		return error_set(err, ERROR_TOO_LARGE, "features", "%" PRIu32 " features, the limit is %d", q->n_features,
				 QUERY_MAX_FEATURES);
	if ((unsigned)q->pooling > QUERY_POOLING_LAST)
		return error_set(err, ERROR_INVALID, "pooling", "unknown pooling %d", (int)q->pooling);
	if ((unsigned)q->feature_values > QUERY_FEATURE_BF16)
		return error_set(err, ERROR_INVALID, "feature_values", "unknown value format %d", (int)q->feature_values);
	for (uint32_t i = 0; !r && i < q->n_features; i++)
		r = check_feature(&q->features[i], i, limits, err);
	return r;
}

static int check_signals(const struct query *q, const struct query_limits *limits, struct error *err)
{
	if (!query_has_rows(q) && !q->n_spans && !q->n_features)
		return error_set(err, ERROR_INVALID, "top_k", "the query asks for nothing: give top_k, gather, draws, own, entropy, "
				 "temperatures, spans or another signal");
	int r = check_top(q, limits, err);
	if (!r)
		r = check_temperatures(q, err);
	if (!r)
		r = check_draws(q, limits, err);
	return r ? r : check_features(q, limits, err);
}

static int compare_ids(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return x < y ? -1 : x > y;
}

static int sort_keep(const struct query *q, struct checked *c, struct error *err)
{
	c->sorted = malloc((size_t)q->n_keep * sizeof *c->sorted);
	if (!c->sorted)
		return error_set(err, ERROR_MEMORY, "keep", "no memory for %" PRIu32 " ids", q->n_keep);
	memcpy(c->sorted, q->keep, (size_t)q->n_keep * sizeof *c->sorted);
	qsort(c->sorted, q->n_keep, sizeof *c->sorted, compare_ids);
	uint32_t n = 1;
	for (uint32_t i = 1; i < q->n_keep; i++)
		if (c->sorted[i] != c->sorted[n - 1])
			c->sorted[n++] = c->sorted[i];
	c->keep = c->sorted;
	c->n_keep = n;
	return 0;
}

static int check_keep(const struct query *q, const struct query_limits *limits, struct checked *c, struct error *err)
{
	bool ascending = true;
	if (q->n_keep > limits->vocab_size)
		return error_set(err, ERROR_INVALID, "keep", "%" PRIu32 " ids are more than the vocabulary (%" PRIu32 ")", q->n_keep,
				 limits->vocab_size);
	for (uint32_t i = 0; i < q->n_keep; i++) {
		char field[64];
		ascending &= !i || q->keep[i] > q->keep[i - 1];
		if (q->keep[i] < limits->vocab_size)
			continue;
		snprintf(field, sizeof field, "keep[%" PRIu32 "]", i);
		return error_set(err, ERROR_INVALID, field, "id %" PRIu32 " is outside the vocabulary (%" PRIu32 ")", q->keep[i],
				 limits->vocab_size);
	}
	c->keep = q->keep;
	c->n_keep = q->n_keep;
	int r = ascending ? 0 : sort_keep(q, c, err);
	if (!r && q->n_keep && q->top_k > c->n_keep)
		r = error_set(err, ERROR_INVALID, "top_k", "%" PRIu32 " is more than the ids of keep (%" PRIu32 ")", q->top_k, c->n_keep);
	return r;
}

static int check_spans(const struct query *q, const struct sequence *s, const struct query_limits *limits, const struct checked *c,
		       struct error *err)
{
	char field[64];
	if (q->n_spans > limits->max_spans)
		return error_set(err, ERROR_TOO_LARGE, "spans", "%" PRIu32 " spans, the limit is %" PRIu32, q->n_spans, limits->max_spans);
	for (uint32_t i = 0; i < q->n_spans; i++) {
		const struct query_span *span = &q->spans[i];
		snprintf(field, sizeof field, "spans[%" PRIu32 "].begin", i);
		if (!span->begin)
			return error_set(err, ERROR_INVALID, field, "nothing comes before token 0: a span begins at 1 or later");
		if (span->begin >= span->end)
			return error_set(err, ERROR_INVALID, field, "%" PRIu32 " does not lie before the span's end (%" PRIu32 ")",
					 span->begin, span->end);
		snprintf(field, sizeof field, "spans[%" PRIu32 "].end", i);
		if (span->end > s->n_tokens)
			return error_set(err, ERROR_INVALID, field, "%" PRIu32 " is beyond %stokens (%" PRIu32 ")", span->end, c->prefix,
					 s->n_tokens);
	}
	return 0;
}

static int resolve_positions(const struct query *q, const struct sequence *s, struct checked *c, struct error *err)
{
	int64_t n = s->n_tokens;
	int64_t first = q->first < 0 ? q->first + n : q->first;
	int64_t last = q->last < 0 ? q->last + n : q->last;
	if (first < 0 || first >= n)
		return error_set(err, ERROR_INVALID, "first", "%" PRId32 " is outside %stokens (%" PRId64 ")", q->first, c->prefix, n);
	if (last < 0 || last >= n)
		return error_set(err, ERROR_INVALID, "last", "%" PRId32 " is outside %stokens (%" PRId64 ")", q->last, c->prefix, n);
	if (first > last)
		return error_set(err, ERROR_INVALID, "first", "position %" PRId64 " lies after last (%" PRId64 ")", first, last);
	c->first = (int32_t)first;
	c->last = (int32_t)last;
	return 0;
}

// "gather[2][7]"; "gather[7]" where one list stands for all rows; item UINT32_MAX: the list.
static void name_gather(const struct query *q, uint32_t list, uint32_t item, char to[64])
{
	int n = snprintf(to, 64, "gather");
	if (q->gather.n_lists > 1)
		n += snprintf(to + n, 64 - (size_t)n, "[%" PRIu32 "]", list);
	if (item != UINT32_MAX)
		snprintf(to + n, 64 - (size_t)n, "[%" PRIu32 "]", item);
}

static int check_list(const struct query *q, uint32_t list, const struct query_limits *limits, const struct checked *c, struct error *err)
{
	uint32_t begin = q->gather.offsets[list], n = q->gather.offsets[list + 1] - begin;
	char field[64];
	name_gather(q, list, UINT32_MAX, field);
	if (q->gather.offsets[list + 1] < begin)
		return error_set(err, ERROR_INVALID, field, "its offsets descend");
	if (n > limits->max_gather)
		return error_set(err, ERROR_TOO_LARGE, field, "%" PRIu32 " ids for a row, the limit is %" PRIu32, n, limits->max_gather);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t id = q->gather.ids[begin + i];
		bool outside = id >= limits->vocab_size;
		if (!outside && (!c->n_keep || bsearch(&id, c->keep, c->n_keep, sizeof id, compare_ids)))
			continue;
		name_gather(q, list, i, field);
		if (outside)
			return error_set(err, ERROR_INVALID, field, "id %" PRIu32 " is outside the vocabulary (%" PRIu32 ")", id,
					 limits->vocab_size);
		return error_set(err, ERROR_INVALID, field, "id %" PRIu32 " is not in keep", id);
	}
	return 0;
}

static int check_gather(const struct query *q, const struct query_limits *limits, const struct checked *c, struct error *err)
{
	uint32_t n = q->gather.n_lists, n_rows = (uint32_t)(c->last - c->first) + 1;
	int r = 0;
	if (n > 1 && n != n_rows)
		return error_set(err, ERROR_INVALID, "gather", "%" PRIu32 " lists for the %" PRIu32 " rows of %stokens", n,
			n_rows, c->prefix);
	if (n && q->gather.offsets[0])
		return error_set(err, ERROR_INVALID, "gather", "its offsets do not begin at 0");
	for (uint32_t i = 0; !r && i < n; i++)
		r = check_list(q, i, limits, c, err);
	return r;
}

// Insertion sort, dropping repeats: at most 16 values. Unused places become 0.
static void sort_temperatures(struct query *q)
{
	float sorted[QUERY_MAX_TEMPERATURES] = {0};
	uint32_t n = 0;
	if (!q->n_temperatures && query_has_rows(q))
		sorted[n++] = 1.0f;
	for (uint32_t i = 0; i < q->n_temperatures; i++) {
		uint32_t at = n;
		while (at && sorted[at - 1] > q->temperatures[i])
			at--;
		if (at && sorted[at - 1] == q->temperatures[i])
			continue;
		memmove(sorted + at + 1, sorted + at, (n - at) * sizeof *sorted);
		sorted[at] = q->temperatures[i];
		n++;
	}
	memcpy(q->temperatures, sorted, sizeof sorted);
	q->n_temperatures = n;
}

// What does not matter to this question gets the value it has in all such questions.
static void make_canonical(struct query *q, const struct sequence *s, struct checked *c)
{
	sort_temperatures(q);
	q->first = c->first;
	q->last = c->last;
	if (!query_has_rows(q) && !q->n_features) {
		q->first = 0;
		q->last = (int32_t)s->n_tokens - 1;
	}
	if (c->sorted) {
		free(q->keep);
		q->keep = c->sorted;
		q->n_keep = c->n_keep;
	}
	q->tail |= q->draws.tail;
	if (!q->draws.n)
		q->draws = (struct query_draws){.tau = 1};
	if (!q->top_k && !q->dense && !q->gather.n_lists)
		q->values = QUERY_VALUES_F32;
	if (!q->n_features) {
		q->pooling = QUERY_POOLING_NONE;
		q->feature_values = QUERY_FEATURE_F32;
	}
	if (q->top_mass == 0)
		q->top_mass = 0;           // of either sign
}

int query_check(struct query *q, const struct sequence *s, const struct query_limits *limits, const char *prefix, struct error *err)
{
	struct checked c = {.prefix = prefix ? prefix : ""};
	int r = check_signals(q, limits, err);
	if (!r)
		r = check_sequence(s, limits, c.prefix, err);
	if (!r)
		r = resolve_positions(q, s, &c, err);
	if (!r)
		r = check_spans(q, s, limits, &c, err);
	if (!r)
		r = check_keep(q, limits, &c, err);
	if (!r)
		r = check_gather(q, limits, &c, err);
	if (r)
		free(c.sorted);
	else
		make_canonical(q, s, &c);
	return r;
}

int query_resolve(const struct query *asked, struct query_part *part, const struct sequence *s, const struct query_limits *limits,
		  const char *prefix, struct query *ret, struct error *err)
{
	bool rows = part->has_rows, gather = part->gather.n_lists, spans = part->n_spans;
	char field[sizeof err->field];
	struct error why = {0};
	query_init(ret);
	if (query_copy(ret, asked))
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a question");
	query_take_part(ret, part);
	int r = query_check(ret, s, limits, prefix, &why);
	if (r && ((rows && (strcmp(why.field, "first") == 0 || strcmp(why.field, "last") == 0)) ||
		  (gather && strncmp(why.field, "gather", 6) == 0) || (spans && strncmp(why.field, "spans", 5) == 0))) {
		snprintf(field, sizeof field, "%s%.30s", prefix ? prefix : "", why.field);
		memcpy(why.field, field, sizeof field);
	}
	if (r && err)
		*err = why;
	return r;
}
