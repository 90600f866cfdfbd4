// SPDX-License-Identifier: Apache-2.0
// The feature losses of a run at work: rows of the student are taken out of its forward pass as they stand, compared with the teacher's on
// the host, and their gradients go in where backward passes. Projections are parameters beside the student's.
//
// What is held on the host: of each layer looked at, two doubles for each number of a micro-batch's rows.
#pragma once

#include <stdint.h>

#include "daemon/loss/objective.h"
#include "daemon/loss/objective_feature.h"

struct activations;
struct architecture;
struct backend_need;
struct error;
struct features;
struct parameters_beside;
struct record_rows;
struct weights;

struct feature_widths { uint32_t hidden, q, kv; };     // C, NH D, NKV D

struct features_options {
	struct objective *objective;           // resolved; outlives it
	const struct architecture *student;    // of the call
	struct feature_widths teacher;         // 0: not asked of it
	uint32_t sequence_length, micro_batch;
};

// Checks that each line fits both models, or refuses it by its name; makes the list of projections.
// *ret NULL where no line looks at features.
int features_new(const struct features_options *options, struct features **ret, struct error *err);
struct features *features_free(struct features *f);    // returns NULL; NULL is fine. After features_close.
const struct parameters_beside *features_beside(const struct features *f);     // NULL f: none
void features_need(const struct features *f, struct backend_need *need);       // what features_open will make; NULL is fine

// On the device of a student whose parameters were made with the list. features_close before its backend goes; harmless without open.
int features_open(struct features *f, struct weights *w, struct activations *a, struct error *err);
void features_close(struct features *f);

// One micro-batch: watch before forward; learn between forward and backward; unwatch after it. NULL is fine for the first and the last.
void features_watch(struct features *f, uint32_t n_positions);
struct features_batch {
	uint32_t n_sequences, n_rows;
	const struct record_rows *const *sequences;    // (n_sequences) what the teacher said
	const uint32_t *starts;                // (n_sequences + 1) packed row of each one's first token
	const uint32_t *rows;                  // (n_rows) packed rows that count, ascending
};
// Values to *sums, as objective.h has it. ERROR_NOT_FINITE when the student has left the numbers.
int features_learn(struct features *f, const struct features_batch *b, struct objective_sums *sums, struct error *err);
void features_unwatch(struct features *f);
void features_forget(struct record_rows *rows);        // frees their features: evaluation looks at none
