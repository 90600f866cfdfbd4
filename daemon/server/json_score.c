// SPDX-License-Identifier: Apache-2.0
// The body of POST /v1/score.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/clock.h"
#include "daemon/server/json.h"
#include "daemon/server/json_internal.h"
#include "daemon/teacher/request.h"

#define MAX_DEADLINE_MS 86400000

struct score_reader {
	struct json_score *out;
	struct query query;
	bool durable, store, has_deadline;
	int64_t deadline_ms;
	const struct tokenizer *tokenizer;
	const struct json_limits *limits;
};

static int read_top_k(void *to, const json_t *v, const char *name, struct error *err)
{
	struct score_reader *s = to;
	int64_t k = 0;
	int r = json_read_integer(v, 1, UINT32_MAX, name, &k, err);
	s->query.top_k = (uint32_t)k;
	return r;
}

static int read_temperatures(void *to, const json_t *v, const char *name, struct error *err)
{
	struct score_reader *s = to;
	size_t n = json_array_size(v);
	if (!json_is_array(v))
		return json_wrong_type(v, name, "an array of numbers", err);
	if (!n || n > QUERY_MAX_TEMPERATURES)
		return error_set(err, n ? ERROR_TOO_LARGE : ERROR_INVALID, name, "%zu temperatures, expected 1 to %d", n,
				 QUERY_MAX_TEMPERATURES);
	for (size_t i = 0; i < n; i++) {
		const json_t *t = json_array_get(v, i);
		char item[JSON_NAME_BYTES];
		snprintf(item, sizeof item, "%s[%zu]", name, i);
		if (!json_is_number(t))
			return json_wrong_type(t, item, "a number", err);
		s->query.temperatures[i] = (float)json_number_value(t);
	}
	s->query.n_temperatures = (uint32_t)n;
	return 0;
}

static int read_own(void *to, const json_t *v, const char *name, struct error *err)
{
	return json_read_bool(v, name, &((struct score_reader *)to)->query.own, err);
}

static int read_entropy(void *to, const json_t *v, const char *name, struct error *err)
{
	return json_read_bool(v, name, &((struct score_reader *)to)->query.entropy, err);
}

static int read_durable(void *to, const json_t *v, const char *name, struct error *err)
{
	return json_read_bool(v, name, &((struct score_reader *)to)->durable, err);
}

static int read_store(void *to, const json_t *v, const char *name, struct error *err)
{
	return json_read_bool(v, name, &((struct score_reader *)to)->store, err);
}

static int read_first(void *to, const json_t *v, const char *name, struct error *err)
{
	int64_t i = 0;
	int r = json_read_integer(v, INT32_MIN, INT32_MAX, name, &i, err);
	((struct score_reader *)to)->query.first = (int32_t)i;
	return r;
}

static int read_last(void *to, const json_t *v, const char *name, struct error *err)
{
	int64_t i = 0;
	int r = json_read_integer(v, INT32_MIN, INT32_MAX, name, &i, err);
	((struct score_reader *)to)->query.last = (int32_t)i;
	return r;
}

static int read_deadline(void *to, const json_t *v, const char *name, struct error *err)
{
	struct score_reader *s = to;
	s->has_deadline = true;
	return json_read_integer(v, 1, MAX_DEADLINE_MS, name, &s->deadline_ms, err);
}

static int read_encoding(void *to, const json_t *v, const char *name, struct error *err)
{
	static const char *const words[] = {"json", "base64", NULL};
	int i = 0;
	int r = json_read_word(v, name, words, &i, err);
	((struct score_reader *)to)->out->base64 = i == 1;
	return r;
}

static int read_values(void *to, const json_t *v, const char *name, struct error *err)
{
	static const char *const words[] = {"f32", "f16", NULL};
	int i = 0;
	int r = json_read_word(v, name, words, &i, err);
	((struct score_reader *)to)->query.values = i ? QUERY_VALUES_F16 : QUERY_VALUES_F32;
	return r;
}

static int read_later(void *to, const json_t *v, const char *name, struct error *err)
{
	(void)to;
	(void)v;
	return error_set(err, ERROR_UNSUPPORTED, name, "is not supported by this version");
}

struct sequence_reader { struct sequence tokens; char *text; size_t n_text; };

static int read_sequence_tokens(void *to, const json_t *v, const char *name, struct error *err)
{
	return json_read_tokens(v, name, &((struct sequence_reader *)to)->tokens, err);
}

static int read_sequence_text(void *to, const json_t *v, const char *name, struct error *err)
{
	struct sequence_reader *s = to;
	return json_read_text(v, name, &s->text, &s->n_text, err);
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

static int read_sequence(const struct score_reader *s, const json_t *v, uint32_t i, struct error *err)
{
	static const struct json_field fields[] = {{"tokens", read_sequence_tokens, false}, {"text", read_sequence_text, false}};
	struct sequence_reader in = {0};
	char prefix[JSON_NAME_BYTES], name[JSON_NAME_BYTES];
	snprintf(name, sizeof name, "sequences[%" PRIu32 "]", i);
	snprintf(prefix, sizeof prefix, "sequences[%" PRIu32 "].", i);
	if (!json_is_object(v))
		return json_wrong_type(v, name, "an object with tokens or text", err);
	int r = json_read_object(v, prefix, fields, 2, &in, err);
	if (!r && !in.text == !in.tokens.tokens)
		r = error_set(err, ERROR_INVALID, name, "give either tokens or text");
	if (!r && in.text)
		r = tokenize_sequence(s, &in, i, err);
	if (!r && in.tokens.tokens) {
		s->out->request->items[i].sequence = in.tokens;
		in.tokens = (struct sequence){0};
	}
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

static const struct json_field score_fields[] = {
	{"sequences", read_sequences, true}, {"top_k", read_top_k, false}, {"temperatures", read_temperatures, false},
	{"own", read_own, false}, {"entropy", read_entropy, false}, {"first", read_first, false}, {"last", read_last, false},
	{"encoding", read_encoding, false}, {"values", read_values, false}, {"durable", read_durable, false}, {"store", read_store, false},
	{"deadline_ms", read_deadline, false}, {"gather", read_later, false}, {"draws", read_later, false},
};

int json_read_score(const char *body, size_t n, const struct tokenizer *tokenizer, const struct json_limits *limits, struct json_score *ret,
		    struct error *err)
{
	struct json_score out = {0};
	struct score_reader s = {.out = &out, .store = true, .tokenizer = tokenizer, .limits = limits};
	query_init(&s.query);
	int r = json_read_whole(body, n, score_fields, sizeof score_fields / sizeof *score_fields, &s, err);
	if (r) {
		query_done(&s.query);
		json_score_done(&out);
		return r;
	}
	out.request->query = s.query;
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
