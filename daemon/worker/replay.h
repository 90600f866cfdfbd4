// SPDX-License-Identifier: Apache-2.0
// What the student wrote in earlier steps, to be learned again (the replay buffer of DistiLLM): the newest `capacity` sequences.
//
// It changes between steps alone: what a step writes is noted while the step lasts, and enters when it is over, in the order of the
// sequences within the step. So which sequences a step takes out of it is a function of (seed, step) and of the steps before, whatever
// the number of processes; each of them has the whole buffer.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct passage;
struct replay;
struct team;

struct replay_options {
	uint32_t capacity;             // sequences; at least n_step
	uint32_t max_tokens;           // of one, with its prompt
	uint32_t n_step;               // sequences that one step writes or takes
	uint32_t vocab_size;           // of their tokens
	uint64_t seed;
};

int replay_new(const struct replay_options *options, struct replay **ret);     // -ENOMEM
struct replay *replay_free(struct replay *r);          // returns NULL; NULL is fine
uint32_t replay_n(const struct replay *r);             // sequences that it holds
bool replay_full(const struct replay *r);

// Copies sequence `number` (below n_step) of the step in progress. -ENOMEM.
int replay_note(struct replay *r, uint32_t number, const struct passage *p);
// The step is over: what all processes noted enters, and as much of the oldest leaves.
int replay_end_step(struct replay *r, struct team *team, struct error *err);

// Sequence `number` of a step that takes its n_step distinct ones out of the buffer, which is full. passage_done it. -ENOMEM.
int replay_pick(struct replay *r, uint64_t step, uint32_t number, struct passage *ret);

// For checkpoints, the oldest first; free() the bytes. Both or neither of ret_* are set.
int replay_encode(const struct replay *r, uint8_t **ret, size_t *ret_n, struct error *err);
// In place of what it held, also after an error (then nothing). ERROR_CORRUPT for bytes that no buffer of these options wrote.
int replay_decode(struct replay *r, const void *bytes, size_t n, struct error *err);
