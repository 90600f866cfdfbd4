// SPDX-License-Identifier: Apache-2.0
// What every voice of an objective (a teacher, or the mean of several) says of one position, as its losses see it. The ids of one voice
// after another are what the student's row is read at and corrected at; repeats among them are harmless.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/loss/objective.h"

struct bridge;
struct error;
struct hearing;
struct record_rows;
struct sweep_row;

// One position of the packed micro-batch: its row with each teacher, and its label.
struct position {
	const struct record_rows *const *teachers;     // of its sequence: those of the next teacher stand n_sequences further; NULL: not
						       // asked. Itself NULL: no teacher says anything here, the label alone can be learned
	uint32_t row;
	uint32_t label;
	const double *rewards;         // of the label and those after it; NULL: the student did not draw it
	uint32_t n_rewards;
	double drawn_logprob;
	uint32_t bytes;                // of text that the label stands for
	uint32_t n_span;               // positions after this one whose labels are in the span that begins here
	double log_teacher_factor, log_student_factor;         // of the span (struct loss_position)
	double pull;                   // of merged losses
};

struct hearings {
	const struct objective *objective;
	const struct bridge *bridge;   // the caller's, to be set after hearings_init; NULL: student and teachers share a vocabulary
	uint32_t n_ranks;              // of the student's likeliest ids that losses look at
	uint32_t vocab_size, n_voices, n_teachers;
	struct hearing *list;          // (n_voices) the first n_teachers are the teachers'
	struct loss_position *heard;   // (n_voices) of the position in hand
	double *teacher_ce;            // (n_teachers, n_sequences)
	size_t wide;                   // most ids of a position
	// of the micro-batch in hand
	const struct record_rows *const *rows;
	uint32_t n_sequences;
	bool evaluating;               // with the run's own teacher alone, at temperature 1
	float temperatures[OBJECTIVE_MAX_TERMS + 1];   // 1, then those of the objective's step
	uint32_t n_temperatures;
};

// top_k: most ids that evaluation is told of the run's own teacher, if more than in training. -ENOMEM.
int hearings_init(struct hearings *h, const struct objective *objective, uint32_t vocab_size, uint32_t max_sequences, uint32_t top_k);
void hearings_done(struct hearings *h);        // harmless on zeroed memory
// A micro-batch: rows (n_teachers, n), in evaluation (n). ERROR_INTERNAL, ERROR_CONFLICT when they are not what the objective looks at.
int hearings_begin(struct hearings *h, const struct record_rows *const *rows, uint32_t n, uint32_t sequence_length, bool evaluation,
		   struct error *err);
bool hearings_complete(const struct hearings *h, const struct position *p);    // every teacher that was asked answered for it
// The ids of the position: ret_ids (wide). After those of a teacher there is room for the student's n_ranks likeliest ones, which are known
// once its row has been read.
int hearings_ask(struct hearings *h, const struct position *p, uint32_t *ret_ids, uint32_t *ret_n, struct error *err);
// Fills h->heard from the student's row as it was read at those ids; its arrays are the caller's `swept`. first: the first of the
// temperatures that it is seen at. ids: as hearings_ask left them; the student's likeliest ones join them.
int hearings_make(struct hearings *h, const struct position *p, const struct sweep_row *swept, uint32_t first, uint32_t *ids,
		  uint32_t *ret_n, struct error *err);
// Of a row, at one of the temperatures asked; NAN at another.
double hearings_lse(const struct record_rows *t, uint32_t row, float temperature);
