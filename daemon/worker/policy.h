// SPDX-License-Identifier: Apache-2.0
// What each step of a run is trained on: text as it stands, or what the student itself makes of the beginning of it (on-policy distillation).
//
// One coin per step decides, for all of its sequences: a function of (seed, step), so every process of a run sees the same side.
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct dataset;
struct error;
struct passages;
struct policy;
struct rollout;
struct rollout_options;
struct run_settings;

// NULL in *ret where the settings ask for no rollouts. What it makes of the settings was checked by settings_check.
int policy_new(const struct run_settings *s, struct policy **ret, struct error *err);
struct policy *policy_free(struct policy *p);                  // returns NULL; NULL is fine
void policy_begin(struct policy *p, uint64_t n_steps, uint64_t batch);         // steps of the run, sequences of a step
// What the student's device must have room for.
void policy_rollout_options(const struct policy *p, const struct run_settings *s, int32_t eos_id, struct rollout_options *ret);

// p NULL: never.
bool policy_draws(const struct policy *p, uint64_t step);      // whether sequences of this step depend on the student as it is then

// The sequences of n places from `position` of the training stream on, as they are to be trained; where the student writes, a place is one
// sequence. p and r may be NULL where no step draws.
int policy_passages(struct policy *p, struct rollout *r, struct dataset *d, uint64_t position, uint32_t n, struct passages **ret,
		    struct error *err);
