// SPDX-License-Identifier: Apache-2.0
// The model being trained, on a device: one micro-batch forward, the loss, backward; and evaluation. Gradients add up over
// micro-batches until the optimizer takes them.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/worker/loss.h"

struct architecture;
struct error;
struct record_rows;
struct student;
struct tensor_source;
struct weights;

struct student_options {
	const char *device;            // as backend_open
	uint32_t n_threads;
	uint32_t sequence_length;      // L
	uint32_t micro_batch;          // most sequences of one call
	uint32_t top_k;                // of the teacher's rows
	uint64_t seed;                 // of a random start
	struct loss_options loss;      // its temperature is used as a float, as the teacher's query has it
};

// With source NULL the start is random, else filled from it. Owns the backend and the weights.
int student_open(const struct student_options *options, const struct architecture *a, const struct tensor_source *source,
		 struct student **ret, struct error *err);
struct student *student_close(struct student *s);      // returns NULL; NULL is fine
struct weights *student_weights(struct student *s);
const char *student_device(const struct student *s);   // for people: "cpu, 2 threads, AVX2"

// Sums over positions; zero it before the first micro-batch of a step.
struct student_sums {
	double kd, ce, total;
	uint64_t n_positions;
	uint64_t n_masked;             // rows the teacher could not answer for
};

// Sequences of one micro-batch with what the teacher said of them (rows first..last of each; a row's label is the token after it).
// Adds to the gradients and to *sums. ERROR_NOT_FINITE when the student itself has left the numbers.
int student_train(struct student *s, const struct record_rows *const *sequences, uint32_t n, struct student_sums *sums, struct error *err);

// Means over positions, at temperature 1 whatever the training temperature is.
struct student_evaluation {
	double kl;                     // to the teacher, ghost-bucket form
	double ce;                     // hard cross-entropy; exp of it is the perplexity
	double agreement;              // share of positions where both name the same most likely id
	double teacher_ce;             // NaN unless the rows hold the teacher's own logits
	uint64_t n_positions;
};
// Any number of sequences, taken micro_batch at a time. No gradients.
int student_evaluate(struct student *s, const struct record_rows *const *sequences, uint32_t n, struct student_evaluation *ret,
		     struct error *err);
