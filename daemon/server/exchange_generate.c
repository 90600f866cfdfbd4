// SPDX-License-Identifier: Apache-2.0
// POST /v1/generate: samples one after the other, or as a stream of events, each with what is new of one sample.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/buffer.h"
#include "common/error.h"
#include "common/record_json.h"
#include "daemon/server/exchange.h"
#include "daemon/server/json.h"
#include "daemon/server/service.h"
#include "daemon/teacher/generation.h"
#include "daemon/teacher/generation_reader.h"
#include "daemon/teacher/teacher.h"

struct reply_sample {
	struct generation_reader reader;
	bool complete, ended;
};

struct generate {
	struct json_generate asked;
	struct request *request;       // the exchange's
	const struct tokenizer *tokenizer;
	bool stream, begun;
	uint32_t n_samples, n_ended, next;
	struct reply_sample *samples;
};

static int generate_start(struct exchange *x, const char *body, size_t n, struct error *err)
{
	struct query_limits unused;
	struct json_limits bounds;
	struct generate *g = x->own = calloc(1, sizeof *g);
	if (!g)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the request");
	service_limits(x->service, 0, &unused, &bounds.max_sequences);
	bounds.max_tokens = service_max_tokens(x->service);
	g->tokenizer = teacher_tokenizer(service_teacher(x->service));
	int r = json_read_generate(body, n, g->tokenizer, &bounds, &g->asked, err);
	if (r)
		return r;
	struct request *request = g->asked.request;
	g->n_samples = request->n_items;
	g->stream = request->generate->stream;
	g->samples = calloc(g->n_samples + 1, sizeof *g->samples);
	if (!g->samples)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the request");
	x->content_type = g->stream ? "text/event-stream" : "application/json";
	r = exchange_submit(x, request, err);
	if (r)
		return r;
	g->request = request;
	g->asked.request = NULL;
	return 0;
}

static void generate_taken(struct exchange *x, const struct request_item *item)
{
	struct generate *g = x->own;
	g->samples[item->index].complete = true;
}

static bool has_news(const struct generate *g, uint32_t index)
{
	const struct reply_sample *s = &g->samples[index];
	return !s->ended && (s->complete || atomic_load(&g->request->items[index].generation->n_tokens) > s->reader.n_tokens);
}

// The next sample that has something new; n_samples when none has. All get their turn.
static uint32_t find_news(const struct generate *g)
{
	for (uint32_t i = 0; i < g->n_samples; i++) {
		uint32_t index = (g->next + i) % g->n_samples;
		if (has_news(g, index))
			return index;
	}
	return g->n_samples;
}

static bool generate_is_ready(const struct exchange *x)
{
	const struct generate *g = x->own;
	return g->stream && find_news(g) < g->n_samples;
}

static int generate_check(const struct exchange *x, struct error *err)
{
	const struct generate *g = x->own;
	if (g->stream && x->n_left)
		return 0;      // it begins; a fault after this is an event of it
	for (uint32_t i = 0; i < g->n_samples; i++)
		if (g->request->items[i].error.code) {
			*err = g->request->items[i].error;
			return error_errno(err->code);
		}
	return 0;
}

// ---- one sample

static void rows(struct buffer *b, const struct generation *a, size_t k, uint32_t from, uint32_t to)
{
	buffer_text(b, ",\"rows\":[");
	for (uint32_t i = from; i < to; i++) {
		buffer_text(b, i > from ? ",{\"lse\":" : "{\"lse\":");
		buffer_float(b, a->lse[i]);
		buffer_text(b, ",\"ids\":");
		record_json_ids(b, a->ids + i * k, k);
		buffer_text(b, ",\"logits\":");
		record_json_numbers(b, a->logits + i * k, k);
		buffer_text(b, "}");
	}
	buffer_text(b, "]");
}

static void finish(struct buffer *b, const struct request_item *item)
{
	const struct generation *a = item->generation;
	buffer_printf(b, ",\"finish\":\"%s\"", a->finish == GENERATION_STOP ? "stop" : "length");
	if (a->stop_id >= 0)
		buffer_printf(b, ",\"stop_id\":%" PRId64, a->stop_id);
	if (a->stop >= 0) {
		const char *text = item->request->generate->stops[a->stop];
		buffer_text(b, ",\"stop\":");
		buffer_string(b, text, strlen(text));
	}
	buffer_printf(b, ",\"n_prompt\":%" PRIu32 ",\"n_reused\":%" PRIu32, generation_prompt(item)->n_tokens, a->n_reused);
}

static int encode_news(struct generate *g, uint32_t index, struct buffer *b, struct error *err)
{
	struct reply_sample *s = &g->samples[index];
	const struct request_item *item = &g->request->items[index];
	const struct generation *a = item->generation;
	uint32_t k = item->request->generate->top_k;
	struct generation_news news;
	int r = generation_reader_take(&s->reader, a, g->tokenizer, s->complete, &news, err);
	if (r)
		return r;
	buffer_text(b, ",\"tokens\":");
	record_json_ids(b, a->tokens + news.first, news.n);
	buffer_text(b, ",\"text\":");
	buffer_string(b, news.text, news.text_bytes);
	if (g->asked.logprobs) {
		buffer_text(b, ",\"logprobs\":");
		record_json_numbers(b, a->logprobs + news.first, news.n);
		buffer_text(b, ",\"sampled_logprobs\":");
		record_json_numbers(b, a->sampled_logprobs + news.first, news.n);
	}
	if (k)
		rows(b, a, k, news.first, news.first + news.n);
	if (s->complete)
		finish(b, item);
	return 0;
}

static void encode_fault(struct buffer *b, const struct error *fault)
{
	struct buffer whole = {0};
	reply_error(&whole, fault, REPLY_ERRORS_OWN);
	buffer_text(b, ",");
	if (whole.failed)
		b->failed = true;
	else
		buffer_add(b, whole.data + 1, whole.n - 2);        // {"error":{...}} without its braces
	buffer_done(&whole);
}

// What is new of a sample, as one object. Without a stream that is all of it.
static int encode_sample(struct generate *g, uint32_t index, struct buffer *b, struct error *err)
{
	struct reply_sample *s = &g->samples[index];
	const struct request_item *item = &g->request->items[index];
	int r = 0;
	buffer_printf(b, "{\"prompt\":%" PRIu32 ",\"sample\":%" PRIu32, item->index / item->request->generate->n, generation_sample(item));
	if (s->complete && item->error.code)
		encode_fault(b, &item->error);
	else
		r = encode_news(g, index, b, err);
	s->ended = s->complete;
	g->n_ended += s->ended;
	buffer_text(b, "}");
	if (!r && b->failed)
		r = error_set(err, ERROR_MEMORY, NULL, "no memory for the reply");
	return r;
}

// ---- the reply

static void head(const struct exchange *x, struct buffer *b)
{
	const struct generate *g = x->own;
	buffer_text(b, "{\"teacher\":{");
	reply_choice(b, service_teacher(x->service), &g->request->choice);
	buffer_printf(b, "},\"seed\":%" PRIu64, g->request->generate->seed);
}

static int encode_event(struct exchange *x, struct buffer *b, struct error *err)
{
	struct generate *g = x->own;
	uint32_t index = find_news(g);
	int r = 0;
	if (!g->begun) {
		buffer_text(b, "data: ");
		head(x, b);
		buffer_text(b, "}\n\n");
		g->begun = true;
	}
	if (index < g->n_samples) {
		buffer_text(b, "data: ");
		r = encode_sample(g, index, b, err);
		buffer_text(b, "\n\n");
		g->next = index + 1;
	}
	if (!r && g->n_ended == g->n_samples) {
		buffer_text(b, "data: [DONE]\n\n");
		x->ended = true;
	}
	return r;
}

static int encode_whole(struct exchange *x, struct buffer *b, struct error *err)
{
	struct generate *g = x->own;
	if (!g->begun) {
		head(x, b);
		buffer_text(b, ",\"sequences\":[");
		g->begun = true;
	} else {
		buffer_text(b, ",");
	}
	int r = encode_sample(g, g->next++, b, err);
	if (!r && g->n_ended == g->n_samples) {
		buffer_text(b, "]}");
		x->ended = true;
	}
	return r;
}

static int generate_encode(struct exchange *x, struct buffer *b, struct error *err)
{
	const struct generate *g = x->own;
	return g->stream ? encode_event(x, b, err) : encode_whole(x, b, err);
}

static void generate_done(struct exchange *x)
{
	struct generate *g = x->own;
	for (uint32_t i = 0; g && g->samples && i < g->n_samples; i++)
		generation_reader_done(&g->samples[i].reader);
	if (g) {
		free(g->samples);
		json_generate_done(&g->asked);
	}
	free(g);
}

const struct exchange_kind exchange_generate = {
	.path = "/v1/generate", .start = generate_start, .is_ready = generate_is_ready, .taken = generate_taken, .check = generate_check,
	.encode = generate_encode, .done = generate_done,
};
