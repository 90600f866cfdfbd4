// SPDX-License-Identifier: Apache-2.0
// Requests: checked here with the server's own rules before a byte is sent; answers come without their questions, so those are kept. All
// of that is done without the lock; with it only the credit is taken and the frame queued.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/client.h"
#include "common/cursor.h"

static int convert_query(const struct kd_query *from, struct query *ret, struct error *err)
{
	query_init(ret);
	if (from->n_temperatures > QUERY_MAX_TEMPERATURES)
		return error_set(err, ERROR_TOO_LARGE, "temperatures", "%" PRIu32 " temperatures, the limit is %d", from->n_temperatures,
				 QUERY_MAX_TEMPERATURES);
	ret->top_k = from->top_k;
	ret->own = from->own;
	ret->entropy = from->entropy;
	ret->values = from->f16 ? QUERY_VALUES_F16 : QUERY_VALUES_F32;
	ret->first = from->first;
	ret->last = from->last;
	ret->n_temperatures = from->n_temperatures;
	for (uint32_t i = 0; i < from->n_temperatures; i++)
		ret->temperatures[i] = from->temperatures[i];
	return 0;
}

// Checks a sequence against the query and keeps what was asked.
static int prepare_question(const struct kd_client *client, const struct kd_sequence *asked, const struct query *query, uint32_t index,
			    struct question *q, struct error *err)
{
	char prefix[32];
	snprintf(prefix, sizeof prefix, "sequences[%" PRIu32 "].", index);
	if (sequence_init(&q->sequence, asked->tokens, asked->n_tokens) || query_copy(&q->query, query))
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a question");
	int r = query_check(&q->query, &q->sequence, &client->welcome.limits, prefix, err);
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
	for (uint32_t i = 0; !r && i < p->n_sequences; i++)
		r = prepare_question(client, &request->sequences[i], query, p->base + i, &p->questions->items[i], err);
	return r;
}

// The body of the SCORE frame; *ret_body is the caller's to free.
static int encode_score(const struct kd_client *client, const struct kd_request *request, const struct query *query, uint8_t **ret_body,
			size_t *ret_n, struct error *err)
{
	struct frame_score m = {.flags = (request->flags & ~KD_WAIT) | FRAME_SCORE_SHORT, .deadline_ms = request->deadline_ms, .query = *query,
				.n_sequences = request->n_sequences};
	uint8_t *body = NULL;
	m.sequences = calloc(m.n_sequences, sizeof *m.sequences);
	if (!m.sequences)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for %" PRIu32 " sequences", m.n_sequences);
	for (uint32_t i = 0; i < m.n_sequences; i++)
		m.sequences[i] = (struct sequence){(uint32_t *)request->sequences[i].tokens, request->sequences[i].n_tokens};
	struct writer count = writer_init(NULL, 0), w;
	frame_score_encode(&m, &count);
	int r = 0;
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
	free(m.sequences);    // their tokens are the caller's
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
		r = convert_query(&request->query, &query, err);
	if (r)
		return r;
	m.pending = pending_new(PENDING_SCORE, owner, err);
	r = m.pending ? 0 : error_errno(err->code);
	if (!r) {
		m.pending->base = base;
		r = prepare_questions(client, request, &query, m.pending, err);
	}
	if (!r)
		r = encode_score(client, request, &query, &m.body, &m.n, err);
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

static int submit(struct kd_client *client, const struct kd_request *request, kd_callback *callback, void *arg, uint64_t *ret_id,
		  struct kd_error *err)
{
	struct error why = {0};
	struct prepared m = {0};
	int r = prepare_score(client, request, callback ? &client->callbacks : NULL, 0, &m, &why);
	if (r)
		return report(err, &why, r);
	if (callback)
		r = pending_set_callback(m.pending, callback, arg, &why);
	pthread_mutex_lock(&client->lock);
	if (!r && callback)
		r = callbacks_start(client, &why);
	if (!r)
		r = prepared_send(client, &m, request->flags & KD_WAIT, ret_id, &why);
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
