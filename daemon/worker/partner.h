// SPDX-License-Identifier: Apache-2.0
// The teacher as a second writer of rollouts (teacher-mixed sampling, MiniLLM): one token of its own after each of many beginnings. A
// connection of its own, for answers.c's is busy with questions asked ahead; the server's prefix cache makes each token one step.
//
// A token is a draw from the teacher's distribution at temperature 1, a function of (seed, group, place in the sequence, beginning):
// beginnings of one group that are equally long share their random number, each having the right distribution by itself.
#pragma once

#include <stdatomic.h>
#include <stdint.h>

#include "common/sequence.h"

struct error;
struct partner;

struct partner_options {
	const char *server, *token, *ca, *server_name;         // as answers_options; they outlive it
	const struct content_id *teacher;      // that goes on
	uint64_t patience_ms, seed;
	const atomic_bool *stop;
};

int partner_open(const struct partner_options *options, struct partner **ret, struct error *err);
struct partner *partner_close(struct partner *p);      // returns NULL; NULL is fine
// A rollout_teacher_fn; arg: struct partner *. A server that is away is waited for; -ECANCELED when told to stop.
int partner_write(void *arg, uint64_t group, const struct sequence *beginnings, uint32_t n, uint32_t *ret_ids, struct error *err);
