// SPDX-License-Identifier: Apache-2.0
// One position as a token loss sees it: the rows of teacher and student as distributions over the same few symbols, at one temperature.
//
// Natural logarithms. p = teacher, q = student, z = raw logits, lse_T = log sum exp(z / T) over the whole vocabulary V. S = the ids that a
// loss looks at; what lies outside S is one symbol more, the bucket, or is treated as the form says. The student's row is always complete.
#pragma once

#include <stdbool.h>
#include <stdint.h>

// Below this mass a tail is noise of the subtraction 1 - sum(head): the student's is never less, the teacher's counts as none.
#define PAIR_TAIL_MIN 1e-7
// Least ln p of the teacher: 1e-13 of the mass, so harmless where a loss is weighted by p, and finite where it is weighted by q.
#define PAIR_LOG_FLOOR (-30.0)
#define PAIR_NO_LABEL UINT32_MAX

// How a sparse teacher row becomes a distribution. Only draws (tau = 1 or weighted) are without bias, and only for losses linear in p.
enum loss_form {
	LOSS_FORM_GHOST,               // the tail is one symbol on both sides
	LOSS_FORM_UNIFORM,             // each id outside S has the same share of the teacher's tail; cross-entropy kinds alone
	LOSS_FORM_TEACHER_RENORMALISED,// p / sum_S p, nothing outside; the student whole
	LOSS_FORM_RENORMALISED,        // both divided by their sums over S
	LOSS_FORM_TRUNCATED,           // sums run over S alone: no divergence, may be negative
	LOSS_FORM_DRAWS,               // S = ids drawn at random, p = their importance weights (RS-KD)
	LOSS_FORM_HEAD_DRAWS,          // the top-k exactly, and weighted draws from the tail
	LOSS_FORM_LABEL_TAIL,          // the teacher's tail goes to the hard label
	LOSS_N_FORMS,
};
enum loss_support { LOSS_SUPPORT_TEACHER, LOSS_SUPPORT_STUDENT, LOSS_SUPPORT_BOTH };

// Everything known of one position. Ids that matter stand once each, in slots; arrays are the caller's.
struct loss_position {
	uint32_t vocab_size;           // V
	uint32_t n;                    // slots
	const uint32_t *ids;           // (n) distinct
	const double *student;         // (n) raw logits
	const double *teacher;         // (n) raw logits; NAN where the teacher was not asked for this id
	uint32_t n_top;                // the first n_top slots are the teacher's likeliest ids, descending
	uint32_t n_own;                // the student's own likeliest ids, descending: their slots
	const uint32_t *own;
	uint32_t n_drawn;              // drawn ids: slots, and weights w: an unbiased estimate of p (with a head, of p outside the top-k)
	const uint32_t *drawn;
	const double *weights;
	uint32_t label;                // slot of the token that follows
	uint32_t n_temperatures;
	const double *temperatures;
	const double *teacher_lse;     // (n_temperatures)
	const double *student_lse;     // (n_temperatures)
	double student_lse_1;          // at temperature 1
	double tail;                   // ln of the teacher's mass outside the n_top ids, T = 1; NAN: not asked
	double entropy;                // of the teacher's row, T = 1; NAN: not asked
	double student_mean;           // mean of all V logits; NAN: not read
	double teacher_ce;             // the teacher's own mean -ln p(token that follows) over this sequence; 0: not asked
	// By rank. Where the vocabularies differ, n_top and `teacher` name only what both have.
	uint32_t n_teacher_ranks;      // the teacher's likeliest logits, descending, and whether the student has their ids
	const double *teacher_ranks;
	const bool *teacher_matched;
	uint32_t n_student_ranks;      // the student's likeliest ids, descending: their slots, and whether the teacher has them
	const uint32_t *student_ranks;
	const bool *student_matched;
	bool foreign;                  // the teacher may think of ids that the student has not
	double matched_share;          // of the teacher's ids, that the student has
	// Ln of the probabilities of what follows the next token within a span whose bytes are one token on the other side; 0:
	// nothing does;
	// NAN: not known. label_pull: what a merged loss of an earlier position of the span adds to d / d ln q(label) here.
	double log_teacher_factor, log_student_factor, label_pull;
	uint32_t at;                   // where its slots begin among the gradient's corrections
	// Where the student drew the label itself: ln p - ln q, T = 1, of it and of the labels after it; none: it did not.
	uint32_t n_rewards;
	const double *rewards;
	double drawn_logprob;          // ln of the chance with which the label was drawn
};

// What one loss looks at.
struct pair_view {
	enum loss_support support;
	enum loss_form form;
	uint32_t top_k, own_k;         // of the teacher's and of the student's ids; more than there are means all
	bool label;                    // the label belongs to S
	uint32_t temperature;          // place in the position's list
	bool by_id;                    // of ranks: ids that both vocabularies have stand first, each as itself
	bool merge;                    // of ranks: times the factors of the span
};

struct pair {
	uint32_t n;                    // symbols: the ids of S, then the bucket where there is one; 0: there is nothing to learn here
	bool bucket;
	bool conditional;              // q is renormalised over S: what lies outside does not matter
	double uniform;                // LOSS_FORM_UNIFORM: share of each id outside S; 0: other form
	double n_outside, outside_log_q;       // then: how many, and the sum of their ln q
	double temperature, teacher_lse, student_lse;
	uint32_t n_head;               // the first n_head symbols are the teacher's likeliest ids
	uint32_t label;                // symbol of the label; PAIR_NO_LABEL: it is not in S
	double entropy;                // of the teacher's row where p is drawn and it is known, else NAN
	double log_p_factor, log_q_factor;     // 0, or ln of those of the span, by which a loss by rank multiplies p and q
	double matched_share;
	// arrays of pair_room symbols, the pair's own
	uint32_t *slots;               // (n less the bucket)
	uint32_t *order;               // scratch of losses that sort or mark
	double *p, *log_p, *q, *log_q; // p sums to 1 but in a truncated pair and with draws; log_p >= PAIR_LOG_FLOOR even where p is 0
	double *zt, *zs;               // (n less the bucket) raw logits; zt may be NAN
	void *memory;
};

int pair_init(struct pair *pair, uint32_t room);       // room: most symbols, the bucket included. -ENOMEM
void pair_done(struct pair *pair);                     // harmless on zeroed memory
void pair_make(struct pair *pair, const struct loss_position *x, const struct pair_view *view);
// Symbol i pairs the teacher's i-th likeliest id with the student's i-th likeliest one, whatever they are: p descends, q descends, slots
// are the student's, and the bucket is the rest of both rows. By id, the first n_head symbols are the ids of the teacher's top-k that both
// have; the ranks are then of those that one side alone has. n 0: nothing to learn, also where the span's factors are not known.
void pair_make_ranks(struct pair *pair, const struct loss_position *x, const struct pair_view *view);
