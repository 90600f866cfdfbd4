// SPDX-License-Identifier: Apache-2.0
// Products of bfloat16 by the instruction that multiplies two neighbouring terms and adds both to a lane: 6 rows times a panel of 64
// outputs are summed in registers over all terms, straight into y. Compiled for the one table that has the instruction.
#include "kernels/cpu/vector_ops.h"

#define VECTORS (BF16_PANEL / LANES)
#define AT_ONCE 6                    // rows; 24 of 32 registers hold sums

// y (n_rows, n) of one panel. What is done to a row is the same whatever its company.
INLINE void rows_product(const int n_rows, const struct bf16_unit *u, float *y, const uint16_t *x, const uint16_t *w, const float *bias,
			 size_t n)
{
	__m512 sum[AT_ONCE][VECTORS];

	UNROLL for (int i = 0; i < n_rows; i++)
		UNROLL for (int j = 0; j < VECTORS; j++)
			sum[i][j] = _mm512_setzero_ps();
	for (size_t k = 0; k < u->depth; k += 2, w += 2 * BF16_PANEL) {
		__m512bh panel[VECTORS];
		UNROLL for (int j = 0; j < VECTORS; j++)
			memcpy(&panel[j], w + 2 * LANES * j, sizeof panel[j]);
		UNROLL for (int i = 0; i < n_rows; i++) {
			int32_t terms;
			memcpy(&terms, x + i * u->ldx + k, sizeof terms);
			__m512bh t = (__m512bh)_mm512_set1_epi32(terms);
			UNROLL for (int j = 0; j < VECTORS; j++)
				sum[i][j] = _mm512_dpbf16_ps(sum[i][j], t, panel[j]);
		}
	}
	UNROLL for (int i = 0; i < n_rows; i++) {
		UNROLL for (int j = 0; j < VECTORS; j++) {
			size_t at = (size_t)j * LANES;
			if (at >= n)
				break;
			vf v = (vf)sum[i][j];
			if (bias)
				v += take(bias + at, n - at);
			if (u->add)
				v += take(y + i * u->ldy + at, n - at);
			give(y + i * u->ldy + at, v, n - at);
		}
	}
}

static void panel_product(const struct bf16_unit *u, float *y, const uint16_t *w, const float *bias, size_t n)
{
	size_t r = 0;

	for (; r + AT_ONCE <= u->n_rows; r += AT_ONCE)
		rows_product(AT_ONCE, u, y + r * u->ldy, u->x + r * u->ldx, w, bias, n);
	y += r * u->ldy;
	const uint16_t *x = u->x + r * u->ldx;
	switch (u->n_rows - r) {
	case 5: rows_product(5, u, y, x, w, bias, n); break;
	case 4: rows_product(4, u, y, x, w, bias, n); break;
	case 3: rows_product(3, u, y, x, w, bias, n); break;
	case 2: rows_product(2, u, y, x, w, bias, n); break;
	case 1: rows_product(1, u, y, x, w, bias, n); break;
	}
}

void BF16(bf16_unit)(const struct bf16_unit *u)
{
	for (size_t i = 0; i < u->n; i += BF16_PANEL)
		panel_product(u, u->y + i, u->w + i / BF16_PANEL * u->panel_stride, u->bias ? u->bias + i : NULL,
			      u->n - i < BF16_PANEL ? u->n - i : BF16_PANEL);
}

void BF16(bf16_pack)(uint16_t *to, const float *from, size_t row, size_t n)
{
	for (size_t k = 0; k < n; k += 2 * LANES) {
		__m512i r[BF16_PACK_ROWS];
		UNROLL for (int i = 0; i < BF16_PACK_ROWS; i++) {
			const float *x = from + i * row + k;
			r[i] = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + LANES), _mm512_loadu_ps(x));
		}
		vi_transpose(r);
		UNROLL for (int i = 0; i < BF16_PACK_ROWS; i++)
			_mm512_storeu_si512(to + (k / 2 + (size_t)i) * 2 * BF16_PANEL, r[i]);
	}
}
