// SPDX-License-Identifier: Apache-2.0
// One request: headers checked, body collected within its bound, handed to control or service, reply written. Its complications: a refusal
// known from the headers still reads and drops a body of ordinary size, because closing with unread bytes makes the client's kernel throw
// the reply away; and what takes long is done at the desk (desk.h), whose the exchange, the body and the reply are then; items that
// come back meanwhile wait for it.
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/clock.h"
#include "daemon/server/auth.h"
#include "daemon/server/http_internal.h"
#include "daemon/server/service.h"
#include "daemon/teacher/generation.h"
#include "daemon/teacher/request.h"

#define DROP_BYTES (64u << 20)      // of a refused body; a longer one is cut off
#define STRANGER_BYTES 65536        // dropped of the body of somebody who is not let in

static void do_work(struct desk_job *job);

void http_request_set_deadline(struct http_request *q, uint64_t ms)
{
	http_set_deadline(q->connection, ms, q->state == HTTP_HEADERS || q->state == HTTP_BODY);
}

void *http_request_begin(void *arg, const char *target, struct MHD_Connection *mhd)
{
	struct http *h = arg;
	const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
	struct http_connection *c = info ? info->socket_context : NULL;
	struct http_request *q = c ? calloc(1, sizeof *q) : NULL;
	if (!q)
		return NULL;
	q->http = h;
	q->connection = c;
	q->mhd = mhd;
	q->job.work = do_work;
	q->parked_end = &q->parked;
	q->escaped = strchr(target, '%') != NULL;
	q->target = http_gate_target(target);
	q->reply.status = 200;
	q->max_json = h->settings.max_json;
	c->request = q;
	c->asked = true;
	h->n_requests++;
	http_request_set_deadline(q, h->settings.header_timeout_ms);
	return q;
}

static void body_done(struct http_request *q)
{
	buffer_done(&q->body);
	service_hold(q->http->service, &q->held, 0, NULL);
}

void http_request_end(void *arg, struct MHD_Connection *mhd, void **context, enum MHD_RequestTerminationCode why)
{
	struct http *h = arg;
	struct http_request *q = *context;
	(void)mhd;
	if (!q)
		return;
	if (q->exchange) {
		h->n_exchanges--;
		if (q->exchange->n_left) {    // a stream was cut: http_request_returned frees it
			q->exchange->client = NULL;
			exchange_cancel(q->exchange);
		} else {
			exchange_free(q->exchange, why != MHD_REQUEST_TERMINATED_COMPLETED_OK);
		}
	}
	http_set_deadline(q->connection, h->settings.idle_timeout_ms, true);
	q->connection->request = NULL;
	principal_unref(q->principal);
	buffer_done(&q->reply.body);
	buffer_done(&q->out);
	body_done(q);
	free(q);
	*context = NULL;
	h->n_requests--;
	h->n_ended++;
}

void http_request_refuse(struct http_request *q, int status, const struct error *e)
{
	q->refused = true;
	q->refused_code = e->code;
	control_refuse(&q->reply, status, e, q->errors);
}

// ---- away from the loop

// The connection rests until http_request_returned or http_request_worked wakes it.
void http_request_suspend(struct http_request *q)
{
	q->suspended = true;
	q->connection->deadline_ms = 0;
	if (q->connection->left)
		http_request_cancel(q);
	MHD_suspend_connection(q->mhd);
}

static void resume(struct http_request *q)
{
	q->suspended = false;
	if (q->state == HTTP_REPLYING)
		http_request_set_deadline(q, q->http->settings.write_timeout_ms);
	MHD_resume_connection(q->mhd);
}

void http_request_give(struct http_request *q, enum http_work work, uint64_t n_bytes)
{
	q->work = work;
	q->at_desk = true;
	q->job.who = auth_asker(q->principal);
	q->job.n_bytes = n_bytes;
	q->job.n_body = q->body.n;
	http_request_suspend(q);
	desk_give(q->http->desk, &q->job);
}

void http_request_cancel(struct http_request *q)
{
	if (q->at_desk)
		q->cancelled = true;
	else if (q->exchange && q->exchange->n_left)
		exchange_cancel(q->exchange);
}

// ---- exchanges

static void return_item(struct request_item *item)
{
	const struct exchange *x = item->request->owner;
	struct http *h = x->owner;
	queue_push(h->returned, &item->link);
}

void http_request_returned(struct request_item *item)
{
	struct exchange *x = item->request->owner;
	struct http_request *q = x->client;
	struct http *h = x->owner;
	if (q && q->at_desk) {
		item->link.next = NULL;
		*q->parked_end = &item->link;
		q->parked_end = &item->link.next;
		return;
	}
	h->n_waiting -= exchange_take(x, item);
	if (!q && !x->n_left)
		exchange_free(x, true);
	else if (q && q->suspended && exchange_is_ready(x))
		resume(q);
}

// ---- work

static int start_exchange(struct http_request *q, struct error *err)
{
	struct http *h = q->http;
	struct exchange *x = NULL;
	service_give_place(h->service);
	int r = exchange_new(q->kind, h->service, REQUEST_HTTP, h, return_item, &x, err);
	if (!r) {
		x->client = q;
		r = exchange_start(x, q->principal, q->body.data ? q->body.data : "", q->body.n, err);
	}
	body_done(q);
	if (r)
		x = exchange_free(x, false);
	q->exchange = x;
	return r;
}

static void call(struct http_request *q)
{
	struct error err = {0};
	control_call(q->http->service, q->principal, q->method, q->path, q->body.data, q->body.n, &q->reply);
	body_done(q);
	if (service_hold(q->http->service, &q->held, q->reply.body.n, &err))
		control_refuse(&q->reply, 0, &err, q->errors);
}

static void do_work(struct desk_job *job)
{
	struct http_request *q = (struct http_request *)job;
	switch (q->work) {
	case HTTP_START:
		q->result = start_exchange(q, &q->fault);
		break;
	case HTTP_ENCODE:
		q->result = http_reply_encode(q);
		break;
	case HTTP_CALL:
		call(q);
		break;
	}
}

// The service has it, or never will.
static void started(struct http_request *q)
{
	if (q->result) {
		http_request_refuse(q, 0, &q->fault);
		return;
	}
	q->http->n_exchanges++;
	q->http->n_waiting += q->exchange->n_left;
}

void http_request_worked(struct http_request *q)
{
	struct queue_item *item = q->parked;
	q->at_desk = false;
	if (q->work == HTTP_START)
		started(q);
	q->parked = NULL;
	q->parked_end = &q->parked;
	while (item) {
		struct queue_item *next = item->next;
		item->next = NULL;            // once taken it may be told again, and must not bring those along that were parked behind it
		q->http->n_waiting -= exchange_take(q->exchange, (struct request_item *)item);
		item = next;
	}
	if (q->cancelled)
		http_request_cancel(q);
	if (q->refused || !q->exchange || q->result || q->out.n || q->exchange->ended || exchange_is_ready(q->exchange))
		resume(q);
}

static enum MHD_Result handle_exchange(struct http_request *q)
{
	q->state = HTTP_WAITING;
	if (!desk_has_time(q->http->desk, q->body.n)) {
		http_request_give(q, HTTP_START, q->body.n);
		return MHD_YES;
	}
	q->work = HTTP_START;
	do_work(&q->job);
	started(q);
	if (q->refused)
		return http_reply_send(q);
	http_request_suspend(q);
	return MHD_YES;
}

static enum MHD_Result handle_call(struct http_request *q)
{
	struct error err = {0};
	q->work = HTTP_CALL;
	if (desk_has_time_to_call(q->http->desk, q->method, q->path, q->body.n)) {
		do_work(&q->job);
		return http_reply_send(q);
	}
	if (desk_check_room(q->http->desk, auth_asker(q->principal), q->body.n, &err)) {
		http_request_refuse(q, 0, &err);
		return http_reply_send(q);
	}
	q->state = HTTP_WAITING;
	http_request_give(q, HTTP_CALL, desk_call_bytes(q->method, q->path, q->body.n));
	return MHD_YES;
}

// ---- the request

// Nothing is done, and little is read, for somebody who is not let in; then the connection ends.
static bool let_in(struct http_request *q, const char *path, const char *method, uint64_t n_body, bool chunked)
{
	struct error err = {0};
	const char *secret = NULL;
	if (control_is_public(method, path))
		return true;
	int r = http_gate_secret(q->mhd, &secret, &err);
	if (!r)
		r = auth_login(service_auth(q->http->service), secret, &q->principal, &err);
	http_gate_forget(secret);
	q->connection->known |= !r;
	if (!r)
		r = control_permit(q->principal, method, path, &err);
	if (!r)
		return true;
	http_request_refuse(q, 0, &err);
	q->unauthorized = err.code == ERROR_UNAUTHORIZED;
	q->must_close |= q->unauthorized;
	q->at_once = q->unauthorized && (chunked || n_body > STRANGER_BYTES);
	return false;
}

static void check_headers(struct http_request *q, const char *path, const char *method, const char *version)
{
	struct error err = {0};
	uint64_t n_body = 0;
	bool chunked = false;
	q->kind = exchange_find(path);
	q->errors = control_errors(path);
	if (http_gate_check(q->mhd, method, q->target, version, &err) || http_gate_body(q->mhd, &n_body, &chunked, &err)) {
		q->must_close = q->at_once = true;
		http_request_refuse(q, err.code == ERROR_TOO_LARGE ? MHD_HTTP_REQUEST_HEADER_FIELDS_TOO_LARGE : 0, &err);
		return;
	}
	// Where a chunked body ends is for libmicrohttpd alone to say, and it takes a lone LF for the end of a chunk's first line: a reader
	// in front may think otherwise. So nothing is read behind such a body.
	q->must_close = chunked;
	if (!let_in(q, path, method, n_body, chunked))
		return;
	if (q->escaped) {
		error_set(&err, ERROR_INVALID, "path", "no resource has an escape in its path");
		http_request_refuse(q, 0, &err);
	} else if (!control_check(method, path, &q->reply)) {
		q->refused = true;
	} else if (n_body > q->max_json) {
		error_set(&err, ERROR_TOO_LARGE, "body", "%llu bytes, the limit is %llu: use the binary protocol",
			  (unsigned long long)n_body, (unsigned long long)q->max_json);
		http_request_refuse(q, 0, &err);
	} else if (strcmp(method, "POST") == 0 && !http_gate_is_json(q->mhd)) {
		error_set(&err, ERROR_UNSUPPORTED, "Content-Type", "expected application/json, not compressed");
		http_request_refuse(q, 415, &err);
	}
	if (q->refused && n_body > DROP_BYTES)
		q->must_close = q->at_once = true;
}

static void take_body(struct http_request *q, const char *data, size_t n)
{
	struct error err = {0};
	if (q->refused)
		return;
	if (n > q->max_json - q->body.n) {
		error_set(&err, ERROR_TOO_LARGE, "body", "more than %" PRIu64 " bytes: use the binary protocol", q->max_json);
		q->must_close = true;    // chunked: nothing says where it would end
	} else {
		buffer_add(&q->body, data, n);
		service_hold(q->http->service, &q->held, q->body.capacity, &err);
	}
	if (err.code) {
		http_request_refuse(q, 0, &err);
		body_done(q);
	}
}

static enum MHD_Result handle_whole(struct http_request *q, const char *path, const char *method)
{
	struct error err = {0};
	q->connection->deadline_ms = 0;
	if (!q->refused && q->body.failed) {
		error_set(&err, ERROR_MEMORY, "body", "no memory for it");
		http_request_refuse(q, 0, &err);
	}
	if (q->refused) {
		if (q->kind)
			service_reject(q->http->service, REQUEST_HTTP, q->refused_code ? q->refused_code : ERROR_INVALID);
		return http_reply_send(q);
	}
	q->method = method;
	q->path = path;
	if (!q->kind)
		return handle_call(q);
	// A refusal waits for nobody; and what waits at the desk has its place, or it would be read only to be refused.
	if (service_take_place(q->http->service, q->principal, &err)) {
		http_request_refuse(q, 0, &err);
		service_reject(q->http->service, REQUEST_HTTP, err.code);
		return http_reply_send(q);
	}
	return handle_exchange(q);
}

enum MHD_Result http_request_handle(void *arg, struct MHD_Connection *mhd, const char *path, const char *method, const char *version,
				    const char *data, size_t *n_data, void **context)
{
	struct http_request *q = *context;
	(void)arg, (void)mhd;
	if (!q)
		return MHD_NO;    // there was no memory for it
	switch (q->state) {
	case HTTP_HEADERS:
		check_headers(q, path, method, version);
		q->state = HTTP_BODY;
		http_request_set_deadline(q, q->http->settings.body_timeout_ms);
		return q->at_once ? http_reply_send(q) : MHD_YES;
	case HTTP_BODY:
		if (*n_data) {
			take_body(q, data, *n_data);
			*n_data = 0;
			return MHD_YES;
		}
		return handle_whole(q, path, method);
	case HTTP_WAITING:
		return q->refused || !q->kind ? http_reply_send(q) : http_reply_send_exchange(q);
	case HTTP_REPLYING:
		break;
	}
	return MHD_YES;
}
