// SPDX-License-Identifier: Apache-2.0
// What a careful attacker would do with the bytes of a record: length, key and checksum hold, so that what lies behind them is looked at.
#pragma once

#include <stddef.h>
#include <stdint.h>

void record_mend(uint8_t *bytes, size_t n);      // nothing happens where its header cannot be read far enough
