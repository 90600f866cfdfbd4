// SPDX-License-Identifier: Apache-2.0
// A quantised matrix as a test needs one.
#pragma once

#include "kernels/backend.h"

// N rows of K columns, of any bytes whose scales are finite: the upper half of `type`, the lower of Q8_0; loaded, or loaded apart. Fails
// the test that asks where that does not work.
struct weight *quantised_load(struct backend *be, bool apart, enum dtype type, uint32_t N, uint32_t K);
