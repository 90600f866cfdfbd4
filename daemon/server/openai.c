// SPDX-License-Identifier: Apache-2.0
// POST /v1/completions from body to reply, whole or as a stream of events.
#include "daemon/server/openai.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "common/error.h"
#include "common/buffer.h"
#include "daemon/server/openai_internal.h"
#include "daemon/server/service.h"
#include "daemon/teacher/choice.h"
#include "daemon/teacher/teacher.h"

const struct teacher_info *openai_teacher(const struct exchange *x)
{
	uint32_t n;
	return &teacher_infos(service_teacher(x->service), &n)[((const struct openai *)x->own)->teacher];
}

// The name in /v1/models, or the fingerprint; without one the first teacher answers.
static int find_model(const struct exchange *x, struct openai *o, struct error *err)
{
	uint32_t n;
	const struct teacher_info *infos = teacher_infos(service_teacher(x->service), &n);
	return o->ask.model ? choice_find(o->ask.model, "model", infos, n, &o->teacher, err) : 0;
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

static int make_choices(struct openai *o, struct error *err)
{
	o->n_choices = o->ask.n_prompts * o->ask.n;
	o->choices = calloc(o->n_choices, sizeof *o->choices);
	if (o->choices)
		return 0;
	o->n_choices = 0;
	return error_set(err, ERROR_MEMORY, NULL, "no memory for the request");
}

static int openai_start(struct exchange *x, const char *body, size_t n, struct error *err)
{
	struct query_limits limits;
	struct json_limits bounds;
	struct openai *o = x->own = calloc(1, sizeof *o);
	if (!o)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the request");
	service_limits(x->service, 0, &limits, &bounds.max_sequences);
	bounds.max_tokens = service_max_tokens(x->service);
	struct openai_ask *a = &o->ask;
	o->writer.tokenizer = teacher_tokenizer(service_teacher(x->service));
	int e = openai_ask_read(body, n, o->writer.tokenizer, &bounds, a, err);
	if (!e)
		e = find_model(x, o, err);
	if (!e)
		e = name_reply(o, err);
	if (!e)
		e = make_choices(o, err);
	if (e)
		return e;
	o->writer.ids_as_text = a->ids_as_text;
	x->text = REQUEST_TOKENS;
	x->shown_bytes = openai_shown_bytes(a, &o->writer);
	x->content_type = a->stream ? "text/event-stream" : "application/json";
	return openai_submit(x, err);
}

static void openai_taken(struct exchange *x, const struct request_item *item)
{
	struct openai *o = x->own;
	bool good = !item->error.code;
	if (item->request == o->score) {
		o->n_scores_left--;
		for (uint32_t i = 0; i < o->ask.n && !o->generation; i++)
			o->choices[item->index * o->ask.n + i].complete = good;
	} else {
		o->choices[item->index].complete = good;
	}
}

// The next completion that has something new; n_choices when none has. In a stream all get their turn.
static uint32_t find_ready(const struct openai *o)
{
	for (uint32_t i = 0; i < o->n_choices; i++) {
		uint32_t index = (o->next + i) % o->n_choices;
		if (openai_choice_is_ready(o, index))
			return index;
	}
	return o->n_choices;
}

static bool openai_is_ready(const struct exchange *x)
{
	const struct openai *o = x->own;
	return o->ask.stream && find_ready(o) < o->n_choices;
}

static int openai_check(const struct exchange *x, struct error *err)
{
	const struct openai *o = x->own;
	if (o->failure.code) {
		*err = o->failure;
		return error_errno(err->code);
	}
	if (x->n_left)
		return 0;      // a stream begins; a fault after this is an event of it
	for (uint32_t i = 0; i < x->n_requests; i++) {
		for (uint32_t j = 0; j < x->requests[i]->n_items; j++) {
			const struct request_item *item = &x->requests[i]->items[j];
			if (item->error.code) {
				*err = item->error;
				openai_rename(&o->ask, err);
				return error_errno(err->code);
			}
			if (item->not_finite)
				return error_set(err, ERROR_NOT_FINITE, "prompt",
					"the teacher gave NaN or infinity for prompt %" PRIu32, j);
		}
	}
	return 0;
}

// ---- the reply

static void encode_head(struct buffer *b, const struct exchange *x)
{
	const struct openai *o = x->own;
	const struct teacher_info *info = openai_teacher(x);
	char id[CONTENT_ID_HEX];
	content_id_to_hex(&info->fingerprint, id);
	buffer_printf(b, "{\"id\":\"%s\",\"object\":\"text_completion\",\"created\":%lld,\"model\":", o->id, o->created);
	buffer_string(b, info->name, strlen(info->name));
	buffer_printf(b, ",\"system_fingerprint\":\"%s\",\"choices\":[", id);
}

static void encode_usage(struct buffer *b, const struct openai *o)
{
	uint64_t n_prompt_tokens = 0;
	for (uint32_t i = 0; i < o->ask.n_prompts; i++)
		n_prompt_tokens += o->ask.prompts[i].tokens.n_tokens;
	buffer_printf(b, ",\"usage\":{\"prompt_tokens\":%" PRIu64 ",\"completion_tokens\":%" PRIu64 ",\"total_tokens\":%" PRIu64 "}",
		      n_prompt_tokens, o->n_new_tokens, n_prompt_tokens + o->n_new_tokens);
}

static int encode_choice(struct exchange *x, uint32_t index, struct buffer *b, struct error *err)
{
	struct openai *o = x->own;
	struct openai_piece p;
	int e = openai_choice_take(x, index, &p, err);
	if (!e)
		e = openai_piece_encode(b, o, index, &p, err);
	openai_piece_done(&p);
	o->next = index + 1;
	return e;
}

// Everything is back: one completion after the other.
static int encode_whole(struct exchange *x, struct buffer *b, struct error *err)
{
	struct openai *o = x->own;
	if (o->next)
		buffer_text(b, ",");
	else
		encode_head(b, x);
	int e = encode_choice(x, o->next, b, err);
	if (!e && o->n_ended == o->n_choices) {
		buffer_text(b, "]");
		encode_usage(b, o);
		buffer_text(b, "}");
		x->ended = true;
	}
	return e;
}

static void encode_end(struct exchange *x, struct buffer *b)
{
	const struct openai *o = x->own;
	if (o->ask.stream_usage && o->n_ended == o->n_choices) {
		buffer_text(b, "data: ");
		encode_head(b, x);
		buffer_text(b, "]");
		encode_usage(b, o);
		buffer_text(b, "}\n\n");
	}
	buffer_text(b, "data: [DONE]\n\n");
	x->ended = true;
}

static int encode_event(struct exchange *x, struct buffer *b, struct error *err)
{
	struct openai *o = x->own;
	struct error fault = {0};
	uint32_t index = find_ready(o);
	if (openai_check(x, &fault)) {
		exchange_fail(x, fault.code);
		buffer_text(b, "data: ");
		reply_error(b, &fault, REPLY_ERRORS_OPENAI);
		buffer_text(b, "\n\n");
		encode_end(x, b);
		return 0;
	}
	if (index == o->n_choices)
		return 0;
	buffer_text(b, "data: ");
	encode_head(b, x);
	int e = encode_choice(x, index, b, err);
	buffer_text(b, "]}\n\n");
	if (!e && o->n_ended == o->n_choices)
		encode_end(x, b);
	return e;
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
		for (uint32_t i = 0; i < o->n_choices; i++)
			buffer_done(&o->choices[i].pending);
		free(o->choices);
		openai_ask_done(&o->ask);
		openai_writer_done(&o->writer);
	}
	free(o);
}

const struct exchange_kind exchange_openai = {
	.path = "/v1/completions", .start = openai_start, .taken = openai_taken, .is_ready = openai_is_ready, .check = openai_check,
	.encode = openai_encode, .done = openai_done,
};
