// SPDX-License-Identifier: Apache-2.0
// Writes and fsyncs through io_uring, each with its own tracked result; where the kernel refuses a ring (EPERM, ENOSYS, seccomp) the
// same calls are made with pwrite and fsync. Used by one thread at a time.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct ring;

enum ring_kind { RING_WRITE, RING_FSYNC };

// One operation. The caller owns it and `data`, and leaves both alone while `busy`.
struct ring_op {
	enum ring_kind kind;
	int fd;
	const uint8_t *data;       // RING_WRITE: n bytes at file offset `offset`
	size_t n;
	uint64_t offset;
	size_t n_written;          // results: bytes the kernel took (all of them when result is 0)
	int result;                // 0 or -errno; short writes were continued, -EAGAIN and -EINTR retried
	unsigned n_retries;
	bool busy;
};

// n_entries: operations in flight at most. Fails only for want of memory: without io_uring it falls back, see ring_is_uring.
int ring_open(unsigned n_entries, struct ring **ret_ring, struct error *err);
struct ring *ring_close(struct ring *r);      // nothing may be in flight; returns NULL
bool ring_is_uring(const struct ring *r);

void ring_submit(struct ring *r, struct ring_op *op);      // starts it (the first fields filled in; results are reset)
int ring_complete(struct ring *r, struct ring_op *op);     // waits for it; returns op->result; at once when not busy
