// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/part_oracle.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"

const struct content_id oracle_teacher = {.bytes = {7, 7, 7}};

static void must(bool holds, const char *what, const struct error *err)
{
	if (holds)
		return;
	fprintf(stderr, "oracle: %s: %s\n", what, err ? err->message : "");
	abort();
}

uint64_t oracle_random(uint64_t *state)
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

static uint32_t below(uint64_t *state, uint32_t n)
{
	return (uint32_t)(oracle_random(state) % n);
}

static uint64_t hash_of(const struct record_rows *rows, uint64_t a, uint64_t b)
{
	uint64_t state = a * 1000003 + b * 7919;
	for (uint32_t i = 0; i < rows->sequence.n_tokens; i++)
		state = state * 31 + rows->sequence.tokens[i];
	return oracle_random(&state);
}

static float fraction(const struct record_rows *rows, uint64_t a, uint64_t b)
{
	return (float)(hash_of(rows, a, b) >> 40) * 0x1p-24f;
}

void oracle_sequence(uint64_t n, struct sequence *ret)
{
	uint32_t tokens[ORACLE_TOKENS];
	for (uint32_t i = 0; i < ORACLE_TOKENS; i++)
		tokens[i] = below(&n, ORACLE_VOCABULARY);
	must(sequence_init(ret, tokens, ORACLE_TOKENS) == 0, "memory", NULL);
}

void oracle_check(struct query *q, const struct sequence *s)
{
	static const struct query_limits limits = {.max_tokens = 1000, .max_top_k = ORACLE_VOCABULARY, .max_gather = 100, .max_draws = 100,
		.max_spans = 100, .vocab_size = ORACLE_VOCABULARY, .n_layers = 4, .width = 3, .q_width = 3, .kv_width = 3};
	struct error err = {0};
	must(query_check(q, s, &limits, NULL, &err) == 0, "query_check", &err);
}

// Many ties and near-ties, so that rounding and order matter. `position`: of the sequence.
static float logit_at(const struct record_rows *rows, uint32_t position, uint32_t id)
{
	uint64_t h = hash_of(rows, 1000 + position, id);
	float coarse = (float)(h % 40) * 0.5f - 5;
	return h >> 20 & 1 ? coarse : coarse + (float)(h >> 32 & 255) * 1e-5f;
}

struct candidate { uint32_t id; float logit; };

static int compare(const void *a, const void *b)
{
	const struct candidate *x = a, *y = b;
	return x->logit != y->logit ? (x->logit < y->logit) - (x->logit > y->logit) : (x->id > y->id) - (x->id < y->id);
}

static uint32_t candidates(const struct record_rows *rows, uint32_t position, struct candidate all[ORACLE_VOCABULARY])
{
	const struct query *q = &rows->query;
	uint32_t n = q->n_keep ? q->n_keep : ORACLE_VOCABULARY;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t id = q->n_keep ? q->keep[i] : i;
		all[i] = (struct candidate){id, logit_at(rows, position, id)};
	}
	qsort(all, n, sizeof *all, compare);
	return n;
}

static bool kept(const struct query *q, uint32_t id)
{
	bool found = !q->n_keep;
	for (uint32_t i = 0; i < q->n_keep; i++)
		found |= q->keep[i] == id;
	return found;
}

static void top_answer(struct record_rows *rows, uint32_t row, uint32_t position, const struct candidate *all)
{
	const struct query *q = &rows->query;
	uint32_t n = q->top_k;
	if (q->top_mass != 0) {       // a rule of the same kind: the larger the mass the more, capped
		uint32_t wanted = 1 + (uint32_t)(q->top_mass * 20 * fraction(rows, 2000 + position, 0));
		n = wanted < n ? wanted : n;
		rows->n_top[row] = n;
	}
	for (uint32_t i = 0; i < q->top_k; i++) {
		rows->ids[row * q->top_k + i] = i < n ? all[i].id : RECORD_NO_ID;
		rows->logits[row * q->top_k + i] = i < n ? all[i].logit : 0;
	}
}

static void draws_answer(struct record_rows *rows, uint32_t row, uint32_t position, const struct candidate *all, uint32_t n_all)
{
	const struct query *q = &rows->query;
	uint32_t at = rows->draw_starts[row], left = q->draws.n, n_top = !q->draws.tail ? 0 : rows->n_top ? rows->n_top[row] : q->top_k;
	must(record_rows_reserve_draws(rows, at + left + 1, NULL) == 0, "memory", NULL);
	if (q->draws.tail && rows->tail[row] == -INFINITY)
		left = 0;
	for (uint32_t id = 0, i; left && id < ORACLE_VOCABULARY; id++) {
		for (i = 0; i < n_all && all[i].id != id; i++)
			;
		if (i == n_all || i < n_top || hash_of(rows, 3000 + position, id ^ q->draws.seed << 20 ^ q->draws.n << 10) % 4)
			continue;
		uint32_t count = left < 3 ? left : 3;
		rows->draw_ids[at] = id;
		rows->draw_counts[at] = count;
		if (rows->draw_log_ratios)
			rows->draw_log_ratios[at] = fraction(rows, 3500 + position, id);
		at++;
		left -= count;
	}
	if (left && at > rows->draw_starts[row])
		rows->draw_counts[at - 1] += left;
	rows->draw_starts[row + 1] = at;
}

static void row_answer(struct record_rows *rows, uint32_t row)
{
	const struct query *q = &rows->query;
	struct candidate all[ORACLE_VOCABULARY];
	uint32_t position = (uint32_t)q->first + row, n_all = candidates(rows, position, all), n;
	uint32_t keep_hash = q->n_keep ? q->keep[0] + 1000 * q->n_keep : 0;
	rows->status[row] = ROW_OK;
	rows->max_logit[row] = all[0].logit;
	for (uint32_t i = 0; i < q->n_temperatures; i++)
		rows->lse[row * q->n_temperatures + i] = 10 + fraction(rows, 4000 + position,
			(uint64_t)(q->temperatures[i] * 64) + keep_hash);
	if (q->top_k)
		top_answer(rows, row, position, all);
	for (uint32_t i = 0; rows->dense && i < n_all; i++)
		rows->dense[row * n_all + i] = logit_at(rows, position, q->n_keep ? q->keep[i] : i);
	bool own = position + 1 < rows->sequence.n_tokens && kept(q, rows->sequence.tokens[position + 1]);
	if (rows->own_logit)
		rows->own_logit[row] = own ? logit_at(rows, position, rows->sequence.tokens[position + 1]) : NAN;
	if (rows->entropy)
		rows->entropy[row] = fraction(rows, 5000 + position, keep_hash);
	if (rows->max_prob)
		rows->max_prob[row] = fraction(rows, 5100 + position, keep_hash);
	if (rows->sum_squares)
		rows->sum_squares[row] = fraction(rows, 5200 + position, keep_hash);
	if (rows->argmax)
		rows->argmax[row] = all[0].id;
	if (rows->tail)
		rows->tail[row] = q->top_k >= n_all ? -INFINITY
			: -fraction(rows, 5300 + position, q->top_k + (uint64_t)(q->top_mass * 1000));
	const uint32_t *ids = record_gather_ids(rows, row, &n);
	for (uint32_t i = 0; i < n; i++)
		rows->gathered[record_gather_at(rows, row) + i] = logit_at(rows, position, ids[i]);
	if (q->draws.n)
		draws_answer(rows, row, position, all, n_all);
}

struct record *oracle_answer(const struct sequence *s, const struct query *q)
{
	struct record_rows *rows;
	struct record *record;
	struct error err = {0};
	must(record_rows_new(&oracle_teacher, ORACLE_VOCABULARY, s, q, &rows, &err) == 0, "rows", &err);
	for (uint32_t row = 0; query_has_rows(q) && row < rows->n_rows; row++)
		row_answer(rows, row);
	for (uint32_t i = 0; i < q->n_spans; i++)
		rows->span_sums[i] = -fraction(rows, 6000 + q->spans[i].begin, q->spans[i].end);
	bool pooled = q->pooling != QUERY_POOLING_NONE;
	for (uint32_t i = 0; i < q->n_features; i++) {
		must(record_rows_add_feature(rows, i, 3, &err) == 0, "feature", &err);
		for (uint32_t k = 0; k < 3 * (pooled ? 1 : rows->n_rows); k++)
			rows->features[i][k] = fraction(rows, 7000 + q->features[i].kind * 10 + q->features[i].layer, k + (pooled
				? (uint64_t)q->pooling * 1000 + (uint64_t)q->first * 50 + (uint64_t)q->last * 3 : (uint64_t)q->first * 3));
	}
	must(record_encode(rows, &record, &err) == 0, "record_encode", &err);
	record_rows_free(rows);
	return record;
}

static void lists_random(uint64_t *state, struct id_lists *l, uint32_t n_lists, uint32_t most)
{
	uint32_t total = 0;
	l->n_lists = n_lists;
	l->offsets = calloc(n_lists + 1, sizeof *l->offsets);
	l->ids = calloc(n_lists * most + 1, sizeof *l->ids);
	must(l->offsets && l->ids, "memory", NULL);
	for (uint32_t i = 0; i < n_lists; i++) {
		for (uint32_t n = 1 + below(state, most); n; n--)
			l->ids[total++] = below(state, 2) ? below(state, 8) : below(state, ORACLE_VOCABULARY);
		l->offsets[i + 1] = total;
	}
}

static void signals_random(uint64_t *state, bool wide, struct query *q)
{
	static const uint32_t tops[] = {0, 1, 4, 16, 64, ORACLE_VOCABULARY};
	uint32_t odds = wide ? 2 : 6;
	q->values = (enum query_values)below(state, 3);
	q->top_k = tops[below(state, wide ? 6 : 5)];
	q->top_mass = q->top_k && below(state, 8) == 0 ? 0.5f : 0;
	q->own = below(state, odds) == 0;
	q->entropy = below(state, odds) == 0;
	q->max_prob = below(state, odds) == 0;
	q->argmax = below(state, odds) == 0;
	q->sum_squares = below(state, odds) == 0;
	q->tail = q->top_k && below(state, 2 * odds) == 0;
	q->dense = below(state, 3 * odds) == 0;
	if (below(state, odds) == 0)
		q->draws = (struct query_draws){10, below(state, 2) ? 1 : 0.8f, below(state, 2), q->top_k && below(state, 3) == 0};
	static const float temperatures[] = {0.5f, 1, 2, 4};
	for (int i = 0; i < 4; i++)
		if (below(state, wide ? 2 : 4) == 0)
			q->temperatures[q->n_temperatures++] = temperatures[i];
}

void oracle_query(uint64_t *state, const struct sequence *s, bool wide, struct query *ret)
{
	struct query q;
	query_init(&q);
	signals_random(state, wide, &q);
	q.first = wide ? (int32_t)below(state, 3) : (int32_t)below(state, ORACLE_TOKENS);
	q.last = wide ? (int32_t)(ORACLE_TOKENS - 1 - below(state, 3)) : q.first + (int32_t)below(state, ORACLE_TOKENS - (uint32_t)q.first);
	if (below(state, 3) == 0)
		lists_random(state, &q.gather, below(state, 2) ? 1 : (uint32_t)(q.last - q.first) + 1, wide ? 8 : 3);
	if (below(state, 10) == 0) {
		q.n_keep = 200;
		q.keep = calloc(q.n_keep, sizeof *q.keep);
		must(q.keep, "memory", NULL);
		for (uint32_t i = 0; i < q.n_keep; i++)
			q.keep[i] = i;
		q.top_k = q.top_k > 100 ? 100 : q.top_k;
		query_done(&(struct query){.gather = q.gather});
		q.gather = (struct id_lists){0};
	}
	if (below(state, 4) == 0) {
		q.n_spans = wide ? 4 : 1;
		q.spans = calloc(q.n_spans, sizeof *q.spans);
		must(q.spans, "memory", NULL);
		for (uint32_t i = 0; i < q.n_spans; i++)
			q.spans[i] = (struct query_span){1 + below(state, 2), 5 + below(state, 2)};
	}
	if (below(state, 4) == 0) {
		q.pooling = (enum query_pooling)below(state, 3);
		q.feature_values = (enum query_feature_values)below(state, 3);
		for (q.n_features = 0; q.n_features < (wide ? 3 : 1); q.n_features++)
			q.features[q.n_features] = (struct query_feature){
				(uint8_t)(below(state, 2) ? QUERY_FEATURE_HIDDEN : QUERY_FEATURE_V), (uint16_t)below(state, 3)};
	}
	if (!query_has_rows(&q) && !q.n_spans && !q.n_features)
		q.own = true;
	oracle_check(&q, s);
	*ret = q;
}
