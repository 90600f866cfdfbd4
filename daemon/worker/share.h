// SPDX-License-Identifier: Apache-2.0
// A run in several processes: micro-batch i of a step is trained by process i modulo their number, gradients and sums are added up, and
// every process makes the same optimizer step. Process 0 reads the corpus, has the run's folder, and tells the others where the run is.
// In a run of one process all of it does nothing.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/worker/student.h"

struct trainer;

// Whether this process trains micro-batch i of a step; evaluates held-out sequence i.
bool share_is_mine(const struct trainer *t, uint64_t i);
// team_agree; that another process was asked to stop counts for this one.
int share_agree(struct trainer *t, int r, struct error *err);
// The list of sequences, of which process 0 has one, and what else it found out about them.
int share_corpus(struct trainer *t, struct error *err);
// Once all have prepared: ERROR_CONFLICT where they would not train the same; then everyone is where process 0 is.
int share_start(struct trainer *t, struct error *err);
// After the micro-batches of a step: sums and gradients of all of them.
int share_step(struct trainer *t, struct student_sums *sums, struct error *err);
// From the means over this process's share (n_positions 0: it has none) to those over all.
int share_evaluation(struct trainer *t, struct student_evaluation *e, struct error *err);
// Before a checkpoint: every process has the student that it holds.
int share_align(struct trainer *t, struct error *err);
