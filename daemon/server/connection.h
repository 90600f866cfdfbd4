// SPDX-License-Identifier: Apache-2.0
// One client of the binary door: frames in, frames out. All of it belongs to the socket thread, but for a call that is at the desk.
//
// Memory is bounded thus: a body grows only as its bytes arrive; a connection whose answers wait, or whose call is at the desk, is not read
// from; its answers are part of the service's budget until they are sent, large bodies and replies of another (service_hold); and a client
// that takes none of them for a while is closed.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "common/frame.h"
#include "common/transport.h"
#include "daemon/server/service.h"

struct connection;
struct desk;
struct desk_job;
struct error;
struct principal;
struct queue;
struct request_item;
struct tls_current;

#define CONNECTION_AHEAD 512       // holds small frames whole: PING, CALL, SCORE of some tokens

enum connection_state {
	CONNECTION_HELLO,          // nothing but HELLO is read
	CONNECTION_OPEN,
	CONNECTION_CLOSING,        // the last frames are being sent; what comes in is dropped
	CONNECTION_CLOSED,         // the descriptor is closed; requests may still be in other threads' hands
};

struct connection_complaints {      // of one door; zero-initialise
	uint64_t next_ms;              // until then failed handshakes are counted, not logged
	uint32_t n_untold;
};

struct connection_context {        // the same for all connections of a door
	struct service *service;
	struct queue *returned;        // where items go when they are done, from any thread
	struct desk *desk;             // where calls are worked off that take long
	struct door_settings settings; // of this turn of the loop
	struct tls_current *tls;       // NULL = no connection is encrypted
	struct connection_complaints *complaints;
};

struct connection_output;          // one frame, and how much of it is sent
struct connection_ask;             // one request in flight
struct connection_call;            // a CALL

struct connection {
	struct connection *previous, *next;            // the door's list
	const struct connection_context *context;
	struct transport transport;
	enum connection_state state;
	uint32_t epoll_events;                         // what the door asked epoll for
	uint32_t max_body, credits;                    // as WELCOME says
	// input
	uint8_t ahead[CONNECTION_AHEAD];               // read, and not yet looked at: n_ahead bytes from ahead_at
	size_t ahead_at, n_ahead;
	bool drained;                                  // there was no more behind them
	uint8_t header[FRAME_HEADER_BYTES];
	size_t n_header;
	struct frame frame;                            // once n_header is complete
	uint8_t *body;
	size_t n_body, body_capacity;
	uint64_t body_held;                            // service_hold()
	bool refused;                                  // so is the frame being read: the rest of its body is dropped
	uint64_t input_deadline_ms;                    // of HELLO (TLS's handshake included), or of the frame being read; 0 = none
	// output
	struct connection_output *output, **output_end;
	size_t n_output;                               // bytes waiting
	size_t n_turn;                                 // bytes sent in this turn of the loop; the door puts it to 0
	uint64_t output_deadline_ms;                   // moved on by each byte taken; 0 = nothing waits
	struct principal *principal;                   // whose token HELLO brought
	uint32_t teacher;                              // the number of whom HELLO named; else the first
	bool shut;                                     // our side was shut down; waiting for the client's end
	struct connection_ask *asks;
	uint32_t n_asks;
	struct connection_call *call;                  // at the desk; until it is back nothing more is read
};

// encrypted: with the context's tls. Takes fd on success.
int connection_new(const struct connection_context *context, int fd, bool encrypted, struct connection **ret_connection);
struct connection *connection_free(struct connection *c);      // dead; NULL is fine; returns NULL
void connection_read(struct connection *c);                    // what there is, up to a fair share
void connection_write(struct connection *c);                   // what the client takes, up to a fair share of the turn
void connection_close(struct connection *c);                   // at once; cancels its requests
void connection_goaway(struct connection *c);
void connection_check_deadlines(struct connection *c, uint64_t now_ms);
bool connection_wants_read(const struct connection *c);
bool connection_wants_write(const struct connection *c);
bool connection_has_input(const struct connection *c);         // bytes that epoll does not show: read before sleeping
bool connection_is_busy(const struct connection *c);           // requests in flight, or frames that are not with the client
bool connection_is_dead(const struct connection *c);           // may be freed
// An item came back through context->returned.
void connection_returned(struct request_item *item);
// A job came back from context->desk.
void connection_worked(struct desk_job *job);
