// SPDX-License-Identifier: Apache-2.0
// Products of 8-bit integers; compiled once per instruction set. Operands lie as 16-bit integers, two neighbouring terms side by side: one
// instruction multiplies and adds both into 32 bits, exactly. (The one that takes bytes adds pairs into 16 bits and cuts off what does not
// fit: quicker by nothing on AVX2, and wrong.)
#include <float.h>

#include "kernels/backend.h"
#include "kernels/cpu/vector_block.h"
#include "kernels/cpu/vector_ops.h"

typedef int16_t vs __attribute__((vector_size(4 * LANES)));
typedef int16_t vs_half __attribute__((vector_size(2 * LANES)));

INLINE vs vs_load(const int16_t *p)
{
	vs v;

	memcpy(&v, p, sizeof(v));
	return v;
}

// The pair at p in every lane.
INLINE vs vs_pair(const int16_t *p)
{
	int32_t pair;

	memcpy(&pair, p, sizeof(pair));
	return (vs)(pair - (vi){0});
}

// Each lane: a's two terms times b's, added.
INLINE vi vs_dot(vs a, vs b)
{
#if defined(__AVX512BW__)
	return (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
	return (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
	return (vi)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
	vi r;

	for (int i = 0; i < LANES; i++)
		r[i] = a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
	return r;
#endif
}

// One group of n <= INT8_GROUP floats; returns its scale, NaN where a value is not finite.
INLINE float quantize_group(int16_t *q, const float *x, size_t n)
{
	vf most = {0};
	vi finite = (vi){0} - 1;

	for (size_t i = 0; i < n; i += LANES) {
		vf v = (vf)((vi)take(x + i, n - i) & 0x7fffffff);
		finite &= v <= FLT_MAX;
		most = vf_max(most, v);
	}
	float m = vf_max_lane(most), bad = vf_sum((vf)((vi)vf_set(1.0f) & ~finite));
	memset(q, 0, INT8_GROUP * sizeof(*q));
	if (bad != 0)
		return NAN;
	if (m < INT8_SMALLEST)
		return 0;
	float inverse = 127.0f / m;
	for (size_t i = 0; i < n; i += LANES) {
		vs_half h = __builtin_convertvector(vf_round(take(x + i, n - i) * inverse), vs_half);
		memcpy(q + i, &h, sizeof(h));
	}
	return m / 127.0f;
}

void VECTOR(quantize)(int16_t *q, float *scales, const float *x, size_t n)
{
	for (size_t i = 0; i < n; i += INT8_GROUP)
		*scales++ = quantize_group(q + i, x + i, n - i < INT8_GROUP ? n - i : INT8_GROUP);
}

// BLOCK_ROWS rows times one panel. Sums of a group are integers, sums of groups floats in the order of the groups. Rows beyond those wanted
// are computed too and not stored: what is done to a row is the same code whatever its company.
void VECTOR(int8_block)(const struct int8_block *b)
{
	const size_t depth = b->n_groups * INT8_GROUP;
	vf sums[2][BLOCK_ROWS];

	UNROLL for (int i = 0; i < BLOCK_ROWS; i++)
		sums[0][i] = sums[1][i] = (vf){0};
	for (size_t g = 0; g < b->n_groups; g++) {
		const int16_t *x = b->x + g * INT8_GROUP, *w = b->w + g * INT8_GROUP * PANEL;
		vi left[BLOCK_ROWS], right[BLOCK_ROWS];
		UNROLL for (int i = 0; i < BLOCK_ROWS; i++)
			left[i] = right[i] = (vi){0};
		for (size_t k = 0; k < INT8_GROUP; k += 2, w += 2 * PANEL) {
			vs w0 = vs_load(w), w1 = vs_load(w + PANEL);
			UNROLL for (int i = 0; i < BLOCK_ROWS; i++) {
				vs pair = vs_pair(x + i * depth + k);
				left[i] += vs_dot(pair, w0);
				right[i] += vs_dot(pair, w1);
			}
		}
		vf s0 = vf_load(b->w_scales + g * PANEL), s1 = vf_load(b->w_scales + g * PANEL + LANES);
		UNROLL for (int i = 0; i < BLOCK_ROWS; i++) {
			vf s = vf_set(b->x_scales[i * b->n_groups + g]);
			sums[0][i] += __builtin_convertvector(left[i], vf) * (s * s0);
			sums[1][i] += __builtin_convertvector(right[i], vf) * (s * s1);
		}
	}
	for (size_t i = 0; i < b->n_rows; i++) {
		for (size_t j = 0; j < 2 && j * LANES < b->n; j++) {
			size_t left = b->n - j * LANES;
			float *y = b->y + i * b->ldy + j * LANES;
			vf v = sums[j][i];
			if (b->bias)
				v += take(b->bias + j * LANES, left);
			give(y, b->add ? v + take(y, left) : v, left);
		}
	}
}
