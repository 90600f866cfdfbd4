// SPDX-License-Identifier: Apache-2.0
// The ids that matter at one position, each once, with what the teacher said of them: its top-k, the ids asked for (the student's own), the
// drawn ones, the label. One scratch for any number of positions.
#pragma once

#include <stdint.h>

#include "daemon/loss/pair.h"

struct bridge;
struct error;
struct objective_voice;
struct record_rows;

struct support {
	uint32_t vocab_size, room;             // room: most ids of a position
	uint32_t n, n_top, n_own, n_drawn, label;
	uint32_t *ids, *own, *drawn;           // (room) own and drawn are slots: places in ids
	double *teacher, *weights;             // (room) NAN where the teacher was not asked
	// By rank: the teacher's likeliest logits whatever their ids (n_ranks), and the student's own likeliest, once they are known.
	uint32_t n_ranks, n_student_ranks, *student_ranks;     // (room) slots
	double *ranks;                 // (room)
	bool *matched, *student_matched;       // (room) whether the other side has the id
	const struct bridge *bridge;   // to a vocabulary of the student's own: the caller's; NULL: they share one
	uint32_t *slots, *marks, mark;         // (vocab_size) of an id, where its mark is the present one
};

int support_init(struct support *s, uint32_t vocab_size, uint32_t room);       // -ENOMEM
void support_done(struct support *s);                                          // harmless on zeroed memory
// Of row `row`, whose next token is `label`. ERROR_INTERNAL when there are more ids than room.
int support_make(struct support *s, const struct record_rows *rows, uint32_t row, uint32_t label, struct error *err);
// The mean of several teachers' probabilities at one temperature: `members` are their supports at this position, `lse` their log-sum-exps
// there. It knows the ids that all of them know: any other is in the bucket, so that what it says is exact. Its logits are T ln p.
int support_make_mean(struct support *s, const struct support *const *members, const double *lse, const struct objective_voice *voice,
		      double temperature, struct error *err);
// Where the teacher said nothing of the position: the label alone.
int support_make_label(struct support *s, uint32_t label, struct error *err);
// The student's n likeliest ids; those that have no slot yet get one. ids and logits: of all slots, with room for n more.
int support_add_ranks(struct support *s, const uint32_t *likeliest, const double *their_logits, uint32_t n, uint32_t *ids, double *logits,
		      struct error *err);
// The teacher's side of the position; the student's is the caller's to add.
// rows NULL: of a mean.
void support_position(const struct support *s, const struct record_rows *rows, uint32_t row, struct loss_position *ret);
