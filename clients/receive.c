// SPDX-License-Identifier: Apache-2.0
// What the server sends becomes events. A server is believed no more than anyone: answers must fit a request in flight, each sequence is
// answered once, and a record must be the answer to exactly the question that was asked.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/client.h"
#include "common/record_short.h"

static int protocol_error(struct error *err, const char *what)
{
	return error_set(err, ERROR_CORRUPT, NULL, "the server broke the protocol: %s", what);
}

static int no_memory(struct error *err)
{
	return error_set(err, ERROR_MEMORY, NULL, "no memory for an event");
}

static struct questions *questions_of(struct kd_client *client, uint64_t id)
{
	pthread_mutex_lock(&client->lock);
	struct pending *p = pending_find(client, id);
	struct questions *q = p && p->questions ? questions_ref(p->questions) : NULL;
	pthread_mutex_unlock(&client->lock);
	return q;
}

// A short record needs the question it answers.
static int restore(const struct kd_client *client, const struct frame_answer *answer, const struct questions *q, struct record **ret,
		   struct error *err)
{
	if (!q || answer->index >= q->n)
		return protocol_error(err, "an answer that nobody waits for");
	const struct question *item = &q->items[answer->index];
	struct record_question question = {.teacher = &client->welcome.teacher, .key = &item->key, .sequence = &item->sequence,
					   .query = &item->query, .vocab_size = client->welcome.limits.vocab_size};
	return record_restore(answer->record, answer->record_bytes, &question, ret, err);
}

static int decode_answer(struct kd_client *client, struct received *m, struct error *err)
{
	struct frame_answer answer;
	struct record *record = NULL;
	int r = frame_answer_decode(m->body, m->frame.body_bytes, &answer, err);
	if (r)
		return r;
	if (answer.flags & FRAME_ANSWER_SHORT) {
		struct questions *q = questions_of(client, m->frame.request_id);
		r = restore(client, &answer, q, &record, err);
		questions_unref(q);
	} else {
		r = record_from_bytes(answer.record, answer.record_bytes, &record, err);
	}
	m->index = answer.index;
	return r ? r : answer_new(record, answer.flags & FRAME_ANSWER_CACHED, &m->answer, err);
}

int received_decode_error(const uint8_t *body, size_t n, struct frame_error *ret, struct error *err)
{
	int r = frame_error_decode(body, n, ret, err);
	if (r == 0 && !*ret->error.message)
		snprintf(ret->error.message, sizeof ret->error.message, "%s", error_name(ret->error.code));
	return r;
}

int received_decode(struct kd_client *client, struct received *ret, struct error *err)
{
	struct received m = {.frame = client->connection.frame};
	int r = 0;
	m.body = connection_release(&client->connection);
	switch (m.frame.kind) {
	case FRAME_ANSWER: r = decode_answer(client, &m, err); break;
	case FRAME_ERROR: r = received_decode_error(m.body, m.frame.body_bytes, &m.error, err); break;
	case FRAME_REPLY: r = frame_reply_decode(m.body, m.frame.body_bytes, &m.reply, err); break;
	case FRAME_TOKENS: r = frame_tokens_decode(m.body, m.frame.body_bytes, &m.tokens, err); break;
	default: break;
	}
	if (r)
		received_done(&m);
	else
		*ret = m;
	return r;
}

void received_done(struct received *m)
{
	kd_answer_free(m->answer);
	frame_reply_done(&m->reply);
	frame_tokens_done(&m->tokens);
	*m = (struct received){0};
}

static struct pending *find(struct kd_client *client, const struct received *m, enum pending_kind kind)
{
	struct pending *p = pending_find(client, m->frame.request_id);
	return p && p->kind == kind ? p : NULL;
}

// A request of many parts that are answered one by one.
static struct pending *find_many(struct kd_client *client, const struct received *m)
{
	struct pending *p = find(client, m, PENDING_SCORE);
	return p ? p : find(client, m, PENDING_GENERATE);
}

static int deliver_answer(struct kd_client *client, struct received *m, struct error *err)
{
	struct pending *p = find(client, m, PENDING_SCORE);
	if (!p || m->index >= p->n_sequences || p->answered[m->index])
		return protocol_error(err, "an answer that nobody waits for");
	if (memcmp(record_key(m->answer->record), &p->questions->items[m->index].key, CONTENT_ID_BYTES) != 0)
		return protocol_error(err, "a record that answers another question");
	struct queued *q = queued_new(p, KD_EVENT_ANSWER, m->index);
	if (!q)
		return no_memory(err);
	p->answered[m->index] = true;
	p->n_answered++;
	q->event.answer = m->answer;
	m->answer = NULL;
	queued_push(client, p, q);
	return 0;
}

// The pieces of a sample come in order, with as many ids to a row as were asked, and none after its last.
static int deliver_tokens(struct kd_client *client, struct received *m, struct error *err)
{
	struct pending *p = find(client, m, PENDING_GENERATE);
	const struct frame_tokens *t = &m->tokens;
	bool last = t->flags & FRAME_TOKENS_LAST;
	if (!p || t->index >= p->n_sequences || p->answered[t->index])
		return protocol_error(err, "tokens that nobody waits for");
	if (t->first != p->n_tokens[t->index] || t->rows != p->rows)
		return protocol_error(err, "tokens out of order");
	struct queued *q = queued_new(p, KD_EVENT_ANSWER, t->index);
	char *text = q ? malloc((size_t)t->text_bytes + 1) : NULL;
	if (!text) {
		queued_free(q);
		return no_memory(err);
	}
	memcpy(text, t->text, t->text_bytes);
	p->n_tokens[t->index] += t->n;
	p->answered[t->index] = last;
	p->n_answered += last;
	q->text = text;
	q->tokens = m->tokens;
	m->tokens = (struct frame_tokens){0};
	queued_push(client, p, q);
	return 0;
}

static int deliver_done(struct kd_client *client, struct received *m, struct error *err)
{
	struct pending *p = find_many(client, m);
	if (!p || m->frame.body_bytes || p->n_answered != p->n_sequences)
		return protocol_error(err, "done, but not every sequence was answered");
	struct queued *q = queued_new(p, KD_EVENT_DONE, 0);
	if (!q)
		return no_memory(err);
	queued_push(client, p, q);
	pending_end(client, p);
	return 0;
}

static int deliver_error(struct kd_client *client, struct received *m, struct error *err)
{
	bool whole = m->error.index == FRAME_WHOLE_REQUEST;
	uint32_t index = m->error.index;
	if (!m->frame.request_id) {
		*err = m->error.error;
		return error_errno(err->code);
	}
	struct pending *p = find_many(client, m);
	if (!p && whole)
		p = find(client, m, PENDING_CALL);
	if (!p || (!whole && (index >= p->n_sequences || p->answered[index])))
		return protocol_error(err, "an error that nobody waits for");
	struct queued *q = queued_new(p, whole ? KD_EVENT_REQUEST_FAILED : KD_EVENT_SEQUENCE_FAILED, whole ? 0 : index);
	if (!q)
		return no_memory(err);
	report(&q->event.error, &m->error.error, 0);
	queued_push(client, p, q);
	if (whole) {
		pending_end(client, p);
	} else {
		p->answered[index] = true;
		p->n_answered++;
	}
	return 0;
}

static int deliver_reply(struct kd_client *client, struct received *m, struct error *err)
{
	struct pending *p = find(client, m, PENDING_CALL);
	if (!p)
		return protocol_error(err, "a reply that nobody waits for");
	struct queued *q = queued_new(p, KD_EVENT_DONE, 0);
	if (!q)
		return no_memory(err);
	q->reply = m->reply;
	m->reply = (struct frame_reply){0};
	queued_push(client, p, q);
	pending_end(client, p);
	return 0;
}

static int deliver_ping(struct kd_client *client, struct received *m, struct error *err)
{
	if (m->frame.body_bytes > FRAME_MAX_PING)
		return protocol_error(err, "an oversized ping");
	uint64_t *end = &client->pong_ends[client->n_pongs % CLIENT_MAX_PONGS];
	if (*end > client->connection.n_sent)
		return 0;        // the oldest that may be owed has not left
	int r = connection_append(&client->connection, FRAME_PONG, m->frame.request_id, m->body, m->frame.body_bytes, err);
	if (r)
		return r;
	*end = connection_queued(&client->connection);
	client->n_pongs++;
	return client_send(client, err);
}

// A pong that answers no ping of ours is harmless.
static int deliver_pong(struct kd_client *client, struct received *m, struct error *err)
{
	struct pending *p = find(client, m, PENDING_PING);
	struct queued *q = p ? queued_new(p, KD_EVENT_DONE, 0) : NULL;
	if (!p)
		return 0;
	if (!q)
		return no_memory(err);
	queued_push(client, p, q);
	pending_end(client, p);
	return 0;
}

int received_deliver(struct kd_client *client, struct received *m, struct error *err)
{
	switch (m->frame.kind) {
	case FRAME_ANSWER: return deliver_answer(client, m, err);
	case FRAME_TOKENS: return deliver_tokens(client, m, err);
	case FRAME_DONE: return deliver_done(client, m, err);
	case FRAME_ERROR: return deliver_error(client, m, err);
	case FRAME_REPLY: return deliver_reply(client, m, err);
	case FRAME_PING: return deliver_ping(client, m, err);
	case FRAME_PONG: return deliver_pong(client, m, err);
	case FRAME_GOAWAY: atomic_store(&client->draining, true); return 0;
	default: return protocol_error(err, "a frame that only clients send");
	}
}
