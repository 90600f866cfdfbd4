// SPDX-License-Identifier: Apache-2.0
// Private to activations.c and forward.c: the feed-forward half of a mixture of experts, one expert after the other, each for the rows that
// chose it. Which rows these are is decided here, on the host: a row's experts follow from its own scores, what they give is added in the
// order of their numbers, and products do not depend on company, so a row has the same bits in any batch.
#pragma once

#include "daemon/model/weights.h"

struct choice_of_experts;

// For T <= max_positions rows; NULL without memory.
struct choice_of_experts *experts_new(const struct architecture *a, uint32_t max_positions);
void experts_free(struct choice_of_experts *c);        // NULL is fine

// Work arrays of the device, for max_positions rows.
struct experts_work {
	struct real *scores;             // (T, n_experts)
	struct act *h;                   // (T, C) rows of one expert
	struct act *gate_up, *ffn;       // (T, 2F), (T, F) of one expert
	struct real *y;                  // (T, C)
};

// x (T, C) += the mixture of h (T, C).
void experts_forward(const struct weights *w, const struct layer_weights *l, struct choice_of_experts *c, const struct experts_work *work,
		     struct real *x, const struct act *h, uint32_t T);

// The n_used likeliest of n scores, ties to the lower number, and the share of each: its probability, or that over the sum of the chosen
// ones. NaN among the scores makes every share NaN.
void experts_choose(const double *scores, uint32_t n, uint32_t n_used, bool normalise, uint32_t *ret_experts, double *ret_shares);
