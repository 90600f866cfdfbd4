// SPDX-License-Identifier: Apache-2.0
// POST /v1/completions and the resources beside it. What is said about the prompt comes from a score of it. So does the first token after it
// where that is all that is asked (as evaluation harnesses and trainers do): the row after the last token is there anyway, its largest
// id is the greedy choice. One pass instead of two.
#include "daemon/server/openai.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "common/error.h"
#include "daemon/server/buffer.h"
#include "daemon/server/openai_internal.h"
#include "daemon/server/service.h"
#include "daemon/teacher/teacher.h"

const struct teacher_info *openai_teacher(const struct exchange *x)
{
	return teacher_info(service_teacher(x->service));
}

// The name in /v1/models, or the fingerprint.
bool openai_model_matches(const struct teacher_info *info, const char *name)
{
	char id[CONTENT_ID_HEX];
	content_id_to_hex(&info->fingerprint, id);
	return strcmp(name, info->name) == 0 || strcmp(name, id) == 0;
}

// ---- the question

bool openai_is_greedy(const struct openai_ask *a)
{
	return a->temperature == 0 || a->top_k == 1;
}

bool openai_wants_prompt(const struct openai_ask *a)
{
	return a->want_prompt_logprobs || (a->echo && a->want_logprobs);
}

static uint32_t larger(uint32_t a, uint32_t b)
{
	return a > b ? a : b;
}

// How many ids of each row are needed; UINT32_MAX was asked as "all".
static int count_top_k(const struct exchange *x, uint32_t *ret_top_k, struct error *err)
{
	struct openai *o = x->own;
	struct openai_ask *a = &o->ask;
	const struct teacher_info *info = openai_teacher(x);
	struct { bool wanted; uint32_t *n; const char *name; } counts[] = {
		{a->want_logprobs, &a->logprobs, "logprobs"}, {a->want_prompt_logprobs, &a->prompt_logprobs, "prompt_logprobs"}};
	uint32_t k = o->one_token;
	for (int i = 0; i < 2; i++) {
		if (!counts[i].wanted)
			continue;
		if (*counts[i].n == UINT32_MAX)
			*counts[i].n = info->architecture.vocab_size;
		if (*counts[i].n > info->max_top_k)
			return error_set(err, ERROR_INVALID, counts[i].name, "%" PRIu32 " is over the limit of %" PRIu32, *counts[i].n, info->max_top_k);
		k = larger(k, *counts[i].n);
	}
	*ret_top_k = k;
	return 0;
}

static int make_score(struct exchange *x, struct request **ret_request, struct error *err)
{
	struct openai *o = x->own;
	const struct openai_ask *a = &o->ask;
	struct request *r = NULL;
	uint32_t top_k = 0;
	int e = count_top_k(x, &top_k, err);
	if (!e)
		e = request_new(a->n_prompts, &r, err);
	if (e)
		return e;
	r->query.top_k = top_k;
	r->query.own = true;
	r->query.first = openai_wants_prompt(a) ? 0 : -1;
	for (uint32_t i = 0; i < a->n_prompts && !e; i++)
		if (sequence_init(&r->items[i].sequence, a->prompts[i].tokens.tokens, a->prompts[i].tokens.n_tokens))
			e = error_set(err, ERROR_MEMORY, "prompt", "no memory for it");
	if (e)
		request_free(r);
	else
		*ret_request = r;
	return e;
}

// The service speaks of sequences[i].tokens[j]; here that was prompt[i][j], or prompt[j].
static void rename_field(const struct openai_ask *a, struct error *err)
{
	uint32_t i = 0, j = 0;
	int n = sscanf(err->field, "sequences[%" SCNu32 "].tokens[%" SCNu32 "]", &i, &j);
	if (n < 1)
		return;
	if (!a->prompt_is_list)
		snprintf(err->field, sizeof err->field, n == 2 ? "prompt[%" PRIu32 "]" : "prompt", j);
	else if (n == 2)
		snprintf(err->field, sizeof err->field, "prompt[%" PRIu32 "][%" PRIu32 "]", i, j);
	else
		snprintf(err->field, sizeof err->field, "prompt[%" PRIu32 "]", i);
}

static int submit_score(struct exchange *x, struct error *err)
{
	struct request *r = NULL;
	struct openai *o = x->own;
	int e = make_score(x, &r, err);
	if (!e && (e = exchange_submit(x, r, err))) {
		rename_field(&o->ask, err);
		request_free(r);
	}
	return e;
}

static int name_reply(struct openai *o, struct error *err)
{
	uint8_t bytes[16];
	if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes)
		return error_set(err, ERROR_IO, NULL, "no random bytes for an id");
	strcpy(o->id, "cmpl-");
	for (size_t i = 0; i < sizeof bytes; i++)
		snprintf(o->id + 5 + 2 * i, 3, "%02x", bytes[i]);
	o->created = (long long)time(NULL);
	if (!o->ask.has_seed)
		memcpy(&o->ask.seed, bytes, sizeof o->ask.seed);
	return 0;
}

static int openai_start(struct exchange *x, const char *body, size_t n, struct error *err)
{
	struct query_limits limits;
	struct json_limits bounds;
	struct openai *o = x->own = calloc(1, sizeof *o);
	if (!o)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the request");
	service_limits(x->service, &limits, &bounds.max_sequences);
	bounds.max_tokens = limits.max_tokens;
	struct openai_ask *a = &o->ask;
	o->writer.tokenizer = teacher_tokenizer(service_teacher(x->service));
	int e = openai_ask_read(body, n, o->writer.tokenizer, &bounds, a, err);
	if (!e && a->model && !openai_model_matches(openai_teacher(x), a->model))
		e = error_set(err, ERROR_NOT_FOUND, "model", "the model \"%.100s\" does not exist; this server has \"%.100s\"", a->model,
			      openai_teacher(x)->name);
	if (!e)
		e = name_reply(o, err);
	if (e)
		return e;
	o->writer.ids_as_text = a->ids_as_text;
	o->one_token = a->max_tokens == 1 && openai_is_greedy(a);
	if (a->max_tokens > 0 && !o->one_token)
		return error_set(err, ERROR_INVALID, "max_tokens", "more than one token, or this sampling, is not supported by this version");
	x->content_type = a->stream ? "text/event-stream" : "application/json";
	return submit_score(x, err);
}

static int openai_check(struct exchange *x, struct error *err)
{
	const struct openai *o = x->own;
	for (uint32_t i = 0; i < x->n_requests; i++) {
		for (uint32_t j = 0; j < x->requests[i]->n_items; j++) {
			const struct request_item *item = &x->requests[i]->items[j];
			if (item->error.code) {
				*err = item->error;
				rename_field(&o->ask, err);
				return error_errno(err->code);
			}
			if (item->not_finite)
				return error_set(err, ERROR_NOT_FINITE, o->ask.prompt_is_list ? "prompt" : NULL,
						 "the teacher gave NaN or infinity for prompt %" PRIu32, j);
		}
	}
	return 0;
}

// ---- the answer

static void write_head(struct buffer *b, const struct exchange *x)
{
	const struct openai *o = x->own;
	const struct teacher_info *info = openai_teacher(x);
	char id[CONTENT_ID_HEX];
	content_id_to_hex(&info->fingerprint, id);
	buffer_printf(b, "{\"id\":\"%s\",\"object\":\"text_completion\",\"created\":%lld,\"model\":", o->id, o->created);
	buffer_string(b, info->name, strlen(info->name));
	buffer_printf(b, ",\"system_fingerprint\":\"%s\",\"choices\":[", id);
}

static void write_usage(struct buffer *b, const struct openai *o)
{
	buffer_printf(b, ",\"usage\":{\"prompt_tokens\":%" PRIu64 ",\"completion_tokens\":%" PRIu64 ",\"total_tokens\":%" PRIu64 "}",
		      o->n_prompt_tokens, o->n_new_tokens, o->n_prompt_tokens + o->n_new_tokens);
}

static int next_choice(struct exchange *x, struct buffer *b, struct error *err)
{
	struct openai *o = x->own;
	struct openai_choice c = {0};
	int e = openai_choice_collect(x, o->prompt, &c, err);
	if (!e)
		e = openai_choice_encode(b, o, o->prompt * o->ask.n + o->choice, &c, err);
	o->n_new_tokens += c.n_ids;
	if (o->choice == 0)
		o->n_prompt_tokens += c.prompt->tokens.n_tokens;
	openai_choice_done(&c);
	if (++o->choice == o->ask.n) {
		o->choice = 0;
		o->prompt++;
	}
	return e;
}

static int encode_whole(struct exchange *x, struct buffer *b, struct error *err)
{
	struct openai *o = x->own;
	if (o->n_pieces++ == 0)
		write_head(b, x);
	else
		buffer_text(b, ",");
	int e = next_choice(x, b, err);
	if (!e && o->prompt == o->ask.n_prompts) {
		buffer_text(b, "]");
		write_usage(b, o);
		buffer_text(b, "}");
		x->ended = true;
	}
	return e;
}

static int encode_event(struct exchange *x, struct buffer *b, struct error *err)
{
	struct openai *o = x->own;
	buffer_text(b, "data: ");
	write_head(b, x);
	int e = next_choice(x, b, err);
	buffer_text(b, "]}\n\n");
	if (e || o->prompt < o->ask.n_prompts)
		return e;
	if (o->ask.stream_usage) {
		buffer_text(b, "data: ");
		write_head(b, x);
		buffer_text(b, "]");
		write_usage(b, o);
		buffer_text(b, "}\n\n");
	}
	buffer_text(b, "data: [DONE]\n\n");
	x->ended = true;
	return 0;
}

static int openai_encode(struct exchange *x, struct buffer *b, struct error *err)
{
	const struct openai *o = x->own;
	return o->ask.stream ? encode_event(x, b, err) : encode_whole(x, b, err);
}

static void openai_done(struct exchange *x)
{
	struct openai *o = x->own;
	if (o) {
		openai_ask_done(&o->ask);
		openai_writer_done(&o->writer);
	}
	free(o);
}

const struct exchange_kind exchange_openai = {
	.path = "/v1/completions", .start = openai_start, .check = openai_check, .encode = openai_encode,
	.done = openai_done,
};
