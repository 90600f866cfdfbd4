// SPDX-License-Identifier: Apache-2.0
// Private to the record codec: whether rows may be encoded.
#pragma once

#include <stdint.h>

struct error;
struct record_rows;

int check_shape(const struct record_rows *rows, struct error *err);        // question and arrays
int check_numbers(const struct record_rows *rows, struct error *err);      // everything but top-k, which is checked while it is sorted
