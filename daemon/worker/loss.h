// SPDX-License-Identifier: Apache-2.0
// What one position costs and how the student's logits should move: pure functions on doubles, no tensors, no state.
//
// Position rule: row i is the distribution after reading tokens 0..i and its hard label is token i+1. Values are sums over positions
// with gradients of weight 1 each; the optimizer divides by the count of unmasked positions of the whole step, so that the result
// does not depend on how positions were spread over micro-batches.
//
// Natural logarithms. p = teacher, q = student, z = raw logits, lse_T = log sum exp(z / T) over the whole vocabulary.
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct softmax_grad_row;

struct loss_options {
	double kd_weight;              // of forward KL(p_T ; q_T)
	double ce_weight;              // of hard cross-entropy
	double temperature;            // T of the KL term
	bool t2_scale;                 // multiply the KL term by T^2
	uint32_t vocab_size;           // V: a support of V ids has no tail
};

// The teacher's support S = its top-k, as received: raw logits and the lse at the temperature of the KL term.
struct loss_teacher {
	uint32_t k;                    // 0: no teacher here, the KL term is 0
	const uint32_t *ids;           // (k) distinct
	const float *logits;           // (k)
	double lse;
};

struct loss_student {
	const double *logits;          // (k) raw, at the teacher's ids
	double lse_kd;                 // at the temperature of the KL term
	double lse;                    // at temperature 1
	double label_logit;
};

struct loss_value {
	double kd;                     // forward KL on the ghost-bucket form, T^2 included when asked for
	double ce;                     // -log q(label)
	double total;                  // kd_weight * kd + ce_weight * ce
};

// Storage behind a softmax_grad_row: it must outlive the row's use.
struct loss_storage {
	float temperatures[2];
	double lse[2], scales[2];
	uint32_t *ids;                 // (k + 1), the caller's
	double *corrections;           // (k + 1), the caller's
};

// KL(p_T ; q_T) where everything outside S is one symbol with the mass that is left (the "ghost bucket"): a lower bound of the dense
// KL, exact when p/q is constant over the tail. No T^2 factor. Also the measure that evaluation reports.
double loss_bucket_kl(const struct loss_teacher *teacher, const double *student_logits, double student_lse, double temperature,
		      uint32_t vocab_size);

// Value of one position and, when ret_row is not NULL, its gradient with respect to the student's logits: a multiple of a softmax row
// plus a correction per id of S and for the label.
struct loss_value loss_position(const struct loss_options *options, const struct loss_teacher *teacher, const struct loss_student *student,
				uint32_t label, struct loss_storage *storage, struct softmax_grad_row *ret_row);
