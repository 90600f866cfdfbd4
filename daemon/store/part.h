// SPDX-License-Identifier: Apache-2.0
// A record often holds the answer to a smaller question about the same sequence: fewer ids, rows, temperatures or signals. Says when, and
// cuts that answer out, byte for byte what the teacher would have said.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "common/record.h"

struct error;

// A few bits of a question, kept in the index: part_shape_covers false = part_covers is false too. 0 covers nothing.
uint32_t part_shape(const struct query *canonical);
bool part_shape_covers(uint32_t stored, uint32_t asked);

// Whether the answer to `stored` may hold the answer to `asked` (both canonical, of one sequence and teacher). Where ids decide (gathered
// ones among the top-k, say) only part_extract knows.
bool part_covers(const struct query *stored, const struct query *asked);
// -ENOENT when the record does not hold it, or not exactly: a row that is not finite, f16 values too close to tell which ids are the
// largest. Other errors as record_decode's.
int part_extract(const struct record *stored, const struct query *asked, struct record **ret_record, struct error *err);
// For who learns from it rather than passes it on: rounded values that are equal count as in order of ids, are rounded once more, and rows
// that are not finite stay so. Never to be kept or served: the teacher's bytes may be others.
int part_extract_rounded(const struct record *stored, const struct query *asked, struct record **ret_record, struct error *err);
