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
#define OBJECTIVE_DEFAULT "forward-kl"

int objective_new(struct objective **ret);     // without terms; -ENOMEM
struct objective *objective_free(struct objective *o);         // returns NULL; NULL is fine
// One line; `where` ("run.conf:12") begins its errors, whose field is "loss". Unknown names and impossible mixes are errors.
int objective_add(struct objective *o, const char *text, const char *where, struct error *err);
// What holds between lines. Call it after the last one; a run has at least one term.
int objective_check(const struct objective *o, struct error *err);
// Schedules without an end last n_steps. Call it before anything below. -ENOMEM.
int objective_begin(struct objective *o, uint64_t n_steps, uint32_t vocab_size);

uint32_t objective_n_terms(const struct objective *o);
const char *objective_name(const struct objective *o, uint32_t term);          // "forward-kl", "forward-kl-2", or what the line says
const char *objective_teacher(const struct objective *o, uint32_t term);       // NULL: the run's own
void objective_describe(const struct objective *o, uint32_t term, char *to, size_t room);     // form, support, weight for the log
const char *objective_bias(const struct objective *o, uint32_t term, uint32_t vocab_size);    // see method_bias; NULL for whole rows

// Adds to a query what the terms ask at a step: top-k, temperatures, own, entropy, tail, draws (with `seed`).
void objective_query(const struct objective *o, uint64_t step, uint64_t seed, uint32_t vocab_size, struct query *q);
bool objective_asks_teacher(const struct objective *o);
uint32_t objective_top_k(const struct objective *o);           // teacher's ids wanted, 0 = none
uint32_t objective_own_k(const struct objective *o);           // the student's own ids that the teacher is to be asked about; 0 = none
uint32_t objective_n_draws(const struct objective *o);
uint32_t objective_width(const struct objective *o, uint64_t vocab_size);      // most ids of one position
bool objective_wants_mean(const struct objective *o);          // of the student's logits

// A step: its parameters are those of `step` steps done.
void objective_step(struct objective *o, uint64_t step);
uint32_t objective_temperatures(const struct objective *o, float *ret /*(OBJECTIVE_MAX_TERMS)*/);     // of this step, distinct

struct objective_sums {
	double total;
	double values[OBJECTIVE_MAX_TERMS];            // of each term, T^2 included, weight not
	double entropies[OBJECTIVE_MAX_TERMS];         // of the teacher's rows, where value less entropy is the KL; NAN elsewhere
	double followed[OBJECTIVE_MAX_TERMS];          // what adaptive schedules follow
};
// Adds the position to the sums and, when g is not NULL, its gradient to g. position->temperatures are this step's, in order.
void objective_position(struct objective *o, const struct loss_position *x, struct objective_sums *sums, struct gradient *g);
void objective_end_step(struct objective *o, const struct objective_sums *sums, uint64_t n_positions);

// What adaptive schedules remember, for checkpoints: (n) numbers.
uint32_t objective_n_state(const struct objective *o);
void objective_state(const struct objective *o, double *ret);
void objective_restore(struct objective *o, const double *state);
