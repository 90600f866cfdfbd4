// SPDX-License-Identifier: Apache-2.0
// A socket that carries frames: bytes out are queued, frames in are put together and checked. Nothing here blocks but the opening.
//
// The two directions share nothing but the transport, so that one thread may read while another appends and writes (wait.c). A TLS session
// is one thread's at a time: it has a lock, held for no longer than the socket takes or gives bytes.
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/frame.h"
#include "common/transport.h"

struct connection {
	struct transport transport;
	struct tls *tls;                 // what its session was made with; NULL = plain
	pthread_mutex_t session_lock;
	uint32_t max_body;
	// out
	bool write_failed;               // the server closed its side: what it said last is still to be read
	uint8_t *out;
	size_t out_begin, out_end, out_size;
	uint64_t n_sent;                 // bytes, from the first
	// in
	uint8_t header[FRAME_HEADER_BYTES];
	size_t header_filled, body_filled;
	struct frame frame;
	uint8_t *body;                   // of the frame being received; kept for the next
	size_t body_size;
};

int64_t clock_ms(void);                  // monotonic

struct connection_peer {                 // who is to answer; see kd_options
	const char *address, *ca, *server_name;
};

void connection_init(struct connection *c);
// Of an initialised one. deadline: clock_ms() value, INT64_MAX = none.
int connection_open(struct connection *c, const struct connection_peer *peer, uint32_t max_body, int64_t deadline, struct error *err);
void connection_done(struct connection *c);

// Queues a frame; body may be NULL when n = 0.
int connection_append(struct connection *c, uint8_t kind, uint64_t request_id, const void *body, size_t n, struct error *err);
bool connection_has_output(const struct connection *c);
// What n_sent will have reached once all that is queued now has left.
uint64_t connection_queued(const struct connection *c);
// Writes what the socket takes now. *ret_progress is set when bytes left.
int connection_write(struct connection *c, bool *ret_progress, struct error *err);

// Reads what is there: 1 = a frame is complete (c->frame and c->body, check passed; call connection_release), 0 = nothing more now.
// *ret_progress is set when bytes arrived.
int connection_read(struct connection *c, bool *ret_progress, struct error *err);
const uint8_t *connection_release(struct connection *c);       // the body, valid until the next connection_read

// Waits until the descriptor is ready for `events` (poll's), or `wake_fd` (-1 = none) is readable. -ETIMEDOUT, or another -errno.
int connection_poll(const struct connection *c, short events, int wake_fd, int64_t deadline);
// Writes what is queued and waits for one frame: for the greeting, before there is anything else to do meanwhile.
int connection_receive(struct connection *c, int64_t deadline, struct error *err);
