// SPDX-License-Identifier: Apache-2.0
// A teacher made of arithmetic: any canonical question about any sequence gets its record, and every number is a pure function of
// (sequence, row, what was asked), as a teacher's is. For tests of answers that are cut out of larger ones.
#pragma once

#include "common/record.h"

#define ORACLE_VOCABULARY 300u
#define ORACLE_TOKENS 12u

extern const struct content_id oracle_teacher;

void oracle_sequence(uint64_t n, struct sequence *ret);                                  // sequence_done it
void oracle_check(struct query *q, const struct sequence *s);                            // makes it canonical
struct record *oracle_answer(const struct sequence *s, const struct query *canonical);
// A random question, canonical; query_done it. With `wide` it asks for much.
void oracle_query(uint64_t *state, const struct sequence *s, bool wide, struct query *ret);
uint64_t oracle_random(uint64_t *state);
