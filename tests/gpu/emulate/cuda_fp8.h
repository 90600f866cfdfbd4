// SPDX-License-Identifier: Apache-2.0
// A stand-in for CUDA's header of this name; see cuda_runtime.h beside it. The nearest number is looked for among all of them (blas.cc).
#pragma once

#include "cuda_runtime.h"

typedef unsigned char __nv_fp8_storage_t;
enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };

// Of the bits of an E4M3 number: sign, four of exponent (bias 7), three of mantissa; all ones is NaN.
static inline float emulate_e4m3(uint8_t bits)
{
	int exponent = bits >> 3 & 15, mantissa = bits & 7;
	float size = (bits & 127) == 127 ? NAN : exponent ? ldexpf((float)(8 + mantissa), exponent - 10) : ldexpf((float)mantissa, -9);
	return bits & 128 ? -size : size;
}

__nv_fp8_storage_t __nv_cvt_float_to_fp8(float x, __nv_saturation_t saturation, __nv_fp8_interpretation_t interpretation);
