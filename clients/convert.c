// SPDX-License-Identifier: Apache-2.0
#include "clients/convert.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int convert_sized(void *to, size_t size, const void *from, const char *what, struct error *err)
{
	size_t has;
	const unsigned char *bytes = from;
	if (!from)
		return error_set(err, ERROR_INVALID, what, "is missing");
	memcpy(&has, from, sizeof has);
	// The smallest that was ever released is today's.
	if (has < size)
		return error_set(err, ERROR_INVALID, what, "size is %zu: it was not begun with its _INIT", has);
	for (size_t i = size; i < has; i++)
		if (bytes[i])
			return error_set(err, ERROR_UNSUPPORTED, what, "asks for something that this libkdclient does not know");
	memcpy(to, from, size);
	memcpy(to, &size, sizeof size);
	return 0;
}

static int no_memory(struct error *err)
{
	return error_set(err, ERROR_MEMORY, NULL, "no memory for a question");
}

static int copy_array(void *ret, const void *from, size_t n, size_t item_bytes, struct error *err)
{
	size_t bytes;
	void *copy = NULL;
	if (n && !__builtin_mul_overflow(n, item_bytes, &bytes))
		copy = malloc(bytes);
	if (n && !copy)
		return no_memory(err);
	if (n)
		memcpy(copy, from, n * item_bytes);
	memcpy(ret, &copy, sizeof copy);
	return 0;
}

static int convert_lists(const struct kd_lists *from, struct id_lists *ret, struct error *err)
{
	struct id_lists l = {.n_lists = from->n_lists};
	if (!l.n_lists)
		return 0;
	for (uint32_t i = 0; i < l.n_lists; i++)
		if (from->offsets[i] > from->offsets[i + 1])
			return error_set(err, ERROR_INVALID, "gather", "offsets[%" PRIu32 "] is beyond the next", i);
	if (from->offsets[0])
		return error_set(err, ERROR_INVALID, "gather", "offsets begin with %" PRIu32 ", not 0", from->offsets[0]);
	int r = copy_array(&l.offsets, from->offsets, (size_t)l.n_lists + 1, sizeof *l.offsets, err);
	if (!r)
		r = copy_array(&l.ids, from->ids, from->offsets[l.n_lists], sizeof *l.ids, err);
	if (r)
		free(l.offsets);
	else
		*ret = l;
	return r;
}

static int convert_spans(const struct kd_span *from, uint32_t n, struct query_span **ret, struct error *err)
{
	struct query_span *spans = n ? calloc(n, sizeof *spans) : NULL;
	if (n && !spans)
		return no_memory(err);
	for (uint32_t i = 0; i < n; i++)
		spans[i] = (struct query_span){from[i].begin, from[i].end};
	*ret = spans;
	return 0;
}

static int check_counts(const struct kd_query *q, struct error *err)
{
	if (q->n_temperatures > QUERY_MAX_TEMPERATURES)
		return error_set(err, ERROR_TOO_LARGE, "temperatures", "%" PRIu32 " temperatures, the limit is %d", q->n_temperatures,
				 QUERY_MAX_TEMPERATURES);
	if (q->n_features > QUERY_MAX_FEATURES)
		return error_set(err, ERROR_TOO_LARGE, "features", "%" PRIu32 " features, the limit is %d", q->n_features,
				 QUERY_MAX_FEATURES);
	if (q->values < KD_F32 || q->values > KD_U8)
		return error_set(err, ERROR_INVALID, "values", "%d is none of KD_F32, KD_F16, KD_U8", q->values);
	if (q->feature_values != KD_F32 && q->feature_values != KD_F16 && q->feature_values != KD_BF16)
		return error_set(err, ERROR_INVALID, "feature_values", "%d is none of KD_F32, KD_F16, KD_BF16", q->feature_values);
	if (q->pooling < KD_POOLING_NONE || q->pooling > KD_POOLING_LAST)
		return error_set(err, ERROR_INVALID, "pooling", "%d is none of KD_POOLING_*", q->pooling);
	for (uint32_t i = 0; i < q->n_features; i++) {
		char field[32];
		snprintf(field, sizeof field, "features[%" PRIu32 "].kind", i);
		if (q->features[i].kind > KD_V)
			return error_set(err, ERROR_INVALID, field, "%d is no kind of feature", q->features[i].kind);
	}
	return 0;
}

static enum query_feature_values feature_values(int values)
{
	return values == KD_F16 ? QUERY_FEATURE_F16 : values == KD_BF16 ? QUERY_FEATURE_BF16 : QUERY_FEATURE_F32;
}

// All but what is allocated.
static void convert_plain(const struct kd_query *q, struct query *ret)
{
	query_init(ret);
	ret->first = q->first;
	ret->last = q->last;
	ret->top_k = q->top_k;
	ret->top_mass = q->top_mass;
	ret->values = (enum query_values)q->values;
	ret->own = q->own;
	ret->entropy = q->entropy;
	ret->max_prob = q->max_prob;
	ret->argmax = q->argmax;
	ret->sum_squares = q->sum_squares;
	ret->tail = q->tail;
	ret->dense = q->dense;
	ret->draws = (struct query_draws){.n = q->draws.n, .tau = q->draws.tau == 0 ? 1 : q->draws.tau, .seed = q->draws.seed,
					  .tail = q->draws.tail};
	ret->n_temperatures = q->n_temperatures;
	for (uint32_t i = 0; i < q->n_temperatures; i++)
		ret->temperatures[i] = q->temperatures[i];
	ret->n_features = q->n_features;
	for (uint32_t i = 0; i < q->n_features; i++)
		ret->features[i] = (struct query_feature){(uint8_t)q->features[i].kind, q->features[i].layer};
	ret->pooling = (enum query_pooling)q->pooling;
	ret->feature_values = feature_values(q->feature_values);
}

int convert_query(const struct kd_query *from, struct query *ret, struct error *err)
{
	struct kd_query q;
	struct query to;
	int r = convert_sized(&q, sizeof q, from, "query", err);
	if (!r)
		r = check_counts(&q, err);
	if (r)
		return r;
	convert_plain(&q, &to);
	r = convert_lists(&q.gather, &to.gather, err);
	if (!r)
		r = copy_array(&to.keep, q.keep, q.n_keep, sizeof *to.keep, err);
	to.n_keep = r ? 0 : q.n_keep;
	if (!r)
		r = convert_spans(q.spans, q.n_spans, &to.spans, err);
	to.n_spans = r ? 0 : q.n_spans;
	if (r)
		query_done(&to);
	else
		*ret = to;
	return r;
}

bool convert_has_part(const struct kd_sequence *s)
{
	return s->n_spans || s->rows || (s->gather && s->gather->n_lists);
}

int convert_part(const struct kd_sequence *from, struct query_part *ret, struct error *err)
{
	struct query_part p = {.has_rows = from->rows};
	int r = 0;
	if (from->rows) {
		p.first = from->rows->first;
		p.last = from->rows->last;
	}
	if (from->gather)
		r = convert_lists(from->gather, &p.gather, err);
	if (!r)
		r = convert_spans(from->spans, from->n_spans, &p.spans, err);
	p.n_spans = r ? 0 : from->n_spans;
	if (r)
		query_part_done(&p);
	else
		*ret = p;
	return r;
}
