// SPDX-License-Identifier: Apache-2.0
// The same question at both doors: a question made from the input is written as the JSON of POST /v1/score and as the body of a SCORE
// frame. Read again and checked for each sequence, both must be the same canonical question about the same tokens, or both must be refused.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/buffer.h"
#include "common/cursor.h"
#include "common/error.h"
#include "common/frame.h"
#include "daemon/server/json.h"
#include "daemon/teacher/request.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/letters.h"

#define MAX_SEQUENCES 4
#define MAX_TOKENS 12
#define MAX_LIST 6
#define N_VALUES(list) (sizeof(list) / sizeof *(list))

static const struct query_limits limits = {
	.max_tokens = 10, .max_top_k = 40, .max_gather = 4, .max_draws = 30, .max_spans = 4, .vocab_size = 50, .n_layers = 3, .width = 8,
	.q_width = 8, .kv_width = 4};

struct bytes { const uint8_t *at, *end; };

// As it is asked: lists that both doors can say.
struct asking {
	struct frame_score frame;
	struct query_part parts[MAX_SEQUENCES];
	struct sequence sequences[MAX_SEQUENCES];
	uint32_t tokens[MAX_SEQUENCES][MAX_TOKENS];
	uint32_t gather_ids[MAX_SEQUENCES + 1][MAX_LIST * MAX_TOKENS], gather_offsets[MAX_SEQUENCES + 1][MAX_TOKENS + 1];
	struct query_span spans[MAX_SEQUENCES + 1][MAX_LIST];
	uint32_t keep[MAX_LIST];
	bool own_gather, own_spans, any_part;
};

static void require(bool holds)
{
	if (!holds)
		abort();
}

static uint32_t next(struct bytes *b)
{
	return b->at < b->end ? *b->at++ : 0;
}

// ---- a question

static int32_t make_row(struct bytes *in)
{
	static const int32_t far[] = {INT32_MIN, INT32_MAX, -1000, 1000};
	uint32_t v = next(in);
	return v >= 250 ? far[v & 3] : (int32_t)(v % 26) - 13;
}

static uint32_t make_count(struct bytes *in)
{
	static const uint32_t far[] = {UINT32_MAX, INT32_MAX, 1u << 24, 1000};
	uint32_t v = next(in);
	return v >= 250 ? far[v & 3] : v % 52;
}

static float make_number(struct bytes *in)
{
	static const float some[] = {1e-5f, 1e-4f, 0.01f, 0.25f, 0.5f, 0.9f, 1, 1.0000001f, 2, 3, 100, 101, 1e6f, 1.1e6f, -1, -0.5f};
	uint32_t v = next(in);
	return v < 128 ? some[v % N_VALUES(some)] : (float)v / 64;
}

static void make_lists(struct bytes *in, struct id_lists *l, uint32_t n_lists, uint32_t *ids, uint32_t *offsets)
{
	*l = (struct id_lists){.n_lists = n_lists, .offsets = offsets, .ids = ids};
	offsets[0] = 0;
	for (uint32_t i = 0; i < n_lists; i++) {
		uint32_t n = next(in) % MAX_LIST;
		for (uint32_t k = 0; k < n; k++)
			ids[offsets[i] + k] = make_count(in);
		offsets[i + 1] = offsets[i] + n;
	}
}

static uint32_t make_spans(struct bytes *in, struct query_span *spans)
{
	uint32_t n = 1 + next(in) % (MAX_LIST - 1);
	for (uint32_t i = 0; i < n; i++)
		spans[i] = (struct query_span){next(in) % 13, next(in) % 13};
	return n;
}

static void make_features(struct bytes *in, struct query *q)
{
	q->n_features = next(in) % 4;
	for (uint32_t i = 0; i < q->n_features; i++) {
		q->features[i].kind = (uint8_t)(next(in) % 5);
		q->features[i].layer = (uint16_t)(next(in) % 6);
	}
	q->pooling = (enum query_pooling)(next(in) % 3);
	q->feature_values = (enum query_feature_values)(next(in) % 3);
}

static void make_query(struct bytes *in, struct asking *a)
{
	struct query *q = &a->frame.query;
	uint32_t bits = next(in), more = next(in);
	query_init(q);
	q->own = bits & 1, q->entropy = bits & 2, q->max_prob = bits & 4, q->argmax = bits & 8, q->sum_squares = bits & 16,
		q->tail = bits & 32;
	q->dense = (bits & 192) == 192;
	q->values = (enum query_values)(next(in) % 3);
	q->top_k = more & 1 ? make_count(in) : 0;
	q->top_mass = more & 2 ? make_number(in) : 0;
	for (q->n_temperatures = more & 4 ? next(in) % 4 : 0, bits = 0; bits < q->n_temperatures; bits++)
		q->temperatures[bits] = make_number(in);
	q->first = more & 8 ? make_row(in) : 0;
	q->last = more & 8 ? make_row(in) : -1;
	if (more & 16) {
		q->draws = (struct query_draws){.n = make_count(in), .tau = make_number(in), .seed = next(in), .tail = next(in) & 1};
		if (!q->draws.n)
			q->draws = (struct query_draws){.tau = 1};     // of none nothing else is said
	}
	for (q->n_keep = more & 32 ? next(in) % MAX_LIST : 0, bits = 0; bits < q->n_keep; bits++)
		a->keep[bits] = make_count(in);
	q->keep = q->n_keep ? a->keep : NULL;
	if (more & 64)
		make_features(in, q);
}

// Both doors take one list of ids, or a part for each sequence; so too of spans.
static void make_parts(struct bytes *in, struct asking *a)
{
	uint32_t n = a->frame.n_sequences, bits = next(in);
	a->own_gather = bits & 1, a->own_spans = bits & 2;
	if ((bits & 5) == 4)
		make_lists(in, &a->frame.query.gather, 1, a->gather_ids[n], a->gather_offsets[n]);
	if (a->frame.query.gather.n_lists && !a->gather_offsets[n][1])
		a->frame.query.gather = (struct id_lists){0};          // one list of nothing cannot be said in JSON
	if ((bits & 10) == 8)
		a->frame.query.n_spans = make_spans(in, a->spans[n]), a->frame.query.spans = a->spans[n];
	for (uint32_t i = 0; i < n; i++) {
		uint32_t which = next(in);
		struct query_part *p = &a->parts[i];
		if (a->own_gather && which & 1)
			make_lists(in, &p->gather, 1 + which % 8, a->gather_ids[i], a->gather_offsets[i]);
		if (a->own_spans && which & 16)
			p->n_spans = make_spans(in, a->spans[i]), p->spans = a->spans[i];
		if (which & 32)
			p->has_rows = true, p->first = make_row(in), p->last = make_row(in);
		a->any_part |= p->has_rows || p->gather.n_lists || p->n_spans;
	}
}

static void make(struct bytes *in, struct asking *a)
{
	*a = (struct asking){.frame.n_sequences = 1 + next(in) % MAX_SEQUENCES};
	make_query(in, a);
	for (uint32_t i = 0; i < a->frame.n_sequences; i++) {
		a->sequences[i] = (struct sequence){a->tokens[i], next(in) % (MAX_TOKENS + 1)};
		for (uint32_t k = 0; k < a->sequences[i].n_tokens; k++)
			a->tokens[i][k] = make_count(in);
	}
	make_parts(in, a);
	a->frame.sequences = a->sequences;
	a->frame.parts = a->any_part ? a->parts : NULL;
}

// ---- as JSON

static void put_ids(struct buffer *b, const uint32_t *ids, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		buffer_printf(b, "%s%u", i ? "," : "", ids[i]);
}

static void put_spans(struct buffer *b, const struct query_span *spans, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		buffer_printf(b, "%s[%u,%u]", i ? "," : "", spans[i].begin, spans[i].end);
}

static void put_sequences(struct buffer *b, const struct asking *a)
{
	buffer_text(b, "{\"sequences\":[");
	for (uint32_t i = 0; i < a->frame.n_sequences; i++) {
		buffer_text(b, i ? ",{\"tokens\":[" : "{\"tokens\":[");
		put_ids(b, a->sequences[i].tokens, a->sequences[i].n_tokens);
		buffer_text(b, "]");
		if (a->parts[i].has_rows)
			buffer_printf(b, ",\"first\":%d,\"last\":%d", a->parts[i].first, a->parts[i].last);
		buffer_text(b, "}");
	}
	buffer_text(b, "]");
}

static void put_features(struct buffer *b, const struct query *q)
{
	static const char *const kinds[] = {"hidden", "final", "q", "k", "v"}, *const poolings[] = {"none", "mean", "last"},
		*const formats[] = {"f32", "f16", "bf16"};
	buffer_text(b, ",\"features\":[");
	for (uint32_t i = 0; i < q->n_features; i++)
		buffer_printf(b, "%s{\"kind\":\"%s\",\"layer\":%u}", i ? "," : "", kinds[q->features[i].kind], q->features[i].layer);
	buffer_printf(b, "],\"pooling\":\"%s\",\"feature_values\":\"%s\"", poolings[q->pooling], formats[q->feature_values]);
}

static void put_query(struct buffer *b, const struct query *q)
{
	static const char *const formats[] = {"f32", "f16", "u8"};
	const struct { const char *name; bool on; } signals[] = {{"own", q->own}, {"entropy", q->entropy}, {"max_prob", q->max_prob},
		{"argmax", q->argmax}, {"sum_squares", q->sum_squares}, {"tail", q->tail}, {"dense", q->dense}};
	for (size_t i = 0; i < N_VALUES(signals); i++)
		if (signals[i].on)
			buffer_printf(b, ",\"%s\":true", signals[i].name);
	buffer_printf(b, ",\"values\":\"%s\",\"first\":%d,\"last\":%d", formats[q->values], q->first, q->last);
	if (q->top_k)
		buffer_printf(b, ",\"top_k\":%u", q->top_k);
	if (q->top_mass != 0)
		buffer_printf(b, ",\"top_mass\":%.9g", (double)q->top_mass);
	for (uint32_t i = 0; i < q->n_temperatures; i++)
		buffer_printf(b, "%s%.9g%s", i ? "," : ",\"temperatures\":[", (double)q->temperatures[i],
			i + 1 < q->n_temperatures ? "" : "]");
	if (q->draws.n)
		buffer_printf(b, ",\"draws\":{\"n\":%u,\"tau\":%.9g,\"seed\":%llu,\"tail\":%s}", q->draws.n, (double)q->draws.tau,
			      (unsigned long long)q->draws.seed, q->draws.tail ? "true" : "false");
	if (q->n_keep) {
		buffer_text(b, ",\"keep\":[");
		put_ids(b, q->keep, q->n_keep);
		buffer_text(b, "]");
	}
	if (q->n_features)
		put_features(b, q);
}

static void put_gather(struct buffer *b, const struct asking *a)
{
	const struct id_lists *all = &a->frame.query.gather;
	if (!all->n_lists && !a->own_gather)
		return;
	buffer_text(b, ",\"gather\":[");
	if (all->n_lists)
		put_ids(b, all->ids, all->offsets[1]);
	for (uint32_t i = 0; a->own_gather && i < a->frame.n_sequences; i++) {
		const struct id_lists *l = &a->parts[i].gather;
		buffer_text(b, i ? ",[" : "[");
		for (uint32_t k = 0; k < l->n_lists; k++) {
			buffer_text(b, k ? ",[" : "[");
			put_ids(b, l->ids + l->offsets[k], l->offsets[k + 1] - l->offsets[k]);
			buffer_text(b, "]");
		}
		buffer_text(b, "]");
	}
	buffer_text(b, "]");
}

static void put_all_spans(struct buffer *b, const struct asking *a)
{
	if (!a->frame.query.n_spans && !a->own_spans)
		return;
	buffer_text(b, ",\"spans\":[");
	put_spans(b, a->frame.query.spans, a->frame.query.n_spans);
	for (uint32_t i = 0; a->own_spans && i < a->frame.n_sequences; i++) {
		buffer_text(b, i ? ",[" : "[");
		put_spans(b, a->parts[i].spans, a->parts[i].n_spans);
		buffer_text(b, "]");
	}
	buffer_text(b, "]");
}

// ---- read again

// The canonical question about each sequence, or n = 0 where any was refused.
struct verdict { uint32_t n; struct query queries[MAX_SEQUENCES]; struct sequence sequences[MAX_SEQUENCES]; };

static void verdict_done(struct verdict *v)
{
	for (uint32_t i = 0; i < MAX_SEQUENCES; i++) {
		query_done(&v->queries[i]);
		sequence_done(&v->sequences[i]);
	}
}

static void verdict_add(struct verdict *v, uint32_t i, const struct query *q, struct query_part *part, struct sequence *s, bool *good)
{
	*good = query_resolve(q, part, s, &limits, "", &v->queries[i], NULL) == 0 && *good;
	v->sequences[i] = *s;
	*s = (struct sequence){0};
}

static struct verdict ask_json(const struct asking *a)
{
	struct verdict v = {0};
	struct json_score s = {0};
	struct error err = {0};
	struct buffer b = {0};
	bool good = true;
	put_sequences(&b, a);
	put_query(&b, &a->frame.query);
	put_gather(&b, a);
	put_all_spans(&b, a);
	buffer_text(&b, "}");
	require(!b.failed);
	if (json_read_score(b.data, b.n, letters(), &(struct json_limits){limits.max_tokens, MAX_SEQUENCES}, &s, &err) == 0) {
		for (uint32_t i = 0; i < s.request->n_items; i++)
			verdict_add(&v, i, &s.request->query, &s.request->items[i].part, &s.request->items[i].sequence, &good);
		v.n = good ? s.request->n_items : 0;
		json_score_done(&s);
	} else {
		require(strstr(err.message, "not JSON") == NULL && strstr(err.message, "unknown field") == NULL);
	}
	buffer_done(&b);
	return v;
}

static struct verdict ask_frame(const struct asking *a)
{
	struct verdict v = {0};
	struct frame_score m = {0};
	struct query_part none = {0};
	bool good = true;
	struct writer count = writer_init(NULL, 0);
	frame_score_encode(&a->frame, &count);
	uint8_t *body = malloc(count.position);
	require(body != NULL);
	struct writer w = writer_init(body, count.position);
	frame_score_encode(&a->frame, &w);
	if (frame_score_decode(body, w.position, &m, NULL) == 0) {
		for (uint32_t i = 0; i < m.n_sequences; i++)
			verdict_add(&v, i, &m.query, m.parts ? &m.parts[i] : &none, &m.sequences[i], &good);
		v.n = good ? m.n_sequences : 0;
		frame_score_done(&m);
	}
	free(body);
	return v;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct asking a;
	struct bytes in = {data, data + size};
	make(&in, &a);
	struct verdict json = ask_json(&a), frame = ask_frame(&a);
	require(json.n == frame.n);
	for (uint32_t i = 0; i < json.n; i++) {
		require(query_equal(&json.queries[i], &frame.queries[i]));
		require(json.sequences[i].n_tokens == frame.sequences[i].n_tokens &&
			memcmp(json.sequences[i].tokens, frame.sequences[i].tokens, 4 * (size_t)json.sequences[i].n_tokens) == 0);
	}
	verdict_done(&json);
	verdict_done(&frame);
	return 0;
}
