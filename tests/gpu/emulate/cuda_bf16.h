// SPDX-License-Identifier: Apache-2.0
// A stand-in for CUDA's header of this name; see cuda_runtime.h beside it.
#pragma once

#include "cuda_runtime.h"

struct __nv_bfloat16 {
	uint16_t bits;
	operator float() const { return __uint_as_float((uint32_t)bits << 16); }
};
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
struct __nv_bfloat16_raw { uint16_t x; };

static inline __nv_bfloat16 __float2bfloat16_rn(float f)
{
	uint32_t u = __float_as_uint(f);
	if (isnan(f))
		return __nv_bfloat16{0x7fff};
	return __nv_bfloat16{(uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}
static inline float __bfloat162float(__nv_bfloat16 x) { return x; }
static inline __nv_bfloat162 __floats2bfloat162_rn(float x,
						   float y) { return __nv_bfloat162{__float2bfloat16_rn(x), __float2bfloat16_rn(y)}; }
static inline float2 __bfloat1622float2(__nv_bfloat162 v) { return float2{v.x, v.y}; }
