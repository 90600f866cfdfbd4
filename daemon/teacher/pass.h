// SPDX-License-Identifier: Apache-2.0
// A pass: a forward pass of one member, or of all that a mixture asks, and the answers of what it holds. The engine's alone.
//
// On a device that computes while the host goes on, two overlap: when the last rows of a pass are asked of the device, the next pass is
// chosen and given to it, behind them; then the last answer of the one before is read, made and given back. What the device computes for a
// pass reads nothing that a later one has overwritten, for it does all in the order in which it was given; of the host's things there are
// two where both passes need them: the pass, with its batch.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
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
	uint32_t n_answered;                   // items given back
	double forward_seconds, epilogue_seconds;      // of the engine's time; see teacher_seconds
	int r;                                 // of the device, or of the teacher as a whole: from then on nobody gets an answer
	struct error error;
};

// Chooses what the next pass holds, gives it to the device, and gives back all answers of the one before it and all but the last of its
// own. Not when idle.
void pass_start(struct teacher *t);
// Gives back the last pass's last answer; nothing to do is fine.
void pass_complete(struct teacher *t);
void pass_run(struct teacher *t);              // both
