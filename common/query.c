// SPDX-License-Identifier: Apache-2.0
// The question: canonical form, canonical bytes, content key, and THE validator of a question against its sequence.
#include "common/query.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/cursor.h"
#include "common/error.h"

#define QUERY_VERSION 1
#define BIT_OWN 1u
#define BIT_ENTROPY 2u

void query_init(struct query *q)
{
	*q = (struct query){.last = -1};
}

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

static int check_signals(const struct query *q, const struct query_limits *limits, struct error *err)
{
	if (!q->top_k && !q->own && !q->entropy && !q->n_temperatures)
		return error_set(err, ERROR_INVALID, "top_k",
				 "the query asks for nothing: give top_k, own, entropy or temperatures");
	if (q->top_k > limits->vocab_size)
		return error_set(err, ERROR_INVALID, "top_k", "%" PRIu32 " is more than the vocabulary (%" PRIu32 ")", q->top_k,
				 limits->vocab_size);
	if (q->top_k > limits->max_top_k)
		return error_set(err, ERROR_TOO_LARGE, "top_k", "%" PRIu32 " is over the limit (%" PRIu32 ")", q->top_k, limits->max_top_k);
	if (q->values != QUERY_VALUES_F32 && q->values != QUERY_VALUES_F16)
		return error_set(err, ERROR_INVALID, "values", "unknown value format %d", (int)q->values);
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

static int resolve_positions(struct query *q, const struct sequence *s, const char *prefix, struct error *err)
{
	int64_t n = s->n_tokens;
	int64_t first = q->first < 0 ? q->first + n : q->first;
	int64_t last = q->last < 0 ? q->last + n : q->last;
	if (first < 0 || first >= n)
		return error_set(err, ERROR_INVALID, "first", "%" PRId32 " is outside %stokens (%" PRId64 ")", q->first, prefix, n);
	if (last < 0 || last >= n)
		return error_set(err, ERROR_INVALID, "last", "%" PRId32 " is outside %stokens (%" PRId64 ")", q->last, prefix, n);
	if (first > last)
		return error_set(err, ERROR_INVALID, "first", "position %" PRId64 " lies after last (%" PRId64 ")", first, last);
	q->first = (int32_t)first;
	q->last = (int32_t)last;
	return 0;
}

// Insertion sort, dropping repeats: at most 16 values. Unused places become 0 so that equal questions are equal structures.
static void sort_temperatures(struct query *q)
{
	float sorted[QUERY_MAX_TEMPERATURES] = {0};
	uint32_t n = 0;
	if (!q->n_temperatures)
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

int query_check(struct query *q, const struct sequence *s, const struct query_limits *limits, const char *prefix, struct error *err)
{
	prefix = prefix ? prefix : "";
	int r = check_signals(q, limits, err);
	if (!r)
		r = check_sequence(s, limits, prefix, err);
	if (!r)
		r = resolve_positions(q, s, prefix, err);
	if (!r)
		sort_temperatures(q);
	return r;
}

uint32_t query_rows(const struct query *canonical)
{
	return (uint32_t)(canonical->last - canonical->first) + 1;
}

void query_encode(const struct query *q, struct writer *w)
{
	writer_u8(w, QUERY_VERSION);
	writer_u8(w, (uint8_t)((q->own ? BIT_OWN : 0) | (q->entropy ? BIT_ENTROPY : 0)));
	writer_u8(w, (uint8_t)q->values);
	writer_u8(w, (uint8_t)q->n_temperatures);
	writer_u32(w, q->top_k);
	writer_u32(w, (uint32_t)q->first);
	writer_u32(w, (uint32_t)q->last);
	for (uint32_t i = 0; i < q->n_temperatures && i < QUERY_MAX_TEMPERATURES; i++)
		writer_f32(w, q->temperatures[i]);
}

int query_decode(struct reader *r, struct query *ret_query, struct error *err)
{
	struct query q;
	query_init(&q);
	uint8_t version = reader_u8(r), bits = reader_u8(r), values = reader_u8(r);
	q.n_temperatures = reader_u8(r);
	q.top_k = reader_u32(r);
	q.first = (int32_t)reader_u32(r);
	q.last = (int32_t)reader_u32(r);
	if (r->failed)
		return error_set(err, ERROR_INVALID, "query", "cut short");
	if (version != QUERY_VERSION)
		return error_set(err, ERROR_UNSUPPORTED, "query", "version %d, this build knows %d", version, QUERY_VERSION);
	if (bits & ~(BIT_OWN | BIT_ENTROPY))
		return error_set(err, ERROR_UNSUPPORTED, "query", "unknown signal bits 0x%02x", bits);
	if (values > QUERY_VALUES_F16)
		return error_set(err, ERROR_UNSUPPORTED, "query", "unknown value format %d", values);
	if (q.n_temperatures > QUERY_MAX_TEMPERATURES)
		return error_set(err, ERROR_TOO_LARGE, "query", "%" PRIu32 " temperatures, the limit is %d", q.n_temperatures,
				 QUERY_MAX_TEMPERATURES);
	for (uint32_t i = 0; i < q.n_temperatures; i++)
		q.temperatures[i] = reader_f32(r);
	if (r->failed)
		return error_set(err, ERROR_INVALID, "query", "cut short");
	q.own = bits & BIT_OWN;
	q.entropy = bits & BIT_ENTROPY;
	q.values = values;
	*ret_query = q;
	return 0;
}

struct content_id query_key(const struct content_id *teacher, const struct sequence *s, const struct query *canonical)
{
	static const char label[] = "kdserved key 1\n";
	uint8_t bytes[sizeof label - 1 + 2 * CONTENT_ID_BYTES + QUERY_MAX_BYTES];
	struct writer w = writer_init(bytes, sizeof bytes);
	struct content_id id = sequence_id(s);
	writer_bytes(&w, label, sizeof label - 1);
	writer_bytes(&w, teacher->bytes, sizeof teacher->bytes);
	writer_bytes(&w, id.bytes, sizeof id.bytes);
	query_encode(canonical, &w);
	return content_id_of(bytes, w.position);
}
