// SPDX-License-Identifier: Apache-2.0
// What every fuzz target defines: takes any bytes, returns 0, never crashes, leaks or runs long.
#pragma once

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
