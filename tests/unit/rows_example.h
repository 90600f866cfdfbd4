// SPDX-License-Identifier: Apache-2.0
// Rows for tests: the worked example of kdserved-record.5, and rows of any shape made from a seed.
#pragma once

#include "common/record.h"

// The example of kdserved-record.5; free with record_rows_free.
struct record_rows *rows_example(void);

struct record_rows *rows_second_example(void);     // the second one: gather, draws and u8

// A question that asks for everything of 9 tokens; V at least 500. Its lists are static.
void rows_everything(struct query *q);

// Rows for a query over n_tokens tokens (below vocab_size), the same for the same seed. Status, maxima and order keep the rules;
// values are multiples of 2^-6 with many ties. Every fifth row is ROW_NOT_FINITE when `broken` is true.
struct record_rows *rows_random(uint64_t seed, const struct query *asked, uint32_t n_tokens, uint32_t vocab_size, bool broken);

// Equal in every number: bit for bit; f16 values within half an f16 step of the difference to the maximum, u8 ones within half of 255
// steps; the maximum exactly.
void assert_rows_equal(const struct record_rows *a, const struct record_rows *b);
struct record *rows_encode(const struct record_rows *rows);       // what cannot be encoded fails the test
