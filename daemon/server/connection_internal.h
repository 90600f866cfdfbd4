// SPDX-License-Identifier: Apache-2.0
// Shared by connection.c (bytes), connection_frame.c (meaning) and what it leaves to connection_generate.c and connection_call.c.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "daemon/server/connection.h"

struct generation_reader;
struct request;
struct writer;

struct connection_output {
	struct connection_output *next;
	struct connection_ask *ask;        // set on the frame that ends a request: once it is sent (or dropped), so is the request
	uint64_t held;                     // service_hold(): of a REPLY
	size_t n, n_sent;
	uint8_t data[];
};

struct connection_ask {
	struct connection_ask *next;
	struct connection *connection;
	uint64_t id;
	struct request *request;
	uint32_t n_left;                   // items not back yet
	bool short_answers;                // records go without their question
	struct generation_reader *readers; // (n_items) of a generation: what was sent of each; else NULL
	bool cancelled;
	bool unanswered;                   // some item was not sent because of the cancellation
};

// connection.c
int connection_send(struct connection *c, struct connection_output *o);        // takes o
void connection_output_free(struct connection *c, struct connection_output *o);        // NULL is fine
void connection_fail(struct connection *c, const struct error *e);             // ERROR for the connection, then the end
void connection_finish(struct connection *c);                                  // sends what waits, then the end

// connection_frame.c
void connection_frame(struct connection *c, const struct frame *f, const uint8_t *body);
// There is no room for the request's body. False when the frame is no request: then the connection ends.
bool connection_refuse(struct connection *c, const struct frame *f, const struct error *e);
void connection_send_error(struct connection *c, uint64_t id, uint32_t index, const struct error *e);
void connection_send_plain(struct connection *c, enum frame_kind kind, uint64_t id, const void *body, size_t n);
void connection_cancel_all(struct connection *c);
// Frees it. sent: the frame that ends it is the kernel's, and so is all before.
void connection_ask_done(struct connection *c, struct connection_ask *ask, bool sent);
typedef void connection_encode_fn(const void *message, struct writer *w);
void connection_send_message(struct connection *c, enum frame_kind kind, uint64_t id, connection_encode_fn *encode, const void *message);
// NULL = no memory. From any thread.
struct connection_output *connection_output_new(enum frame_kind kind, uint64_t id, connection_encode_fn *encode, const void *message);

// connection_call.c
void connection_call_start(struct connection *c, const struct frame *f, const uint8_t *body);
void connection_call_cancel(struct connection_call *call);     // nobody waits for its answer any more; NULL is fine

// connection_generate.c
int connection_generate_request(struct connection *c, const uint8_t *body, size_t n, struct request **ret_request, struct error *err);
// What is new of a sample; last: it has come back for the last time.
void connection_send_tokens(struct connection *c, struct connection_ask *ask, struct request_item *item, bool last);
