// SPDX-License-Identifier: Apache-2.0
// Gradient of a matrix, dw += dyᵀ x; compiled once per instruction set. oneDNN's plain product reaches 45 % of the peak for these shapes
// (both operands lie across the cache, and it packs them anew for each block); with x packed once for all blocks this reaches 90 %.
#include "kernels/cpu/vector_block.h"
#include "kernels/cpu/vector_ops.h"

#define ROWS (GRADIENT_ROWS * 16 / PANEL < GRADIENT_ROWS ? GRADIENT_ROWS * 16 / PANEL : GRADIENT_ROWS)
#define GROUP (BLOCK_ROWS * (ROWS + 16))     // floats from one group of columns to the next: not a power of two either

// Two rows of x (or one and zeros) as n words: of each column both elements, as bfloat16, the first row's in the lower half.
INLINE void pack_pair(float *to, const float *first, const float *second, size_t n)
{
	for (size_t i = 0; i < n; i += LANES)
		give(to + i, vf_pairs(take(first + i, n - i), second ? take(second + i, n - i) : (vf){0}), n - i);
}

// Floats of a packed row: of one row of dy and x, or of two as pairs.
INLINE size_t rows_packed(size_t rows, enum operand operand)
{
	return operand == OPERAND_BF16 ? (rows + 1) / 2 : rows;
}

void VECTOR(gradient_pack)(float *to, const float *x, size_t rows, size_t K, size_t first, enum operand operand)
{
	size_t n = K - first < PANEL ? K - first : PANEL, step = operand == OPERAND_BF16 ? 2 : 1;
	float *panel = to;

	x += first;
	for (size_t r = 0; r < rows; r += step, to += PANEL, x += step * K) {
		if (operand == OPERAND_BF16)
			pack_pair(to, x, r + 1 < rows ? x + K : NULL, n);
		else
			memcpy(to, x, n * sizeof(float));
		memset(to + n, 0, (PANEL - n) * sizeof(float));
	}
	if (operand == OPERAND_ROUNDED)
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

// The same of pairs of rows. A whole vector is written where there is one to read: what is too much of it the next row overwrites, or
// lies between the groups.
static void pack_dy_pairs(float *to, const float *dy, size_t ldy, size_t n, size_t rows)
{
	for (size_t r = 0; r < rows; r += 2, dy += 2 * ldy, to += BLOCK_ROWS) {
		const float *second = r + 1 < rows ? dy + ldy : NULL;
		float *at = to;
		for (size_t i = 0; i < n; i += BLOCK_ROWS, at += GROUP) {
			size_t whole = (BLOCK_ROWS + LANES - 1) / LANES * LANES, m = n - i < whole ? n - i : whole;
			pack_pair(at, dy + i, second ? second + i : NULL, m);
			for (size_t j = m; j < BLOCK_ROWS; j++)
				at[j] = 0;
		}
	}
}

// dw (BLOCK_ROWS, PANEL) += a b. Lines of dw are asked for when the sum begins and come from memory while it runs.
INLINE void sum_block(float *dw, size_t K, const float *a, const float *b, size_t n, const bool pairs)
{
	vf left[BLOCK_ROWS], right[BLOCK_ROWS];

	UNROLL for (int i = 0; i < BLOCK_ROWS; i++) {
		__builtin_prefetch(dw + i * K, 1);
		__builtin_prefetch(dw + i * K + PANEL - 1, 1);
		left[i] = right[i] = (vf){0};
	}
	for (size_t r = 0; r < n; r++, a += BLOCK_ROWS, b += PANEL) {
		vf b0 = vf_load(b), b1 = vf_load(b + LANES);
		UNROLL for (int i = 0; i < BLOCK_ROWS; i++) {
			vf x = vf_set(a[i]);
			left[i] = pairs ? vf_add_pairs(left[i], x, b0) : left[i] + x * b0;
			right[i] = pairs ? vf_add_pairs(right[i], x, b1) : right[i] + x * b1;
		}
	}
	UNROLL for (int i = 0; i < BLOCK_ROWS; i++) {
		vf_store(dw + i * K, vf_load(dw + i * K) + left[i]);
		vf_store(dw + i * K + LANES, vf_load(dw + i * K + LANES) + right[i]);
	}
}

// A block that reaches beyond dw: by way of a whole one.
INLINE void edge(float *dw, size_t K, size_t m, size_t width, const float *a, const float *b, size_t n, const bool pairs)
{
	float whole[BLOCK_ROWS * PANEL] = {0};

	sum_block(whole, PANEL, a, b, n, pairs);
	for (size_t i = 0; i < m; i++)
		for (size_t j = 0; j < width; j++)
			dw[i * K + j] += whole[i * PANEL + j];
}

// One span of rows: scratch holds its dy, packed; b its rows of the first panel, panels `next` floats apart.
INLINE void sum_span(float *dw, size_t n, size_t K, const float *scratch, const float *b, size_t next, size_t n_rows, const bool pairs)
{
	for (size_t k = 0; k < K; k += PANEL, b += next) {
		const float *a = scratch;
		size_t width = K - k < PANEL ? K - k : PANEL;
		for (size_t i = 0; i < n; i += BLOCK_ROWS, a += GROUP) {
			size_t m = n - i < BLOCK_ROWS ? n - i : BLOCK_ROWS;
			if (m == BLOCK_ROWS && width == PANEL)
				sum_block(dw + i * K + k, K, a, b, n_rows, pairs);
			else
				edge(dw + i * K + k, K, m, width, a, b, n_rows, pairs);
		}
	}
}

void VECTOR(gradient)(float *dw, const float *dy, size_t ldy, size_t n, const float *packed, size_t rows, size_t K, float *scratch,
		      enum operand operand)
{
	bool pairs = operand == OPERAND_BF16;
	size_t span = pairs ? 2 * ROWS : ROWS, next = rows_packed(rows, operand) * PANEL;

	for (size_t r = 0; r < rows; r += span, packed += ROWS * PANEL) {
		size_t n_rows = rows - r < span ? rows - r : span;
		if (pairs) {
			pack_dy_pairs(scratch, dy + r * ldy, ldy, n, n_rows);
			sum_span(dw, n, K, scratch, packed, next, rows_packed(n_rows, operand), true);
		} else {
			pack_dy(scratch, dy + r * ldy, ldy, n, n_rows, operand == OPERAND_ROUNDED);
			sum_span(dw, n, K, scratch, packed, next, n_rows, false);
		}
	}
}
