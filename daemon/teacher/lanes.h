// SPDX-License-Identifier: Apache-2.0
// Whose samples are begun, read and stepped next: of those who ask, the one for whom least was computed while there was more to do for it.
// What turns.h is for scores; but a sample takes many passes, so who has a claim is settled after each. The engine's alone.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/teacher/batch.h"

#define LANES 64                           // who are more than these share the first

// Steps and prompts are accounts of their own: a pass has so many of the one and so much of the other, and who had a long prompt read does
// not pay for it with its steps.
struct lanes_account {
	uint64_t served[LANES];            // rows computed; of who comes back or had all it wanted, no less than `now`
	uint64_t now;                      // the least served of those with something left to do
};

struct lanes {
	const void *who[LANES];            // request.principal
	struct batch_backlog waiting[LANES];       // samples not begun, oldest first
	uint32_t n_active[LANES];          // samples begun
	uint32_t n_waiting;                // in all lanes
	struct lanes_account steps, prompts;
};

void lanes_init(struct lanes *l);
// A sample waits; its lane is that of its request's principal.
void lanes_append(struct lanes *l, struct request_item *item);
struct request_item *lanes_pop(struct lanes *l, uint32_t lane);        // the oldest; NULL when there is none
void lanes_return(struct lanes *l, uint32_t lane, struct request_item *item);      // what was popped waits on, behind the others
// Of the lanes that may begin a sample the one with the fewest begun, and then of whose prompts least was read; LANES = none. While fewer
// than max_active are begun any may; after that, who has fewer of them than an even share: nobody's samples keep all places until they end.
uint32_t lanes_next(const struct lanes *l, uint32_t n_active, uint32_t max_active);
// After each pass is filled: `left` says for whom there was more to do than it could hold. The others have no claim for later.
void lanes_settle(struct lanes_account *a, const bool left[LANES]);
