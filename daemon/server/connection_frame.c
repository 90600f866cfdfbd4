// SPDX-License-Identifier: Apache-2.0
// What each frame of a client means, and the frames that answer it.
#include <stdlib.h>
#include <string.h>

#include "common/crc32c.h"
#include "common/cursor.h"
#include "common/error.h"
#include "common/record.h"
#include "common/record_short.h"
#include "daemon/clock.h"
#include "daemon/queue.h"
#include "daemon/server/auth.h"
#include "daemon/server/connection_internal.h"
#include "daemon/server/service.h"
#include "daemon/teacher/generation_reader.h"
#include "daemon/teacher/request.h"
#include "daemon/teacher/teacher.h"

// ---- frames out

static void encode_welcome(const void *message, struct writer *w) { frame_welcome_encode(message, w); }
static void encode_answer(const void *message, struct writer *w) { frame_answer_encode(message, w); }
static void encode_error(const void *message, struct writer *w) { frame_error_encode(message, w); }

static struct connection_output *output_alloc(size_t n)
{
	struct connection_output *o = n <= UINT32_MAX ? malloc(sizeof *o + FRAME_HEADER_BYTES + n) : NULL;
	if (o)
		*o = (struct connection_output){.n = FRAME_HEADER_BYTES + n};
	return o;
}

// Without memory for a frame the conversation cannot go on truthfully: the client is dropped.
static struct connection_output *output_new(struct connection *c, size_t n)
{
	struct connection_output *o = output_alloc(n);
	if (!o)
		connection_close(c);
	return o;
}

static void output_seal(struct connection_output *o, enum frame_kind kind, uint64_t id)
{
	size_t n = o->n - FRAME_HEADER_BYTES;
	struct frame f = {.kind = (uint8_t)kind, .request_id = id, .body_bytes = (uint32_t)n};
	f.body_crc = n ? crc32c(0, o->data + FRAME_HEADER_BYTES, n) : 0;
	frame_encode(&f, o->data);
}

struct connection_output *connection_output_new(enum frame_kind kind, uint64_t id, connection_encode_fn *encode, const void *message)
{
	struct writer count = writer_init(NULL, 0);
	encode(message, &count);
	struct connection_output *o = output_alloc(count.position);
	if (!o)
		return NULL;
	struct writer w = writer_init(o->data + FRAME_HEADER_BYTES, count.position);
	encode(message, &w);
	output_seal(o, kind, id);
	return o;
}

static struct connection_output *frame_new(struct connection *c, enum frame_kind kind, uint64_t id, connection_encode_fn *encode,
					   const void *message)
{
	struct connection_output *o = connection_output_new(kind, id, encode, message);
	if (!o)
		connection_close(c);
	return o;
}

static struct connection_output *plain_new(struct connection *c, enum frame_kind kind, uint64_t id, const void *body, size_t n)
{
	struct connection_output *o = output_new(c, n);
	if (!o)
		return NULL;
	if (n)
		memcpy(o->data + FRAME_HEADER_BYTES, body, n);
	output_seal(o, kind, id);
	return o;
}

void connection_send_message(struct connection *c, enum frame_kind kind, uint64_t id, connection_encode_fn *encode, const void *message)
{
	struct connection_output *o = frame_new(c, kind, id, encode, message);
	if (o)
		connection_send(c, o);
}

void connection_send_plain(struct connection *c, enum frame_kind kind, uint64_t id, const void *body, size_t n)
{
	struct connection_output *o = plain_new(c, kind, id, body, n);
	if (o)
		connection_send(c, o);
}

static struct connection_output *error_new(struct connection *c, uint64_t id, uint32_t index, const struct error *e)
{
	struct frame_error m = {.index = index, .error = *e};
	return frame_new(c, FRAME_ERROR, id, encode_error, &m);
}

void connection_send_error(struct connection *c, uint64_t id, uint32_t index, const struct error *e)
{
	struct connection_output *o = error_new(c, id, index, e);
	if (o)
		connection_send(c, o);
}

// ---- requests in flight

static void ask_free(struct connection_ask *ask)
{
	for (uint32_t i = 0; ask->readers && i < ask->request->n_items; i++)
		generation_reader_done(&ask->readers[i]);
	free(ask->readers);
	free(ask);
}

void connection_ask_done(struct connection *c, struct connection_ask *ask, bool sent)
{
	for (struct connection_ask **at = &c->asks; *at; at = &(*at)->next) {
		if (*at != ask)
			continue;
		*at = ask->next;
		c->n_asks--;
		break;
	}
	struct request *q = ask->request;
	if (!sent)
		atomic_store(&q->cancelled, true);
	ask_free(ask);
	service_finish(c->context->service, q);
}

static struct connection_ask *ask_find(struct connection *c, uint64_t id)
{
	struct connection_ask *ask = c->asks;
	while (ask && ask->id != id)
		ask = ask->next;
	return ask;
}

static void ask_cancel(struct connection_ask *ask)
{
	if (!ask->n_left)
		return;    // complete: only its last frames wait
	ask->cancelled = true;
	atomic_store(&ask->request->cancelled, true);
}

void connection_cancel_all(struct connection *c)
{
	for (struct connection_ask *ask = c->asks; ask; ask = ask->next)
		ask_cancel(ask);
	connection_call_cancel(c->call);
}

// The record goes straight into the frame, with or without its question.
static struct connection_output *answer_new(struct connection *c, const struct connection_ask *ask, const struct request_item *item)
{
	struct frame_answer answer = {.index = item->index, .flags = item->cached ? FRAME_ANSWER_CACHED : 0};
	if (!ask->short_answers) {
		answer.record = record_bytes(item->record, &answer.record_bytes);
		return frame_new(c, FRAME_ANSWER, ask->id, encode_answer, &answer);
	}
	answer.flags |= FRAME_ANSWER_SHORT;
	struct connection_output *o = output_new(c, FRAME_ANSWER_HEADER_BYTES + record_short_bytes(item->record));
	if (!o)
		return NULL;
	struct writer w = writer_init(o->data + FRAME_HEADER_BYTES, FRAME_ANSWER_HEADER_BYTES);
	frame_answer_encode(&answer, &w);
	record_shorten(item->record, o->data + FRAME_HEADER_BYTES + FRAME_ANSWER_HEADER_BYTES);
	output_seal(o, FRAME_ANSWER, ask->id);
	return o;
}

static void send_item(struct connection *c, struct connection_ask *ask, struct request_item *item)
{
	if (ask->cancelled) {
		ask->unanswered = true;
		return;
	}
	if (item->error.code) {
		connection_send_error(c, ask->id, item->index, &item->error);
		return;
	}
	double began = clock_seconds();
	struct connection_output *o = answer_new(c, ask, item);
	histogram_append(service_encode_seconds(c->context->service), clock_seconds() - began);
	if (o)
		connection_send(c, o);
	item->record = record_unref(item->record);
}

static void send_end(struct connection *c, struct connection_ask *ask)
{
	struct connection_output *o = NULL;
	struct error err = {0};
	if (c->state < CONNECTION_CLOSING && ask->unanswered) {
		error_set(&err, ERROR_CANCELLED, NULL, "cancelled");
		o = error_new(c, ask->id, FRAME_WHOLE_REQUEST, &err);
	} else if (c->state < CONNECTION_CLOSING) {
		o = plain_new(c, FRAME_DONE, ask->id, NULL, 0);
	}
	if (!o) {
		connection_ask_done(c, ask, false);
		return;
	}
	o->ask = ask;
	connection_send(c, o);
}

void connection_returned(struct request_item *item)
{
	struct connection_ask *ask = item->request->owner;
	struct connection *c = ask->connection;
	bool last = request_item_take(item);
	bool failed = last && item->error.code;        // before the last time it is the engine's
	if (c->state < CONNECTION_CLOSING && item->generation && !failed && !ask->cancelled)
		connection_send_tokens(c, ask, item, last);
	else if (c->state < CONNECTION_CLOSING && last)
		send_item(c, ask, item);
	if (last && --ask->n_left == 0)
		send_end(c, ask);
	if (c->state != CONNECTION_CLOSED)
		connection_write(c);
}

// From any thread.
static void return_item(struct request_item *item)
{
	struct connection_ask *ask = item->request->owner;
	queue_push(ask->connection->context->returned, &item->link);
}

static const struct teacher_info *teachers_of(const struct connection *c, uint32_t *ret_n)
{
	return teacher_infos(service_teacher(c->context->service), ret_n);
}

static int ask_new(struct connection *c, uint64_t id, struct request *q, struct connection_ask **ret_ask, struct error *err)
{
	struct connection_ask *ask = calloc(1, sizeof *ask);
	if (ask && q->generate)
		ask->readers = calloc(q->n_items, sizeof *ask->readers);
	if (!ask || (q->generate && !ask->readers)) {
		free(ask);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the request");
	}
	q->asked.n_members = 1;
	content_id_to_hex(&teachers_of(c, &(uint32_t){0})[c->teacher].fingerprint, q->asked.members[0].name);
	q->door = REQUEST_SOCKET;
	q->principal = c->principal;
	q->owner = ask;
	q->complete = return_item;
	ask->connection = c;
	ask->id = id;
	ask->request = q;
	ask->n_left = q->n_items;
	*ret_ask = ask;
	return 0;
}

// ---- frames in

static int score_request(const uint8_t *body, size_t n, struct request **ret_request, bool *ret_short, struct error *err)
{
	struct frame_score m = {0};
	struct request *q = NULL;
	int r = frame_score_decode(body, n, &m, err);
	if (!r)
		r = request_new(m.n_sequences, &q, err);
	for (uint32_t i = 0; !r && i < m.n_sequences; i++) {
		q->items[i].sequence = m.sequences[i];
		m.sequences[i] = (struct sequence){0};
	}
	for (uint32_t i = 0; !r && m.parts && i < m.n_sequences; i++) {
		q->items[i].part = m.parts[i];
		m.parts[i] = (struct query_part){0};
	}
	if (!r) {
		q->query = m.query;
		query_init(&m.query);
		q->durable = m.flags & FRAME_SCORE_DURABLE;
		q->no_store = m.flags & FRAME_SCORE_NO_STORE;
		q->deadline_ms = m.deadline_ms ? clock_ms() + m.deadline_ms : 0;
		*ret_short = m.flags & FRAME_SCORE_SHORT;
		*ret_request = q;
	}
	frame_score_done(&m);
	return r;
}

static int read_request(struct connection *c, const struct frame *f, const uint8_t *body, struct connection_ask **ret_ask,
			struct error *err)
{
	struct request *q = NULL;
	bool short_answers = false;
	int r = 0;
	if (c->n_asks >= c->credits)
		return error_set(err, ERROR_OVERLOADED, NULL, "sent without credit: %u requests are in flight", c->n_asks);
	if (f->kind == FRAME_GENERATE)
		r = connection_generate_request(c, body, f->body_bytes, &q, err);
	else
		r = score_request(body, f->body_bytes, &q, &short_answers, err);
	if (!r)
		r = ask_new(c, f->request_id, q, ret_ask, err);
	if (r)
		request_free(q);
	else
		(*ret_ask)->short_answers = short_answers;
	return r;
}

static int start_request(struct connection *c, const struct frame *f, const uint8_t *body, struct error *err)
{
	struct connection_ask *ask = NULL;
	int r = read_request(c, f, body, &ask, err);
	if (r) {
		service_reject(c->context->service, REQUEST_SOCKET, err->code);
		return r;
	}
	// Items come back through the queue, so not before this returns to the loop: the list can wait for the verdict.
	struct request *q = ask->request;
	r = (q->generate ? service_generate : service_score)(c->context->service, q, err);
	if (r) {
		ask_free(ask);
		request_free(q);
		return r;
	}
	ask->next = c->asks;
	c->asks = ask;
	c->n_asks++;
	return 0;
}

static void on_request(struct connection *c, const struct frame *f, const uint8_t *body)
{
	struct error err = {0};
	if (start_request(c, f, body, &err))
		connection_send_error(c, f->request_id, FRAME_WHOLE_REQUEST, &err);
}

// The fingerprint expected says whom all of the connection's requests ask.
static int choose_teacher(struct connection *c, const struct frame_hello *hello, struct error *err)
{
	static const struct content_id any;
	uint32_t n;
	int r = service_check_ready(c->context->service, err);
	if (r || memcmp(&hello->teacher, &any, sizeof any) == 0)
		return r;
	const struct teacher_info *teachers = teachers_of(c, &n);
	while (c->teacher < n && memcmp(&hello->teacher, &teachers[c->teacher].fingerprint, sizeof any) != 0)
		c->teacher++;
	if (c->teacher < n)
		return 0;
	c->teacher = 0;
	return error_set(err, ERROR_CONFLICT, "teacher", n == 1 ? "this server's teacher is not the one expected" :
			 "the teacher expected is none of this server's");
}

static void on_hello(struct connection *c, const struct frame *f, const uint8_t *body)
{
	struct frame_hello hello = {0};
	struct frame_welcome m = {.max_body_bytes = c->max_body, .credits = c->credits};
	struct error err = {0};
	int r = 0;
	if (f->kind != FRAME_HELLO || f->request_id)
		r = error_set(&err, ERROR_INVALID, "frame", "expected hello with request id 0, not %s", frame_kind_name(f->kind));
	if (!r)
		r = frame_hello_decode(body, f->body_bytes, &hello, &err);
	if (!r)
		r = auth_login(service_auth(c->context->service), *hello.token ? hello.token : NULL, &c->principal, &err);
	explicit_bzero(hello.token, sizeof hello.token);
	if (!r)
		r = choose_teacher(c, &hello, &err);
	if (r) {
		connection_fail(c, &err);
		return;
	}
	uint32_t n;
	service_limits(c->context->service, c->teacher, &m.limits, &m.max_sequences);
	auth_limit(c->principal, &m.limits);
	m.teacher = teachers_of(c, &n)[c->teacher].fingerprint;
	struct connection_output *o = frame_new(c, FRAME_WELCOME, 0, encode_welcome, &m);
	if (!o)
		return;
	c->state = CONNECTION_OPEN;
	connection_send(c, o);
}

// Requests need an id that is free; anything else would make their answers ambiguous, so it ends the connection.
static int check_id(struct connection *c, const struct frame *f, struct error *err)
{
	if (!f->request_id)
		return error_set(err, ERROR_INVALID, "request_id", "0 is the connection's");
	if (ask_find(c, f->request_id))
		return error_set(err, ERROR_INVALID, "request_id", "that request is still in flight");
	return 0;
}

bool connection_refuse(struct connection *c, const struct frame *f, const struct error *e)
{
	bool asks = f->kind == FRAME_SCORE || f->kind == FRAME_GENERATE;
	if ((!asks && f->kind != FRAME_CALL) || check_id(c, f, NULL))
		return false;
	if (asks)
		service_reject(c->context->service, REQUEST_SOCKET, e->code);
	connection_send_error(c, f->request_id, FRAME_WHOLE_REQUEST, e);
	connection_write(c);
	return c->state != CONNECTION_CLOSED;
}

static int check_empty(const struct frame *f, struct error *err)
{
	return f->body_bytes ? error_set(err, ERROR_INVALID, "frame", "%s has no body", frame_kind_name(f->kind)) : 0;
}

static void on_cancel(struct connection *c, const struct frame *f)
{
	struct connection_ask *ask = ask_find(c, f->request_id);
	if (ask)
		ask_cancel(ask);
}

static int dispatch(struct connection *c, const struct frame *f, const uint8_t *body, struct error *err)
{
	int r = 0;
	switch (f->kind) {
	case FRAME_SCORE:
	case FRAME_GENERATE:
	case FRAME_CALL:
		r = auth_permit(c->principal, AUTH_ANY, err);      // it may have been taken back meanwhile
		if (!r)
			r = check_id(c, f, err);
		if (!r)
			(f->kind == FRAME_CALL ? connection_call_start : on_request)(c, f, body);
		return r;
	case FRAME_PING:
	case FRAME_PONG:
		if (f->body_bytes > FRAME_MAX_PING)
			return error_set(err, ERROR_TOO_LARGE, "frame", "%s of %u bytes, the limit is %d", frame_kind_name(f->kind),
					 f->body_bytes, FRAME_MAX_PING);
		if (f->kind == FRAME_PING)
			connection_send_plain(c, FRAME_PONG, f->request_id, body, f->body_bytes);
		return 0;
	case FRAME_CANCEL:
		r = check_empty(f, err);
		if (!r)
			on_cancel(c, f);
		return r;
	default:
		return error_set(err, ERROR_INVALID, "frame", "a client does not send %s here", frame_kind_name(f->kind));
	}
}

void connection_frame(struct connection *c, const struct frame *f, const uint8_t *body)
{
	struct error err = {0};
	if (c->state == CONNECTION_HELLO)
		on_hello(c, f, body);
	else if (dispatch(c, f, body, &err))
		connection_fail(c, &err);
	if (c->state != CONNECTION_CLOSED)
		connection_write(c);
}
