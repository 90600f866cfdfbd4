// SPDX-License-Identifier: Apache-2.0
// What the server sends becomes events. A server is believed no more than anyone: answers must fit a request in flight, each sequence is
// answered once, and a record must be the answer to exactly the question that was asked.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "clients/client.h"

#define MAX_PONGS_OWED 16        // a server that pings without reading does not make our output grow

static int protocol_error(struct error *err, const char *what)
{
	return error_set(err, ERROR_CORRUPT, NULL, "the server broke the protocol: %s", what);
}

static struct pending *find_pending(struct kd_client *client, uint64_t id, bool is_call)
{
	for (struct pending *p = client->pending; p; p = p->next)
		if (p->id == id)
			return p->is_call == is_call ? p : NULL;
	return NULL;
}

static struct queued *queued_new(const struct pending *p, enum kd_event_kind kind, uint32_t index)
{
	struct queued *q = calloc(1, sizeof *q);
	if (!q)
		return NULL;
	q->owner = p->owner;
	q->event.kind = kind;
	q->event.id = p->id;
	q->event.index = p->base + index;
	return q;
}

static void push(struct kd_client *client, const struct pending *p, struct queued *q)
{
	if (p->abandoned) {
		queued_free(q);
		return;
	}
	*client->events_end = q;
	client->events_end = &q->next;
}

static int receive_answer(struct kd_client *client, const struct frame *f, const uint8_t *body, struct error *err)
{
	struct frame_answer m;
	struct kd_answer *answer;
	struct pending *p = find_pending(client, f->request_id, false);
	int r = frame_answer_decode(body, f->body_bytes, &m, err);
	if (r)
		return r;
	if (!p || m.index >= p->n_sequences || p->answered[m.index])
		return protocol_error(err, "an answer that nobody waits for");
	r = answer_new(m.record, m.record_bytes, m.flags & FRAME_ANSWER_CACHED, &answer, err);
	if (r)
		return r;
	if (memcmp(record_key(answer->record), &p->keys[m.index], sizeof *p->keys) != 0) {
		kd_answer_free(answer);
		return protocol_error(err, "a record that answers another question");
	}
	struct queued *q = queued_new(p, KD_EVENT_ANSWER, m.index);
	if (!q) {
		kd_answer_free(answer);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for an event");
	}
	p->answered[m.index] = true;
	p->n_answered++;
	q->event.answer = answer;
	push(client, p, q);
	return 0;
}

static int receive_done(struct kd_client *client, const struct frame *f, struct error *err)
{
	struct pending *p = find_pending(client, f->request_id, false);
	if (!p || f->body_bytes || p->n_answered != p->n_sequences)
		return protocol_error(err, "done, but not every sequence was answered");
	struct queued *q = queued_new(p, KD_EVENT_DONE, 0);
	if (!q)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for an event");
	push(client, p, q);
	pending_free(client, p);
	return 0;
}

static int receive_error(struct kd_client *client, const struct frame *f, const uint8_t *body, struct error *err)
{
	struct frame_error m;
	int r = frame_error_decode(body, f->body_bytes, &m, err);
	if (r)
		return r;
	if (!f->request_id) {
		*err = m.error;
		return error_errno(m.error.code);
	}
	bool whole = m.index == FRAME_WHOLE_REQUEST;
	struct pending *p = find_pending(client, f->request_id, false);
	if (!p && whole)
		p = find_pending(client, f->request_id, true);
	if (!p || (!whole && (m.index >= p->n_sequences || p->answered[m.index])))
		return protocol_error(err, "an error that nobody waits for");
	struct queued *q = queued_new(p, whole ? KD_EVENT_REQUEST_FAILED : KD_EVENT_SEQUENCE_FAILED, whole ? 0 : m.index);
	if (!q)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for an event");
	report(&q->event.error, &m.error, 0);
	push(client, p, q);
	if (whole) {
		pending_free(client, p);
	} else {
		p->answered[m.index] = true;
		p->n_answered++;
	}
	return 0;
}

static int receive_reply(struct kd_client *client, const struct frame *f, const uint8_t *body, struct error *err)
{
	struct frame_reply m;
	struct pending *p = find_pending(client, f->request_id, true);
	if (!p)
		return protocol_error(err, "a reply that nobody waits for");
	int r = frame_reply_decode(body, f->body_bytes, &m, err);
	if (r)
		return r;
	struct queued *q = queued_new(p, KD_EVENT_DONE, 0);
	if (!q) {
		frame_reply_done(&m);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for an event");
	}
	q->reply = m;
	push(client, p, q);
	pending_free(client, p);
	return 0;
}

static int receive_ping(struct kd_client *client, const struct frame *f, const uint8_t *body, struct error *err)
{
	if (f->body_bytes > FRAME_MAX_PING)
		return protocol_error(err, "an oversized ping");
	if (client->connection.out_begin == client->connection.out_end)
		client->n_pongs = 0;
	if (client->n_pongs++ >= MAX_PONGS_OWED)
		return 0;
	return connection_append(&client->connection, FRAME_PONG, f->request_id, body, f->body_bytes, err);
}

int receive_frame(struct kd_client *client, struct error *err)
{
	struct frame f = client->connection.frame;
	uint8_t *body = connection_release(&client->connection);
	int r = 0;
	switch (f.kind) {
	case FRAME_ANSWER: r = receive_answer(client, &f, body, err); break;
	case FRAME_DONE: r = receive_done(client, &f, err); break;
	case FRAME_ERROR: r = receive_error(client, &f, body, err); break;
	case FRAME_REPLY: r = receive_reply(client, &f, body, err); break;
	case FRAME_PING: r = receive_ping(client, &f, body, err); break;
	case FRAME_PONG: client->ponged |= f.request_id == client->ping_id; break;
	case FRAME_GOAWAY: client->draining = true; break;
	default: r = protocol_error(err, "a frame that only clients send"); break;
	}
	free(body);
	return r;
}
