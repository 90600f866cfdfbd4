// SPDX-License-Identifier: Apache-2.0
// What a block of each quantised type means, for the host and for devices alike: the one definition, in ggml's order of operations, so that
// results are equal to the last bit. Blocks are read byte by byte: files are little-endian and promise no alignment.
//
// Includers define BLOCK_HELPER (qualifiers of a function), BLOCK_FUNCTION (of one that takes a BLOCK_OUT), BLOCK_OUT (a place for
// values, whose i-th is given by BLOCK_PUT(y, i, value)), and, where a compiler would fuse the two, BLOCK_MULTIPLY_ADD(a, b, c) = a b
// rounded, + c. They may define BLOCK_EACH(i, n), the loop over values, and BLOCK_LOOKUP, block_lookup's work done otherwise.
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "kernels/dtype.h"
#include "kernels/dtype_grid.h"

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

#ifndef BLOCK_LOOKUP
#define BLOCK_LOOKUP block_lookup
// What a table has for 16 low (shift 0) or high (shift 4) nibbles.
BLOCK_HELPER void block_lookup(int8_t *numbers, const int8_t *table, const uint8_t *q, int shift)
{
	for (int i = 0; i < 16; i++)
		numbers[i] = table[q[i] >> shift & 15];
}
#endif

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

// 32 values from y[first] on: what a table has for the low nibbles of 16 bytes, then for the high ones, times d.
BLOCK_FUNCTION void block_of_table(const uint8_t *q, const int8_t *table, float d, int first, BLOCK_OUT y)
{
	for (int high = 0; high < 2; high++) {
		int8_t numbers[16];
		BLOCK_LOOKUP(numbers, table, q, 4 * high);
		BLOCK_EACH(i, 16)
			BLOCK_PUT(y, first + 16 * high + i, d * (float)numbers[i]);
	}
}

// n runs of 32 values, each with a factor, of numbers that lie closer together around 0.
BLOCK_FUNCTION void block_iq4(const uint8_t *q, const float *factors, int n, BLOCK_OUT y)
{
	static const int8_t numbers[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
	for (int j = 0; j < n; j++)
		block_of_table(q + 16 * j, numbers, factors[j], 32 * j, y);
}

BLOCK_FUNCTION void block_iq4_nl(const uint8_t *block, BLOCK_OUT y)
{
	float d = block_f16(block);
	block_iq4(block + 2, &d, 1, y);
}

// The low four bits of eight factors in four bytes, their high pairs in two before those.
BLOCK_FUNCTION void block_iq4_xs(const uint8_t *block, BLOCK_OUT y)
{
	float d = block_f16(block), factors[8];
	uint32_t high = block_u16(block + 2);
	for (int j = 0; j < 8; j++)
		factors[j] = d * (float)((int)((block[4 + j / 2] >> (j & 1 ? 4 : 0) & 15) | (high >> 2 * j & 3) << 4) - 32);
	block_iq4(block + 8, factors, 8, y);
}

// Floats of one sign, two exponent and one mantissa bit, doubled; the scale, half of 2^(e - 127), is below the normal floats for e < 2.
BLOCK_FUNCTION void block_mxfp4(const uint8_t *block, BLOCK_OUT y)
{
	static const int8_t numbers[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
	uint32_t e = block[0];
	block_of_table(block + 1, numbers, block_bits(e < 2 ? 0x00200000u << e : (e - 1) << 23), 0, y);
}

// Two halves of 128; in each, run r / 2 (0..3) of 32 takes bit pair r / 2 of the same 32 bytes; each half r of a run has a factor and a
// minimum, the nibbles of a byte.
BLOCK_FUNCTION void block_q2_k(const uint8_t *block, BLOCK_OUT y)
{
	const uint8_t *factors = block, *q = block + 16;
	float d = block_f16(block + 80), dmin = block_f16(block + 82);
	for (int half = 0; half < 2; half++, q += 32, factors += 8) {
		for (int r = 0; r < 8; r++) {
			float dl = d * (float)(factors[r] & 15), ml = dmin * (float)(factors[r] >> 4);
			BLOCK_EACH(i, 16)
				BLOCK_PUT(y, 128 * half + 16 * r + i,
					  BLOCK_MULTIPLY_ADD(dl, (float)(q[16 * (r & 1) + i] >> (r & 6) & 3), -ml));
		}
	}
}

// Bit pairs as in Q2_K; the third bit of run j (0..7) of 32 is bit j of the same 32 bytes. Factor j (0..15): a nibble of the first eight
// bytes (low, then high ones), and bit pair j / 4 of the last four.
BLOCK_FUNCTION void block_q3_k(const uint8_t *block, BLOCK_OUT y)
{
	const uint8_t *q = block + 32, *s = block + 96;
	float d = block_f16(block + 108);
	for (int j = 0; j < 16; j++) {
		int factor = (s[j & 7] >> (j & 8 ? 4 : 0) & 15) | (s[8 + (j & 3)] >> (j >> 2) * 2 & 3) << 4;
		float dl = d * (float)(factor - 32);
		BLOCK_EACH(i, 16) {
			int at = 16 * (j & 1) + i;
			int v = (q[(j & 8) * 4 + at] >> (j & 6) & 3) | (block[at] >> (j >> 1) & 1) << 2;
			BLOCK_PUT(y, 16 * j + i, dl * (float)(v - 4));
		}
	}
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

// n values from y[first] on: digit `digit` (0, 1, 2) of each byte, less 1, times d. A byte is a fraction in base 3, in 256ths and rounded
// up: what is left of it times 3^digit without the whole begins with that digit.
BLOCK_FUNCTION void block_tq1_digit(const uint8_t *q, int n, int digit, float d, int first, BLOCK_OUT y)
{
	uint32_t power = digit == 4 ? 81 : digit == 3 ? 27 : digit == 2 ? 9 : digit == 1 ? 3 : 1;
	BLOCK_EACH(i, n)
		BLOCK_PUT(y, first + i, d * (float)((int)((q[i] * power & 255) * 3 >> 8) - 1));
}

// Five runs of 32 from 32 bytes, five of 16 from 16, and four of 4 from 4.
BLOCK_FUNCTION void block_tq1_0(const uint8_t *block, BLOCK_OUT y)
{
	float d = block_f16(block + 52);
	for (int digit = 0; digit < 5; digit++)
		block_tq1_digit(block, 32, digit, d, 32 * digit, y);
	for (int digit = 0; digit < 5; digit++)
		block_tq1_digit(block + 32, 16, digit, d, 160 + 16 * digit, y);
	for (int digit = 0; digit < 4; digit++)
		block_tq1_digit(block + 48, 4, digit, d, 240 + 4 * digit, y);
}

// Two halves of 128: run j (0..3) of 32 takes bit pair j of the same 32 bytes.
BLOCK_FUNCTION void block_tq2_0(const uint8_t *block, BLOCK_OUT y)
{
	float d = block_f16(block + 64);
	for (int j = 0; j < 8; j++)
		BLOCK_EACH(i, 32)
			BLOCK_PUT(y, 32 * j + i, d * (float)((block[(j & 4) * 8 + i] >> (j & 3) * 2 & 3) - 1));
}

// The IQ1, IQ2 and IQ3 types: octet j (0..31) of values is a point of a grid (IQ3: two, of four numbers each), times a factor. Signs are
// apart; where only seven are stored, an even number of eight are minus.
BLOCK_HELPER uint32_t block_signs(uint32_t seven)
{
	uint32_t odd = seven ^ seven >> 4;
	odd ^= odd >> 2;
	return seven | ((odd ^ odd >> 1) & 1) << 7;
}

// n = 0, 1, ..: nibble n of bytes.
BLOCK_HELPER int block_nibble(const uint8_t *bytes, int n)
{
	return bytes[n / 2] >> (n & 1 ? 4 : 0) & 15;
}

BLOCK_FUNCTION void block_iq2(uint32_t codes, uint32_t signs, float d, int j, BLOCK_OUT y)
{
	BLOCK_EACH(i, 8) {
		int code = (int)(codes >> 2 * i & 3);
		float v = d * (float)(8 + 17 * code + (code >> 1));
		BLOCK_PUT(y, 8 * j + i, signs >> i & 1 ? -v : v);
	}
}

BLOCK_FUNCTION void block_iq2_xxs(const uint8_t *block, BLOCK_OUT y)
{
	float d = block_f16(block);
	for (int j = 0; j < 32; j++) {
		const uint8_t *four = block + 2 + 8 * (j / 4);
		uint32_t rest = block_u32(four + 4);
		float dl = d * (0.5f + (float)(rest >> 28)) * 0.25f;
		block_iq2(block_grid_iq2_xxs(four[j & 3]), block_signs(rest >> 7 * (j & 3) & 127), dl, j, y);
	}
}

BLOCK_FUNCTION void block_iq2_xs(const uint8_t *block, BLOCK_OUT y)
{
	float d = block_f16(block);
	for (int j = 0; j < 32; j++) {
		uint32_t q = block_u16(block + 2 + 2 * j);
		float dl = d * (0.5f + (float)block_nibble(block + 66, j / 2)) * 0.25f;
		block_iq2(block_grid_iq2_xs(q & 511), block_signs(q >> 9), dl, j, y);
	}
}

BLOCK_FUNCTION void block_iq2_s(const uint8_t *block, BLOCK_OUT y)
{
	float d = block_f16(block);
	for (int j = 0; j < 32; j++) {
		uint32_t point = block[2 + j] | (uint32_t)(block[66 + j / 4] >> 2 * (j & 3) & 3) << 8;
		float dl = d * (0.5f + (float)block_nibble(block + 74, j / 2)) * 0.25f;
		block_iq2(block_grid_iq2_s(point), block[34 + j], dl, j, y);
	}
}

BLOCK_FUNCTION void block_iq3_xxs(const uint8_t *block, BLOCK_OUT y)
{
	float d = block_f16(block);
	for (int j = 0; j < 32; j++) {
		uint32_t rest = block_u32(block + 66 + 4 * (j / 4)), signs = block_signs(rest >> 7 * (j & 3) & 127);
		uint32_t codes = block_grid_iq3_xxs(block[2 + 2 * j]) | block_grid_iq3_xxs(block[3 + 2 * j]) << 12;
		float dl = d * (0.5f + (float)(rest >> 28)) * 0.5f;
		BLOCK_EACH(i, 8) {
			int code = (int)(codes >> 3 * i & 7);
			float v = dl * (float)(4 + 8 * code + (code == 7) * 2);
			BLOCK_PUT(y, 8 * j + i, signs >> i & 1 ? -v : v);
		}
	}
}

BLOCK_FUNCTION void block_iq3_s(const uint8_t *block, BLOCK_OUT y)
{
	float d = block_f16(block);
	for (int j = 0; j < 32; j++) {
		uint32_t high = (uint32_t)block[66 + j / 4] >> 2 * (j & 3), signs = block[74 + j];
		uint32_t first = block[2 + 2 * j] | (high & 1) << 8, second = block[3 + 2 * j] | (high & 2) << 7;
		uint32_t codes = block_grid_iq3_s(first) | block_grid_iq3_s(second) << 12;
		float dl = d * (float)(1 + 2 * block_nibble(block + 106, j / 4));
		BLOCK_EACH(i, 8) {
			float v = dl * (float)(1 + 2 * (int)(codes >> 3 * i & 7));
			BLOCK_PUT(y, 8 * j + i, signs >> i & 1 ? -v : v);
		}
	}
}

// -1, 0, 1, all moved by an eighth.
BLOCK_FUNCTION void block_iq1(uint32_t codes, float d, bool down, int j, BLOCK_OUT y)
{
	float shift = down ? -1.125f : -0.875f;
	BLOCK_EACH(i, 8)
		BLOCK_PUT(y, 8 * j + i, d * ((float)(codes >> 2 * i & 3) + shift));
}

BLOCK_FUNCTION void block_iq1_s(const uint8_t *block, BLOCK_OUT y)
{
	float d = block_f16(block);
	for (int j = 0; j < 32; j++) {
		uint32_t rest = block_u16(block + 34 + 2 * (j / 4)), point = block[2 + j] | (rest >> 3 * (j & 3) & 7) << 8;
		block_iq1(block_grid_iq1(point), d * (float)(2 * (rest >> 12 & 7) + 1), rest >> 15, j, y);
	}
}

// The scale is a half whose nibbles are the highest of four numbers, the rest of which are four factors of three bits each.
BLOCK_FUNCTION void block_iq1_m(const uint8_t *block, BLOCK_OUT y)
{
	uint32_t half = 0;
	for (int i = 0; i < 4; i++)
		half |= (uint32_t)(block[49 + 2 * i] >> 4) << 4 * i;
	float d = block_half((uint16_t)half);
	for (int j = 0; j < 32; j++) {
		uint32_t factor = (uint32_t)block_u16(block + 48 + 2 * (j / 8)) >> 3 * (j / 2 & 3) & 7;
		uint32_t rest = (uint32_t)block_nibble(block + 32, j), point = block[j] | (rest & 7) << 8;
		block_iq1(block_grid_iq1(point), d * (float)(2 * factor + 1), rest & 8, j, y);
	}
}
