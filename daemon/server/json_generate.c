// SPDX-License-Identifier: Apache-2.0
// The body of POST /v1/generate. Texts become tokens last, when every field was read: how depends on `specials`.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/clock.h"
#include "daemon/server/json.h"
#include "daemon/server/json_internal.h"
#include "daemon/teacher/generation.h"
#include "daemon/teacher/request.h"

struct generate_reader {
	struct generation_query query;
	struct choice_query asked;
	struct sequence *prompts, forced;
	uint32_t n_prompts;
	const json_t *prompts_value, *forced_value;
	bool logprobs, specials;
	int64_t deadline_ms;               // 0 = none
	const struct tokenizer *tokenizer;
	const struct json_limits *limits;
};

static int read_prompts(void *to, const json_t *v, const char *name, struct error *err)
{
	struct generate_reader *g = to;
	size_t n = json_array_size(v);
	if (!json_is_array(v))
		return json_wrong_type(v, name, "an array of prompts", err);
	if (!n)
		return error_set(err, ERROR_INVALID, name, "there are none");
	if (n > g->limits->max_sequences)
		return error_set(err, ERROR_TOO_LARGE, name, "%zu prompts, the limit is %" PRIu32, n, g->limits->max_sequences);
	g->prompts_value = v;
	g->n_prompts = (uint32_t)n;
	return 0;
}

static int read_response_prefix(void *to, const json_t *v, const char *name, struct error *err)
{
	if (!json_is_object(v))
		return json_wrong_type(v, name, "an object with tokens or text", err);
	((struct generate_reader *)to)->forced_value = v;
	return 0;
}

static int read_count(void *to, const json_t *v, const char *name, struct error *err)
{
	int64_t i = 0;
	int r = json_read_integer(v, 0, UINT32_MAX, name, &i, err);
	*(uint32_t *)to = (uint32_t)i;
	return r;
}

static int read_float(void *to, const json_t *v, const char *name, struct error *err)
{
	if (!json_is_number(v))
		return json_wrong_type(v, name, "a number", err);
	*(float *)to = (float)json_number_value(v);
	return 0;
}

static int read_seed(void *to, const json_t *v, const char *name, struct error *err)
{
	struct generate_reader *g = to;
	int64_t i = 0;
	int r = json_read_integer(v, 0, INT64_MAX, name, &i, err);
	g->query.seed = (uint64_t)i;
	g->query.has_seed = true;
	return r;
}

static int add_stop(struct generation_query *q, const json_t *v, const char *name, struct error *err)
{
	size_t n = 0;
	char *text = NULL;
	int r = json_read_text(v, name, &text, &n, err);
	if (!r)
		q->stops[q->n_stops++] = text;    // its length is generation_check's to judge
	return r;
}

static int read_stop(void *to, const json_t *v, const char *name, struct error *err)
{
	struct generate_reader *g = to;
	size_t n = json_array_size(v);
	int r = 0;
	if (json_is_string(v))
		return add_stop(&g->query, v, name, err);
	if (!json_is_array(v))
		return json_wrong_type(v, name, "a string or an array of strings", err);
	if (n > GENERATION_MAX_STOPS)
		return error_set(err, ERROR_TOO_LARGE, name, "%zu strings, the limit is %d", n, GENERATION_MAX_STOPS);
	for (size_t i = 0; i < n && r == 0; i++) {
		char item[JSON_NAME_BYTES];
		snprintf(item, sizeof item, "%.40s[%zu]", name, i);
		r = add_stop(&g->query, json_array_get(v, i), item, err);
	}
	return r;
}

static int read_stop_ids(void *to, const json_t *v, const char *name, struct error *err)
{
	struct generate_reader *g = to;
	struct sequence ids = {0};
	int r = json_read_tokens(v, name, &ids, err);
	if (!r && ids.n_tokens > GENERATION_MAX_STOP_IDS)
		r = error_set(err, ERROR_TOO_LARGE, name, "%" PRIu32 " ids, the limit is %d", ids.n_tokens, GENERATION_MAX_STOP_IDS);
	if (!r && ids.n_tokens)
		memcpy(g->query.stop_ids, ids.tokens, ids.n_tokens * sizeof *ids.tokens);
	g->query.n_stop_ids = r ? 0 : ids.n_tokens;
	sequence_done(&ids);
	return r;
}

static int read_deadline(void *to, const json_t *v, const char *name, struct error *err)
{
	return json_read_integer(v, 1, JSON_MAX_DEADLINE_MS, name, to, err);
}

#define AT(member) offsetof(struct generate_reader, member)

static const struct json_field generate_fields[] = {
	{"prompts", read_prompts, true, 0}, {"response_prefix", read_response_prefix, false, 0},
	{"specials", json_field_bool, false, AT(specials)}, {"n", read_count, false, AT(query.n)},
	{"first_sample", read_count, false, AT(query.first_sample)},
	{"max_tokens", read_count, false, AT(query.max_tokens)}, {"temperature", read_float, false, AT(query.sampling.temperature)},
	{"top_k", read_count, false, AT(query.sampling.top_k)}, {"top_p", read_float, false, AT(query.sampling.top_p)},
	{"min_p", read_float, false, AT(query.sampling.min_p)}, {"typical_p", read_float, false, AT(query.sampling.typical_p)},
	{"seed", read_seed, false, 0}, {"stop", read_stop, false, 0}, {"stop_ids", read_stop_ids, false, 0},
	{"ignore_eos", json_field_bool, false, AT(query.ignore_eos)}, {"rows", read_count, false, AT(query.top_k)},
	{"logprobs", json_field_bool, false, AT(logprobs)}, {"stream", json_field_bool, false, AT(query.stream)},
	{"deadline_ms", read_deadline, false, AT(deadline_ms)},
	{"teacher", json_read_teacher, false, AT(asked)},
};

// ---- tokens or text

struct part_reader { struct sequence tokens; char *text; size_t n_text; };

static int read_part_tokens(void *to, const json_t *v, const char *name, struct error *err)
{
	return json_read_tokens(v, name, &((struct part_reader *)to)->tokens, err);
}

static int read_part_text(void *to, const json_t *v, const char *name, struct error *err)
{
	struct part_reader *p = to;
	return json_read_text(v, name, &p->text, &p->n_text, err);
}

static int tokenize(const struct generate_reader *g, const struct part_reader *in, const char *name, bool whole, struct sequence *ret,
		    struct error *err)
{
	struct tokens tokens = {0};
	char field[JSON_NAME_BYTES];
	snprintf(field, sizeof field, "%.50s.text", name);
	int r = whole ? tokenizer_encode(g->tokenizer, in->text, in->n_text, g->specials, true, g->limits->max_tokens, &tokens, err)
		: tokenizer_encode_part(g->tokenizer, in->text, in->n_text, g->specials, g->limits->max_tokens, &tokens, err);
	if (r && err)
		snprintf(err->field, sizeof err->field, "%s", field);
	if (!r && !tokens.n)
		r = error_set(err, ERROR_INVALID, field, "the text is empty");
	if (!r && sequence_init(ret, tokens.ids, (uint32_t)tokens.n))
		r = error_set(err, ERROR_MEMORY, field, "no memory for %zu tokens", tokens.n);
	tokens_done(&tokens);
	return r;
}

// whole: a text begins and ends as the tokenizer's template has it; else it is the middle of one.
static int read_part(const struct generate_reader *g, const json_t *v, const char *name, bool whole, struct sequence *ret,
		     struct error *err)
{
	static const struct json_field fields[] = {{"tokens", read_part_tokens, false, 0}, {"text", read_part_text, false, 0}};
	struct part_reader in = {0};
	char prefix[JSON_NAME_BYTES];
	snprintf(prefix, sizeof prefix, "%.50s.", name);
	if (!json_is_object(v))
		return json_wrong_type(v, name, "an object with tokens or text", err);
	int r = json_read_object(v, prefix, fields, 2, &in, err);
	if (!r && !in.text == !in.tokens.tokens)
		r = error_set(err, ERROR_INVALID, name, "give either tokens or text");
	if (!r && in.text)
		r = tokenize(g, &in, name, whole, ret, err);
	if (!r && in.tokens.tokens) {
		*ret = in.tokens;
		in.tokens = (struct sequence){0};
	}
	sequence_done(&in.tokens);
	free(in.text);
	return r;
}

static int read_parts(struct generate_reader *g, struct error *err)
{
	int r = 0;
	g->prompts = calloc(g->n_prompts, sizeof *g->prompts);
	if (!g->prompts)
		return error_set(err, ERROR_MEMORY, "prompts", "no memory for %" PRIu32 " prompts", g->n_prompts);
	for (uint32_t i = 0; i < g->n_prompts && r == 0; i++) {
		char name[JSON_NAME_BYTES];
		snprintf(name, sizeof name, "prompts[%" PRIu32 "]", i);
		r = read_part(g, json_array_get(g->prompts_value, i), name, true, &g->prompts[i], err);
	}
	if (!r && g->forced_value)
		r = read_part(g, g->forced_value, "response_prefix", false, &g->forced, err);
	g->query.forced = g->forced.tokens;
	g->query.n_forced = g->forced.n_tokens;
	return r;
}

int json_read_generate(const char *body, size_t n, const struct tokenizer *tokenizer, const struct json_limits *limits,
		       struct json_generate *ret, struct error *err)
{
	struct generate_reader g = {.tokenizer = tokenizer, .limits = limits};
	struct request *request = NULL;
	json_t *root = NULL;
	generation_query_init(&g.query);
	int r = json_parse(body, n, &root, err);
	if (!r)
		r = json_read_object(root, "", generate_fields, sizeof generate_fields / sizeof *generate_fields, &g, err);
	if (!r)
		r = read_parts(&g, err);
	if (!r)
		r = generation_request_new(&g.query, g.prompts, g.n_prompts, limits->max_sequences, &request, err);
	for (uint32_t i = 0; g.prompts && i < g.n_prompts; i++)
		sequence_done(&g.prompts[i]);
	free(g.prompts);
	generation_query_done(&g.query);
	json_decref(root);
	if (r)
		return r;
	request->asked = g.asked;
	request->deadline_ms = g.deadline_ms ? clock_ms() + (uint64_t)g.deadline_ms : 0;
	*ret = (struct json_generate){.request = request, .logprobs = g.logprobs};
	return 0;
}

void json_generate_done(struct json_generate *g)
{
	request_free(g->request);
	g->request = NULL;
}
