// SPDX-License-Identifier: Apache-2.0
// A position of a small vocabulary, and a line of a run's objective evaluated at it: for the tests of losses as a run names them.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/loss/objective.h"
#include "tests/unit/loss_example.h"

struct backend;
struct error;

#define SCENE_V EXAMPLE_V
#define SCENE_N_EXTRA 2                // ids of a teacher with a vocabulary of its own, that the student has not

// What a teacher and a student say at a position, and what was asked. Slots: the teacher's likeliest ids, then all others in order.
struct scene {
	uint32_t n_ids, n_top, top[SCENE_V], n_own, own[SCENE_V], n_drawn, drawn[SCENE_V], label;    // ids
	double zt[SCENE_V], zs[SCENE_V], extra[SCENE_N_EXTRA], weights[SCENE_V], log_p_factor, log_q_factor;
	bool foreign;                  // the teacher has a vocabulary of its own
};

struct scene scene_random(uint64_t *seed, bool foreign);       // every list of it has members
void scene_likeliest(struct scene *s, uint32_t n);             // the teacher's n likeliest ids: top

// An objective of one line, at its first step of ten. 0, or what objective_add says.
int scene_objective(const char *line, uint32_t vocab_size, struct objective **ret, struct error *err);
// In double precision; the gradient on the V logits of the student, where asked.
struct objective_sums scene_evaluate(struct objective *o, const struct scene *s, double *gradient);
// The total, as a worker has it: the device reads the row, a position is made of what it read, the device writes the gradient over it.
double scene_evaluate_on(struct backend *be, struct objective *o, const struct scene *s, double *gradient);
