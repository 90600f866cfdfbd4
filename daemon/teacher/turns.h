// SPDX-License-Identifier: Apache-2.0
// Whose scores the next pass computes first: those who ask take turns, weighed by the tokens computed for them (start-time fair queueing).
// So whoever has ten thousand sequences waiting delays one who has a single one by a pass, not by all of them. The engine's alone.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define TURNS_LANES 64                 // who are more than these share the first

struct batch;
struct batch_backlog;

struct turns {                         // zeroed = nobody has asked yet
	const void *who[TURNS_LANES];      // request.principal; NULL = nobody's
	uint64_t served[TURNS_LANES];      // tokens computed; of one who comes back, no less than of those who waited meanwhile
	bool waits[TURNS_LANES];           // had something waiting when last looked at
	uint64_t now;                      // the least served of those who waited
};

// Puts what waits in the order of turns: as much of it as makes `enough` tokens, more than a pass takes; the rest comes after in any order.
// What one asker has stays in its own order.
void turns_order(struct turns *t, struct batch_backlog *backlog, uint64_t enough);
// The batch's scores are computed.
void turns_charge(struct turns *t, const struct batch *b);
