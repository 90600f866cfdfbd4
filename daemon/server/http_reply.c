// SPDX-License-Identifier: Apache-2.0
// From an answer to bytes: what is whole at once, or an exchange's in pieces as libmicrohttpd asks for them. Its one complication is that a
// piece may not be there yet, or be made at the desk: then the connection rests.
#include <stdio.h>
#include <string.h>

#include "daemon/clock.h"
#include "daemon/server/http_internal.h"
#include "daemon/server/service.h"
#include "daemon/teacher/generation.h"

#define PIECE_BYTES 65536           // asked of the reply at once

// What a piece of the reply is made of is no more than this.
static uint64_t piece_bytes(const struct exchange *x)
{
	uint64_t most = 0;
	for (uint32_t i = 0; i < x->n_requests; i++) {
		const struct request *r = x->requests[i];
		bool stream = r->generate && r->generate->stream;      // a token or some
		uint64_t n = stream ? 0 : (r->cost.bytes - r->text_bytes) / r->n_items;
		most = n > most ? n : most;
	}
	return most;
}

// The next piece of the answer, in q->out.
int http_reply_encode(struct http_request *q)
{
	struct error err = {0};
	double began = clock_seconds();
	int r = q->kind->encode(q->exchange, &q->out, &err);
	histogram_append(service_encode_seconds(q->http->service), clock_seconds() - began);
	if (!r && q->out.failed)
		r = error_set(&err, ERROR_MEMORY, NULL, "no memory for the reply");
	if (r)
		exchange_fail(q->exchange, err.code);
	return r;
}

static ssize_t read_reply(void *arg, uint64_t position, char *to, size_t n)
{
	struct http_request *q = arg;
	(void)position;
	if (q->result)
		return MHD_CONTENT_READER_END_WITH_ERROR;
	if (q->n_sent == q->out.n) {
		if (q->exchange->ended)
			return MHD_CONTENT_READER_END_OF_STREAM;
		q->out.n = q->n_sent = 0;
		uint64_t n_piece = piece_bytes(q->exchange);
		bool ready = exchange_is_ready(q->exchange), now = ready && desk_has_time(q->http->desk, n_piece);
		if (now && http_reply_encode(q))
			return MHD_CONTENT_READER_END_WITH_ERROR;
		if (ready && !now)
			http_request_give(q, HTTP_ENCODE, n_piece);
		else if (!q->out.n)
			http_request_suspend(q);
		if (q->at_desk || !q->out.n)        // what the desk has is not looked at
			return 0;
	}
	size_t left = q->out.n - q->n_sent;
	n = n < left ? n : left;
	memcpy(to, q->out.data + q->n_sent, n);
	q->n_sent += n;
	http_request_set_deadline(q, q->http->settings.write_timeout_ms);    // asked for more: the client took what was there
	return (ssize_t)n;
}

static void add_retry_after(struct MHD_Response *response, unsigned seconds)
{
	char text[16];
	snprintf(text, sizeof text, "%u", seconds ? seconds : 1);
	MHD_add_response_header(response, MHD_HTTP_HEADER_RETRY_AFTER, text);
}

static enum MHD_Result queue_response(struct http_request *q, int status, struct MHD_Response *response)
{
	if (!response)
		return MHD_NO;
	if (q->reply.content_type)
		MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, q->reply.content_type);
	if (q->reply.policy) {
		MHD_add_response_header(response, "Content-Security-Policy", q->reply.policy);
		MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
		MHD_add_response_header(response, "Referrer-Policy", "no-referrer");
		MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-cache");
	}
	if (q->reply.allow[0])
		MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, q->reply.allow);
	if (status == 429 || status == 503)
		add_retry_after(response, q->reply.retry_s);
	if (status == 401)
		MHD_add_response_header(response, MHD_HTTP_HEADER_WWW_AUTHENTICATE, "Bearer");
	if (q->must_close || q->http->finishing)
		MHD_add_response_header(response, MHD_HTTP_HEADER_CONNECTION, "close");
	q->state = HTTP_REPLYING;
	http_request_set_deadline(q, q->http->settings.write_timeout_ms);
	enum MHD_Result r = MHD_queue_response(q->mhd, (unsigned)status, response);
	MHD_destroy_response(response);
	return r;
}

enum MHD_Result http_reply_send(struct http_request *q)
{
	struct buffer *b = &q->reply.body;      // lives until http_request_end
	return queue_response(q, q->reply.status, MHD_create_response_from_buffer(b->n, b->data, MHD_RESPMEM_PERSISTENT));
}

enum MHD_Result http_reply_send_exchange(struct http_request *q)
{
	struct error err = {0};
	if (exchange_check(q->exchange, &err)) {
		exchange_fail(q->exchange, err.code);
		http_request_refuse(q, 0, &err);
		return http_reply_send(q);
	}
	q->reply.content_type = q->exchange->content_type;
	return queue_response(q, 200, MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, PIECE_BYTES, read_reply, q, NULL));
}
