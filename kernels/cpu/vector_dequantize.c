// SPDX-License-Identifier: Apache-2.0
// Elements of model files to float: dtype_block.h's own functions, in loops that the compiler makes vectors of. The bits are those of
// dtype_to_float on every instruction set: a scale (11 bits, times 6 or 8 more) times an integer is exact before anything is added to it,
// fused or not.
#include "kernels/cpu/vector_ops.h"

#define BLOCK_HELPER INLINE
#define BLOCK_FUNCTION INLINE
#define BLOCK_OUT float *restrict
#define BLOCK_PUT(y, i, value) ((y)[i] = (value))
#define BLOCK_MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
// Unrolled before they are made vectors, short loops become neither.
#define BLOCK_EACH(i, n) _Pragma("GCC unroll 1") for (int i = 0; i < (n); i++)
#if defined(__SSSE3__)
#define BLOCK_LOOKUP lookup
// The instruction that looks 16 nibbles up at once.
INLINE void lookup(int8_t *numbers, const int8_t *table, const uint8_t *q, int shift)
{
	__m128i at = _mm_and_si128(_mm_srli_epi16(_mm_loadu_si128((const __m128i *)q), shift), _mm_set1_epi8(15));
	_mm_storeu_si128((__m128i *)numbers, _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)table), at));
}
#endif
#include "kernels/dtype_block.h"

static void from_f16(const uint8_t *p, float *restrict y, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		uint32_t h = block_u16(p + 2 * i), bits = (h & 0x7fff) << 13, special = (h & 0x7c00) == 0x7c00 ? 0x7f800000 : 0, v;
		float f = block_bits(bits) * 0x1p112f;       // exact, subnormals too
		memcpy(&v, &f, sizeof v);
		v = (special ? bits | special : v) | (h & 0x8000) << 16;
		memcpy(y + i, &v, sizeof v);
	}
}

static void from_bf16(const uint8_t *p, float *restrict y, size_t n)
{
	for (size_t i = 0; i < n; i++)
		y[i] = block_bits((uint32_t)block_u16(p + 2 * i) << 16);
}

static void from_f32(const uint8_t *p, float *restrict y, size_t n)
{
	for (size_t i = 0; i < n; i++)
		y[i] = block_bits(block_u32(p + 4 * i));
}

#define BLOCKS(block_of, n_bytes, n_values) \
	for (size_t i = 0; i < n / (n_values); i++) \
		block_of(p + i * (n_bytes), y + i * (n_values)); \
	break

void VECTOR(dequantize)(float *y, enum dtype type, const void *stored, size_t n)
{
	const uint8_t *p = stored;

	switch (type) {
	case DTYPE_F32: from_f32(p, y, n); break;
	case DTYPE_F16: from_f16(p, y, n); break;
	case DTYPE_BF16: from_bf16(p, y, n); break;
	case DTYPE_Q8_0: BLOCKS(block_q8_0, 34, 32);
	case DTYPE_Q4_0: BLOCKS(block_q4_0, 18, 32);
	case DTYPE_Q4_1: BLOCKS(block_q4_1, 20, 32);
	case DTYPE_Q5_0: BLOCKS(block_q5_0, 22, 32);
	case DTYPE_Q5_1: BLOCKS(block_q5_1, 24, 32);
	case DTYPE_IQ4_NL: BLOCKS(block_iq4_nl, 18, 32);
	case DTYPE_MXFP4: BLOCKS(block_mxfp4, 17, 32);
	case DTYPE_Q2_K: BLOCKS(block_q2_k, 84, 256);
	case DTYPE_Q3_K: BLOCKS(block_q3_k, 110, 256);
	case DTYPE_Q4_K: BLOCKS(block_q4_k, 144, 256);
	case DTYPE_Q5_K: BLOCKS(block_q5_k, 176, 256);
	case DTYPE_Q6_K: BLOCKS(block_q6_k, 210, 256);
	case DTYPE_IQ4_XS: BLOCKS(block_iq4_xs, 136, 256);
	case DTYPE_TQ1_0: BLOCKS(block_tq1_0, 54, 256);
	case DTYPE_TQ2_0: BLOCKS(block_tq2_0, 66, 256);
	case DTYPE_IQ1_S: BLOCKS(block_iq1_s, 50, 256);
	case DTYPE_IQ1_M: BLOCKS(block_iq1_m, 56, 256);
	case DTYPE_IQ2_XXS: BLOCKS(block_iq2_xxs, 66, 256);
	case DTYPE_IQ2_XS: BLOCKS(block_iq2_xs, 74, 256);
	case DTYPE_IQ2_S: BLOCKS(block_iq2_s, 82, 256);
	case DTYPE_IQ3_XXS: BLOCKS(block_iq3_xxs, 98, 256);
	case DTYPE_IQ3_S: BLOCKS(block_iq3_s, 110, 256);
	case N_DTYPES: break;
	}
}
