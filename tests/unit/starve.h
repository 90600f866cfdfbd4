// SPDX-License-Identifier: Apache-2.0
// An allocation that fails, in a program linked with -Wl,--wrap=malloc; one of its files includes this.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static uint64_t n_left;                // allocations that succeed and the one that does not; 0 = all succeed
static bool starved;                   // it came

void *__wrap_malloc(size_t n);
void *__real_malloc(size_t n);

void *__wrap_malloc(size_t n)
{
	starved |= n_left == 1;
	return n_left && --n_left == 0 ? NULL : __real_malloc(n);
}
