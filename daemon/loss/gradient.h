// SPDX-License-Identifier: Apache-2.0
// The gradient of any token loss on the student's V logits, in one shape: multiples of softmax rows plus a correction at each id that
// matters. The row itself is never stored: the device makes it where the logits lie (backend.h, softmax_grad).
//
// With slopes w on the symbols (divergence.h), W their sum, and the bucket's w_b over q_b, the gradient at temperature T is 1/T times
//     on S:   w_j - q_j W        outside:   q_j (w_b / q_b - W)
// which is kappa q_j everywhere, kappa = w_b / q_b - W, and w_j - q_j w_b / q_b more on S. It sums to zero over the vocabulary.
#pragma once

#include <stdint.h>

struct divergence;
struct loss_position;
struct pair;
struct softmax_grad_row;

// Being added up for one position. Arrays are the caller's, zeroed, and must outlive the row made of them.
struct gradient {
	uint32_t n_terms;
	float *temperatures;           // (room for one more than the position's temperatures, and one for the uniform row)
	double *lse, *scales;          // as many
	double *corrections;           // (slots of the position; of several rows of one position, each row's from its `at`)
};

void gradient_add(struct gradient *g, const struct loss_position *x, const struct pair *pair, const struct divergence *d, double factor);
// Hard cross-entropy with `smoothing` of the label's mass spread over all V ids.
void gradient_add_label(struct gradient *g, const struct loss_position *x, double smoothing, double factor);
// The corrections' ids are the position's.
void gradient_finish(const struct gradient *g, const struct loss_position *x, struct softmax_grad_row *ret);
