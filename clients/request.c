// SPDX-License-Identifier: Apache-2.0
// Requests: checked here with the server's own rules before a byte is sent, each with the keys its answers must have.
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

// Checks every sequence against the query and notes the key of its answer.
static int prepare_keys(const struct kd_client *client, const struct kd_request *request, const struct query *query, struct pending *p,
			struct error *err)
{
	p->n_sequences = request->n_sequences;
	p->keys = calloc(p->n_sequences, sizeof *p->keys);
	p->answered = calloc(p->n_sequences, sizeof *p->answered);
	if (!p->keys || !p->answered)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for %" PRIu32 " sequences", p->n_sequences);
	for (uint32_t i = 0; i < p->n_sequences; i++) {
		struct sequence s = {(uint32_t *)request->sequences[i].tokens, request->sequences[i].n_tokens};    // only read
		struct query canonical = *query;
		char prefix[32];
		snprintf(prefix, sizeof prefix, "sequences[%" PRIu32 "].", p->base + i);
		int r = query_check(&canonical, &s, &client->welcome.limits, prefix, err);
		if (r)
			return r;
		p->keys[i] = query_key(&client->welcome.teacher, &s, &canonical);
	}
	return 0;
}

static int send_score(struct kd_client *client, const struct kd_request *request, const struct query *query, uint64_t id, struct error *err)
{
	struct frame_score m = {.flags = request->flags, .deadline_ms = request->deadline_ms, .query = *query,
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
		r = connection_append(&client->connection, FRAME_SCORE, id, body, w.position, err);
	}
	free(body);
	free(m.sequences);    // their tokens are the caller's
	return r;
}

static int check_usable(const struct kd_client *client, struct error *err)
{
	if (client->broken.code) {
		*err = client->broken;
		return error_errno(err->code);
	}
	if (client->draining)
		return error_set(err, ERROR_UNAVAILABLE, NULL, "the server is stopping and takes no new requests");
	return 0;
}

// One SCORE, for kd_next (owner NULL) or a blocking call.
static int submit(struct kd_client *client, const struct kd_request *request, const void *owner, uint32_t base, uint64_t *ret_id,
		  struct error *err)
{
	struct query query;
	int r = check_usable(client, err);
	if (!r)
		r = convert_query(&request->query, &query, err);
	if (!r && request->flags & ~(KD_DURABLE | KD_NO_STORE))
		r = error_set(err, ERROR_INVALID, "flags", "unknown flags 0x%" PRIx32, request->flags);
	if (!r && !request->n_sequences)
		r = error_set(err, ERROR_INVALID, "sequences", "there are none");
	if (!r && (request->n_sequences > client->welcome.max_sequences || request->n_sequences > FRAME_MAX_SEQUENCES))
		r = error_set(err, ERROR_TOO_LARGE, "sequences", "%" PRIu32 " sequences, the server takes %" PRIu32, request->n_sequences,
			      client->welcome.max_sequences);
	if (r)
		return r;
	struct pending *p = pending_new(client, owner, err);
	if (!p)
		return error_errno(err->code);
	p->base = base;
	r = prepare_keys(client, request, &query, p, err);
	if (!r)
		r = send_score(client, request, &query, p->id, err);
	if (r) {
		pending_free(client, p);
		return r;
	}
	*ret_id = p->id;
	return client_flush(client, err);
}

int kd_submit(struct kd_client *client, const struct kd_request *request, uint64_t *ret_id, struct kd_error *err)
{
	struct error why = {0};
	int r = submit(client, request, NULL, 0, ret_id, &why);
	return r ? report(err, &why, r) : 0;
}

int kd_cancel(struct kd_client *client, uint64_t id, struct kd_error *err)
{
	struct error why = client->broken;
	int r = error_errno(why.code);
	if (!r)
		r = connection_append(&client->connection, FRAME_CANCEL, id, NULL, 0, &why);
	if (!r)
		r = client_flush(client, &why);
	return r ? report(err, &why, r) : 0;
}

int kd_next(struct kd_client *client, int timeout_ms, struct kd_event *ret_event, struct kd_error *err)
{
	struct error why = {0};
	struct queued *q = NULL;
	int r = client_wait(client, NULL, timeout_ms < 0 ? client->timeout_ms : timeout_ms, timeout_ms < 0, &q, &why);
	if (r)
		return report(err, &why, r);
	*ret_event = q->event;
	q->event.answer = NULL;
	queued_free(q);
	return 0;
}

// How many sequences from `first` on go into one SCORE: within the server's number and bytes, at least one (it will say why not).
static uint32_t chunk_size(const struct kd_client *client, const struct kd_request *request, uint32_t first)
{
	uint64_t bytes = 16 + QUERY_MAX_BYTES;
	uint32_t n = 0;
	while (first + n < request->n_sequences && n < client->welcome.max_sequences && n < FRAME_MAX_SEQUENCES) {
		bytes += 4 + 4 * (uint64_t)request->sequences[first + n].n_tokens;
		if (n && bytes > client->welcome.max_body_bytes)
			break;
		n++;
	}
	return n ? n : 1;
}

// A blocking kd_score under way; its address is the owner of its requests.
struct scoring {
	const struct kd_request *request;
	struct kd_answer **answers;
	uint32_t n_sent, n_open;             // sequences sent, requests not yet done
};

// Sends as much as the credits allow, at least one request when none is in flight.
static int scoring_submit(struct kd_client *client, struct scoring *s, struct error *err)
{
	while (s->n_sent < s->request->n_sequences && client->n_pending < client->welcome.credits) {
		struct kd_request part = *s->request;
		uint64_t id;
		part.sequences += s->n_sent;
		part.n_sequences = chunk_size(client, s->request, s->n_sent);
		int r = submit(client, &part, s, s->n_sent, &id, err);
		if (r)
			return r;
		s->n_sent += part.n_sequences;
		s->n_open++;
	}
	return 0;
}

static int scoring_take(struct kd_client *client, struct scoring *s, struct error *err)
{
	struct queued *q;
	int r = client_wait(client, s, client->timeout_ms, true, &q, err);
	if (r)
		return r;
	if (q->event.kind == KD_EVENT_ANSWER) {
		s->answers[q->event.index] = q->event.answer;
		q->event.answer = NULL;
	} else if (q->event.kind == KD_EVENT_DONE) {
		s->n_open--;
	} else {
		const struct kd_error *why = &q->event.error;
		char field[64];
		snprintf(field, sizeof field, "%s", why->field);
		if (q->event.kind == KD_EVENT_SEQUENCE_FAILED && !*field)
			snprintf(field, sizeof field, "sequences[%" PRIu32 "]", q->event.index);
		r = error_set(err, error_from_name(why->code), field, "%s", why->message);
	}
	queued_free(q);
	return r;
}

int kd_score(struct kd_client *client, const struct kd_request *request, struct kd_answer **answers, struct kd_error *err)
{
	struct error why = {0};
	struct scoring s = {.request = request, .answers = answers};
	int r = request->n_sequences ? 0 : error_set(&why, ERROR_INVALID, "sequences", "there are none");
	memset(answers, 0, request->n_sequences * sizeof *answers);
	while (!r && (s.n_sent < request->n_sequences || s.n_open)) {
		r = scoring_submit(client, &s, &why);
		if (!r && s.n_open)
			r = scoring_take(client, &s, &why);
		else if (!r)
			r = client_wait_credit(client, &why);
	}
	if (!r)
		return 0;
	for (struct pending *p = client->pending; p && !client->broken.code; p = p->next)
		if (p->owner == &s)    // goes out with the next request
			(void)connection_append(&client->connection, FRAME_CANCEL, p->id, NULL, 0, NULL);
	pending_abandon(client, &s);
	for (uint32_t i = 0; i < request->n_sequences; i++) {
		kd_answer_free(answers[i]);
		answers[i] = NULL;
	}
	return report(err, &why, r);
}

static int send_call(struct kd_client *client, uint64_t id, const char *method, const char *path, const void *body, size_t n,
		     struct error *err)
{
	struct frame_call m = {.body = (char *)body, .body_bytes = n};
	if (strlen(method) >= sizeof m.method || strlen(path) >= sizeof m.path)
		return error_set(err, ERROR_INVALID, "path", "method or path is too long");
	strcpy(m.method, method);
	strcpy(m.path, path);
	struct writer count = writer_init(NULL, 0);
	frame_call_encode(&m, &count);
	if (count.position > client->welcome.max_body_bytes)
		return error_set(err, ERROR_TOO_LARGE, "body", "the call has %zu bytes, the server takes %" PRIu32, count.position,
				 client->welcome.max_body_bytes);
	uint8_t *bytes = malloc(count.position);
	if (!bytes)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a call of %zu bytes", count.position);
	struct writer w = writer_init(bytes, count.position);
	frame_call_encode(&m, &w);
	int r = connection_append(&client->connection, FRAME_CALL, id, bytes, w.position, err);
	free(bytes);
	return r;
}

int kd_call(struct kd_client *client, const char *method, const char *path, const void *body, size_t n_bytes,
	    int *ret_status, char **ret_body, size_t *ret_n_bytes, struct kd_error *err)
{
	struct error why = {0};
	struct queued *q = NULL;
	int r = check_usable(client, &why);
	if (r)
		return report(err, &why, r);
	struct pending *p = pending_new(client, &q, &why);
	if (!p)
		return report(err, &why, error_errno(why.code));
	p->is_call = true;
	r = send_call(client, p->id, method, path, body, n_bytes, &why);
	if (r) {
		pending_free(client, p);
		return report(err, &why, r);
	}
	r = client_flush(client, &why);
	if (!r)
		r = client_wait(client, &q, client->timeout_ms, true, &q, &why);
	if (!r && q->event.kind == KD_EVENT_REQUEST_FAILED)
		r = error_set(&why, error_from_name(q->event.error.code), q->event.error.field, "%s", q->event.error.message);
	if (!r) {
		*ret_status = (int)q->reply.status;
		*ret_body = q->reply.body;
		*ret_n_bytes = q->reply.body_bytes;
		q->reply.body = NULL;
	}
	queued_free(q);
	pending_abandon(client, &q);
	return r ? report(err, &why, r) : 0;
}
