// SPDX-License-Identifier: Apache-2.0
// The float vector of the instruction set a file is compiled for, and exp(). Included only by files that are compiled once per
// instruction set (vector_*.c). Compiler vector types do the arithmetic; intrinsics only where C has no operator.
#pragma once

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

#define INLINE static inline __attribute__((always_inline, unused))

// Short loops over arrays of vectors must disappear, or the arrays are kept in memory instead of registers.
#define UNROLL _Pragma("GCC unroll 16")

// VECTOR(f) is f with the name of the instruction set: the same source gives one set of symbols for each.
#define VECTOR_PASTE(name, suffix) name##_##suffix
#define VECTOR_NAME(name, suffix) VECTOR_PASTE(name, suffix)
#define VECTOR(name) VECTOR_NAME(name, VECTOR_SUFFIX)

// The few that exist once more for an instruction set with products of bytes (vector_int8.c):
// the rest of its table is the smaller set's.
#ifndef INT8_SUFFIX
#define INT8_SUFFIX VECTOR_SUFFIX
#endif
#define INT8(name) VECTOR_NAME(name, INT8_SUFFIX)

// Likewise, on top of both, for one with products of bfloat16 (vector_bf16.c, vector_attention_bf16.c). A table has the name of the
// largest set it uses.
#ifdef BF16_SUFFIX
#define TABLE_SUFFIX BF16_SUFFIX
#else
#define BF16_SUFFIX VECTOR_SUFFIX
#define TABLE_SUFFIX INT8_SUFFIX
#endif
#define BF16(name) VECTOR_NAME(name, BF16_SUFFIX)

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));

INLINE vf vf_load(const float *p)
{
	vf v;

	memcpy(&v, p, sizeof(v));
	return v;
}

INLINE void vf_store(float *p, vf v)
{
	memcpy(p, &v, sizeof(v));
}

// The last n < LANES elements of a row; the other lanes are zero.
INLINE vf vf_load_part(const float *p, size_t n)
{
#if LANES == 16
	return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
	vf v = {0};

	memcpy(&v, p, n * sizeof(float));
	return v;
#endif
}

INLINE void vf_store_part(float *p, vf v, size_t n)
{
#if LANES == 16
	_mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
	memcpy(p, &v, n * sizeof(float));
#endif
}

// Load and store of the next vector of a row of which n elements are left: whole, or the part that is there (other lanes 0).
INLINE vf take(const float *p, size_t n)
{
	return n >= LANES ? vf_load(p) : vf_load_part(p, n);
}

INLINE void give(float *p, vf v, size_t n)
{
	if (n >= LANES)
		vf_store(p, v);
	else
		vf_store_part(p, v, n);
}

INLINE vf vf_set(float x)
{
	return x - (vf){0};
}

// Round to nearest even; NaN stays NaN (its low bits are kept out of the rounding).
INLINE vu bf16_bits(vf v)
{
	vu u = (vu)v, nan = (vu)(v != v);
	vu rounded = u + 0x7fff + ((u >> 16) & 1);

	return (rounded & ~nan) | ((u | 0x400000) & nan);
}

// Pairs of bfloat16, one in each lane's 32 bits. Both float operands rounded to the nearest, `low` into the lower half; and the sum of
// both products of each lane's pairs, with two roundings, added to `sum`. With 16 lanes they are instructions of AVX512_BF16, which a
// processor must have (OPERAND_BF16); written out, since the rest of this set is for processors without it.
INLINE vf vf_pairs(vf low, vf high)
{
#if LANES == 16
	static const uint16_t order[32] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
					   8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
	__m512i both;

	__asm__("vcvtne2ps2bf16 %2, %1, %0" : "=v"(both) : "v"(high), "v"(low));
	return (vf)_mm512_permutexvar_epi16(_mm512_loadu_si512(order), both);
#else
	return (vf)((bf16_bits(high) & 0xffff0000u) | bf16_bits(low) >> 16);
#endif
}

INLINE vf vf_add_pairs(vf sum, vf a, vf b)
{
#if LANES == 16
	__asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
	return sum;
#else
	sum += (vf)((vu)a << 16) * (vf)((vu)b << 16);
	return sum + (vf)((vu)a & 0xffff0000u) * (vf)((vu)b & 0xffff0000u);
#endif
}

// Where a lane of b is NaN the result is NaN; a NaN in a only is dropped.
INLINE vf vf_max(vf a, vf b)
{
#if defined(__AVX512F__)
	return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
	return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
	return (vf)_mm_max_ps((__m128)a, (__m128)b);
#else
	for (int i = 0; i < LANES; i++)
		a[i] = a[i] > b[i] ? a[i] : b[i];
	return a;
#endif
}

// Bit i: lane i of x is at least that of bound.
INLINE uint32_t vf_at_least(vf x, vf bound)
{
#if defined(__AVX512F__)
	return _mm512_cmp_ps_mask((__m512)x, (__m512)bound, _CMP_GE_OQ);
#elif defined(__AVX2__)
	return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps((__m256)x, (__m256)bound, _CMP_GE_OQ));
#elif defined(__SSE2__)
	return (uint32_t)_mm_movemask_ps(_mm_cmpge_ps((__m128)x, (__m128)bound));
#else
	uint32_t bits = 0;

	for (int i = 0; i < LANES; i++)
		bits |= (uint32_t)(x[i] >= bound[i]) << i;
	return bits;
#endif
}

// Nearest integer, as integers.
INLINE vi vf_round(vf x)
{
#if defined(__AVX512F__)
	return (vi)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
	return (vi)_mm256_cvtps_epi32((__m256)x);
#elif defined(__SSE2__)
	return (vi)_mm_cvtps_epi32((__m128)x);
#else
	vi r;

	for (int i = 0; i < LANES; i++)
		r[i] = (int32_t)lrintf(x[i]);
	return r;
#endif
}

INLINE vf vf_sqrt(vf x)
{
#if defined(__AVX512F__)
	return (vf)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
	return (vf)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
	return (vf)_mm_sqrt_ps((__m128)x);
#else
	for (int i = 0; i < LANES; i++)
		x[i] = sqrtf(x[i]);
	return x;
#endif
}

INLINE float vf_sum(vf v)
{
	float part[LANES];

	memcpy(part, &v, sizeof(v));
	for (int width = LANES / 2; width; width /= 2)
		for (int i = 0; i < width; i++)
			part[i] += part[i + width];
	return part[0];
}

// The largest lane; NaN where there is one is not promised.
INLINE float vf_max_lane(vf v)
{
	float part[LANES];

	memcpy(part, &v, sizeof(v));
#if defined(__SSE2__)
	__m128 m = _mm_loadu_ps(part);
	UNROLL for (int i = 4; i < LANES; i += 4)
		m = _mm_max_ps(m, _mm_loadu_ps(part + i));
	m = _mm_max_ps(m, _mm_movehl_ps(m, m));
	return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
#else
	for (int i = 1; i < LANES; i++)
		part[0] = part[i] > part[0] ? part[i] : part[0];
	return part[0];
#endif
}

// e^x to 2 units in the last place for x <= 0 (or a little above, and below 88); 0 below -87.3, NaN for NaN.
// Range reduction by ln 2 in two parts (Cody and Waite), minimax polynomial of degree 7 on +-ln(2)/2 (Cephes).
INLINE vf vf_exp_negative(vf x)
{
	const vf low = vf_set(-87.33654f);
	vf y = vf_max(low, x);
	vi n = vf_round(y * 1.44269504f);
	vf r = __builtin_convertvector(n, vf), p;

	y = y - r * 0.693145752f;
	y = y - r * 1.42860677e-6f;
	p = vf_set(1.9875692e-4f);
	p = p * y + 1.3981999e-3f;
	p = p * y + 8.3334519e-3f;
	p = p * y + 4.1665794e-2f;
	p = p * y + 1.6666665e-1f;
	p = p * y + 0.5f;
	p = p * y * y + y + 1.0f;
	p = (vf)((vu)p + ((vu)n << 23));
	return (vf)((vi)p & ~(x < low));
}

// 2^x to 2e-7 of itself for x <= 0 (or a little above), 1 for 0; 0 below -150, NaN for NaN: 2^floor(x) times a minimax polynomial of degree
// 5 on 0..1. For sums of e^x, where little comes from far below 0: rounding x log2(e) is an error of 6e-8 |x|.
INLINE vf vf_exp2_negative(vf x)
{
#if LANES == 16
	vf f = (vf)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC), p = vf_set(1.86713843e-3f);
#else
	const vf low = vf_set(-126.0f);
	vf y = vf_max(low, x);
	vi n = vf_round(y - 0.5f);
	vf f = y - __builtin_convertvector(n, vf), p = vf_set(1.86713843e-3f);
#endif

	p = p * f + 9.01700929e-3f;
	p = p * f + 5.57999313e-2f;
	p = p * f + 2.40164444e-1f;
	p = p * f + 6.93151295e-1f;
	p = p * f + 1.0f;
#if LANES == 16
	return (vf)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
	p = (vf)((vu)p + ((vu)n << 23));
	return (vf)((vi)p & ~(x < low));
#endif
}

// The same for any x: infinity above 88.
INLINE vf vf_exp(vf x)
{
	const vf high = vf_set(88.0f);
	vi over = x > high;
	vf e = vf_exp_negative(-vf_max(-high, -x));

	return (vf)(((vi)e & ~over) | ((vi)vf_set(INFINITY) & over));
}

// 1 / (1 + e^-g); for g below -88 e^-g is infinite and the result 0
INLINE vf sigmoid(vf g)
{
	return 1 / (1 + vf_exp(-g));
}

// tanh x to 4 units in the last place: near 0 by its series, else by (1 - t) / (1 + t) with t = e^(-2 |x|), at most 1.
INLINE vf vf_tanh(vf x)
{
	vi negative = x < 0.0f;
	vf a = (vf)(((vi)-x & negative) | ((vi)x & ~negative)), t = vf_exp_negative(-2.0f * a), z = x * x, p = vf_set(3.59212804e-3f);

	p = p * z - 8.86323553e-3f;
	p = p * z + 2.18694885e-2f;
	p = p * z - 5.39682540e-2f;
	p = p * z + 1.33333333e-1f;
	p = p * z - 3.33333333e-1f;
	p = p * z * x + x;
	t = (1.0f - t) / (1.0f + t);
	t = (vf)(((vi)-t & negative) | ((vi)t & ~negative));
	vi small = a < 0.4f;
	return (vf)(((vi)p & small) | ((vi)t & ~small));
}

// ln x to 2 units in the last place for 1e-44 <= x (denormals too); infinity and NaN stay. Polynomial on sqrt(1/2)..sqrt(2) (Cephes).
INLINE vf vf_log(vf x)
{
	vi special = ~(x <= 3.4028235e38f);
	vf scaled = x * 16777216.0f;        // 2^24 makes denormals normal; where it would overflow, x itself is used
	vi big = x > 1.0f;
	vi bits = ((vi)x & big) | ((vi)scaled & ~big);
	vi n = ((bits >> 23) & 0xff) - 126 - (24 & ~big);
	vf m = (vf)((bits & 0x007fffff) | 0x3f000000);    // in [0.5, 1)
	vi low = m < 0.70710678f;
	n += low;                           // a true lane is -1
	m = m + (vf)((vi)m & low) - 1.0f;
	vf e = __builtin_convertvector(n, vf), z = m * m, p = vf_set(7.0376836292e-2f);

	p = p * m - 1.1514610310e-1f;
	p = p * m + 1.1676998740e-1f;
	p = p * m - 1.2420140846e-1f;
	p = p * m + 1.4249322787e-1f;
	p = p * m - 1.6668057665e-1f;
	p = p * m + 2.0000714765e-1f;
	p = p * m - 2.4999993993e-1f;
	p = p * m + 3.3333331174e-1f;
	p = p * m * z - 2.12194440e-4f * e - 0.5f * z;
	p = m + p + 0.693359375f * e;
	return (vf)(((vi)p & ~special) | ((vi)x & special));
}

#if LANES == 16
// Rows of 16 lanes become columns.
INLINE void vi_transpose(__m512i x[LANES])
{
	__m512i t[LANES], u[LANES];

	UNROLL for (int i = 0; i < 16; i += 2) {
		t[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
		t[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
	}
	UNROLL for (int i = 0; i < 16; i += 4) {        // quarter L of u[i + c]: column 4 L + c of rows i..i + 3
		u[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
		u[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
		u[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
		u[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
	}
	UNROLL for (int c = 0; c < 4; c++) {
		__m512i even0 = _mm512_shuffle_i32x4(u[c], u[4 + c], 0x88), even1 = _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0x88);
		__m512i odd0 = _mm512_shuffle_i32x4(u[c], u[4 + c], 0xdd), odd1 = _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0xdd);
		x[c] = _mm512_shuffle_i32x4(even0, even1, 0x88);
		x[4 + c] = _mm512_shuffle_i32x4(odd0, odd1, 0x88);
		x[8 + c] = _mm512_shuffle_i32x4(even0, even1, 0xdd);
		x[12 + c] = _mm512_shuffle_i32x4(odd0, odd1, 0xdd);
	}
}
#endif
