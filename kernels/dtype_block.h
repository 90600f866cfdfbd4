// SPDX-License-Identifier: Apache-2.0
// What a block of each quantised type means, for the host and for devices alike: the one definition, in ggml's order of operations, so that
// results are equal to the last bit. Blocks are read byte by byte: files are little-endian and promise no alignment.
//
// Includers define BLOCK_HELPER (qualifiers of a function), BLOCK_FUNCTION (of one that takes a BLOCK_OUT), BLOCK_OUT (a place for
// values, whose i-th is given by BLOCK_PUT(y, i, value)), and, where a compiler would fuse the two, BLOCK_MULTIPLY_ADD(a, b, c) = a b
// rounded, + c. They may define BLOCK_EACH(i, n), the loop over values.
#pragma once

#include <stdint.h>
#include <string.h>

#include "kernels/dtype.h"

#ifndef BLOCK_EACH
#define BLOCK_EACH(i, n) for (int i = 0; i < (n); i++)
#endif

BLOCK_HELPER uint16_t block_u16(const uint8_t *p)
{
	return (uint16_t)(p[0] | p[1] << 8);
}

BLOCK_HELPER uint32_t block_u32(const uint8_t *p)
{
	return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

BLOCK_HELPER float block_bits(uint32_t bits)
{
	float f;
	memcpy(&f, &bits, sizeof f);
	return f;
}

BLOCK_HELPER float block_half(uint16_t h)
{
	uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 0x1f, mantissa = h & 0x3ff;
	if (exponent == 0x1f)      // infinity or NaN
		return block_bits(sign | 0x7f800000u | mantissa << 13);
	if (exponent)
		return block_bits(sign | (exponent + 112) << 23 | mantissa << 13);
	float f = (float)mantissa * 0x1p-24f;      // subnormal: exact, the product is a normal float
	return sign ? -f : f;
}

BLOCK_HELPER float block_f16(const uint8_t *p)
{
	return block_half(block_u16(p));
}

BLOCK_FUNCTION void block_q8_0(const uint8_t *block, BLOCK_OUT y)
{
	float d = block_f16(block);
	BLOCK_EACH(i, 32)
		BLOCK_PUT(y, i, (float)(int8_t)block[2 + i] * d);
}

BLOCK_FUNCTION void block_q4_0(const uint8_t *block, BLOCK_OUT y)
{
	float d = block_f16(block);
	const uint8_t *q = block + 2;
	BLOCK_EACH(i, 16)
		BLOCK_PUT(y, i, d * (float)((q[i] & 15) - 8));
	BLOCK_EACH(i, 16)
		BLOCK_PUT(y, i + 16, d * (float)((q[i] >> 4) - 8));
}

BLOCK_FUNCTION void block_q4_1(const uint8_t *block, BLOCK_OUT y)
{
	float d = block_f16(block), m = block_f16(block + 2);
	const uint8_t *q = block + 4;
	BLOCK_EACH(i, 16)
		BLOCK_PUT(y, i, BLOCK_MULTIPLY_ADD(d, (float)(q[i] & 15), m));
	BLOCK_EACH(i, 16)
		BLOCK_PUT(y, i + 16, BLOCK_MULTIPLY_ADD(d, (float)(q[i] >> 4), m));
}

BLOCK_FUNCTION void block_q5_0(const uint8_t *block, BLOCK_OUT y)
{
	float d = block_f16(block);
	uint32_t high = block_u32(block + 2);
	const uint8_t *q = block + 6;
	BLOCK_EACH(i, 16)
		BLOCK_PUT(y, i, d * (float)((int)((q[i] & 15) | (high >> i & 1) << 4) - 16));
	BLOCK_EACH(i, 16)
		BLOCK_PUT(y, i + 16, d * (float)((int)((uint32_t)(q[i] >> 4) | (high >> (i + 16) & 1) << 4) - 16));
}

BLOCK_FUNCTION void block_q5_1(const uint8_t *block, BLOCK_OUT y)
{
	float d = block_f16(block), m = block_f16(block + 2);
	uint32_t high = block_u32(block + 4);
	const uint8_t *q = block + 8;
	BLOCK_EACH(i, 16)
		BLOCK_PUT(y, i, BLOCK_MULTIPLY_ADD(d, (float)((q[i] & 15) | (high >> i & 1) << 4), m));
	BLOCK_EACH(i, 16)
		BLOCK_PUT(y, i + 16, BLOCK_MULTIPLY_ADD(d, (float)((uint32_t)(q[i] >> 4) | (high >> (i + 16) & 1) << 4), m));
}

// The j-th (0..7) six-bit scale and minimum from the 12 bytes that Q4_K and Q5_K share: the first four lie in the low six bits,
// the last four are split between the low nibbles of the third quarter and the top bits of the first two.
BLOCK_HELPER void block_k_scale(const uint8_t *s, int j, uint8_t *ret_scale, uint8_t *ret_minimum)
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
BLOCK_FUNCTION void block_k45(const uint8_t *block, const uint8_t *high, const uint8_t *q, BLOCK_OUT y)
{
	float d = block_f16(block), dmin = block_f16(block + 2);
	for (int j = 0; j < 8; j++) {
		uint8_t scale, minimum;
		block_k_scale(block + 4, j, &scale, &minimum);
		float dl = d * (float)scale, ml = dmin * (float)minimum;
		BLOCK_EACH(i, 32) {
			int v = q[32 * (j / 2) + i] >> (j & 1 ? 4 : 0) & 15;
			if (high)
				v |= (high[i] >> j & 1) << 4;
			BLOCK_PUT(y, 32 * j + i, BLOCK_MULTIPLY_ADD(dl, (float)v, -ml));
		}
	}
}

BLOCK_FUNCTION void block_q4_k(const uint8_t *block, BLOCK_OUT y)
{
	block_k45(block, NULL, block + 16, y);
}

BLOCK_FUNCTION void block_q5_k(const uint8_t *block, BLOCK_OUT y)
{
	block_k45(block, block + 16, block + 48, y);
}

// Two halves of 128; in each, run r / 2 (0..3) of 32 takes nibble r / 4 of low[32 * (r / 2 % 2)] and bit pair r / 2 of high; each half r of
// a run has a factor.
BLOCK_FUNCTION void block_q6_k(const uint8_t *block, BLOCK_OUT y)
{
	const uint8_t *low = block, *high = block + 128;
	const int8_t *factors = (const int8_t *)block + 192;
	float d = block_f16(block + 208);
	for (int half = 0; half < 2; half++, low += 64, high += 32, factors += 8) {
		for (int r = 0; r < 8; r++) {
			float dl = d * (float)factors[r];
			BLOCK_EACH(i, 16) {
				int at = 16 * (r & 1) + i;
				int v = (low[32 * (r >> 1 & 1) + at] >> (r & 4 ? 4 : 0) & 15) | (high[at] >> (r & 6) & 3) << 4;
				BLOCK_PUT(y, 128 * half + 16 * r + i, dl * (float)(v - 32));
			}
		}
	}
}
