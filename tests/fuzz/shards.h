// SPDX-License-Identifier: Apache-2.0
// A store's directory made by the bytes of an input: true records in frames that hold, frames around anything, seals, zeros, damage, index
// files and notes, each file under one of a few names. For targets that open one.
#pragma once

#include <stdint.h>

#include "common/record.h"

#define SHARDS_RECORDS 4             // true ones: 1 and 2 are contained in 0, 3 is of another sequence

struct record *shards_record(unsigned i);             // made once, never freed
void shards_question(unsigned i, struct sequence *ret_sequence, struct query *ret_query);      // that it answers; both stay its
extern const struct content_id shards_teacher;

void shards_make(const uint8_t *data, size_t size);   // in an empty scratch folder
