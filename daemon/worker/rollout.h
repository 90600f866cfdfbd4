// SPDX-License-Identifier: Apache-2.0
// The student goes on from prompts: many at once, one token of each in a pass, keys and values in a cache, the project's own sampler.
// Nothing is kept from one call to the next, for the parameters move between them.
//
// A draw is a function of (seed, number of the rollout, place in it) alone (philox.h): not of its company, nor of what was drawn before. So
// a run that goes on after a stop draws what it would have drawn.
#pragma once

#include <stdint.h>

#include "daemon/model/sampler.h"

struct architecture;
struct backend_need;
struct error;
struct head;
struct passage;
struct rollout;
struct sequence;
struct weights;

// Teacher-mixed sampling (MiniLLM): one token of the teacher's own choice, T = 1, after each of n beginnings: ret_ids (n). `group`: what is
// drawn for another group has nothing to do with this one's. Its errors are rollout_make's.
typedef int rollout_teacher_fn(void *arg, uint64_t group, const struct sequence *beginnings, uint32_t n, uint32_t *ret_ids,
	struct error *err);

struct rollout_options {
	uint32_t n_sequences;                  // most at once
	uint32_t sequence_length;              // most tokens of one, its prompt included
	struct sampler_options sampling;
	int32_t eos_ids[2];                    // tokens that end an answer and belong to it; -1 = none
	uint64_t seed;
	double mix;                            // chance of each token to be the teacher's; 0 = none, then the next two are not used
	rollout_teacher_fn *teacher;
	void *teacher_arg;
};

// Adds to *need what rollout_open will make beside the student's own arrays.
int rollout_need(const struct architecture *a, const struct rollout_options *options, struct backend_need *need, struct error *err);
// Both outlive it; the head is used within rollout_make alone.
int rollout_open(const struct weights *w, struct head *head, const struct rollout_options *options, struct rollout **ret,
	struct error *err);
struct rollout *rollout_close(struct rollout *r);      // returns NULL; NULL is fine

struct rollout_prompt {
	const struct sequence *sequence;
	uint32_t n;                            // its first n tokens (at least 1) are the prompt
	uint64_t number;                       // of the rollout in the run
	uint64_t group;                        // of what the teacher draws for it; the same for all of a call
};

// Each prompt with 1 to max_tokens tokens more: ret (n), by PASSAGE_STUDENT, `first` the length of the prompt; passage_done
// them, also after an error. Prompts leave room for one token at least. ERROR_NOT_FINITE when the
// student's logits have left the numbers.
int rollout_make(struct rollout *r, const struct rollout_prompt *prompts, uint32_t n, uint32_t max_tokens, struct passage *ret,
		 struct error *err);
