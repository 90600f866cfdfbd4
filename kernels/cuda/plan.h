// SPDX-License-Identifier: Apache-2.0
// The CUDA backend's host-side arithmetic, free of CUDA so that it is tested where there is no GPU: what fits, how many rows a chunk
// takes, which device errors end the process.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/fault.h"

#ifdef __cplusplus
extern "C" {
#endif

struct backend_count;
struct backend_need;

// Bytes of arrays and matrices of one part, or of all and the list of slots, with element sizes as on the device and every array rounded
// up; UINT64_MAX when 64 bits do not hold them. 0 for a need of nothing.
struct plan_form {
	size_t act_bytes;            // of act arrays and plain matrices
	bool fp8;                    // matrices of blocks
	bool stored;                 // all loaded matrices are as the model's file has them (stored_bytes)
};
uint64_t plan_part_bytes(const struct backend_count *count, struct plan_form form);
uint64_t plan_need_bytes(const struct backend_need *need, struct plan_form form);
// What there is too much of, for people: "weights 14.96, work 0.50" (GiB); parts of nothing are left out. Always ends with a zero.
void plan_describe(const struct backend_need *need, struct plan_form form, char *to, size_t n);

// What the backend may take: the smaller of `bytes` and `share` of the device's total memory, where given (0 = not); else what is free, all
// but a margin for the driver.
#define PLAN_MARGIN_BYTES (256u << 20)       // kernels, the context's stacks and heaps, other processes' changes
uint64_t plan_limit(uint64_t bytes, double share, uint64_t free_bytes, uint64_t total_bytes);

// What to reserve for a need, and own_bytes beside it, of a device that has free_bytes: all unpacked, or, where that is more than may be
// taken and less suffices, matrices as stored and a window to unpack any of them in. False when not even that fits: least_bytes says what
// would have to.
struct plan_room {
	bool stores;
	uint64_t bytes, least_bytes;
	uint64_t window_bytes;       // where it stores, of the bytes
	uint64_t room;               // what matrices may take more than as stored; UINT64_MAX: all there is to take
};
bool plan_reserve(const struct backend_need *need, struct plan_form form, uint64_t own_bytes, uint64_t limit_bytes, uint64_t free_bytes,
		  struct plan_room *ret_room);

// Rows of row_bytes each that fit in scratch_bytes, at least 1 and at most n; 0 when not even one fits.
uint32_t plan_chunk_rows(size_t scratch_bytes, size_t row_bytes, uint32_t n);

// Rows of an FP8 product (N, K) at a time, of `rows` in all: multiples of FP8_TILE, about equal, as few times as the scratch buffer allows,
// where their sums (N floats, rounded up to tiles), scales and numbers (K bytes) lie. 0 when not even one tile fits.
uint32_t plan_fp8_rows(size_t scratch_bytes, uint32_t N, uint32_t K, uint32_t rows);

// Rows that one block adds up, of n rows, so that there are at most max_chunks partial sums, at least `least` rows each.
uint32_t plan_sum_rows(uint32_t n, uint32_t least, uint32_t max_chunks);

// Kinds of CUDA error, by number (cudaError_t): an allocation that failed leaves the device usable; without a device or its driver the
// work may go elsewhere; a device that is there but not ready (its fabric still starts, another process holds it) may be asked again;
// everything else poisons the context and the process must end, for a poisoned context answers garbage.
enum plan_error { PLAN_ERROR_NONE, PLAN_ERROR_MEMORY, PLAN_ERROR_ABSENT, PLAN_ERROR_NOT_READY, PLAN_ERROR_STICKY };
enum plan_error plan_error_class(int cuda_error);
// What to do about a sticky one.
enum device_fault plan_fault(int cuda_error);

#ifdef __cplusplus
}
#endif
