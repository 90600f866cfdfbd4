// SPDX-License-Identifier: Apache-2.0
// Faults for the store's system calls, io_uring's included. Linked into a test, or preloaded into any program as libfault.so with
// KD_FAULT="write:3:-28" (see fault_arm for the fields; further ones are optional).
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum fault_kind {
	FAULT_WRITE,      // a write, by ring or pwrite
	FAULT_FSYNC,      // an fsync, by ring or call
	FAULT_SUBMIT,     // io_uring_submit itself
	FAULT_SETUP,      // io_uring_queue_init_params
	FAULT_TRUNCATE,   // ftruncate
	N_FAULT_KINDS
};

// From the nth operation of this kind on (1 = the next), n_times of them give `result` (-errno). For FAULT_WRITE, `part` bytes are
// really written first; with result 0 the write is merely short by that: part > 0 bytes are written, or with part < 0 all but -part.
void fault_arm(enum fault_kind kind, uint64_t nth, uint64_t n_times, int result, long part);
void fault_follow(enum fault_kind kind, int result);      // and the one operation after those gives this
// Whether results can be injected into a ring here (io_uring allowed, kernel 6.10 or later). If not, every later ring is refused, so that
// faults reach the store through its pwrite path.
bool fault_ring_works(void);
void fault_disarm(void);      // everything; counts start anew
uint64_t fault_count(enum fault_kind kind);          // operations seen since
uint64_t fault_n_injected(void);
// fsyncs of a shard after an fsync of the same shard had failed: there must be none.
uint64_t fault_n_syncs_after_failure(void);
