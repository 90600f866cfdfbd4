// SPDX-License-Identifier: Apache-2.0
// Requests: checked here with the server's own rules before a byte is sent; answers come without their questions, so those are kept. All
// of that is done without the lock; with it only the credit is taken and the frame queued.
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/client.h"
#include "clients/convert.h"
#include "common/cursor.h"

// Checks a sequence against the query and keeps what was asked; `part` (emptied) is what it asks of its own.
static int prepare_question(const struct kd_client *client, const struct kd_sequence *asked, const struct query *query,
			    struct query_part *part, uint32_t index, struct question *q, struct error *err)
{
	char prefix[32];
	snprintf(prefix, sizeof prefix, "sequences[%" PRIu32 "].", index);
	if (sequence_init(&q->sequence, asked->tokens, asked->n_tokens))
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a question");
	int r = query_resolve(query, part, &q->sequence, &client->welcome.limits, prefix, &q->query, err);
	if (!r)
		q->key = query_key(&client->welcome.teacher, &q->sequence, &q->query);
	return r;
}

static int prepare_questions(const struct kd_client *client, const struct kd_request *request, const struct query *query, struct pending *p,
			     struct error *err)
{
	p->n_sequences = request->n_sequences;
	p->questions = questions_new(p->n_sequences, err);
	if (!p->questions)
		return error_errno(err->code);
	p->answered = calloc(p->n_sequences, sizeof *p->answered);
	if (!p->answered)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for %" PRIu32 " sequences", p->n_sequences);
	int r = 0;
	for (uint32_t i = 0; !r && i < p->n_sequences; i++) {
		struct query_part part = {0};
		r = convert_part(&request->sequences[i], &part, err);
		if (!r)
			r = prepare_question(client, &request->sequences[i], query, &part, p->base + i, &p->questions->items[i], err);
		query_part_done(&part);
	}
	return r;
}

static void score_done(struct frame_score *m)
{
	for (uint32_t i = 0; m->parts && i < m->n_sequences; i++)
		query_part_done(&m->parts[i]);
	free(m->parts);
	free(m->sequences);          // their tokens are the caller's
}

// The message; its query and tokens stay the callers'.
static int make_score(const struct kd_request *request, const struct query *query, struct frame_score *ret, struct error *err)
{
	struct frame_score m = {.flags = (request->flags & ~KD_WAIT) | FRAME_SCORE_SHORT, .deadline_ms = request->deadline_ms,
				.query = *query, .n_sequences = request->n_sequences};
	bool parts = false;
	int r = 0;
	for (uint32_t i = 0; i < m.n_sequences; i++)
		parts |= convert_has_part(&request->sequences[i]);
	assert(m.n_sequences);        // check_request
	m.sequences = calloc(m.n_sequences, sizeof *m.sequences);
	m.parts = parts ? calloc(m.n_sequences, sizeof *m.parts) : NULL;
	if (!m.sequences || (parts && !m.parts))
		r = error_set(err, ERROR_MEMORY, NULL, "no memory for %" PRIu32 " sequences", m.n_sequences);
	for (uint32_t i = 0; !r && i < m.n_sequences; i++) {
		m.sequences[i] = (struct sequence){(uint32_t *)request->sequences[i].tokens, request->sequences[i].n_tokens};
		if (parts)
			r = convert_part(&request->sequences[i], &m.parts[i], err);
	}
	if (r)
		score_done(&m);
	else
		*ret = m;
	return r;
}

// The body of the SCORE frame; *ret_body is the caller's to free.
static int encode_score(const struct kd_client *client, const struct kd_request *request, const struct query *query, uint8_t **ret_body,
			size_t *ret_n, struct error *err)
{
	struct frame_score m;
	uint8_t *body = NULL;
	int r = make_score(request, query, &m, err);
	if (r)
		return r;
	struct writer count = writer_init(NULL, 0), w;
	frame_score_encode(&m, &count);
	if (count.position > client->welcome.max_body_bytes)
		r = error_set(err, ERROR_TOO_LARGE, "sequences", "the request has %zu bytes, the server takes %" PRIu32, count.position,
			      client->welcome.max_body_bytes);
	else if (!(body = malloc(count.position)))
		r = error_set(err, ERROR_MEMORY, NULL, "no memory for a request of %zu bytes", count.position);
	if (!r) {
		w = writer_init(body, count.position);
		frame_score_encode(&m, &w);
		*ret_body = body;
		*ret_n = w.position;
	}
	score_done(&m);
	return r;
}

static int check_request(const struct kd_client *client, const struct kd_request *request, struct error *err)
{
	if (request->flags & ~(KD_DURABLE | KD_NO_STORE | KD_WAIT))
		return error_set(err, ERROR_INVALID, "flags", "unknown flags 0x%" PRIx32, request->flags);
	if (!request->n_sequences)
		return error_set(err, ERROR_INVALID, "sequences", "there are none");
	if (request->n_sequences > client->welcome.max_sequences || request->n_sequences > FRAME_MAX_SEQUENCES)
		return error_set(err, ERROR_TOO_LARGE, "sequences", "%" PRIu32 " sequences, the server takes %" PRIu32,
				 request->n_sequences, client->welcome.max_sequences);
	return 0;
}

void prepared_done(struct prepared *m)
{
	pending_free(m->pending);
	free(m->body);
	*m = (struct prepared){0};
}

int prepare_score(const struct kd_client *client, const struct kd_request *request, const void *owner, uint32_t base,
		  struct prepared *ret, struct error *err)
{
	struct prepared m = {.kind = FRAME_SCORE};
	struct query query;
	int r = check_request(client, request, err);
	if (!r)
		r = convert_query(request->query, &query, err);
	if (r)
		return r;
	m.pending = pending_new(PENDING_SCORE, owner, err);
	r = m.pending ? 0 : -ENOMEM;
	if (!r) {
		m.pending->base = base;
		r = prepare_questions(client, request, &query, m.pending, err);
	}
	if (!r)
		r = encode_score(client, request, &query, &m.body, &m.n, err);
	query_done(&query);
	if (r)
		prepared_done(&m);
	else
		*ret = m;
	return r;
}

static int check_sendable(const struct kd_client *client, enum pending_kind kind, struct error *err)
{
	if (client->broken.code) {
		*err = client->broken;
		return error_errno(err->code);
	}
	if (kind == PENDING_PING)
		return 0;
	if (atomic_load(&client->draining))
		return error_set(err, ERROR_UNAVAILABLE, NULL, "the server is stopping and takes no new requests");
	if (!pending_has_credit(client))
		return error_set(err, ERROR_OVERLOADED, NULL,
				 "%" PRIu32 " requests are in flight, the server allows no more: take their events first",
				 client->n_pending);
	return 0;
}

int prepared_send(struct kd_client *client, struct prepared *m, bool wait, uint64_t *ret_id, struct error *err)
{
	struct waiter credit = waiter_patient(client, WAIT_CREDIT, NULL);
	struct pending *p = m->pending;
	int r = check_sendable(client, p->kind, err);
	if (r == -EAGAIN && wait) {
		r = client_wait(client, &credit, err);
		if (!r)
			r = check_sendable(client, p->kind, err);    // again: waiting lets others in
	}
	if (!r)
		r = connection_append(&client->connection, m->kind, client->last_id + 1, m->body, m->n, err);
	if (r)
		return r;
	m->pending = NULL;
	pending_start(client, p);
	*ret_id = p->id;
	if (p->callback) {
		callbacks_wake(client);
		(void)client_send(client, err);    // a failure is what the callback will be told
		return 0;
	}
	return client_flush(client, err);
}

static int submit(struct kd_client *client, const struct kd_request *asked, kd_callback *callback, void *arg, uint64_t *ret_id,
		  struct kd_error *err)
{
	struct error why = {0};
	struct prepared m = {0};
	struct kd_request request = KD_REQUEST_INIT;
	int r = convert_sized(&request, sizeof request, asked, "request", &why);
	if (!r)
		r = prepare_score(client, &request, callback ? &client->callbacks : NULL, 0, &m, &why);
	if (r)
		return report(err, &why, r);
	if (callback)
		r = pending_set_callback(m.pending, callback, arg, &why);
	pthread_mutex_lock(&client->lock);
	if (!r && callback)
		r = callbacks_start(client, &why);
	if (!r)
		r = prepared_send(client, &m, request.flags & KD_WAIT, ret_id, &why);
	pthread_mutex_unlock(&client->lock);
	prepared_done(&m);
	return r ? report(err, &why, r) : 0;
}

int kd_submit(struct kd_client *client, const struct kd_request *request, uint64_t *ret_id, struct kd_error *err)
{
	return submit(client, request, NULL, NULL, ret_id, err);
}

int kd_submit_callback(struct kd_client *client, const struct kd_request *request, void (*callback)(void *arg, struct kd_event *event),
		       void *arg, uint64_t *ret_id, struct kd_error *err)
{
	return submit(client, request, callback, arg, ret_id, err);
}

int kd_cancel(struct kd_client *client, uint64_t id, struct kd_error *err)
{
	struct error why = {0};
	pthread_mutex_lock(&client->lock);
	int r = error_errno(client->broken.code);
	if (r)
		why = client->broken;
	else
		r = connection_append(&client->connection, FRAME_CANCEL, id, NULL, 0, &why);
	if (!r)
		r = client_flush(client, &why);
	pthread_mutex_unlock(&client->lock);
	return r ? report(err, &why, r) : 0;
}

int kd_next(struct kd_client *client, int timeout_ms, struct kd_event *ret_event, struct kd_error *err)
{
	struct error why = {0};
	struct queued *q = NULL;
	struct waiter w = waiter_patient(client, WAIT_EVENT, NULL);
	if (timeout_ms >= 0) {
		w.timeout_ms = timeout_ms;
		w.patient = false;
	}
	pthread_mutex_lock(&client->lock);
	int r = client_wait(client, &w, &why);
	if (!r)
		q = queued_pop(client, NULL);
	pthread_mutex_unlock(&client->lock);
	if (r)
		return report(err, &why, r);
	*ret_event = q->event;
	q->event.answer = NULL;
	queued_free(q);
	return 0;
}
