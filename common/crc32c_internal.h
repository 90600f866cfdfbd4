// SPDX-License-Identifier: Apache-2.0
// The two implementations behind crc32c(), visible so that a test can hold each to the other.
#pragma once

#include <stddef.h>
#include <stdint.h>

uint32_t crc32c_portable(uint32_t crc, const void *data, size_t n);
#ifdef __x86_64__
uint32_t crc32c_sse42(uint32_t crc, const void *data, size_t n);    // only where the processor has SSE4.2
#endif
