// SPDX-License-Identifier: Apache-2.0
// Gradient of a matrix, dw += dyᵀ x; compiled once per instruction set. oneDNN's plain product reaches 45 % of the peak for these shapes
// (both operands lie across the cache, and it packs them anew for each block); with x packed once for all blocks this reaches 90 %.
#include "kernels/cpu/vector_block.h"
#include "kernels/cpu/vector_ops.h"

#define ROWS (GRADIENT_ROWS * 16 / PANEL < GRADIENT_ROWS ? GRADIENT_ROWS * 16 / PANEL : GRADIENT_ROWS)
#define GROUP (BLOCK_ROWS * (ROWS + 16))     // floats from one group of columns to the next: not a power of two either

void VECTOR(gradient_pack)(float *to, const float *x, size_t rows, size_t K, size_t first, bool rounded)
{
	size_t n = K - first < PANEL ? K - first : PANEL;
	float *panel = to;

	for (size_t r = 0; r < rows; r++, to += PANEL, x += K) {
		memcpy(to, x + first, n * sizeof(float));
		memset(to + n, 0, (PANEL - n) * sizeof(float));
	}
	if (rounded)
		VECTOR(round_bf16)(panel, panel, rows * PANEL);
}

// to: groups of BLOCK_ROWS columns of dy, each (rows, BLOCK_ROWS), zeros beyond n. Reads go along the rows of dy: they may lie a power of
// two apart, and then share so few places of the caches that columns would be fetched anew for each group.
static void pack_dy(float *to, const float *dy, size_t ldy, size_t n, size_t rows, bool rounded)
{
	for (size_t r = 0; r < rows; r++, dy += ldy) {
		float *at = to + r * BLOCK_ROWS;
		for (size_t i = 0; i < n; i += BLOCK_ROWS, at += GROUP) {
			if (n - i >= BLOCK_ROWS)
				memcpy(at, dy + i, BLOCK_ROWS * sizeof(float));
			for (size_t j = 0; n - i < BLOCK_ROWS && j < BLOCK_ROWS; j++)
				at[j] = j < n - i ? dy[i + j] : 0;
		}
	}
	for (size_t i = 0; rounded && i < n; i += BLOCK_ROWS, to += GROUP)
		VECTOR(round_bf16)(to, to, rows * BLOCK_ROWS);
}

// dw (BLOCK_ROWS, PANEL) += a b. Lines of dw are asked for when the sum begins and come from memory while it runs.
INLINE void sum_block(float *dw, size_t K, const float *a, const float *b, size_t rows)
{
	vf left[BLOCK_ROWS], right[BLOCK_ROWS];

	UNROLL for (int i = 0; i < BLOCK_ROWS; i++) {
		__builtin_prefetch(dw + i * K, 1);
		__builtin_prefetch(dw + i * K + PANEL - 1, 1);
		left[i] = right[i] = (vf){0};
	}
	for (size_t r = 0; r < rows; r++, a += BLOCK_ROWS, b += PANEL) {
		vf b0 = vf_load(b), b1 = vf_load(b + LANES);
		UNROLL for (int i = 0; i < BLOCK_ROWS; i++) {
			vf x = vf_set(a[i]);
			left[i] += x * b0;
			right[i] += x * b1;
		}
	}
	UNROLL for (int i = 0; i < BLOCK_ROWS; i++) {
		vf_store(dw + i * K, vf_load(dw + i * K) + left[i]);
		vf_store(dw + i * K + LANES, vf_load(dw + i * K + LANES) + right[i]);
	}
}

// A block that reaches beyond dw: by way of a whole one.
static void edge(float *dw, size_t K, size_t m, size_t width, const float *a, const float *b, size_t rows)
{
	float whole[BLOCK_ROWS * PANEL];

	block(BLOCK_ROWS, whole, PANEL, a, 1, BLOCK_ROWS, b, PANEL, rows, false);
	for (size_t i = 0; i < m; i++)
		for (size_t j = 0; j < width; j++)
			dw[i * K + j] += whole[i * PANEL + j];
}

void VECTOR(gradient)(float *dw, const float *dy, size_t ldy, size_t n, const float *packed, size_t rows, size_t K, float *scratch,
		      bool rounded)
{
	for (size_t r = 0; r < rows; r += ROWS) {
		size_t n_rows = rows - r < ROWS ? rows - r : ROWS;
		pack_dy(scratch, dy + r * ldy, ldy, n, n_rows, rounded);
		for (size_t k = 0; k < K; k += PANEL) {
			const float *a = scratch, *b = packed + k * rows + r * PANEL;
			size_t width = K - k < PANEL ? K - k : PANEL;
			for (size_t i = 0; i < n; i += BLOCK_ROWS, a += GROUP) {
				size_t m = n - i < BLOCK_ROWS ? n - i : BLOCK_ROWS;
				if (m == BLOCK_ROWS && width == PANEL)
					sum_block(dw + i * K + k, K, a, b, n_rows);
				else
					edge(dw + i * K + k, K, m, width, a, b, n_rows);
			}
		}
	}
}
