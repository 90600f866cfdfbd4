// SPDX-License-Identifier: Apache-2.0
// Its one complication is rounding. f32 values hold everything; f16 and u8 ones were rounded, so what is cut out of them must round to the
// same bytes again, and a smaller top-k must be certain of its last id.
#include "daemon/store/part.h"

#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "common/error.h"

// ---- from the questions alone

static bool has_tail(const struct query *q)
{
	return q->tail || (q->draws.n && q->draws.tail);
}

static bool has_values(const struct query *q)
{
	return q->top_k || q->dense || q->gather.n_lists;
}

static bool exact(const struct query *stored)
{
	return stored->values == QUERY_VALUES_F32;
}

static bool same_top(const struct query *a, const struct query *b)
{
	return a->top_k == b->top_k && a->top_mass == b->top_mass;
}

enum {
	SHAPE_ENTROPY = 1 << 0, SHAPE_MAX_PROB = 1 << 1, SHAPE_SUM_SQUARES = 1 << 2, SHAPE_TAIL = 1 << 3, SHAPE_DENSE = 1 << 4,
	SHAPE_SPANS = 1 << 5, SHAPE_FEATURES = 1 << 6, SHAPE_KEEP = 1 << 7, SHAPE_MASS = 1 << 8, SHAPE_ANY = 1 << 9,
	SHAPE_SIGNALS = SHAPE_ENTROPY | SHAPE_MAX_PROB | SHAPE_SUM_SQUARES | SHAPE_TAIL | SHAPE_DENSE | SHAPE_SPANS | SHAPE_FEATURES,
};
#define SHAPE_DRAWS_AT 10            // four bits of a hash, 0 = no draws
#define SHAPE_VALUES_AT 14           // two bits: 0 = nothing has values, else the format + 1
#define SHAPE_TOP_AT 16              // ids, at most 65535

static uint32_t draws_hash(const struct query_draws *d)
{
	uint32_t tau;
	if (!d->n)
		return 0;
	memcpy(&tau, &d->tau, sizeof tau);
	uint64_t h = (d->seed ^ (uint64_t)d->n << 32 ^ tau ^ (uint64_t)d->tail << 63) * UINT64_C(0x9e3779b97f4a7c15);
	return (uint32_t)(1 + (h >> 32) % 15);
}

uint32_t part_shape(const struct query *q)
{
	uint32_t shape = SHAPE_ANY;
	shape |= q->entropy ? SHAPE_ENTROPY : 0;
	shape |= q->max_prob ? SHAPE_MAX_PROB : 0;
	shape |= q->sum_squares ? SHAPE_SUM_SQUARES : 0;
	shape |= has_tail(q) ? SHAPE_TAIL : 0;
	shape |= q->dense ? SHAPE_DENSE : 0;
	shape |= q->n_spans ? SHAPE_SPANS : 0;
	shape |= q->n_features ? SHAPE_FEATURES : 0;
	shape |= q->n_keep ? SHAPE_KEEP : 0;
	shape |= q->top_mass != 0 ? SHAPE_MASS : 0;
	shape |= draws_hash(&q->draws) << SHAPE_DRAWS_AT;
	shape |= has_values(q) ? ((uint32_t)q->values + 1) << SHAPE_VALUES_AT : 0;
	return shape | (q->top_k < 65535 ? q->top_k : 65535) << SHAPE_TOP_AT;
}

bool part_shape_covers(uint32_t stored, uint32_t asked)
{
	uint32_t draws = asked >> SHAPE_DRAWS_AT & 15, values = asked >> SHAPE_VALUES_AT & 3, its_values = stored >> SHAPE_VALUES_AT & 3;
	uint32_t top = asked >> SHAPE_TOP_AT;
	if (!stored || (asked & SHAPE_SIGNALS & ~stored) || ((asked ^ stored) & SHAPE_KEEP))
		return false;
	if (draws && draws != (stored >> SHAPE_DRAWS_AT & 15))
		return false;
	if (top && (top > stored >> SHAPE_TOP_AT || ((asked ^ stored) & SHAPE_MASS)))
		return false;
	return !values || its_values == values || its_values == QUERY_VALUES_F32 + 1 || !its_values;    // no values: own may serve a gather
}

static bool temperatures_cover(const struct query *stored, const struct query *asked)
{
	uint32_t at = 0;                 // both ascend
	for (uint32_t i = 0; i < asked->n_temperatures; i++) {
		while (at < stored->n_temperatures && stored->temperatures[at] < asked->temperatures[i])
			at++;
		if (at == stored->n_temperatures || stored->temperatures[at] != asked->temperatures[i])
			return false;
	}
	return true;
}

static bool top_covers(const struct query *stored, const struct query *asked)
{
	if (!asked->top_k)
		return true;
	if (stored->top_k < asked->top_k || stored->top_mass != asked->top_mass)
		return false;
	// The steps of u8 reach to the smallest value sent: of another set they are others.
	return stored->values != QUERY_VALUES_U8 || stored->top_k == asked->top_k;
}

static bool draws_cover(const struct query *stored, const struct query *asked)
{
	const struct query_draws *s = &stored->draws, *a = &asked->draws;
	if (!a->n)
		return true;
	return s->n == a->n && s->tau == a->tau && s->seed == a->seed && s->tail == a->tail && (!a->tail || same_top(stored, asked));
}

static bool span_find(const struct query *q, struct query_span span, uint32_t *ret_at)
{
	for (uint32_t i = 0; i < q->n_spans; i++)
		if (q->spans[i].begin == span.begin && q->spans[i].end == span.end) {
			*ret_at = i;
			return true;
		}
	return false;
}

static bool spans_cover(const struct query *stored, const struct query *asked)
{
	uint32_t at;
	for (uint32_t i = 0; i < asked->n_spans; i++)
		if (!span_find(stored, asked->spans[i], &at))
			return false;
	return true;
}

static bool feature_find(const struct query *q, struct query_feature f, uint32_t *ret_at)
{
	for (uint32_t i = 0; i < q->n_features; i++)
		if (q->features[i].kind == f.kind && q->features[i].layer == f.layer) {
			*ret_at = i;
			return true;
		}
	return false;
}

static bool features_cover(const struct query *stored, const struct query *asked)
{
	uint32_t at;
	if (!asked->n_features)
		return true;
	if (stored->pooling != asked->pooling ||
	    (stored->feature_values != asked->feature_values && stored->feature_values != QUERY_FEATURE_F32))
		return false;
	if (asked->pooling != QUERY_POOLING_NONE && (stored->first != asked->first || stored->last != asked->last))
		return false;
	for (uint32_t i = 0; i < asked->n_features; i++)
		if (!feature_find(stored, asked->features[i], &at))
			return false;
	return true;
}

// Values at single ids may come from wherever such values are.
static bool places_cover(const struct query *stored, const struct query *asked)
{
	bool elsewhere = exact(stored) && has_values(stored);
	if (asked->own && !stored->own && !elsewhere)
		return false;
	if (asked->argmax && !stored->argmax && !(exact(stored) && stored->top_k))
		return false;
	return !asked->gather.n_lists || has_values(stored) || (exact(stored) && stored->own);
}

static bool keep_equal(const struct query *a, const struct query *b)
{
	return a->n_keep == b->n_keep && (!a->n_keep || memcmp(a->keep, b->keep, a->n_keep * sizeof *a->keep) == 0);
}

bool part_covers(const struct query *stored, const struct query *asked)
{
	bool per_row = query_has_rows(asked) || (asked->n_features && asked->pooling == QUERY_POOLING_NONE);
	if (per_row && (stored->first > asked->first || stored->last < asked->last))
		return false;
	if (has_values(asked) && has_values(stored) && !exact(stored) && stored->values != asked->values)
		return false;
	if ((asked->entropy && !stored->entropy) || (asked->max_prob && !stored->max_prob) ||
	    (asked->sum_squares && !stored->sum_squares) || (asked->dense && !stored->dense) ||
	    (has_tail(asked) && !(has_tail(stored) && same_top(stored, asked))))
		return false;
	return keep_equal(stored, asked) && temperatures_cover(stored, asked) && top_covers(stored, asked) && places_cover(stored, asked) &&
	       draws_cover(stored, asked) && spans_cover(stored, asked) && features_cover(stored, asked);
}

// ---- from the rows

struct part {
	const struct record_rows *from;
	struct record_rows *to;
	uint32_t shift;                  // row r of `to` is row r + shift of `from`
	bool rounded;                    // what rounding leaves open is taken as it stands
};

static uint32_t row_n_top(const struct record_rows *rows, uint32_t row)
{
	return rows->n_top ? rows->n_top[row] : rows->query.top_k;
}

// The logit of one id in a row of `from`, from wherever it lies with the rounding wanted.
static bool value_find(const struct record_rows *from, uint32_t row, uint32_t id, float *ret)
{
	const struct query *q = &from->query;
	uint32_t position = query_keep_position(q, id), n;
	if (from->dense && position != UINT32_MAX) {
		size_t width = q->n_keep ? q->n_keep : from->vocab_size;
		*ret = from->dense[row * width + position];
		return true;
	}
	const uint32_t *ids = record_gather_ids(from, row, &n);
	for (uint32_t i = 0; i < n; i++)
		if (ids[i] == id) {
			*ret = from->gathered[record_gather_at(from, row) + i];
			return true;
		}
	for (uint32_t i = 0; q->top_k && i < row_n_top(from, row); i++)
		if (from->ids[(size_t)row * q->top_k + i] == id) {
			*ret = from->logits[(size_t)row * q->top_k + i];
			return true;
		}
	uint32_t next = (uint32_t)q->first + row + 1;
	if (!from->own_logit || !exact(q) || next >= from->sequence.n_tokens || from->sequence.tokens[next] != id)
		return false;
	*ret = from->own_logit[row];
	return !isnan(*ret);
}

static bool top_extract(const struct part *p, uint32_t row)
{
	const struct record_rows *from = p->from;
	struct record_rows *to = p->to;
	size_t k = to->query.top_k, stored = from->query.top_k;
	const uint32_t *ids = from->ids + (row + p->shift) * stored;
	const float *logits = from->logits + (row + p->shift) * stored;
	size_t n_from = row_n_top(from, row + p->shift), n = n_from < k ? n_from : k;
	// Rounded values that are equal may have been either way round.
	if (!p->rounded && !exact(&from->query) && n < n_from && logits[n - 1] == logits[n])
		return false;
	for (size_t i = 0; i < k; i++) {
		to->ids[row * k + i] = i < n ? ids[i] : RECORD_NO_ID;
		to->logits[row * k + i] = i < n ? logits[i] : 0;
	}
	if (to->n_top)
		to->n_top[row] = (uint32_t)n;
	return true;
}

static bool own_extract(const struct part *p, uint32_t row)
{
	const struct record_rows *from = p->from;
	uint32_t next = (uint32_t)p->to->query.first + row + 1;
	float *own = &p->to->own_logit[row];
	if (from->own_logit)
		*own = from->own_logit[row + p->shift];
	else if (next >= from->sequence.n_tokens || query_keep_position(&from->query, from->sequence.tokens[next]) == UINT32_MAX)
		*own = NAN;
	else
		return value_find(from, row + p->shift, from->sequence.tokens[next], own);
	return true;
}

static bool gather_extract(const struct part *p, uint32_t row)
{
	const struct record_rows *from = p->from;
	uint32_t n, n_stored;
	const uint32_t *ids = record_gather_ids(p->to, row, &n), *stored = record_gather_ids(from, row + p->shift, &n_stored);
	float *values = p->to->gathered + record_gather_at(p->to, row);
	bool same = n == n_stored && (!n || memcmp(ids, stored, n * sizeof *ids) == 0);
	if (from->query.values == QUERY_VALUES_U8 && !same)        // other ids, other steps
		return false;
	for (uint32_t i = 0; i < n; i++)
		if (!value_find(from, row + p->shift, ids[i], &values[i]))
			return false;
	if (same && n)                                             // repeats and all
		memcpy(values, from->gathered + record_gather_at(from, row + p->shift), n * sizeof *values);
	return true;
}

static int draws_extract(const struct part *p, struct error *err)
{
	const struct record_rows *from = p->from;
	struct record_rows *to = p->to;
	uint32_t begin = from->draw_starts[p->shift], n = from->draw_starts[p->shift + to->n_rows] - begin;
	int r = record_rows_reserve_draws(to, n ? n : 1, err);
	if (r)
		return r;
	for (uint32_t row = 0; row <= to->n_rows; row++)
		to->draw_starts[row] = from->draw_starts[p->shift + row] - begin;
	if (!n)
		return 0;
	memcpy(to->draw_ids, from->draw_ids + begin, n * sizeof *to->draw_ids);
	memcpy(to->draw_counts, from->draw_counts + begin, n * sizeof *to->draw_counts);
	if (to->draw_log_ratios)
		memcpy(to->draw_log_ratios, from->draw_log_ratios + begin, n * sizeof *to->draw_log_ratios);
	return 0;
}

static int features_extract(const struct part *p, struct error *err)
{
	const struct query *q = &p->to->query;
	bool pooled = q->pooling != QUERY_POOLING_NONE;
	for (uint32_t i = 0; i < q->n_features; i++) {
		uint32_t at = 0;
		feature_find(&p->from->query, q->features[i], &at);
		size_t width = p->from->feature_widths[at], n = pooled ? 1 : p->to->n_rows;
		int r = record_rows_add_feature(p->to, i, (uint32_t)width, err);
		if (r)
			return r;
		memcpy(p->to->features[i], p->from->features[at] + (pooled ? 0 : p->shift * width), n * width * sizeof(float));
	}
	return 0;
}

// Arrays of one number a row that are copied as they are.
static const size_t columns[] = {
	offsetof(struct record_rows, max_logit), offsetof(struct record_rows, entropy), offsetof(struct record_rows, max_prob),
	offsetof(struct record_rows, sum_squares), offsetof(struct record_rows, tail),
};

static void columns_extract(const struct part *p)
{
	for (size_t i = 0; i < sizeof columns / sizeof *columns; i++) {
		float *to = *(float **)(void *)((char *)p->to + columns[i]);
		const float *from = *(float *const *)(const void *)((const char *)p->from + columns[i]);
		if (to)
			memcpy(to, from + p->shift, p->to->n_rows * sizeof *to);
	}
}

static void lse_extract(const struct part *p)
{
	const struct query *a = &p->to->query, *s = &p->from->query;
	for (uint32_t i = 0, at = 0; i < a->n_temperatures; i++) {
		while (s->temperatures[at] != a->temperatures[i])
			at++;
		for (uint32_t row = 0; row < p->to->n_rows; row++)
			p->to->lse[row * a->n_temperatures + i] = p->from->lse[(row + p->shift) * s->n_temperatures + at];
	}
}

static bool rows_extract(const struct part *p)
{
	const struct record_rows *from = p->from;
	struct record_rows *to = p->to;
	size_t width = from->query.n_keep ? from->query.n_keep : from->vocab_size;
	bool held = true;
	for (uint32_t row = 0; held && row < to->n_rows; row++) {
		to->status[row] = from->status[row + p->shift];
		held = to->status[row] == ROW_OK || p->rounded;
		if (to->status[row] != ROW_OK)         // holds no numbers
			continue;
		if (held && to->ids)
			held = top_extract(p, row);
		if (held && to->dense)
			memcpy(to->dense + row * width, from->dense + (row + p->shift) * width, width * sizeof(float));
		if (held && to->own_logit)
			held = own_extract(p, row);
		if (held && to->argmax)
			to->argmax[row] = from->argmax ? from->argmax[row + p->shift] : from->ids[(row + p->shift) * from->query.top_k];
		if (held && to->gathered)
			held = gather_extract(p, row);
	}
	return held;
}

static int part_fill(const struct part *p, struct error *err)
{
	const struct query *a = &p->to->query;
	int r = 0;
	if (query_has_rows(a)) {
		columns_extract(p);
		lse_extract(p);
	}
	if (p->to->status && !rows_extract(p))
		return error_set(err, ERROR_NOT_FOUND, NULL, "the record does not hold all of this");
	if (a->draws.n)
		r = draws_extract(p, err);
	if (r == 0)
		r = features_extract(p, err);
	for (uint32_t i = 0, at; r == 0 && i < a->n_spans; i++)
		if (span_find(&p->from->query, a->spans[i], &at))
			p->to->span_sums[i] = p->from->span_sums[at];
	return r;
}

// Rounded values must round to themselves, or what is cut out would differ from the teacher's bytes.
static bool rounds_to_itself(const struct record *stored, const struct record_rows *rows)
{
	struct record *again;
	size_t n, n_again;
	if (record_encode(rows, &again, NULL) < 0)
		return false;
	const void *a = record_bytes(stored, &n), *b = record_bytes(again, &n_again);
	bool same = n == n_again && memcmp(a, b, n) == 0;
	record_unref(again);
	return same;
}

static int extract(const struct record *stored, const struct query *asked, bool rounded, struct record **ret_record, struct error *err)
{
	struct part p = {.rounded = rounded};
	struct record_rows *from = NULL;
	if (!part_covers(record_query(stored), asked))
		return error_set(err, ERROR_NOT_FOUND, NULL, "the record does not hold this");
	int r = record_decode(stored, &from, err);
	if (r == 0 && !rounded && has_values(asked) && has_values(&from->query) && !exact(&from->query) && !rounds_to_itself(stored, from))
		r = error_set(err, ERROR_NOT_FOUND, NULL, "the record's rounded values cannot be cut");
	if (r == 0)
		r = record_rows_new(&from->teacher, from->vocab_size, &from->sequence, asked, &p.to, err);
	if (r == 0) {
		p.from = from;
		p.shift = (uint32_t)(asked->first - from->query.first);
		r = part_fill(&p, err);
	}
	if (r == 0)
		r = record_encode(p.to, ret_record, err);
	record_rows_free(p.to);
	record_rows_free(from);
	return r;
}

int part_extract(const struct record *stored, const struct query *asked, struct record **ret_record, struct error *err)
{
	return extract(stored, asked, false, ret_record, err);
}

int part_extract_rounded(const struct record *stored, const struct query *asked, struct record **ret_record, struct error *err)
{
	return extract(stored, asked, true, ret_record, err);
}
