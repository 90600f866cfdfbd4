// SPDX-License-Identifier: Apache-2.0
// What waits for the engine, and which of it the next pass computes. The engine's alone.
//
// Each pass takes one step of every generation. What else it holds is bounded while anything is generated, for the steps wait for it;
// prompts and scores begin it in turn, so that neither starves. A score that does not fit beside generations has a pass of its own when
// its turn comes.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/teacher/batch.h"
#include "daemon/teacher/turns.h"

#define SCHEDULE_MIN_PROMPT 16             // rows of a pass that generates, whatever its steps take: prompts go on

struct cache;
struct generator;

struct schedule {
	uint32_t batch_tokens;             // rows of a pass of scores
	uint32_t generate_batch;           // and of one that also generates
	struct cache *cache;               // these two NULL when nothing is generated
	struct generator *generator;
	struct batch_backlog scores;
	struct turns turns;                // of those who ask for scores
	bool prompts_first;                // the next pass begins with prompts: the last one began with scores
};

bool schedule_is_generating(const struct schedule *s);
bool schedule_is_idle(const struct schedule *s);
// Fills the batch, anew; true when it holds rows of generations. Not when idle.
bool schedule_fill(struct schedule *s, struct batch *b);
