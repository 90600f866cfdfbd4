// SPDX-License-Identifier: Apache-2.0
// Private to the record codec: whether rows may be encoded.
#pragma once

#include <stdint.h>

struct error;
struct record_rows;

int check_shape(const struct record_rows *rows, struct error *err);        // question and arrays
int check_row(const struct record_rows *rows, uint32_t row, struct error *err);     // an OK row, all but the order of its top-k
