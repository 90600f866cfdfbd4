// SPDX-License-Identifier: Apache-2.0
// From summed gradients to new parameters: the mean over positions, global-norm clipping, AdamW, warm-up and cosine decay.
#pragma once

#include <stdint.h>

struct error;
struct weights;

struct optimizer_options {
	double learning_rate, min_ratio;       // cosine decay from learning_rate to min_ratio * learning_rate
	uint64_t warmup, steps;                // linear rise over `warmup` steps, decay until `steps`
	double beta1, beta2, epsilon, weight_decay;
	double clip;                           // largest norm of the mean gradient; 0 = none
};

// Learning rate of a step, counted from 1. After `steps` it stays at the floor.
double optimizer_rate(const struct optimizer_options *o, uint64_t step);

// One step: gradients hold sums over n_positions; they are zero afterwards and the matrices are refreshed. Matrices decay, norms and
// biases do not. ret_norm: of the mean gradient, before clipping. ERROR_NOT_FINITE when it is not a number: nothing was changed.
int optimizer_step(const struct optimizer_options *o, struct weights *w, uint64_t step, uint64_t n_positions, double *ret_norm,
		   struct error *err);
