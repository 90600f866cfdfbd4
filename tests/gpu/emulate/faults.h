// SPDX-License-Identifier: Apache-2.0
// What a test may do to the emulated device: give it another size, count what is asked of it, and make it fail. A program that is not a
// test's own is told by its environment: EMULATE_FAIL=KIND:N, as emulate_fail(KIND, N) at its start; EMULATE_MEMORY=BYTES; EMULATE_NO_DEVICE;
// EMULATE_NO_CODE (no kernel was compiled for it); EMULATE_CAPABILITY=8.0 (another one than 9.0);
// EMULATE_COUNTS=FILE, where it writes how many there were of each kind when it exits.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum emulate_kind {
	EMULATE_LAUNCH,          // a kernel the device refuses
	EMULATE_KERNEL,          // a kernel that faults while it runs: the call that gave it succeeded, a later one says so
	EMULATE_PRODUCT,         // a product, likewise refused
	EMULATE_COPY,
	EMULATE_WAIT,            // for a stream or an event
	EMULATE_ALLOCATION,      // of device or pinned memory; the only kind after which the device is as it was
	N_EMULATE_KINDS
};

// The n-th (from 1, counted from now on) of the kind fails; after any but an allocation every call does, until emulate_mend.
void emulate_fail(enum emulate_kind kind, uint64_t n);
void emulate_mend(void);
uint64_t emulate_count(enum emulate_kind kind);            // since the program began
// Waits of the host for the device, of those that succeeded, after which the device had nothing more to do; since the program began.
uint64_t emulate_idle_waits(void);
void emulate_set_memory(size_t bytes);
void emulate_set_shared(size_t bytes);                     // at most 227 KiB: what a block may be given

#ifdef __cplusplus
}
#endif
