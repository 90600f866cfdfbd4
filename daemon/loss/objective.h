// SPDX-License-Identifier: Apache-2.0
// What a run minimises: a weighted sum of token losses, each a line like "forward-kl weight=1 temperature=2 top-k=64". It knows which
// signals the sum of them asks of the teacher at each step, and turns one position into a value and a gradient.
//
// Values are sums over positions with gradients of weight 1 each; the optimizer divides by the count of unmasked positions of the whole
// step, so that the result does not depend on how positions were spread over micro-batches.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/loss/gradient.h"
#include "daemon/loss/pair.h"

struct error;
struct objective;
struct query;
struct softmax_grad_row;

#define OBJECTIVE_MAX_TERMS 12
#define OBJECTIVE_MAX_SOFTMAX (OBJECTIVE_MAX_TERMS + 2)        // softmax terms of one gradient: each temperature, 1, and the uniform row
#define OBJECTIVE_MAX_TEACHERS 8
#define OBJECTIVE_TEACHER_NAME_MAX 28
#define OBJECTIVE_OWN "own"          // the run's own teacher, the first of all
#define OBJECTIVE_DEFAULT "forward-kl"

int objective_new(struct objective **ret);     // without terms; -ENOMEM
struct objective *objective_free(struct objective *o);         // returns NULL; NULL is fine
// One line; `where` ("run.conf:12") begins its errors, whose field is "loss". Unknown names and impossible mixes are errors.
int objective_add(struct objective *o, const char *text, const char *where, struct error *err);
// What holds between lines. Call it after the last one; a run has at least one term.
int objective_check(const struct objective *o, struct error *err);
// Schedules without an end last n_steps. Call it before anything below. -ENOMEM.
int objective_begin(struct objective *o, uint64_t n_steps, uint32_t vocab_size);
void objective_seed(struct objective *o, uint64_t seed);        // of the coins that leave terms out of steps; 0 unless said

uint32_t objective_n_terms(const struct objective *o);
const char *objective_name(const struct objective *o, uint32_t term);          // "forward-kl", "forward-kl-2", or what the line says
void objective_describe(const struct objective *o, uint32_t term, char *to, size_t room);     // form, support, weight for the log
const char *objective_bias(const struct objective *o, uint32_t term, uint32_t vocab_size);    // see method_bias; NULL for whole rows

// The teachers that terms name, each once; the first is the run's own whether named or not.
uint32_t objective_n_teachers(const struct objective *o);
const char *objective_teacher_name(const struct objective *o, uint32_t teacher);
const char *objective_teacher_where(const struct objective *o, uint32_t teacher);      // the line that names it first
// Whose row a term looks at: a teacher's (the first objective_n_teachers() voices), or the mean of several's probabilities at the term's
// temperature.
struct objective_voice {
	uint32_t n, members[OBJECTIVE_MAX_TEACHERS];
	double shares[OBJECTIVE_MAX_TEACHERS];         // sum to 1
	uint32_t temperature;                          // of a mean: place in the step's list
	bool active;                                   // in this step some term looks at it
};
uint32_t objective_n_voices(const struct objective *o);
void objective_voice(const struct objective *o, uint32_t voice, struct objective_voice *ret);
uint32_t objective_voice_width(const struct objective *o, uint32_t voice, uint64_t vocab_size);       // most ids of one position of it

// Adds to a query what the terms ask of one teacher at a step: top-k, temperatures, own, entropy, tail, draws (with `seed`).
void objective_query(const struct objective *o, uint32_t teacher, uint64_t step, uint64_t seed, uint32_t vocab_size, struct query *q);
bool objective_asks(const struct objective *o, uint32_t teacher, uint64_t step);       // anything of it at that step; the first always
bool objective_asks_at(const struct objective *o, uint32_t teacher, float temperature);        // at that temperature in this step
bool objective_wants_rollouts(const struct objective *o, uint32_t *ret_term);          // the first term that is about them alone
bool objective_asks_teacher(const struct objective *o);
uint32_t objective_top_k(const struct objective *o, uint32_t teacher);         // its ids wanted, 0 = none
uint32_t objective_any_own_k(const struct objective *o);       // the student's own ids that some teacher is to be asked about; 0 = none
uint32_t objective_own_k(const struct objective *o, uint32_t teacher);         // as many of that one, or 0
uint32_t objective_ranks(const struct objective *o);           // the student's likeliest ids that losses by rank look at; 0 = none
bool objective_merges(const struct objective *o);              // some loss merges rows of spans: it wants the factors of positions
bool objective_learns_labels(const struct objective *o);       // some loss looks at positions that the teacher says nothing about
// Whether every loss makes sense where the student's vocabulary is not the teacher's.
int objective_check_foreign(const struct objective *o, struct error *err);
uint32_t objective_width(const struct objective *o, uint64_t vocab_size);      // most ids of one position, of all voices
bool objective_wants_mean(const struct objective *o);          // of the student's logits

// A step: its parameters are those of `step` steps done.
void objective_step(struct objective *o, uint64_t step);
uint32_t objective_temperatures(const struct objective *o, float *ret /*(OBJECTIVE_MAX_TERMS)*/);     // of this step, distinct

struct objective_sums {
	double total;
	double values[OBJECTIVE_MAX_TERMS];            // of each term, T^2 included, weight not
	double entropies[OBJECTIVE_MAX_TERMS];         // of the teacher's rows as the term sees them: value less entropy is a KL;
	                                               // NAN elsewhere
	double followed[OBJECTIVE_MAX_TERMS];          // what adaptive schedules follow
	double counts[OBJECTIVE_MAX_TERMS];            // positions that each term is about and knows enough of
	double pull;                                   // of merged losses: d total / d ln of the student's factors
};
// A position that the teacher says nothing of: the hard losses alone.
void objective_label(struct objective *o, const struct loss_position *x, struct objective_sums *sums, struct gradient *g);
// Adds the position, as each voice has it, to the sums and, when g is not NULL, its gradient to g. Temperatures are this step's, in order.
// A term that is left out of this step has the value NAN.
void objective_position(struct objective *o, const struct loss_position *voices /*(objective_n_voices)*/, struct objective_sums *sums,
			struct gradient *g);
void objective_end_step(struct objective *o, const struct objective_sums *sums);      // sums of the whole step

// What adaptive schedules remember, for checkpoints: (n) numbers.
uint32_t objective_n_state(const struct objective *o);
void objective_state(const struct objective *o, double *ret);
void objective_restore(struct objective *o, const double *state);
