// SPDX-License-Identifier: Apache-2.0
// A pass: a forward pass of one member, or of all that a mixture asks, and the answers of what it holds. The engine's alone.
#pragma once

#include <stdbool.h>

#include "daemon/model/head.h"
#include "daemon/teacher/choice.h"

struct batch;
struct schedule;
struct teacher;

struct pass {
	struct batch *batch;
	struct choice choice;                  // of all it holds
	struct head_member members[CHOICE_MAX_MEMBERS];
	struct schedule *schedule;
	bool generates;
	bool unseen;                           // no client has part in it: it is not counted. Items given back are not ours to look at
};

// Chooses what the next pass holds, and runs it. Not when idle.
void pass_run(struct teacher *t);
