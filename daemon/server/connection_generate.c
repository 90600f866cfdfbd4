// SPDX-License-Identifier: Apache-2.0
// GENERATE and its TOKENS frames.
#include <stdlib.h>

#include "common/cursor.h"
#include "common/error.h"
#include "daemon/clock.h"
#include "daemon/server/connection_internal.h"
#include "daemon/server/service.h"
#include "daemon/teacher/generation.h"
#include "daemon/teacher/generation_reader.h"
#include "daemon/teacher/request.h"
#include "daemon/teacher/teacher.h"

_Static_assert(FRAME_MAX_STOPS == GENERATION_MAX_STOPS && FRAME_MAX_STOP_BYTES == GENERATION_MAX_STOP_BYTES &&
	       FRAME_MAX_STOP_IDS == GENERATION_MAX_STOP_IDS, "the wire and the engine bound the same lists");

// Takes what the frame owns.
static void query_of(struct frame_generate *m, struct generation_query *q)
{
	generation_query_init(q);
	q->n = m->n;
	q->first_sample = m->first_sample;
	q->max_tokens = m->max_tokens;
	q->sampling = (struct sampler_options){m->temperature, m->top_k, m->top_p, m->min_p, m->typical_p};
	q->seed = m->seed;
	q->has_seed = m->flags & FRAME_GENERATE_SEED;
	q->ignore_eos = m->flags & FRAME_GENERATE_IGNORE_EOS;
	q->stream = m->flags & FRAME_GENERATE_STREAM;
	q->top_k = m->rows;
	q->forced = m->forced.tokens;
	q->n_forced = m->forced.n_tokens;
	m->forced = (struct sequence){0};
	for (uint32_t i = 0; i < m->n_stops; i++)
		q->stops[q->n_stops++] = m->stops[i];
	m->n_stops = 0;
	for (uint32_t i = 0; i < m->stop_ids.n_tokens; i++)
		q->stop_ids[q->n_stop_ids++] = m->stop_ids.tokens[i];
}

int connection_generate_request(struct connection *c, const uint8_t *body, size_t n, struct request **ret_request, struct error *err)
{
	struct frame_generate m = {0};
	struct generation_query q;
	struct query_limits unused;
	uint32_t max_items;
	int r = frame_generate_decode(body, n, &m, err);
	if (r)
		return r;
	service_limits(c->context->service, c->teacher, &unused, &max_items);
	query_of(&m, &q);
	r = generation_request_new(&q, m.prompts, m.n_prompts, max_items, ret_request, err);
	if (!r)
		(*ret_request)->deadline_ms = m.deadline_ms ? clock_ms() + m.deadline_ms : 0;
	frame_generate_done(&m);
	return r;
}

static void encode_tokens(const void *message, struct writer *w) { frame_tokens_encode(message, w); }

static void add_end(struct frame_tokens *m, const struct generation *g, const struct generation_query *q)
{
	m->flags = FRAME_TOKENS_LAST;
	m->finish = g->finish == GENERATION_STOP ? FRAME_FINISH_STOP : FRAME_FINISH_LENGTH;
	m->stop_id = g->stop_id >= 0 ? (uint32_t)g->stop_id : FRAME_TOKENS_NONE;
	m->stop = g->stop >= 0 ? (uint32_t)g->stop : FRAME_TOKENS_NONE;
	m->reused = g->n_reused;
	m->seed = q->seed;
}

void connection_send_tokens(struct connection *c, struct connection_ask *ask, struct request_item *item, bool last)
{
	const struct generation *g = item->generation;
	const struct generation_query *q = item->request->generate;
	struct generation_news news;
	struct error err = {0};
	if (generation_reader_take(&ask->readers[item->index], g, teacher_tokenizer(service_teacher(c->context->service)),
		last, &news, &err)) {
		connection_close(c);       // no memory: like a frame that cannot be made
		return;
	}
	size_t first_row = (size_t)news.first * q->top_k;
	struct frame_tokens m = {.index = item->index, .first = news.first, .n = news.n, .rows = q->top_k, .tokens = g->tokens + news.first,
		.logprobs = g->logprobs + news.first, .sampled_logprobs = g->sampled_logprobs + news.first, .lse = g->lse + news.first,
		.ids = q->top_k ? g->ids + first_row : NULL, .logits = q->top_k ? g->logits + first_row : NULL, .text = news.text,
		.text_bytes = (uint32_t)news.text_bytes};
	if (last)
		add_end(&m, g, q);
	if (last || m.n)
		connection_send_message(c, FRAME_TOKENS, ask->id, encode_tokens, &m);
}
