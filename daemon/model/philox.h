// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): random words as a function of a key and a counter, so
// that no draw depends on which were made before it.
#pragma once

#include <stdint.h>

void philox(const uint32_t key[2], const uint32_t counter[4], uint32_t ret_words[4]);
// 53 of the 64 bits, the most a double in [0, 1) has.
double philox_uniform(uint32_t low, uint32_t high);
