// SPDX-License-Identifier: Apache-2.0
// Sums of bytes that saturate: what does not fit 64 bits fits no memory.
#pragma once

#include <stdint.h>

static inline uint64_t sum(uint64_t a, uint64_t b)
{
	return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

static inline uint64_t times(uint64_t a, uint64_t b)
{
	uint64_t product;
	return __builtin_mul_overflow(a, b, &product) ? UINT64_MAX : product;
}
