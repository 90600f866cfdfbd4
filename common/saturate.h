// SPDX-License-Identifier: Apache-2.0
// Sizes that hostile or absurd questions overflow: UINT64_MAX then, which fits no limit.
#pragma once

#include <stdint.h>

static inline uint64_t size_plus(uint64_t a, uint64_t b)
{
	uint64_t n;
	return __builtin_add_overflow(a, b, &n) ? UINT64_MAX : n;
}

static inline uint64_t size_times(uint64_t a, uint64_t b)
{
	uint64_t n;
	return __builtin_mul_overflow(a, b, &n) ? UINT64_MAX : n;
}
