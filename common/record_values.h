// SPDX-License-Identifier: Apache-2.0
// Private to the record codec: logits of rows in the format a question asks for (kdserved-record.5, Values).
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/query.h"

uint64_t values_bytes(enum query_values format, uint64_t n_rows, uint64_t n_values);    // saturates

struct values_writer {
	enum query_values format;
	uint8_t *ranges, *to;          // of the row and value to come
};

struct values_writer values_writer_init(enum query_values format, uint8_t *to, uint32_t n_rows);
// A row of n finite values, none above max. False when a value lies further below max than the format holds.
bool values_writer_append(struct values_writer *w, float max, const float *values, size_t n);
void values_writer_skip(struct values_writer *w, size_t n);      // a row without numbers: zeros

struct values_reader {
	enum query_values format;
	const uint8_t *ranges, *from;
};

struct values_reader values_reader_init(enum query_values format, const uint8_t *from, uint32_t n_rows);
// False when a value is not finite, lies above max, or is not what a writer makes.
bool values_reader_next(struct values_reader *r, float max, float *to, size_t n);
// f16 and u8: whether values_reader_next would give good values with the maximum among them, and quickly so; then steps over them. False
// may also mean that it cannot tell: nothing was stepped over.
bool values_reader_check(struct values_reader *r, float max, size_t n);
bool values_reader_skip(struct values_reader *r, size_t n);      // false unless all are zeros
