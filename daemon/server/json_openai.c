// SPDX-License-Identifier: Apache-2.0
// The body of POST /v1/completions. Its one complication is what to do with fields of other servers: those that ask for nothing here (user,
// priority, penalties at their neutral value, null anywhere) pass; anything that would change the answer and cannot be done is refused by
// name, because an answer to another question would look just like one to this.
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/server/json_internal.h"
#include "daemon/server/openai.h"
#include "daemon/teacher/generation.h"

#define DEFAULT_MAX_TOKENS 16      // OpenAI's

struct ask_reader {
	struct openai_ask *out;
	const struct tokenizer *tokenizer;
	const struct json_limits *limits;
	const json_t *prompt;              // read last: its tokens depend on add_special_tokens
};

struct ask_field {
	const char *name;
	int (*read)(struct ask_reader *r, const struct ask_field *f, const json_t *v, struct error *err);
	size_t offset;                     // into struct openai_ask
	double min, max;
};

static void *place(struct ask_reader *r, const struct ask_field *f)
{
	return (char *)r->out + f->offset;
}

static int read_flag(struct ask_reader *r, const struct ask_field *f, const json_t *v, struct error *err)
{
	return json_read_bool(v, f->name, place(r, f), err);
}

static int read_not(struct ask_reader *r, const struct ask_field *f, const json_t *v, struct error *err)
{
	bool *to = place(r, f);
	int e = json_read_bool(v, f->name, to, err);
	*to = !*to;
	return e;
}

static int read_count(struct ask_reader *r, const struct ask_field *f, const json_t *v, struct error *err)
{
	int64_t i = 0;
	int e = json_read_integer(v, (int64_t)f->min, (int64_t)f->max, f->name, &i, err);
	if (!e)
		*(uint32_t *)place(r, f) = i < 0 ? 0 : (uint32_t)i;    // top_k -1 is vLLM's way to say all
	return e;
}

static int read_number(struct ask_reader *r, const struct ask_field *f, const json_t *v, struct error *err)
{
	if (!json_is_number(v))
		return json_wrong_type(v, f->name, "a number", err);
	double x = json_number_value(v);
	if (!(x >= f->min && x <= f->max))
		return error_set(err, ERROR_INVALID, f->name, "%g is not between %g and %g", x, f->min, f->max);
	*(double *)place(r, f) = x;
	return 0;
}

static int read_seed(struct ask_reader *r, const struct ask_field *f, const json_t *v, struct error *err)
{
	int64_t i = 0;
	int e = json_read_integer(v, INT64_MIN, INT64_MAX, f->name, &i, err);
	r->out->seed = (uint64_t)i;
	r->out->has_seed = !e;
	return e;
}

static int read_logprobs(struct ask_reader *r, const struct ask_field *f, const json_t *v, struct error *err)
{
	int64_t i = 0;
	int e = json_read_integer(v, -1, UINT32_MAX - 1, f->name, &i, err);
	bool prompt = f->offset == offsetof(struct openai_ask, prompt_logprobs);
	if (e)
		return e;
	*(uint32_t *)place(r, f) = i < 0 ? UINT32_MAX : (uint32_t)i;
	*(prompt ? &r->out->want_prompt_logprobs : &r->out->want_logprobs) = true;
	return 0;
}

static int read_model(struct ask_reader *r, const struct ask_field *f, const json_t *v, struct error *err)
{
	return json_read_text(v, f->name, &r->out->model, NULL, err);
}

static int add_stop(struct ask_reader *r, const json_t *v, const char *name, struct error *err)
{
	struct openai_ask *a = r->out;
	size_t n = 0;
	int e = json_read_text(v, name, &a->stop[a->n_stop], &n, err);
	if (e)
		return e;
	a->n_stop++;
	if (!n)
		return error_set(err, ERROR_INVALID, name, "an empty text stops everything");
	if (n > GENERATION_MAX_STOP_BYTES)
		return error_set(err, ERROR_TOO_LARGE, name, "%zu bytes, the limit is %d", n, GENERATION_MAX_STOP_BYTES);
	return 0;
}

// A string, or a list of them.
static int read_stop(struct ask_reader *r, const struct ask_field *f, const json_t *v, struct error *err)
{
	size_t n = json_is_array(v) ? json_array_size(v) : 1;
	char item[JSON_NAME_BYTES];
	int e = 0;
	if (n > GENERATION_MAX_STOPS)
		return error_set(err, ERROR_TOO_LARGE, f->name, "%zu stop texts, the limit is %d", n, GENERATION_MAX_STOPS);
	r->out->stop = calloc(n + 1, sizeof *r->out->stop);
	if (!r->out->stop)
		return error_set(err, ERROR_MEMORY, f->name, "no memory for it");
	if (!json_is_array(v))
		return add_stop(r, v, f->name, err);
	for (size_t i = 0; i < n && !e; i++) {
		snprintf(item, sizeof item, "%s[%zu]", f->name, i);
		e = add_stop(r, json_array_get(v, i), item, err);
	}
	return e;
}

static int read_stop_ids(struct ask_reader *r, const struct ask_field *f, const json_t *v, struct error *err)
{
	if (json_array_size(v) > GENERATION_MAX_STOP_IDS)
		return error_set(err, ERROR_TOO_LARGE, f->name, "%zu ids, the limit is %d", json_array_size(v), GENERATION_MAX_STOP_IDS);
	return json_read_tokens(v, f->name, &r->out->stop_ids, err);
}

static int read_stream_options(struct ask_reader *r, const struct ask_field *f, const json_t *v, struct error *err)
{
	const char *key;
	json_t *value;
	int e = 0;
	if (!json_is_object(v))
		return json_wrong_type(v, f->name, "an object", err);
	json_object_foreach((json_t *)v, key, value) {
		if (strcmp(key, "include_usage") == 0 && !e)
			e = json_read_bool(value, "stream_options.include_usage", &r->out->stream_usage, err);
	}
	return e;
}

static int read_later(struct ask_reader *r, const struct ask_field *f, const json_t *v, struct error *err)
{
	(void)f;
	(void)err;
	r->prompt = v;
	return 0;
}

static int ignore(struct ask_reader *r, const struct ask_field *f, const json_t *v, struct error *err)
{
	(void)r;
	(void)f;
	(void)v;
	(void)err;
	return 0;
}

static bool is_empty(const json_t *v)
{
	switch (json_typeof(v)) {
	case JSON_OBJECT: return json_object_size(v) == 0;
	case JSON_ARRAY: return json_array_size(v) == 0;
	case JSON_STRING: return json_string_length(v) == 0;
	case JSON_INTEGER:
	case JSON_REAL: return json_number_value(v) == 0;
	default: return !json_is_true(v);
	}
}

// What other servers do and this one does not: only the value that asks for nothing (`min`, or something empty) is taken.
static int read_neutral(struct ask_reader *r, const struct ask_field *f, const json_t *v, struct error *err)
{
	(void)r;
	if (f->min != 0 ? json_is_number(v) && json_number_value(v) == f->min : is_empty(v))
		return 0;
	return error_set(err, ERROR_INVALID, f->name, "is not supported by this server (only its neutral value is)");
}

#define AT(member) offsetof(struct openai_ask, member)
static const struct ask_field ask_fields[] = {
	{"model", read_model, 0, 0, 0}, {"prompt", read_later, 0, 0, 0}, {"echo", read_flag, AT(echo), 0, 0},
	{"n", read_count, AT(n), 1, 65536}, {"max_tokens", read_count, AT(max_tokens), 0, UINT32_MAX},
	{"logprobs", read_logprobs, AT(logprobs), 0, 0},
	{"prompt_logprobs", read_logprobs, AT(prompt_logprobs), 0, 0}, {"temperature", read_number, AT(temperature), 0, 1e4},
	{"top_p", read_number, AT(top_p), 1e-6, 1}, {"min_p", read_number, AT(min_p), 0, 1},
	{"top_k", read_count, AT(top_k), -1, UINT32_MAX}, {"seed", read_seed, 0, 0, 0}, {"stop", read_stop, 0, 0, 0},
	{"stop_token_ids", read_stop_ids, 0, 0, 0}, {"stream", read_flag, AT(stream), 0, 0},
	{"stream_options", read_stream_options, 0, 0, 0}, {"ignore_eos", read_flag, AT(ignore_eos), 0, 0},
	{"include_stop_str_in_output", read_flag, AT(keep_stop), 0, 0}, {"skip_special_tokens", read_not, AT(keep_special), 0, 0},
	{"return_token_ids", read_flag, AT(return_ids), 0, 0}, {"return_tokens_as_token_ids", read_flag, AT(ids_as_text), 0, 0},
	{"add_special_tokens", read_not, AT(no_template), 0, 0},
	// ask for nothing
	{"user", ignore, 0, 0, 0}, {"metadata", ignore, 0, 0, 0}, {"store", ignore, 0, 0, 0}, {"service_tier", ignore, 0, 0, 0},
	{"request_id", ignore, 0, 0, 0}, {"session_id", ignore, 0, 0, 0}, {"priority", ignore, 0, 0, 0}, {"cache_salt", ignore, 0, 0, 0},
	{"spaces_between_special_tokens", ignore, 0, 0, 0}, {"detokenize", ignore, 0, 0, 0},
	// would change the answer: neutral only
	{"suffix", read_neutral, 0, 0, 0}, {"min_tokens", read_neutral, 0, 0, 0}, {"presence_penalty", read_neutral, 0, 0, 0},
	{"frequency_penalty", read_neutral, 0, 0, 0},
	{"repetition_penalty", read_neutral, 0, 1, 0}, {"length_penalty", read_neutral, 0, 1, 0}, {"best_of", read_neutral, 0, 1, 0},
	{"logit_bias", read_neutral, 0, 0, 0}, {"use_beam_search", read_neutral, 0, 0, 0}, {"allowed_token_ids", read_neutral, 0, 0, 0},
	{"bad_words", read_neutral, 0, 0, 0}, {"truncate_prompt_tokens", read_neutral, 0, 0, 0}, {"prompt_embeds", read_neutral, 0, 0, 0},
	{"logprob_token_ids", read_neutral, 0, 0, 0}, {"response_format", read_neutral, 0, 0, 0},
	{"structured_outputs", read_neutral, 0, 0, 0}, {"guided_json", read_neutral, 0, 0, 0}, {"guided_regex", read_neutral, 0, 0, 0},
	{"guided_choice", read_neutral, 0, 0, 0}, {"guided_grammar", read_neutral, 0, 0, 0},
};

static const struct ask_field *field_find(const char *name)
{
	for (size_t i = 0; i < sizeof ask_fields / sizeof *ask_fields; i++)
		if (strcmp(ask_fields[i].name, name) == 0)
			return &ask_fields[i];
	return NULL;
}

static int read_fields(struct ask_reader *r, const json_t *root, struct error *err)
{
	const char *key;
	json_t *value;
	int e = 0;
	json_object_foreach((json_t *)root, key, value) {
		const struct ask_field *f = field_find(key);
		if (!f)
			return error_set(err, ERROR_INVALID, *key ? key : "\"\"", "unrecognized request argument");
		if (!json_is_null(value) && (e = f->read(r, f, value, err)))
			return e;
	}
	return 0;
}

// ---- the prompt: a text, a list of texts, a list of ids, or a list of lists of ids

static int read_text_prompt(const struct ask_reader *r, const json_t *v, const char *name, struct openai_prompt *to, struct error *err)
{
	struct tokens tokens = {0};
	int e = json_read_text(v, name, &to->text, &to->n_text, err);
	// As tokenizer(text) of transformers: special tokens written in the text (a chat template's) become their ids.
	if (!e)
		e = tokenizer_encode(r->tokenizer, to->text, to->n_text, true, !r->out->no_template, r->limits->max_tokens, &tokens, err);
	if (e && err)
		snprintf(err->field, sizeof err->field, "%s", name);
	if (!e && !tokens.n)
		e = error_set(err, ERROR_INVALID, name, "the text is empty");
	if (!e && sequence_init(&to->tokens, tokens.ids, (uint32_t)tokens.n))
		e = error_set(err, ERROR_MEMORY, name, "no memory for %zu tokens", tokens.n);
	tokens_done(&tokens);
	return e;
}

static int read_one_prompt(const struct ask_reader *r, const json_t *v, const char *name, struct openai_prompt *to, struct error *err)
{
	if (json_is_string(v))
		return read_text_prompt(r, v, name, to, err);
	if (!json_is_array(v))
		return json_wrong_type(v, name, "a text or a list of token ids", err);
	int e = json_read_tokens(v, name, &to->tokens, err);
	return !e && !to->tokens.n_tokens ? error_set(err, ERROR_INVALID, name, "there are no tokens") : e;
}

static int read_prompts(struct ask_reader *r, struct error *err)
{
	struct openai_ask *a = r->out;
	const json_t *v = r->prompt;
	char name[JSON_NAME_BYTES] = "prompt";
	if (!v)
		return error_set(err, ERROR_INVALID, name, "is required");
	a->prompt_is_list = json_is_array(v) && !json_is_integer(json_array_get(v, 0));
	size_t n = a->prompt_is_list ? json_array_size(v) : 1;
	if (!n)
		return error_set(err, ERROR_INVALID, name, "there are none");
	if (n > r->limits->max_sequences)
		return error_set(err, ERROR_TOO_LARGE, name, "%zu prompts, the limit is %" PRIu32, n, r->limits->max_sequences);
	a->prompts = calloc(n, sizeof *a->prompts);
	if (!a->prompts)
		return error_set(err, ERROR_MEMORY, name, "no memory for %zu prompts", n);
	a->n_prompts = (uint32_t)n;
	int e = 0;
	for (size_t i = 0; i < n && !e; i++) {
		if (a->prompt_is_list)
			snprintf(name, sizeof name, "prompt[%zu]", i);
		e = read_one_prompt(r, a->prompt_is_list ? json_array_get(v, i) : v, name, &a->prompts[i], err);
	}
	return e;
}

static int check_ask(const struct ask_reader *r, struct error *err)
{
	const struct openai_ask *a = r->out;
	if ((uint64_t)a->n * a->n_prompts > r->limits->max_sequences)
		return error_set(err, ERROR_TOO_LARGE, "n", "%" PRIu64 " completions, the limit is %" PRIu32, (uint64_t)a->n * a->n_prompts,
				 r->limits->max_sequences);
	if (a->stream_usage && !a->stream)
		return error_set(err, ERROR_INVALID, "stream_options", "only with stream");
	if (a->stream && a->want_prompt_logprobs)
		return error_set(err, ERROR_INVALID, "prompt_logprobs", "not with stream");
	if (a->stream && a->keep_special)
		return error_set(err, ERROR_INVALID, "skip_special_tokens", "false only without stream");
	return 0;
}

int openai_ask_read(const char *body, size_t n, const struct tokenizer *tokenizer, const struct json_limits *limits, struct openai_ask *ret,
		    struct error *err)
{
	struct openai_ask out = {.n = 1, .max_tokens = DEFAULT_MAX_TOKENS, .temperature = 1, .top_p = 1};
	struct ask_reader r = {.out = &out, .tokenizer = tokenizer, .limits = limits};
	json_t *root = NULL;
	int e = json_parse(body, n, &root, err);
	if (!e)
		e = read_fields(&r, root, err);
	if (!e)
		e = read_prompts(&r, err);
	if (!e)
		e = check_ask(&r, err);
	json_decref(root);
	if (e)
		openai_ask_done(&out);
	else
		*ret = out;
	return e;
}

void openai_ask_done(struct openai_ask *a)
{
	for (uint32_t i = 0; i < a->n_prompts; i++) {
		sequence_done(&a->prompts[i].tokens);
		free(a->prompts[i].text);
	}
	for (uint32_t i = 0; i < a->n_stop; i++)
		free(a->stop[i]);
	free(a->prompts);
	free(a->stop);
	free(a->model);
	sequence_done(&a->stop_ids);
	*a = (struct openai_ask){0};
}
