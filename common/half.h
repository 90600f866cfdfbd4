// SPDX-License-Identifier: Apache-2.0
// IEEE 754 binary16 and bfloat16 bits <-> float, round to nearest even; the same on every processor.
#pragma once

#include <stdint.h>
#include <string.h>

static inline float half_to_float(uint16_t half)
{
	uint32_t sign = (uint32_t)(half & 0x8000) << 16, magnitude = half & 0x7fff;
	uint32_t bits;
	float v;
	if (magnitude >= 0x7c00) {
		bits = sign | 0x7f800000u | (magnitude & 0x3ff) << 13;
	} else if (magnitude >= 0x400) {
		bits = sign | ((magnitude << 13) + (112u << 23));
	} else {
		v = (float)magnitude * 0x1p-24f;    // subnormal: exact
		memcpy(&bits, &v, sizeof bits);
		bits |= sign;
	}
	memcpy(&v, &bits, sizeof v);
	return v;
}

// Above 65520 in magnitude gives infinity; NaN stays NaN.
static inline uint16_t half_from_float(float v)
{
	uint32_t bits;
	memcpy(&bits, &v, sizeof bits);
	uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
	bits &= 0x7fffffff;
	if (bits > 0x7f800000u)
		return sign | 0x7e00;
	if (bits >= 0x47800000u)    // 65536 and up
		return sign | 0x7c00;
	if (bits < 0x38800000u) {    // below 2^-14: adding 0.5 leaves the subnormal's bits, rounded, at the bottom
		float sum;
		memcpy(&sum, &bits, sizeof sum);
		sum += 0.5f;
		memcpy(&bits, &sum, sizeof bits);
		return sign | (uint16_t)(bits - 0x3f000000u);
	}
	bits += 0xfffu + (bits >> 13 & 1);    // round half to even; a carry moves the exponent up as it should
	return sign | (uint16_t)((bits - (112u << 23)) >> 13);
}

// The upper half of binary32. NaN stays NaN; the largest numbers round to infinity.
static inline uint16_t bfloat_from_float(float v)
{
	uint32_t bits;
	memcpy(&bits, &v, sizeof bits);
	if ((bits & 0x7fffffff) > 0x7f800000u)
		return (uint16_t)(bits >> 16 | 0x40);
	return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

static inline float bfloat_to_float(uint16_t bfloat)
{
	uint32_t bits = (uint32_t)bfloat << 16;
	float v;
	memcpy(&v, &bits, sizeof v);
	return v;
}
