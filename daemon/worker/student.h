// SPDX-License-Identifier: Apache-2.0
// The model being trained, on a device: one micro-batch forward, the loss, backward; and evaluation. Gradients add up over
// micro-batches until the optimizer takes them.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/loss/objective.h"
#include "kernels/backend.h"

struct architecture;
struct bridge;
struct error;
struct head;
struct passage;
struct features;
struct record_rows;
struct reweight;
struct rollout_options;
struct sequence;
struct student;
struct tensor_source;
struct weights;

struct student_options {
	const char *device;            // as backend_open
	uint32_t n_threads;
	enum backend_numeric numeric;
	uint32_t sequence_length;      // L: of what the student reads; what a bridge makes longer is cut off
	uint32_t micro_batch;          // one call takes sequences of micro_batch * L tokens at most, each of at least 2 and at most L
	uint32_t top_k;                // most ids of the run's own teacher in a row
	uint64_t seed;                 // of a random start
	uint32_t recompute;            // of activations_new: gradient checkpointing
	uint32_t n_arrays;             // that the caller will make beside the parameters, in their layout: its optimizer's
	const struct rollout_options *rollout; // of whom the caller will open on the student's device; NULL = none
	const struct bridge *bridge;   // to a vocabulary that is not the teacher's; NULL: they share one. The caller's
	const uint32_t *id_bytes;      // (the teacher's vocabulary) bytes of text of each id, 0 for special ones; NULL: not known
	struct objective *objective;   // begun; the caller's, which sets its step
	struct features *features;     // of its losses on features; NULL where there are none. The caller's; opened and closed here
};

// With source NULL the start is random, else filled from it. Owns the backend and the weights.
int student_open(const struct student_options *options, const struct architecture *a, const struct tensor_source *source,
		 struct student **ret, struct error *err);
struct student *student_close(struct student *s);      // returns NULL; NULL is fine
struct weights *student_weights(struct student *s);
struct head *student_head(struct student *s);          // its own; not while student_train is called
const char *student_device(const struct student *s);   // for people: "cpu, 2 threads, AVX2"
uint64_t student_activation_bytes(const struct student *s);    // of all arrays between forward and backward, as counted at open

// Of the labels that were drawn (passage.h): lr = ln p - ln q at each, the teacher's less the student's own as it is now.
struct student_drawn {
	uint64_t n_passages, n;
	double k1, k2, k3;             // sums of -lr, lr^2 / 2, e^lr - 1 - lr: k1 and k3 estimate KL(q; p), the latter with less variance
};

// Sums over positions; zero it before the first micro-batch of a step.
struct student_sums {
	struct objective_sums objective;
	uint64_t n_positions;
	uint64_t n_masked;             // rows the teacher could not answer for
	struct student_drawn drawn;
};

// What the sequences of the next calls of student_train and student_evaluate are (as many as it is given): only their labels are learned.
// NULL, as at first: text, of which every token is. They must outlive the calls.
void student_passages(struct student *s, const struct passage *passages);

// How the next calls of student_train weigh their sequences by their losses: of N positions the total is then N times the weighted sum of
// the sequences' means, while each loss's own value stays what it is. Costs one more pass of the head. NULL, as at first: every position
// counts alike. It must outlive the calls.
void student_reweight(struct student *s, const struct reweight *reweight);

// Sequences of one micro-batch with what each of the objective's teachers said of them (rows first..last of each; a row's label is the
// token after it): rows (n_teachers, n), the run's own teacher first; NULL of who was not asked in this step. A position that one of them
// could not answer is masked. Adds to the gradients and to *sums. ERROR_NOT_FINITE when the student itself has left the numbers.
int student_train(struct student *s, const struct record_rows *const *rows, uint32_t n, struct student_sums *sums, struct error *err);

// The k likeliest ids of the student itself after each token but the last of n sequences, one sequence after another:
// ret_ids (sum of n_tokens - 1, k), descending. No gradients. ERROR_NOT_FINITE as above.
int student_likeliest(struct student *s, const struct sequence *sequences, uint32_t n, uint32_t k, uint32_t *ret_ids, struct error *err);

// Means over positions, at temperature 1 whatever the training temperature is.
struct student_evaluation {
	double kl;                     // to the teacher, ghost-bucket form
	double ce;                     // hard cross-entropy of the student's tokens; exp of it is the perplexity
	double agreement;              // share of positions where both name the same most likely id
	double teacher_ce;             // NaN unless the rows hold the teacher's own logits
	double bits_per_byte, teacher_bits_per_byte;   // of the text: of any two tokenizers; NaN where id_bytes is not known
	uint64_t n_positions;          // that the teacher answered: of kl and agreement
	uint64_t n_labels, n_teacher_labels, n_bytes, n_teacher_bytes;         // of ce, teacher_ce and the bits; not in checkpoints
};
// Any number of sequences, taken as many at a time as one call may. No gradients. Without any position n_positions is 0 and the means are
// no numbers.
int student_evaluate(struct student *s, const struct record_rows *const *sequences, uint32_t n, struct student_evaluation *ret,
		     struct error *err);
