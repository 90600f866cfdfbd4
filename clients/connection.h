// SPDX-License-Identifier: Apache-2.0
// A socket that carries frames: bytes out are queued, frames in are put together and checked. Reading goes on while writing waits, since
// a server stops reading from a client that does not take its answers.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "common/frame.h"

struct connection {
	int fd;                          // -1 = closed
	uint32_t max_body;
	bool write_failed;               // the server closed its side: what it said last is still to be read
	uint8_t *out;
	size_t out_begin, out_end, out_size;
	uint8_t header[FRAME_HEADER_BYTES];
	size_t header_filled, body_filled;
	struct frame frame;
	uint8_t *body;                   // of the frame being received; frame.body_bytes
};

int64_t clock_ms(void);                  // monotonic

// deadline: clock_ms() value, INT64_MAX = none.
int connection_open(const char *address, uint32_t max_body, int64_t deadline, struct connection *ret, struct error *err);
void connection_done(struct connection *c);

// Queues a frame; body may be NULL when n = 0.
int connection_append(struct connection *c, uint8_t kind, uint64_t request_id, const void *body, size_t n, struct error *err);

// Moves bytes both ways until a frame is complete (returns 1: c->frame and c->body, check passed; call connection_release), or, when
// `flushing`, until all output is gone (returns 0). -ETIMEDOUT after the deadline leaves everything as it is, to be continued.
// `ret_progress` (may be NULL) is set when bytes arrived or left.
int connection_step(struct connection *c, bool flushing, int64_t deadline, bool *ret_progress, struct error *err);
uint8_t *connection_release(struct connection *c);     // the body (caller frees, may be NULL); ready for the next frame
