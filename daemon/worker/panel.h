// SPDX-License-Identifier: Apache-2.0
// The teachers of a run: its own (t->answers), and those that losses name beside it (t->others), in the order of the objective. Each has a
// source with a thread of its own, so all are asked at once, and a micro-batch waits for the slowest.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/worker/answers.h"

struct trainer;

// After the run's own teacher is there: the others, each of the same vocabulary. t->state.teacher then stands for all of them.
int panel_open(struct trainer *t, struct error *err);
void panel_close(struct trainer *t);
// ERROR_CONFLICT where another teacher's tokenizer is not that of the run.
int panel_check_tokenizers(const struct trainer *t, struct error *err);

struct answers *panel_answers(const struct trainer *t, uint32_t teacher);
// The oldest micro-batch, which was asked for that step: ret_rows (n_teachers, n), each the caller's to free; NULL of who was not asked.
int panel_next(struct trainer *t, uint64_t step, struct record_rows **ret_rows, uint32_t n, struct error *err);
// Which sequences every teacher's shards answer as that step asks, and how many not all of them do.
int panel_count(struct trainer *t, uint64_t step, const struct sequence *sequences, uint32_t n, bool *ret_has, uint32_t *ret_n_missing,
		struct error *err);
bool panel_has_shards(const struct trainer *t);
void panel_stats(const struct trainer *t, struct answers_stats *ret);  // of all together
