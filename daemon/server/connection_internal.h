// SPDX-License-Identifier: Apache-2.0
// Shared by connection.c (bytes) and connection_frame.c (meaning) only.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "daemon/server/connection.h"

struct connection_output {
	struct connection_output *next;
	struct connection_ask *ask;        // set on the frame that ends a request: once it is sent (or dropped), so is the request
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
	bool cancelled;
	bool unanswered;                   // some item was not sent because of the cancellation
};

// connection.c
int connection_send(struct connection *c, struct connection_output *o);        // takes o
void connection_fail(struct connection *c, const struct error *e);             // ERROR for the connection, then the end
void connection_finish(struct connection *c);                                  // sends what waits, then the end

// connection_frame.c
void connection_frame(struct connection *c, const struct frame *f, const uint8_t *body);
void connection_send_error(struct connection *c, uint64_t id, uint32_t index, const struct error *e);
void connection_send_plain(struct connection *c, enum frame_kind kind, uint64_t id, const void *body, size_t n);
void connection_cancel_all(struct connection *c);
void connection_ask_done(struct connection *c, struct connection_ask *ask);    // frees it
