// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/conversation.h"

#include <stdlib.h>
#include <string.h>

#include "common/frame.h"

static void require(bool holds)
{
	if (!holds)
		abort();
}

void conversation_init(struct conversation *c)
{
	memset(c, 0, sizeof *c);
}

void conversation_done(struct conversation *c)
{
	free(c->sent.data);
	free(c->received.data);
}

static void bytes_add(struct conversation_bytes *b, const uint8_t *bytes, size_t n)
{
	if (b->n + n > b->capacity) {
		b->capacity = 2 * (b->n + n);
		b->data = realloc(b->data, b->capacity);
		require(b->data != NULL);
	}
	if (n)
		memcpy(b->data + b->n, bytes, n);
	b->n += n;
}

// Calls `take` for each whole frame; false where something is no frame.
typedef void take_fn(struct conversation *c, const struct frame *f, const uint8_t *body);
static bool bytes_take(struct conversation *c, struct conversation_bytes *b, take_fn *take)
{
	size_t at = 0;
	struct frame f;
	bool good = true;
	while (good && b->n - at >= FRAME_HEADER_BYTES) {
		const uint8_t *body = b->data + at + FRAME_HEADER_BYTES;
		good = frame_decode(b->data + at, CONVERSATION_MAX_BODY, &f, NULL) == 0;
		if (!good || f.body_bytes > b->n - at - FRAME_HEADER_BYTES)
			break;
		good = frame_check_body(&f, body, NULL) == 0;
		if (good)
			take(c, &f, body);
		at += FRAME_HEADER_BYTES + f.body_bytes;
	}
	memmove(b->data, b->data + at, b->n - at);
	b->n -= at;
	return good;
}

// ---- what was asked

static uint32_t n_of_score(const struct frame *f, const uint8_t *body)
{
	struct frame_score m = {0};
	uint32_t n = frame_score_decode(body, f->body_bytes, &m, NULL) == 0 ? m.n_sequences : 0;
	frame_score_done(&m);
	return n;
}

static uint32_t n_of_generate(const struct frame *f, const uint8_t *body)
{
	struct frame_generate m = {0};
	uint64_t n = frame_generate_decode(body, f->body_bytes, &m, NULL) == 0 ? (uint64_t)m.n_prompts * m.n : 0;
	frame_generate_done(&m);
	return n <= UINT32_MAX ? (uint32_t)n : 0;
}

static void take_sent(struct conversation *c, const struct frame *f, const uint8_t *body)
{
	if (f->kind == FRAME_PING)
		c->n_pings++;
	if (f->kind != FRAME_SCORE && f->kind != FRAME_GENERATE && f->kind != FRAME_CALL)
		return;
	require(c->n_asks < CONVERSATION_MAX_ASKS);
	c->asks[c->n_asks++] = (struct conversation_ask){.id = f->request_id, .kind = f->kind,
		.n = f->kind == FRAME_SCORE ? n_of_score(f, body) : f->kind == FRAME_GENERATE ? n_of_generate(f, body) : 0};
}

void conversation_sent(struct conversation *c, const uint8_t *bytes, size_t n)
{
	if (c->garbled)
		return;
	bytes_add(&c->sent, bytes, n);
	c->garbled = !bytes_take(c, &c->sent, take_sent);
}

// ---- what came

// The oldest that has not ended: an id may be used again once its end was sent.
static struct conversation_ask *ask_find(struct conversation *c, uint64_t id)
{
	for (size_t i = 0; i < c->n_asks; i++)
		if (c->asks[i].id == id && !c->asks[i].ended)
			return &c->asks[i];
	abort();
}

static void ask_answer(struct conversation_ask *a, uint32_t index, bool last)
{
	require(index < a->n && index < 64 && !(a->answered >> index & 1));
	a->answered |= (uint64_t)last << index;
	a->n_answered += last;
}

static void take_answer(struct conversation *c, const struct frame *f, const uint8_t *body)
{
	struct frame_answer m;
	struct conversation_ask *a = ask_find(c, f->request_id);
	require(a->kind == FRAME_SCORE && frame_answer_decode(body, f->body_bytes, &m, NULL) == 0);
	ask_answer(a, m.index, true);
}

static void take_tokens(struct conversation *c, const struct frame *f, const uint8_t *body)
{
	struct frame_tokens m = {0};
	struct conversation_ask *a = ask_find(c, f->request_id);
	require(a->kind == FRAME_GENERATE && frame_tokens_decode(body, f->body_bytes, &m, NULL) == 0);
	ask_answer(a, m.index, m.flags & FRAME_TOKENS_LAST);
	frame_tokens_done(&m);
}

static void take_error(struct conversation *c, const struct frame *f, const uint8_t *body)
{
	struct frame_error m;
	require(frame_error_decode(body, f->body_bytes, &m, NULL) == 0 && m.error.code);
	if (!f->request_id) {
		c->failed = true;
		return;
	}
	struct conversation_ask *a = ask_find(c, f->request_id);
	if (m.index == FRAME_WHOLE_REQUEST)
		a->ended = true;
	else
		ask_answer(a, m.index, true);
}

static void take_end(struct conversation *c, const struct frame *f, const uint8_t *body)
{
	struct frame_reply m = {0};
	struct conversation_ask *a = ask_find(c, f->request_id);
	if (f->kind == FRAME_DONE)
		require(a->kind != FRAME_CALL && a->n && a->n_answered == a->n && !f->body_bytes);
	else
		require(a->kind == FRAME_CALL && frame_reply_decode(body, f->body_bytes, &m, NULL) == 0);
	frame_reply_done(&m);
	a->ended = true;
}

static void take_received(struct conversation *c, const struct frame *f, const uint8_t *body)
{
	struct frame_welcome w;
	require(!c->failed && (c->welcome || f->kind == FRAME_WELCOME || f->kind == FRAME_ERROR));
	switch (f->kind) {
	case FRAME_WELCOME:
		require(!c->welcome && !f->request_id && frame_welcome_decode(body, f->body_bytes, &w, NULL) == 0);
		c->welcome = true;
		break;
	case FRAME_ANSWER: take_answer(c, f, body); break;
	case FRAME_TOKENS: take_tokens(c, f, body); break;
	case FRAME_ERROR: take_error(c, f, body); break;
	case FRAME_DONE:
	case FRAME_REPLY: take_end(c, f, body); break;
	case FRAME_PONG: require(c->n_pings-- > 0); break;
	case FRAME_GOAWAY: require(!f->request_id && !f->body_bytes); break;
	default: abort();
	}
}

void conversation_received(struct conversation *c, const uint8_t *bytes, size_t n)
{
	bytes_add(&c->received, bytes, n);
	require(bytes_take(c, &c->received, take_received));
}

size_t conversation_n_open(const struct conversation *c)
{
	size_t n = 0;
	for (size_t i = 0; i < c->n_asks; i++)
		n += !c->asks[i].ended;
	return n;
}
