// SPDX-License-Identifier: Apache-2.0
// CRC-32C (Castagnoli), the checksum of frames and shards. Uses the processor's instruction where there is one.
#pragma once

#include <stddef.h>
#include <stdint.h>

// Continue with the previous result; start with 0. crc32c(0, "123456789", 9) == 0xe3069283.
uint32_t crc32c(uint32_t crc, const void *data, size_t n);
// What continuing with `first` would have given where `second` is crc32c(0, data, n): without the data, in less than a microsecond.
uint32_t crc32c_join(uint32_t first, uint32_t second, uint64_t n);
