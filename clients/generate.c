// SPDX-License-Identifier: Apache-2.0
// kd_generate: one request, its pieces handed on as they come.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/client.h"
#include "clients/convert.h"
#include "common/cursor.h"

// What cannot be put into a frame; the rest is the server's to judge.
static int check(const struct kd_generation *g, const struct kd_client *client, struct error *err)
{
	uint64_t n_samples = (uint64_t)g->n_prompts * g->n;
	if (!g->n_prompts)
		return error_set(err, ERROR_INVALID, "prompts", "there are none");
	if (!g->n)
		return error_set(err, ERROR_INVALID, "n", "is 0");
	if (n_samples > client->welcome.max_sequences || n_samples > FRAME_MAX_SEQUENCES)
		return error_set(err, ERROR_TOO_LARGE, "prompts", "%" PRIu64 " samples of all prompts, the server takes %" PRIu32,
				 n_samples, client->welcome.max_sequences);
	if (g->n_stops > FRAME_MAX_STOPS)
		return error_set(err, ERROR_TOO_LARGE, "stop", "%" PRIu32 " strings, the limit is %d", g->n_stops, FRAME_MAX_STOPS);
	if (g->n_stop_ids > FRAME_MAX_STOP_IDS)
		return error_set(err, ERROR_TOO_LARGE, "stop_ids", "%" PRIu32 " ids, the limit is %d", g->n_stop_ids, FRAME_MAX_STOP_IDS);
	for (uint32_t i = 0; i < g->n_stops; i++) {
		size_t n = strlen(g->stops[i]);
		char field[32];
		snprintf(field, sizeof field, "stop[%" PRIu32 "]", i);
		if (!n || n > FRAME_MAX_STOP_BYTES)
			return error_set(err, n ? ERROR_TOO_LARGE : ERROR_INVALID, field, "%zu bytes, expected 1 to %d", n,
				FRAME_MAX_STOP_BYTES);
	}
	return 0;
}

static void message_of(const struct kd_generation *g, struct sequence *prompts, struct frame_generate *m)
{
	*m = (struct frame_generate){.flags = FRAME_GENERATE_STREAM | (g->ignore_eos ? FRAME_GENERATE_IGNORE_EOS : 0) |
				     (g->seed ? FRAME_GENERATE_SEED : 0),
				     .deadline_ms = g->deadline_ms, .n = g->n, .first_sample = g->first_sample, .max_tokens = g->max_tokens,
				     .rows = g->rows, .temperature = g->temperature, .top_k = g->top_k, .top_p = g->top_p,
				     .min_p = g->min_p, .typical_p = g->typical_p, .seed = g->seed ? *g->seed : 0,
				     .stop_ids = {(uint32_t *)g->stop_ids, g->n_stop_ids}, .forced = {(uint32_t *)g->forced, g->n_forced},
				     .n_stops = g->n_stops, .n_prompts = g->n_prompts, .prompts = prompts};
	for (uint32_t i = 0; i < g->n_stops; i++)
		m->stops[i] = (char *)g->stops[i];
	for (uint32_t i = 0; i < g->n_prompts; i++)
		prompts[i] = (struct sequence){(uint32_t *)g->prompts[i].tokens, g->prompts[i].n_tokens};
}

static int encode(const struct kd_client *client, const struct kd_generation *g, struct prepared *m, struct error *err)
{
	struct frame_generate message;
	struct sequence *prompts = calloc(g->n_prompts, sizeof *prompts);
	if (!prompts)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for %" PRIu32 " prompts", g->n_prompts);
	message_of(g, prompts, &message);
	struct writer count = writer_init(NULL, 0);
	int r = 0;
	frame_generate_encode(&message, &count);
	if (count.position > client->welcome.max_body_bytes)
		r = error_set(err, ERROR_TOO_LARGE, "prompts", "the request has %zu bytes, the server takes %" PRIu32, count.position,
			      client->welcome.max_body_bytes);
	else if (!(m->body = malloc(count.position)))
		r = error_set(err, ERROR_MEMORY, NULL, "no memory for a request of %zu bytes", count.position);
	if (!r) {
		struct writer w = writer_init(m->body, count.position);
		frame_generate_encode(&message, &w);
		m->n = w.position;
	}
	free(prompts);
	return r;
}

static int prepare(const struct kd_client *client, const struct kd_generation *g, const void *owner, struct prepared *m, struct error *err)
{
	m->kind = FRAME_GENERATE;
	m->pending = pending_new(PENDING_GENERATE, owner, err);
	if (!m->pending)
		return error_errno(err->code);
	struct pending *p = m->pending;
	p->n_sequences = g->n_prompts * g->n;
	p->rows = g->rows;
	p->answered = calloc(p->n_sequences, sizeof *p->answered);
	p->n_tokens = calloc(p->n_sequences, sizeof *p->n_tokens);
	if (!p->answered || !p->n_tokens)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for %" PRIu32 " samples", p->n_sequences);
	return encode(client, g, m, err);
}

static struct kd_piece piece_of(const struct queued *q)
{
	const struct frame_tokens *t = &q->tokens;
	struct kd_piece piece = {.index = t->index, .first = t->first, .n = t->n, .tokens = t->tokens, .logprobs = t->logprobs,
		.sampled_logprobs = t->sampled_logprobs, .lse = t->lse, .rows = t->rows, .ids = t->ids, .logits = t->logits,
		.text = q->text, .text_bytes = t->text_bytes, .last = t->flags & FRAME_TOKENS_LAST, .stop_id = -1, .stop = -1};
	if (!piece.last)
		return piece;
	piece.finish = t->finish == FRAME_FINISH_STOP ? KD_FINISH_STOP : KD_FINISH_LENGTH;
	piece.stop_id = t->stop_id == FRAME_TOKENS_NONE ? -1 : (int64_t)t->stop_id;
	piece.stop = t->stop == FRAME_TOKENS_NONE ? -1 : (int32_t)t->stop;
	piece.n_reused = t->reused;
	piece.seed = t->seed;
	return piece;
}

struct taker { int (*take)(void *arg, const struct kd_piece *piece); void *arg; };

// One event; *ret_done with the last.
static int handle(const struct queued *q, const struct taker *t, bool *ret_done, struct error *err)
{
	const struct kd_error *why = &q->event.error;
	char field[64];
	if (q->event.kind == KD_EVENT_DONE) {
		*ret_done = true;
		return 0;
	}
	if (q->event.kind == KD_EVENT_ANSWER) {
		struct kd_piece piece = piece_of(q);
		return t->take(t->arg, &piece) ? error_set(err, ERROR_CANCELLED, NULL, "cancelled by the caller") : 0;
	}
	snprintf(field, sizeof field, "%s", why->field);
	if (q->event.kind == KD_EVENT_SEQUENCE_FAILED && !*field)
		snprintf(field, sizeof field, "samples[%" PRIu32 "]", q->event.index);
	return error_set(err, error_from_name(why->code), field, "%s", why->message);
}

// With the lock, which is let go of while the pieces are handed on.
static int take_all(struct kd_client *client, const void *owner, const struct taker *t, struct error *err)
{
	bool done = false;
	int r = 0;
	while (!r && !done) {
		struct waiter w = waiter_patient(client, WAIT_EVENT, owner);
		r = client_wait(client, &w, err);
		if (r)
			break;
		struct queued *q = queued_pop(client, owner);
		pthread_mutex_unlock(&client->lock);
		r = handle(q, t, &done, err);
		queued_free(q);
		pthread_mutex_lock(&client->lock);
	}
	return r;
}

int kd_generate(struct kd_client *client, const struct kd_generation *asked, int (*take)(void *arg, const struct kd_piece *piece),
		void *arg, struct kd_error *err)
{
	struct error why = {0};
	struct prepared m = {0};
	struct kd_generation g = KD_GENERATION_INIT;
	struct taker taker = {take, arg};
	uint64_t id;
	int r = convert_sized(&g, sizeof g, asked, "request", &why);
	if (!r)
		r = check(&g, client, &why);
	if (!r)
		r = prepare(client, &g, &m, &m, &why);
	if (!r) {
		pthread_mutex_lock(&client->lock);
		r = prepared_send(client, &m, true, &id, &why);
		if (!r)
			r = take_all(client, &m, &taker, &why);
		if (r)
			pending_abandon(client, &m);
		pthread_mutex_unlock(&client->lock);
	}
	prepared_done(&m);
	return r ? report(err, &why, r) : 0;
}
