// SPDX-License-Identifier: Apache-2.0
// The product of floats written by hand: BLOCK_ROWS x PANEL sums kept in registers. For attention, whose operands are small and change at
// once, and for gradients of weights; products of floats with weights go through oneDNN (product.c).
#pragma once

#include "kernels/cpu/simd.h"

#define PANEL (2 * LANES)

#if LANES == 16
#define BLOCK_ROWS 12                // 24 of 32 registers hold sums
#else
#define BLOCK_ROWS 6                 // 12 of 16
#endif

// c (n_rows, PANEL; row stride ldc) {=, +=} a b: a(i, k) = a[i * row + k * step], b (n, PANEL; row stride ldb).
INLINE void block(const int n_rows, float *c, size_t ldc, const float *a, size_t row, size_t step, const float *b, size_t ldb, size_t n,
		  bool add)
{
	vf left[BLOCK_ROWS], right[BLOCK_ROWS];

	UNROLL for (int i = 0; i < n_rows; i++) {
		left[i] = add ? vf_load(c + i * ldc) : (vf){0};
		right[i] = add ? vf_load(c + i * ldc + LANES) : (vf){0};
	}
	for (size_t k = 0; k < n; k++) {
		vf b0 = vf_load(b + k * ldb), b1 = vf_load(b + k * ldb + LANES);
		UNROLL for (int i = 0; i < n_rows; i++) {
			vf x = vf_set(a[i * row + k * step]);
			left[i] += x * b0;
			right[i] += x * b1;
		}
	}
	UNROLL for (int i = 0; i < n_rows; i++) {
		vf_store(c + i * ldc, left[i]);
		vf_store(c + i * ldc + LANES, right[i]);
	}
}

INLINE void product(float *c, size_t ldc, size_t n_rows, const float *a, size_t row, size_t step, const float *b, size_t ldb, size_t n,
		    bool add)
{
	size_t i = 0;

	for (; i + BLOCK_ROWS <= n_rows; i += BLOCK_ROWS)
		block(BLOCK_ROWS, c + i * ldc, ldc, a + i * row, row, step, b, ldb, n, add);
	for (; i + 4 <= n_rows; i += 4)
		block(4, c + i * ldc, ldc, a + i * row, row, step, b, ldb, n, add);
	for (; i < n_rows; i++)
		block(1, c + i * ldc, ldc, a + i * row, row, step, b, ldb, n, add);
}
