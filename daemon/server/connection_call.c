// SPDX-License-Identifier: Apache-2.0
// CALL and its REPLY: on the spot, or at the desk when it may take long. Its connection rests meanwhile, so that a client has one body and
// one reply here at most.
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "common/error.h"
#include "daemon/server/auth.h"
#include "daemon/server/connection_internal.h"
#include "daemon/server/control.h"
#include "daemon/server/desk.h"
#include "daemon/server/service.h"

struct connection_call {
	struct desk_job job;               // first: a job's pointer is a call's
	struct connection *connection;     // stays until the call is back
	uint64_t id;
	struct frame_call frame;
	_Atomic bool cancelled;
	struct connection_output *reply;   // NULL = no memory for it, or cancelled
};

static void encode_reply(const void *message, struct writer *w) { frame_reply_encode(message, w); }

// Takes what the reply holds.
static void set_reply(struct connection_call *call, struct control_reply *reply)
{
	struct service *s = call->connection->context->service;
	struct error err = {0};
	uint64_t held = 0;
	if (service_hold(s, &held, reply->body.n, &err))
		control_refuse(reply, 0, &err, control_errors(call->frame.path));
	struct frame_reply m = {.status = (uint32_t)reply->status, .body = reply->body.data, .body_bytes = reply->body.n};
	call->reply = connection_output_new(FRAME_REPLY, call->id, encode_reply, &m);
	if (call->reply)
		call->reply->held = held;
	else
		service_hold(s, &held, 0, NULL);
	buffer_done(&reply->body);
}

static void do_work(struct desk_job *job)
{
	struct connection_call *call = (struct connection_call *)job;
	const struct connection *c = call->connection;
	const struct frame_call *f = &call->frame;
	struct control_reply reply = {0};
	if (atomic_load(&call->cancelled))
		return;
	control_call(c->context->service, c->principal, f->method, f->path, f->body, f->body_bytes, &reply);
	set_reply(call, &reply);
}

// Sends the reply, if its client still waits for it; frees the call.
static void call_end(struct connection_call *call)
{
	struct connection *c = call->connection;
	if (c->state >= CONNECTION_CLOSING)
		connection_output_free(c, call->reply);
	else if (call->reply)
		connection_send(c, call->reply);
	else
		connection_close(c);       // no memory: like any frame that cannot be made
	frame_call_done(&call->frame);
	free(call);
}

static int call_new(struct connection *c, const struct frame *f, const uint8_t *body, struct connection_call **ret_call, struct error *err)
{
	struct connection_call *call = calloc(1, sizeof *call);
	if (!call)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the call");
	int r = frame_call_decode(body, f->body_bytes, &call->frame, err);
	if (r) {
		free(call);
		return r;
	}
	call->job.work = do_work;
	call->job.who = auth_asker(c->principal);
	call->job.n_body = call->frame.body_bytes;
	call->job.n_bytes = desk_call_bytes(call->frame.method, call->frame.path, call->frame.body_bytes);
	call->connection = c;
	call->id = f->request_id;
	*ret_call = call;
	return 0;
}

// A frame may be larger than what may be JSON: reading that takes 80 times as much memory, at this door as at the other.
static int check_size(const struct connection_call *call, struct error *err)
{
	uint64_t n = call->frame.body_bytes, limit = call->connection->context->settings.max_json;
	return n <= limit ? 0 : error_set(err, ERROR_TOO_LARGE, "body", "%" PRIu64 " bytes, the limit is %" PRIu64, n, limit);
}

static void refuse(struct connection_call *call, const struct error *e)
{
	struct control_reply refusal = {0};
	control_refuse(&refusal, 0, e, control_errors(call->frame.path));
	set_reply(call, &refusal);
	call_end(call);
}

void connection_call_start(struct connection *c, const struct frame *f, const uint8_t *body)
{
	struct connection_call *call = NULL;
	struct desk *desk = c->context->desk;
	struct error err = {0};
	if (call_new(c, f, body, &call, &err)) {
		connection_send_error(c, f->request_id, FRAME_WHOLE_REQUEST, &err);
	} else if (check_size(call, &err)) {
		refuse(call, &err);
	} else if (desk_has_time_to_call(desk, call->frame.method, call->frame.path, call->frame.body_bytes)) {
		do_work(&call->job);
		call_end(call);
	} else if (desk_check_room(desk, call->job.who, call->job.n_body, &err)) {
		refuse(call, &err);
	} else {
		c->call = call;
		desk_give(desk, &call->job);
	}
}

void connection_call_cancel(struct connection_call *call)
{
	if (call)
		atomic_store(&call->cancelled, true);
}

void connection_worked(struct desk_job *job)
{
	struct connection_call *call = (struct connection_call *)job;
	struct connection *c = call->connection;
	c->call = NULL;
	call_end(call);
	if (c->state != CONNECTION_CLOSED)
		connection_write(c);
}
