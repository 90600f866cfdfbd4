// SPDX-License-Identifier: Apache-2.0
// The functions of kernels/cuda/mma.cuh on the emulated device, which finds this file first; what they mean is said there.
#pragma once

#include "cuda_bf16.h"

void emulate_copy_start(void *to, const void *from, size_t bytes);    // zeros when from is NULL
void emulate_copy_commit();
void emulate_copy_wait(uint32_t n);
#define copy_start(to, from, valid) emulate_copy_start(to, (valid) ? (const void *)(from) : NULL, 16)
#define copy_commit() emulate_copy_commit()
template <int n> static inline void copy_wait() { emulate_copy_wait(n); }

static inline float emulate_half(uint32_t word, uint32_t high) { return __uint_as_float(high ? word & 0xffff0000u : word << 16); }

static inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
	uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1}, lane = emulate_lane();
	const emulate_slot *slots = emulate_exchange(0xffffffffu, mine, sizeof mine, __FILE__, __LINE__);
	for (uint32_t i = 0; i < 4; i++) {
		uint32_t row = lane / 4 + (i & 2 ? 8 : 0), column = lane % 4 * 2 + (i & 1);
		float sum = c[i];
		for (uint32_t k = 0; k < 16; k++) {
			const uint32_t *of_a = (const uint32_t *)slots[row % 8 * 4 + k % 8 / 2].bytes;
			const uint32_t *of_b = (const uint32_t *)slots[column * 4 + k % 8 / 2].bytes;
			sum += emulate_half(of_a[(row >= 8) + (k >= 8 ? 2 : 0)], k & 1) * emulate_half(of_b[4 + (k >= 8)], k & 1);
		}
		c[i] = sum;
	}
}

static inline void emulate_load(uint32_t (&r)[4], const void *row, bool transposed, const char *file, int line)
{
	const emulate_slot *slots = emulate_exchange(0xffffffffu, &row, sizeof row, file, line);
	uint32_t lane = emulate_lane();
	if ((uintptr_t)row % 16)
		__builtin_trap();
	for (uint32_t m = 0; m < 4; m++) {
		uint16_t values[2];
		for (uint32_t i = 0; i < 2; i++) {
			const uint16_t *from;
			uint32_t at_row = transposed ? lane % 4 * 2 + i : lane / 4, at_column = transposed ? lane / 4 : lane % 4 * 2 + i;
			memcpy(&from, slots[8 * m + at_row].bytes, sizeof from);
			values[i] = from[at_column];
		}
		memcpy(&r[m], values, sizeof values);
	}
}
#define mma_load(r, row) emulate_load(r, row, false, __FILE__, __LINE__)
#define mma_load_transposed(r, row) emulate_load(r, row, true, __FILE__, __LINE__)
