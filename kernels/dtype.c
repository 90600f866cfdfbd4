// SPDX-License-Identifier: Apache-2.0
// Element types of model files: geometry, and exact conversion to float. Blocks are read byte by byte: files are little-endian
// and promise no alignment. Each expression keeps ggml's order of operations, so that results are equal to the last bit.
#include "kernels/dtype.h"

#include <string.h>

#include "common/error.h"

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
	[DTYPE_Q4_K] = {"Q4_K", 256, 2 + 2 + 12 + 128},        // scales of scales and minima, 8 + 8 six-bit factors, nibbles
	[DTYPE_Q5_K] = {"Q5_K", 256, 2 + 2 + 12 + 32 + 128},   // the same with fifth bits
	[DTYPE_Q6_K] = {"Q6_K", 256, 128 + 64 + 16 + 2},       // low nibbles, high bit pairs, 16 int8 factors, scale
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
	uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 0x1f, mantissa = h & 0x3ff;
	if (exponent == 0x1f)      // infinity or NaN
		return float_from_bits(sign | 0x7f800000u | mantissa << 13);
	if (exponent)
		return float_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
	float f = (float)mantissa * 0x1p-24f;      // subnormal: exact, the product is a normal float
	return float_from_bits(sign | float_to_bits(f));
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

static uint16_t load_u16(const uint8_t *p)
{
	return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t load_u32(const uint8_t *p)
{
	return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static float load_f16(const uint8_t *p)
{
	return float_from_f16(load_u16(p));
}

static void q8_0_to_float(const uint8_t *block, float *y)
{
	float d = load_f16(block);
	for (int i = 0; i < 32; i++)
		y[i] = (float)(int8_t)block[2 + i] * d;
}

static void q4_0_to_float(const uint8_t *block, float *y)
{
	float d = load_f16(block);
	const uint8_t *q = block + 2;
	for (int i = 0; i < 16; i++) {
		y[i] = d * (float)((q[i] & 15) - 8);
		y[i + 16] = d * (float)((q[i] >> 4) - 8);
	}
}

static void q4_1_to_float(const uint8_t *block, float *y)
{
	float d = load_f16(block), m = load_f16(block + 2);
	const uint8_t *q = block + 4;
	for (int i = 0; i < 16; i++) {
		y[i] = d * (float)(q[i] & 15) + m;
		y[i + 16] = d * (float)(q[i] >> 4) + m;
	}
}

static void q5_0_to_float(const uint8_t *block, float *y)
{
	float d = load_f16(block);
	uint32_t high = load_u32(block + 2);
	const uint8_t *q = block + 6;
	for (int i = 0; i < 16; i++) {
		y[i] = d * (float)((int)((q[i] & 15) | (high >> i & 1) << 4) - 16);
		y[i + 16] = d * (float)((int)((uint32_t)(q[i] >> 4) | (high >> (i + 16) & 1) << 4) - 16);
	}
}

static void q5_1_to_float(const uint8_t *block, float *y)
{
	float d = load_f16(block), m = load_f16(block + 2);
	uint32_t high = load_u32(block + 4);
	const uint8_t *q = block + 8;
	for (int i = 0; i < 16; i++) {
		y[i] = d * (float)((q[i] & 15) | (high >> i & 1) << 4) + m;
		y[i + 16] = d * (float)((uint32_t)(q[i] >> 4) | (high >> (i + 16) & 1) << 4) + m;
	}
}

// The j-th (0..7) six-bit scale and minimum from the 12 bytes that Q4_K and Q5_K share: the first four lie in the low six bits,
// the last four are split between the low nibbles of the third quarter and the top bits of the first two.
static void k_scale(const uint8_t *s, int j, uint8_t *ret_scale, uint8_t *ret_minimum)
{
	if (j < 4) {
		*ret_scale = s[j] & 63;
		*ret_minimum = s[j + 4] & 63;
	} else {
		*ret_scale = (uint8_t)((s[j + 4] & 15) | (s[j - 4] >> 6) << 4);
		*ret_minimum = (uint8_t)(s[j + 4] >> 4 | (s[j] >> 6) << 4);
	}
}

// Q4_K and Q5_K: eight runs of 32; two neighbouring runs share 32 bytes (low and high nibbles). `high` holds bit j of run j, or is NULL.
static void k45_to_float(const uint8_t *block, const uint8_t *high, const uint8_t *q, float *y)
{
	float d = load_f16(block), dmin = load_f16(block + 2);
	for (int j = 0; j < 8; j++) {
		uint8_t scale, minimum;
		k_scale(block + 4, j, &scale, &minimum);
		float dl = d * (float)scale, ml = dmin * (float)minimum;
		for (int i = 0; i < 32; i++) {
			int v = q[32 * (j / 2) + i] >> (j & 1 ? 4 : 0) & 15;
			if (high)
				v |= (high[i] >> j & 1) << 4;
			y[32 * j + i] = dl * (float)v - ml;
		}
	}
}

static void q4_k_to_float(const uint8_t *block, float *y)
{
	k45_to_float(block, NULL, block + 16, y);
}

static void q5_k_to_float(const uint8_t *block, float *y)
{
	k45_to_float(block, block + 16, block + 48, y);
}

// Two halves of 128; in each, run r (0..3) of 32 takes nibble r / 2 of low[32 * (r % 2)] and bit pair r of high; a factor serves 16 values.
static void q6_k_to_float(const uint8_t *block, float *y)
{
	const uint8_t *low = block, *high = block + 128;
	const int8_t *factors = (const int8_t *)block + 192;
	float d = load_f16(block + 208);
	for (int half = 0; half < 2; half++, low += 64, high += 32, factors += 8, y += 128) {
		for (int r = 0; r < 4; r++) {
			for (int i = 0; i < 32; i++) {
				int v = (low[32 * (r & 1) + i] >> (r & 2 ? 4 : 0) & 15) | (high[i] >> (2 * r) & 3) << 4;
				y[32 * r + i] = d * (float)factors[2 * r + i / 16] * (float)(v - 32);
			}
		}
	}
}

static void (*const blocks_to_float[N_DTYPES])(const uint8_t *block, float *y) = {
	[DTYPE_Q8_0] = q8_0_to_float, [DTYPE_Q4_0] = q4_0_to_float, [DTYPE_Q4_1] = q4_1_to_float,
	[DTYPE_Q5_0] = q5_0_to_float, [DTYPE_Q5_1] = q5_1_to_float, [DTYPE_Q4_K] = q4_k_to_float,
	[DTYPE_Q5_K] = q5_k_to_float, [DTYPE_Q6_K] = q6_k_to_float,
};

void dtype_to_float(enum dtype t, const void *blocks, float *ret_values, size_t n)
{
	const uint8_t *p = blocks;
	switch (t) {
	case DTYPE_F32:
		for (size_t i = 0; i < n; i++)
			ret_values[i] = float_from_bits(load_u32(p + 4 * i));
		return;
	case DTYPE_F16:
		for (size_t i = 0; i < n; i++)
			ret_values[i] = load_f16(p + 2 * i);
		return;
	case DTYPE_BF16:
		for (size_t i = 0; i < n; i++)
			ret_values[i] = float_from_bf16(load_u16(p + 2 * i));
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
		return error_set(err, ERROR_INVALID, NULL, "a matrix of %llu x %llu", (unsigned long long)rows, (unsigned long long)columns);
	*ret_rows = (uint32_t)rows;
	*ret_columns = (uint32_t)columns;
	return 0;
}
