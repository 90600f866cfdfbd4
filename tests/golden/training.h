// SPDX-License-Identifier: Apache-2.0
// What the golden training runs have in common: the objective, line by line as in a run's settings, and a step of the worker's own path.
#pragma once

#include "daemon/loss/objective.h"
#include "daemon/worker/optimizer.h"
#include "daemon/worker/student.h"
#include "tests/golden/golden.h"

// Of the lines that come next in g, not begun; the first of them to ret_first. name: of the file, for messages. The caller frees it.
struct objective *golden_objective(struct golden_file *g, const char *name, char *ret_first, size_t room);

// Trains on the n answers, which are freed, and moves the student: step counts from 0. n_positions: how many there must have been.
// Returns the mean loss of a position.
double golden_train(struct student *student, struct optimizer *optimizer, struct record_rows **answers, uint32_t n, uint64_t step,
		    uint32_t n_positions, struct student_sums *ret_sums);
