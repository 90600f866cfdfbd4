// SPDX-License-Identifier: Apache-2.0
// Reads, writes and fsyncs through io_uring, each with its own tracked result; where the kernel refuses a ring (EPERM, ENOSYS, seccomp) the
// same calls are made with pread, pwrite and fsync. Used by one thread at a time.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct ring;

enum ring_kind { RING_WRITE, RING_FSYNC, RING_READ };

// One operation. The caller owns it and `data`, and leaves both alone while `busy`.
struct ring_op {
	enum ring_kind kind;
	int fd;
	uint8_t *data;             // RING_WRITE, RING_READ: n bytes at file offset `offset`
	size_t n;
	uint64_t offset;
	size_t align;              // what O_DIRECT asks of offset and length when a short write goes on; 0 = nothing
	size_t n_done;             // results: bytes the kernel took or gave (all of them when result is 0, fewer where a file ends)
	int result;                // 0 or -errno; short writes were continued, -EAGAIN and -EINTR retried
	unsigned n_retries;
	bool busy;
};

// n_entries: operations in flight at most. Fails only for want of memory: without io_uring it falls back, see ring_is_uring.
int ring_open(unsigned n_entries, struct ring **ret_ring, struct error *err);
struct ring *ring_close(struct ring *r);      // nothing may be in flight; returns NULL
bool ring_is_uring(const struct ring *r);
uint64_t ring_n_overflows(const struct ring *r);      // completions the kernel had to hold back for want of room; none are lost

// Makes this memory and this file known to the kernel once instead of at every operation; both stay the caller's. What a limit
// (RLIMIT_MEMLOCK) refuses simply goes unregistered. A new file, or -1, takes the old one's place: before its descriptor is closed.
void ring_register_memory(struct ring *r, void *data, size_t n);
void ring_register_file(struct ring *r, int fd);
bool ring_is_registered(const struct ring *r);       // memory and file both

void ring_submit(struct ring *r, struct ring_op *op);      // starts it (the first fields filled in; results are reset)
void ring_queue(struct ring *r, struct ring_op *op);       // the same, but may wait for the next ring_submit, ring_complete or ring_reap
int ring_complete(struct ring *r, struct ring_op *op);     // waits for it; returns op->result; at once when not busy
void ring_reap(struct ring *r);                            // waits until at least one of the operations under way got on
void ring_poll(struct ring *r);                            // takes the results there are, waits for none
