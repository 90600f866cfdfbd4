// SPDX-License-Identifier: Apache-2.0
// The body of POST /v1/score; its question is read by json_query.c.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/clock.h"
#include "daemon/server/json.h"
#include "daemon/server/json_internal.h"


struct score_reader {
	struct json_score *out;
	struct query query;
	struct choice_query asked;
	bool durable, store, sum, has_deadline;
	int64_t deadline_ms;
	const json_t *gather, *spans;      // read last: they may be one for each sequence
	const struct tokenizer *tokenizer;
	const struct json_limits *limits;
};

static int read_deadline(void *to, const json_t *v, const char *name, struct error *err)
{
	struct score_reader *s = to;
	s->has_deadline = true;
	return json_read_integer(v, 1, JSON_MAX_DEADLINE_MS, name, &s->deadline_ms, err);
}

static int read_encoding(void *to, const json_t *v, const char *name, struct error *err)
{
	static const char *const words[] = {"json", "base64", NULL};
	int i = 0;
	int r = json_read_word(v, name, words, &i, err);
	((struct score_reader *)to)->out->base64 = i == 1;
	return r;
}

static int read_later(void *to, const json_t *v, const char *name, struct error *err)
{
	(void)name;
	(void)err;
	*(const json_t **)to = v;
	return 0;
}

// ---- sequences

struct sequence_reader { struct sequence tokens; char *text; size_t n_text; bool has_first, has_last; int32_t first, last; };

static int read_sequence_tokens(void *to, const json_t *v, const char *name, struct error *err)
{
	return json_read_tokens(v, name, &((struct sequence_reader *)to)->tokens, err);
}

static int read_sequence_text(void *to, const json_t *v, const char *name, struct error *err)
{
	struct sequence_reader *s = to;
	return json_read_text(v, name, &s->text, &s->n_text, err);
}

static int read_sequence_first(void *to, const json_t *v, const char *name, struct error *err)
{
	struct sequence_reader *s = to;
	s->has_first = true;
	return json_read_row(&s->first, v, name, err);
}

static int read_sequence_last(void *to, const json_t *v, const char *name, struct error *err)
{
	struct sequence_reader *s = to;
	s->has_last = true;
	return json_read_row(&s->last, v, name, err);
}

static int tokenize_sequence(const struct score_reader *s, const struct sequence_reader *in, uint32_t i, struct error *err)
{
	struct tokens tokens = {0};
	char name[JSON_NAME_BYTES];
	snprintf(name, sizeof name, "sequences[%" PRIu32 "].text", i);
	int r = tokenizer_encode(s->tokenizer, in->text, in->n_text, false, true, s->limits->max_tokens, &tokens, err);
	if (r && err)
		snprintf(err->field, sizeof err->field, "%s", name);
	if (!r && !tokens.n)
		r = error_set(err, ERROR_INVALID, name, "the text is empty");
	if (!r && sequence_init(&s->out->request->items[i].sequence, tokens.ids, (uint32_t)tokens.n))
		r = error_set(err, ERROR_MEMORY, name, "no memory for %zu tokens", tokens.n);
	if (!r) {
		s->out->offsets[i] = tokens.offsets;
		tokens.offsets = NULL;
	}
	tokens_done(&tokens);
	return r;
}

static void take_rows(struct request_item *item, const struct sequence_reader *in)
{
	item->part.has_rows = in->has_first || in->has_last;
	item->part.first = in->has_first ? in->first : 0;
	item->part.last = in->has_last ? in->last : -1;
}

static int read_sequence(const struct score_reader *s, const json_t *v, uint32_t i, struct error *err)
{
	static const struct json_field fields[] = {
		{"tokens", read_sequence_tokens, false, 0}, {"text", read_sequence_text, false, 0},
		{"first", read_sequence_first, false, 0}, {"last", read_sequence_last, false, 0},
	};
	struct sequence_reader in = {0};
	char prefix[JSON_NAME_BYTES], name[JSON_NAME_BYTES];
	snprintf(name, sizeof name, "sequences[%" PRIu32 "]", i);
	snprintf(prefix, sizeof prefix, "sequences[%" PRIu32 "].", i);
	if (!json_is_object(v))
		return json_wrong_type(v, name, "an object with tokens or text", err);
	int r = json_read_object(v, prefix, fields, sizeof fields / sizeof *fields, &in, err);
	if (!r && !in.text == !in.tokens.tokens)
		r = error_set(err, ERROR_INVALID, name, "give either tokens or text");
	if (!r && in.text)
		r = tokenize_sequence(s, &in, i, err);
	if (!r && in.tokens.tokens) {
		s->out->request->items[i].sequence = in.tokens;
		in.tokens = (struct sequence){0};
	}
	if (!r)
		take_rows(&s->out->request->items[i], &in);
	sequence_done(&in.tokens);
	free(in.text);
	return r;
}

static int read_sequences(void *to, const json_t *v, const char *name, struct error *err)
{
	struct score_reader *s = to;
	size_t n = json_array_size(v);
	if (!json_is_array(v))
		return json_wrong_type(v, name, "an array of sequences", err);
	if (!n)
		return error_set(err, ERROR_INVALID, name, "there are none");
	if (n > s->limits->max_sequences)
		return error_set(err, ERROR_TOO_LARGE, name, "%zu sequences, the limit is %" PRIu32, n, s->limits->max_sequences);
	int r = request_new((uint32_t)n, &s->out->request, err);
	if (r)
		return r;
	s->out->n_items = (uint32_t)n;
	s->out->offsets = calloc(n, sizeof *s->out->offsets);
	if (!s->out->offsets)
		return error_set(err, ERROR_MEMORY, name, "no memory for %zu sequences", n);
	for (uint32_t i = 0; i < n && r == 0; i++)
		r = read_sequence(s, json_array_get(v, i), i, err);
	return r;
}

// ---- the whole

#define OF_QUERY(member) offsetof(struct score_reader, query.member)
#define QUERY offsetof(struct score_reader, query)
static const struct json_field score_fields[] = {
	{"sequences", read_sequences, true, 0}, {"top_k", json_read_top_k, false, OF_QUERY(top_k)},
	{"top_mass", json_read_mass, false, OF_QUERY(top_mass)}, {"dense", json_field_bool, false, OF_QUERY(dense)},
	{"temperatures", json_read_temperatures, false, QUERY}, {"own", json_field_bool, false, OF_QUERY(own)},
	{"entropy", json_field_bool, false, OF_QUERY(entropy)}, {"max_prob", json_field_bool, false, OF_QUERY(max_prob)},
	{"argmax", json_field_bool, false, OF_QUERY(argmax)}, {"sum_squares", json_field_bool, false, OF_QUERY(sum_squares)},
	{"tail", json_field_bool, false, OF_QUERY(tail)}, {"first", json_read_row, false, OF_QUERY(first)},
	{"last", json_read_row, false, OF_QUERY(last)}, {"values", json_read_values, false, OF_QUERY(values)},
	{"draws", json_read_draws, false, OF_QUERY(draws)}, {"keep", json_read_keep, false, QUERY},
	{"features", json_read_features, false, QUERY}, {"pooling", json_read_pooling, false, OF_QUERY(pooling)},
	{"feature_values", json_read_feature_values, false, OF_QUERY(feature_values)},
	{"gather", read_later, false, offsetof(struct score_reader, gather)},
	{"spans", read_later, false, offsetof(struct score_reader, spans)},
	{"sum", json_field_bool, false, offsetof(struct score_reader, sum)}, {"encoding", read_encoding, false, 0},
	{"durable", json_field_bool, false, offsetof(struct score_reader, durable)},
	{"store", json_field_bool, false, offsetof(struct score_reader, store)}, {"deadline_ms", read_deadline, false, 0},
	{"teacher", json_read_teacher, false, offsetof(struct score_reader, asked)},
	{"mixture", json_read_mixture, false, offsetof(struct score_reader, asked)},
};

// What may be one for each sequence, now that those are known.
static int read_lists(const struct score_reader *s, struct error *err)
{
	struct request *r = s->out->request;
	int e = 0;
	if (s->spans && s->sum)
		return error_set(err, ERROR_INVALID, "sum", "is a span itself: give it or spans");
	if (s->gather)
		e = json_read_gather(s->gather, r, err);
	if (!e && s->spans)
		e = json_read_spans(s->spans, r, err);
	return !e && s->sum ? json_span_whole(r, err) : e;
}

int json_read_score(const char *body, size_t n, const struct tokenizer *tokenizer, const struct json_limits *limits, struct json_score *ret,
		    struct error *err)
{
	struct json_score out = {0};
	struct score_reader s = {.out = &out, .store = true, .tokenizer = tokenizer, .limits = limits};
	json_t *root = NULL;
	query_init(&s.query);
	int r = json_parse(body, n, &root, err);
	if (!r)
		r = json_read_object(root, "", score_fields, sizeof score_fields / sizeof *score_fields, &s, err);
	if (r) {
		query_done(&s.query);
	} else {
		out.request->query = s.query;
		out.request->asked = s.asked;
		r = read_lists(&s, err);
	}
	json_decref(root);
	if (r) {
		json_score_done(&out);
		return r;
	}
	out.request->durable = s.durable;
	out.request->no_store = !s.store;
	out.request->deadline_ms = s.has_deadline ? clock_ms() + (uint64_t)s.deadline_ms : 0;
	*ret = out;
	return 0;
}

void json_score_done(struct json_score *s)
{
	for (uint32_t i = 0; s->offsets && i < s->n_items; i++)
		free(s->offsets[i]);
	free(s->offsets);
	request_free(s->request);
	*s = (struct json_score){0};
}
