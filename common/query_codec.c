// SPDX-License-Identifier: Apache-2.0
// The question's bytes (kdserved-record.5, Question). Any question that a structure can hold has bytes, canonical or not; a reader
// takes exactly the bytes a writer makes, so that a question has one encoding.
#include <inttypes.h>
#include <stdlib.h>

#include "common/cursor.h"
#include "common/error.h"
#include "common/query.h"

#define QUERY_VERSION 2

enum signal_bit {
	BIT_OWN = 1, BIT_ENTROPY = 2, BIT_MAX_PROB = 4, BIT_ARGMAX = 8, BIT_SUM_SQUARES = 16, BIT_TAIL = 32, BIT_DENSE = 64,
	// Those below have parameters.
	BIT_TOP_MASS = 128, BIT_GATHER = 256, BIT_DRAWS = 512, BIT_KEEP = 1024, BIT_SPANS = 2048, BIT_FEATURES = 4096,
};
#define ALL_BITS 0x1fffu

static uint32_t signal_bits(const struct query *q)
{
	return (q->own ? BIT_OWN : 0u) | (q->entropy ? BIT_ENTROPY : 0u) | (q->max_prob ? BIT_MAX_PROB : 0u) |
	       (q->argmax ? BIT_ARGMAX : 0u) | (q->sum_squares ? BIT_SUM_SQUARES : 0u) | (q->tail ? BIT_TAIL : 0u) |
	       (q->dense ? BIT_DENSE : 0u) | (q->top_mass != 0 ? BIT_TOP_MASS : 0u) | (q->gather.n_lists ? BIT_GATHER : 0u) |
	       (q->draws.n ? BIT_DRAWS : 0u) | (q->n_keep ? BIT_KEEP : 0u) | (q->n_spans ? BIT_SPANS : 0u) |
	       (q->n_features ? BIT_FEATURES : 0u);
}

void query_encode_gather(const struct id_lists *l, struct writer *w)
{
	writer_varint(w, l->n_lists);
	for (uint32_t i = 0; i < l->n_lists; i++)
		writer_varint(w, l->offsets[i + 1] - l->offsets[i]);
	for (uint32_t i = 0; l->n_lists && i < l->offsets[l->n_lists]; i++)
		writer_varint(w, l->ids[i]);
}

void query_encode_spans(const struct query_span *spans, uint32_t n, struct writer *w)
{
	writer_varint(w, n);
	for (uint32_t i = 0; i < n; i++) {
		writer_varint(w, spans[i].begin);
		writer_varint(w, spans[i].end);
	}
}

static void encode_draws(const struct query_draws *d, struct writer *w)
{
	writer_varint(w, d->n);
	writer_f32(w, d->tau);
	writer_u64(w, d->seed);
	writer_u8(w, d->tail);
}

// Differences, so that a long sorted list has a byte or two an id; an unsorted one wraps around and is merely long.
static void encode_keep(const struct query *q, struct writer *w)
{
	uint32_t next = 0;
	writer_varint(w, q->n_keep);
	for (uint32_t i = 0; i < q->n_keep; i++) {
		writer_varint(w, q->keep[i] - next);
		next = q->keep[i] + 1;
	}
}

static void encode_features(const struct query *q, struct writer *w)
{
	writer_u8(w, (uint8_t)q->n_features);
	writer_u8(w, (uint8_t)q->pooling);
	writer_u8(w, (uint8_t)q->feature_values);
	for (uint32_t i = 0; i < q->n_features && i < QUERY_MAX_FEATURES; i++) {
		writer_u8(w, q->features[i].kind);
		writer_u16(w, q->features[i].layer);
	}
}

void query_encode(const struct query *q, struct writer *w)
{
	uint32_t bits = signal_bits(q);
	writer_u8(w, QUERY_VERSION);
	writer_u8(w, (uint8_t)q->values);
	writer_u8(w, (uint8_t)q->n_temperatures);
	writer_u8(w, 0);
	writer_u32(w, bits);
	writer_u32(w, q->top_k);
	writer_u32(w, (uint32_t)q->first);
	writer_u32(w, (uint32_t)q->last);
	for (uint32_t i = 0; i < q->n_temperatures && i < QUERY_MAX_TEMPERATURES; i++)
		writer_f32(w, q->temperatures[i]);
	if (bits & BIT_TOP_MASS)
		writer_f32(w, q->top_mass);
	if (bits & BIT_GATHER)
		query_encode_gather(&q->gather, w);
	if (bits & BIT_DRAWS)
		encode_draws(&q->draws, w);
	if (bits & BIT_KEEP)
		encode_keep(q, w);
	if (bits & BIT_SPANS)
		query_encode_spans(q->spans, q->n_spans, w);
	if (bits & BIT_FEATURES)
		encode_features(q, w);
}

static int cut_short(struct error *err)
{
	return error_set(err, ERROR_INVALID, "query", "cut short, or a number in another than its shortest form");
}

static int empty(struct error *err, const char *what)
{
	return error_set(err, ERROR_INVALID, "query", "%s is announced but holds nothing", what);
}

// Memory for the n items of a list that takes at least n * least bytes; NULL with the reason.
static void *list_new(const struct reader *r, uint32_t n, uint32_t extra, size_t size, size_t least, int *ret, struct error *err)
{
	void *list = NULL;
	if (r->failed || n > reader_left(r) / least)
		*ret = cut_short(err);
	else if (!(list = malloc(((size_t)n + extra) * size)))    // n is at most what is left of bytes in memory
		*ret = error_set(err, ERROR_MEMORY, "query", "no memory for %" PRIu32 " items", n);
	return list;
}

int query_decode_gather(struct reader *r, struct id_lists *ret, struct error *err)
{
	uint32_t n = reader_varint(r);
	uint64_t total = 0;
	int e = 0;
	if (!r->failed && !n)
		return empty(err, "gather");
	uint32_t *offsets = list_new(r, n, 1, sizeof *offsets, 1, &e, err), *ids = NULL;
	if (!offsets)
		return e;
	offsets[0] = 0;
	for (uint32_t i = 0; i < n; i++) {
		total += reader_varint(r);
		offsets[i + 1] = (uint32_t)total;
		if (total > reader_left(r))    // each id takes a byte: bounds total before it can wrap
			r->failed = true;
	}
	ids = r->failed || total ? list_new(r, (uint32_t)total, 0, sizeof *ids, 1, &e, err) : NULL;
	for (uint32_t i = 0; ids && i < total; i++)
		ids[i] = reader_varint(r);
	if (!e && r->failed)
		e = cut_short(err);
	if (e) {
		free(offsets);
		free(ids);
		return e;
	}
	*ret = (struct id_lists){n, offsets, ids};
	return 0;
}

int query_decode_spans(struct reader *r, struct query_span **ret_spans, uint32_t *ret_n, struct error *err)
{
	uint32_t n = reader_varint(r);
	int e = 0;
	if (!r->failed && !n)
		return empty(err, "spans");
	struct query_span *spans = list_new(r, n, 0, sizeof *spans, 2, &e, err);
	for (uint32_t i = 0; spans && i < n; i++) {
		spans[i].begin = reader_varint(r);
		spans[i].end = reader_varint(r);
	}
	if (!e && r->failed)
		e = cut_short(err);
	if (e) {
		free(spans);
		return e;
	}
	*ret_spans = spans;
	*ret_n = n;
	return 0;
}

static int decode_draws(struct reader *r, struct query_draws *d, struct error *err)
{
	d->n = reader_varint(r);
	d->tau = reader_f32(r);
	d->seed = reader_u64(r);
	uint8_t tail = reader_u8(r);
	if (r->failed)
		return cut_short(err);
	if (tail > 1)
		return error_set(err, ERROR_INVALID, "query", "draws.tail is %d", tail);
	d->tail = tail;
	return d->n ? 0 : empty(err, "draws");
}

static int decode_keep(struct reader *r, struct query *q, struct error *err)
{
	uint32_t n = reader_varint(r), next = 0;
	int e = 0;
	if (!r->failed && !n)
		return empty(err, "keep");
	q->keep = list_new(r, n, 0, sizeof *q->keep, 1, &e, err);
	if (!q->keep)
		return e;
	q->n_keep = n;
	for (uint32_t i = 0; i < n; i++) {
		q->keep[i] = reader_varint(r) + next;
		next = q->keep[i] + 1;
	}
	return r->failed ? cut_short(err) : 0;
}

static int decode_features(struct reader *r, struct query *q, struct error *err)
{
	uint32_t n = reader_u8(r);
	uint8_t pooling = reader_u8(r), values = reader_u8(r);
	if (r->failed)
		return cut_short(err);
	if (n > QUERY_MAX_FEATURES)
		return error_set(err, ERROR_TOO_LARGE, "features", "%" PRIu32 " features, the limit is %d", n, QUERY_MAX_FEATURES);
	if (pooling > QUERY_POOLING_LAST || values > QUERY_FEATURE_BF16)
		return error_set(err, ERROR_UNSUPPORTED, "query", "unknown pooling %d or feature values %d", pooling, values);
	for (uint32_t i = 0; i < n; i++) {
		q->features[i].kind = reader_u8(r);
		q->features[i].layer = reader_u16(r);
		if (q->features[i].kind > QUERY_FEATURE_V)
			return error_set(err, ERROR_UNSUPPORTED, "query", "unknown feature kind %d", q->features[i].kind);
	}
	q->n_features = n;
	q->pooling = pooling;
	q->feature_values = values;
	return r->failed ? cut_short(err) : n ? 0 : empty(err, "features");
}

static int decode_parameters(struct reader *r, uint32_t bits, struct query *q, struct error *err)
{
	int e = 0;
	if (bits & BIT_TOP_MASS) {
		q->top_mass = reader_f32(r);
		e = r->failed ? cut_short(err) : q->top_mass != 0 ? 0 : empty(err, "top_mass");
	}
	if (!e && bits & BIT_GATHER)
		e = query_decode_gather(r, &q->gather, err);
	if (!e && bits & BIT_DRAWS)
		e = decode_draws(r, &q->draws, err);
	if (!e && bits & BIT_KEEP)
		e = decode_keep(r, q, err);
	if (!e && bits & BIT_SPANS)
		e = query_decode_spans(r, &q->spans, &q->n_spans, err);
	if (!e && bits & BIT_FEATURES)
		e = decode_features(r, q, err);
	return e;
}

static void set_signals(struct query *q, uint32_t bits)
{
	q->own = bits & BIT_OWN;
	q->entropy = bits & BIT_ENTROPY;
	q->max_prob = bits & BIT_MAX_PROB;
	q->argmax = bits & BIT_ARGMAX;
	q->sum_squares = bits & BIT_SUM_SQUARES;
	q->tail = bits & BIT_TAIL;
	q->dense = bits & BIT_DENSE;
}

int query_decode(struct reader *r, struct query *ret_query, struct error *err)
{
	struct query q;
	query_init(&q);
	uint8_t version = reader_u8(r), values = reader_u8(r);
	q.n_temperatures = reader_u8(r);
	uint8_t reserved = reader_u8(r);
	uint32_t bits = reader_u32(r);
	q.top_k = reader_u32(r);
	q.first = (int32_t)reader_u32(r);
	q.last = (int32_t)reader_u32(r);
	if (r->failed)
		return cut_short(err);
	if (version != QUERY_VERSION)
		return error_set(err, ERROR_UNSUPPORTED, "query", "version %d, this build knows %d", version, QUERY_VERSION);
	if (bits & ~ALL_BITS || reserved)
		return error_set(err, ERROR_UNSUPPORTED, "query", "unknown signal bits 0x%08" PRIx32, bits);
	if (values > QUERY_VALUES_U8)
		return error_set(err, ERROR_UNSUPPORTED, "query", "unknown value format %d", values);
	if (q.n_temperatures > QUERY_MAX_TEMPERATURES)
		return error_set(err, ERROR_TOO_LARGE, "temperatures", "%" PRIu32 " temperatures, the limit is %d", q.n_temperatures,
				 QUERY_MAX_TEMPERATURES);
	q.values = values;
	set_signals(&q, bits);
	for (uint32_t i = 0; i < q.n_temperatures; i++)
		q.temperatures[i] = reader_f32(r);
	int e = decode_parameters(r, bits, &q, err);
	if (!e && r->failed)
		e = cut_short(err);
	if (e)
		query_done(&q);
	else
		*ret_query = q;
	return e;
}
