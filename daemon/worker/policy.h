// SPDX-License-Identifier: Apache-2.0
// What each step of a run is trained on: text as it stands, what the student itself makes of the beginning of it (on-policy distillation),
// or what it made of others in steps before (replay).
//
// One coin per step decides, for all of its sequences: a function of (seed, step), so every process of a run sees the same side. The chance
// is a number, a schedule, or what the evaluations made of it (adaptive).
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
struct team;

// NULL in *ret where the settings ask for no rollouts. What it makes of the settings was checked by settings_check.
int policy_new(const struct run_settings *s, struct policy **ret, struct error *err);
struct policy *policy_free(struct policy *p);                  // returns NULL; NULL is fine
// Steps of the run, sequences of a step, ids of its vocabulary. -ENOMEM.
int policy_begin(struct policy *p, uint64_t n_steps, uint64_t batch, uint32_t vocab_size);
// What the student's device must have room for.
void policy_rollout_options(const struct policy *p, const struct run_settings *s, int32_t eos_id, struct rollout_options *ret);

enum policy_kind { POLICY_TEXT, POLICY_FRESH, POLICY_REPLAY };
// Of a step, as far as it is known now: of p NULL text.
enum policy_kind policy_kind(const struct policy *p, uint64_t step);
// Whether the sequences of `step` depend on what happens from step `now` on until then: on the student, its buffer, or an evaluation.
bool policy_waits(const struct policy *p, uint64_t now, uint64_t step);

// A step is over: what the student wrote in it enters the buffer.
int policy_end_step(struct policy *p, struct team *team, struct error *err);
// An evaluation gave this loss; the first of a run sets what later ones are measured by.
void policy_evaluated(struct policy *p, double loss, bool first);

// What a checkpoint remembers: the adaptive chance and its reference (0 without them), and the buffer (NULL: the policy has none).
struct policy_state { double chance, reference; };
struct policy_state policy_state(const struct policy *p);
void policy_restore(struct policy *p, const struct policy_state *state);
struct replay *policy_replay(const struct policy *p);

// The sequences of n places from `position` of the training stream on, as they are to be trained; where the student writes, a place is one
// sequence. p and r may be NULL where no step draws.
int policy_passages(struct policy *p, struct rollout *r, struct dataset *d, uint64_t position, uint32_t n, struct passages **ret,
		    struct error *err);
