// SPDX-License-Identifier: Apache-2.0
// The student as its own files see it: student.c trains and evaluates, student_batch.c packs a micro-batch and lists its positions.
#pragma once

#include "daemon/model/forward.h"
#include "daemon/worker/bridge.h"
#include "daemon/worker/hearing.h"
#include "daemon/worker/student.h"
#include "kernels/backend.h"

struct student {
	struct student_options options;
	struct backend *backend;
	struct weights *weights;
	struct activations *activations;
	struct head *head;
	struct act *dfinal;            // (max_rows, C)
	char device[160];
	struct backend_count activations_count;
	// One packed micro-batch; arrays are for max_rows = micro_batch * L.
	struct layout layout;
	uint32_t *tokens, *places, *starts;
	uint32_t *rows;                // (n_rows) packed row of each listed position
	struct position *positions;    // (n_rows)
	struct sweep_row *swept;       // (n_rows)
	uint32_t n_rows;
	uint32_t n_top;                // likeliest ids read of a row, at most
	uint32_t *gather, *top_ids;    // (max_rows, wide), (max_rows, n_top)
	double *gathered, *lse, *top_logits;   // (max_rows, wide), (max_rows, OBJECTIVE_MAX_TERMS + 1), (max_rows, n_top)
	double *label_logs;            // (n_rows) ln q(label), T = 1, where rows of spans are merged
	double *corrections;           // (max_rows, wide) and, of each row, its softmax terms:
	float *softmax_temperatures;   // (max_rows, OBJECTIVE_MAX_SOFTMAX)
	double *softmax_lse, *softmax_scales;
	struct hearings hearings;      // of the micro-batch in hand
	struct bridged bridged;        // the sequence in hand as the student reads it
	struct pair pair;              // for evaluation
	struct student_sums *sums;     // of the call in progress
	const struct passage *passages;
	const struct reweight *reweight;       // NULL: positions count alike
	double *position_losses;               // (n_rows) with it: of each; then what its gradient is multiplied by
	double *sequence_losses;               // (n_sequences)
	double *rewards;               // (max_rows) of each label that was drawn, at its place in the micro-batch
};

// What losses see of listed position i, from its row as it was read at the temperatures from `first` on.
static inline int student_position_make(struct student *s, uint32_t i, const struct sweep_row *swept, uint32_t first, uint32_t *ret_n,
					struct error *err)
{
	return hearings_make(&s->hearings, &s->positions[i], swept, first, s->gather + i * s->hearings.wide, ret_n, err);
}

int student_not_finite(struct error *err);
int student_weigh(struct student *s, const struct act *final, uint32_t n, struct error *err);  // of n sequences: position_losses

// Packs the sequences and lists every position that can be learned from, with what to read of the student there.
int student_batch_pack(struct student *s, const struct record_rows *const *rows, uint32_t n, bool evaluation, uint64_t *n_masked,
		       struct error *err);
void student_tokens_pack(struct student *s, const uint32_t *tokens, uint32_t n, uint32_t *T);
void student_layout_make(struct student *s, uint32_t n, uint32_t T);
