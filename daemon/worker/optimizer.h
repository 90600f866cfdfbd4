// SPDX-License-Identifier: Apache-2.0
// From summed gradients to new parameters: the mean over positions, global-norm clipping, AdamW or Lion, warm-up and cosine decay; a
// running average of the parameters, and parameters that are kept on a coarse grid while they are trained.
//
// AdamW: Loshchilov & Hutter, arXiv 1711.05101, as PyTorch has it. Lion: Chen et al., arXiv 2302.06675; half of AdamW's memory.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/train/group.h"

struct error;
struct optimizer;
struct real;
struct weights;

enum optimizer_kind { OPTIMIZER_ADAMW, OPTIMIZER_LION };

struct optimizer_options {
	enum optimizer_kind kind;
	double learning_rate, min_ratio;       // cosine decay from learning_rate to min_ratio * learning_rate
	uint64_t warmup, steps;                // linear rise over `warmup` steps, decay until `steps`
	double beta1, beta2, epsilon, weight_decay;    // Lion has no epsilon
	double clip;                           // largest norm of the mean gradient; 0 = none
	const struct group *groups;            // (n_groups) outlive the optimizer
	size_t n_groups;
	double average;                        // a = average a + (1 - average) parameters, each step; 0 = none is kept
	uint32_t bits;                         // quantisation-aware: matrices of layers lie on grids of 2^bits - 1 values; 0 = not
};

// Learning rate of a step, counted from 1. After `steps` it stays at the floor.
double optimizer_rate(const struct optimizer_options *o, uint64_t step);

// Starts the average and the grid at the weights' present values. ERROR_INVALID when a group fits no parameter.
int optimizer_new(const struct optimizer_options *options, struct weights *w, struct optimizer **ret, struct error *err);
struct optimizer *optimizer_free(struct optimizer *o);         // returns NULL; NULL is fine. Before the weights.

// One step: gradients hold sums over n_positions; they are zero afterwards and the matrices are refreshed. Unless a group says otherwise
// matrices decay, norms and biases do not. ret_norm: of the mean gradient, before clipping. ERROR_NOT_FINITE when it is not a number:
// nothing was changed.
int optimizer_step(struct optimizer *o, uint64_t step, uint64_t n_positions, double *ret_norm, struct error *err);

// The average takes the parameters' place, for evaluation and export; called again, it gives the place back. Only between steps: the
// gradient's array keeps the other meanwhile. Without an average nothing happens.
void optimizer_swap_average(struct optimizer *o);

// What a checkpoint must hold beside the parameters, in parameter layout; returns how many.
#define OPTIMIZER_MAX_ARRAYS 4
uint32_t optimizer_n_arrays(const struct optimizer_options *options);
struct optimizer_array { const char *name; struct real *array; };
uint32_t optimizer_arrays(const struct optimizer *o, struct optimizer_array ret[OPTIMIZER_MAX_ARRAYS]);
