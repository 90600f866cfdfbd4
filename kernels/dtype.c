// SPDX-License-Identifier: Apache-2.0
// Element types of model files: geometry, and exact conversion to float (of blocks: dtype_block.h).
#include "kernels/dtype.h"

#include <string.h>

#include "common/error.h"

#define BLOCK_HELPER static inline
#define BLOCK_FUNCTION static
#define BLOCK_OUT float *
#define BLOCK_PUT(y, i, value) ((y)[i] = (value))
#define BLOCK_MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#include "kernels/dtype_block.h"

static const struct {
	const char *name;
	uint32_t elements, bytes;
} geometry[N_DTYPES] = {
	[DTYPE_F32] = {"F32", 1, 4},
	[DTYPE_F16] = {"F16", 1, 2},
	[DTYPE_BF16] = {"BF16", 1, 2},
	[DTYPE_Q8_0] = {"Q8_0", 32, 2 + 32},                   // scale, int8 values
	[DTYPE_Q4_0] = {"Q4_0", 32, 2 + 16},                   // scale, nibbles (0..15) - 8
	[DTYPE_Q4_1] = {"Q4_1", 32, 2 + 2 + 16},               // scale, minimum, nibbles
	[DTYPE_Q5_0] = {"Q5_0", 32, 2 + 4 + 16},               // scale, fifth bits, nibbles: (0..31) - 16
	[DTYPE_Q5_1] = {"Q5_1", 32, 2 + 2 + 4 + 16},           // scale, minimum, fifth bits, nibbles
	[DTYPE_IQ4_NL] = {"IQ4_NL", 32, 2 + 16},               // scale, nibbles: which of 16 numbers
	[DTYPE_MXFP4] = {"MXFP4", 32, 1 + 16},                 // exponent of the scale, nibbles: 4-bit floats
	[DTYPE_Q2_K] = {"Q2_K", 256, 16 + 64 + 2 + 2},         // 16 four-bit factors and minima, bit pairs, their scales
	[DTYPE_Q3_K] = {"Q3_K", 256, 32 + 64 + 12 + 2},        // third bits, bit pairs, 16 six-bit factors, scale
	[DTYPE_Q4_K] = {"Q4_K", 256, 2 + 2 + 12 + 128},        // scales of scales and minima, 8 + 8 six-bit factors, nibbles
	[DTYPE_Q5_K] = {"Q5_K", 256, 2 + 2 + 12 + 32 + 128},   // the same with fifth bits
	[DTYPE_Q6_K] = {"Q6_K", 256, 128 + 64 + 16 + 2},       // low nibbles, high bit pairs, 16 int8 factors, scale
	[DTYPE_IQ4_XS] = {"IQ4_XS", 256, 2 + 2 + 4 + 128},     // scale, 8 six-bit factors, nibbles as in IQ4_NL
	[DTYPE_TQ1_0] = {"TQ1_0", 256, 48 + 4 + 2},            // -1, 0, 1: five to a byte, the last sixteen four, scale
	[DTYPE_TQ2_0] = {"TQ2_0", 256, 64 + 2},                // -1, 0, 1: bit pairs, scale
	[DTYPE_IQ1_S] = {"IQ1_S", 256, 2 + 32 + 16},           // scale, low bytes of 32 points, the rest of them and 8 factors
	[DTYPE_IQ1_M] = {"IQ1_M", 256, 32 + 16 + 8},           // low bytes of 32 points, the rest of them, 16 factors and the scale
	[DTYPE_IQ2_XXS] = {"IQ2_XXS", 256, 2 + 64},            // scale, 8 times: 4 points, their signs, a factor
	[DTYPE_IQ2_XS] = {"IQ2_XS", 256, 2 + 64 + 8},          // scale, 32 points with signs, 16 factors
	[DTYPE_IQ2_S] = {"IQ2_S", 256, 2 + 64 + 8 + 8},        // scale, low bytes of 32 points, signs, high bits, 16 factors
	[DTYPE_IQ3_XXS] = {"IQ3_XXS", 256, 2 + 64 + 32},       // scale, 64 points, 8 times: signs, a factor
	[DTYPE_IQ3_S] = {"IQ3_S", 256, 2 + 64 + 8 + 32 + 4},   // scale, low bytes of 64 points, high bits, signs, 8 factors
};

const char *dtype_name(enum dtype t)
{
	return t < N_DTYPES ? geometry[t].name : "unknown";
}

uint32_t dtype_block_elements(enum dtype t)
{
	return geometry[t].elements;
}

uint32_t dtype_block_bytes(enum dtype t)
{
	return geometry[t].bytes;
}

size_t dtype_row_bytes(enum dtype t, uint64_t n)
{
	uint64_t bytes;
	if (n % geometry[t].elements || __builtin_mul_overflow(n / geometry[t].elements, geometry[t].bytes, &bytes) || bytes > SIZE_MAX)
		return 0;
	return (size_t)bytes;
}

struct tensor tensor_matrix(enum dtype t, uint64_t n_rows, uint64_t n_columns, const void *data)
{
	return (struct tensor){.dtype = t, .n_dims = 2, .dims = {n_rows, n_columns}, .data = data,
			       .n_bytes = (size_t)n_rows * dtype_row_bytes(t, n_columns)};
}

uint64_t tensor_matrix_bytes(const struct tensor *matrix)
{
	return matrix->dims[0] * dtype_row_bytes(matrix->dtype, matrix->dims[1]);
}

static float float_from_bits(uint32_t bits)
{
	float f;
	memcpy(&f, &bits, sizeof f);
	return f;
}

static uint32_t float_to_bits(float f)
{
	uint32_t bits;
	memcpy(&bits, &f, sizeof bits);
	return bits;
}

float float_from_f16(uint16_t h)
{
	return block_half(h);
}

// v / 2^shift, ties to even.
static uint32_t shift_to_even(uint32_t v, uint32_t shift)
{
	uint32_t kept = v >> shift, rest = v & ((1u << shift) - 1), half = 1u << (shift - 1);
	return kept + (rest > half || (rest == half && (kept & 1)));
}

uint16_t float_to_f16(float f)
{
	uint32_t bits = float_to_bits(f), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
	if (magnitude > 0x7f800000)                       // NaN: quiet, keeping what fits of the payload
		return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
	if (magnitude >= 0x477ff000)                      // 65520 and above round to infinity
		return (uint16_t)(sign | 0x7c00);
	if (magnitude >= 0x38800000)                      // 2^-14: normal; a carry out of the mantissa moves to the exponent
		return (uint16_t)(sign | shift_to_even(magnitude - (112u << 23), 13));
	if (magnitude < 0x33000000)                       // below half of the least subnormal, 2^-25
		return (uint16_t)sign;
	uint32_t mantissa = (magnitude & 0x7fffff) | 0x800000;
	return (uint16_t)(sign | shift_to_even(mantissa, 126 - (magnitude >> 23)));
}

float float_from_bf16(uint16_t h)
{
	return float_from_bits((uint32_t)h << 16);
}

uint16_t float_to_bf16(float f)
{
	uint32_t bits = float_to_bits(f);
	if ((bits & 0x7fffffff) > 0x7f800000)             // NaN must not round to infinity
		return (uint16_t)(bits >> 16 | 0x40);
	return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void (*const blocks_to_float[N_DTYPES])(const uint8_t *block, float *y) = {
	[DTYPE_Q8_0] = block_q8_0, [DTYPE_Q4_0] = block_q4_0, [DTYPE_Q4_1] = block_q4_1,
	[DTYPE_Q5_0] = block_q5_0, [DTYPE_Q5_1] = block_q5_1, [DTYPE_IQ4_NL] = block_iq4_nl,
	[DTYPE_MXFP4] = block_mxfp4, [DTYPE_Q2_K] = block_q2_k, [DTYPE_Q3_K] = block_q3_k,
	[DTYPE_Q4_K] = block_q4_k, [DTYPE_Q5_K] = block_q5_k, [DTYPE_Q6_K] = block_q6_k,
	[DTYPE_IQ4_XS] = block_iq4_xs, [DTYPE_TQ1_0] = block_tq1_0, [DTYPE_TQ2_0] = block_tq2_0,
	[DTYPE_IQ1_S] = block_iq1_s, [DTYPE_IQ1_M] = block_iq1_m, [DTYPE_IQ2_XXS] = block_iq2_xxs,
	[DTYPE_IQ2_XS] = block_iq2_xs, [DTYPE_IQ2_S] = block_iq2_s, [DTYPE_IQ3_XXS] = block_iq3_xxs,
	[DTYPE_IQ3_S] = block_iq3_s,
};

void dtype_to_float(enum dtype t, const void *blocks, float *ret_values, size_t n)
{
	const uint8_t *p = blocks;
	switch (t) {
	case DTYPE_F32:
		for (size_t i = 0; i < n; i++)
			ret_values[i] = float_from_bits(block_u32(p + 4 * i));
		return;
	case DTYPE_F16:
		for (size_t i = 0; i < n; i++)
			ret_values[i] = block_f16(p + 2 * i);
		return;
	case DTYPE_BF16:
		for (size_t i = 0; i < n; i++)
			ret_values[i] = float_from_bf16(block_u16(p + 2 * i));
		return;
	default:
		for (size_t i = 0; i + geometry[t].elements <= n; i += geometry[t].elements, p += geometry[t].bytes)
			blocks_to_float[t](p, ret_values + i);
	}
}

int tensor_stack_shape(const struct tensor *parts, uint32_t n_parts, uint32_t *ret_rows, uint32_t *ret_columns, struct error *err)
{
	uint64_t rows = 0, columns = n_parts ? parts[0].dims[1] : 0;
	for (uint32_t i = 0; i < n_parts; i++) {
		if (parts[i].n_dims != 2 || parts[i].dims[1] != columns)
			return error_set(err, ERROR_INVALID, NULL, "part %u of a matrix is not two-dimensional with %llu columns", i,
					 (unsigned long long)columns);
		if (__builtin_add_overflow(rows, parts[i].dims[0], &rows))
			rows = UINT64_MAX;
		size_t row_bytes = dtype_row_bytes(parts[i].dtype, columns), n_bytes;
		if (!row_bytes || __builtin_mul_overflow(row_bytes, parts[i].dims[0], &n_bytes) || parts[i].n_bytes < n_bytes)
			return error_set(err, ERROR_INVALID, NULL, "part %u of a matrix has too few bytes for its shape", i);
	}
	if (rows == 0 || rows > INT32_MAX || columns == 0 || columns > INT32_MAX)
		return error_set(err, ERROR_INVALID, NULL, "a matrix of %llu x %llu", (unsigned long long)rows,
			(unsigned long long)columns);
	*ret_rows = (uint32_t)rows;
	*ret_columns = (uint32_t)columns;
	return 0;
}
