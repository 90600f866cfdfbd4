// SPDX-License-Identifier: Apache-2.0
// Sequences packed to T positions for one forward pass. Arrays are allocated once, for the largest pass; a sequence is never split.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/teacher/request.h"
#include "kernels/backend.h"

struct error;

struct batch {
	uint32_t capacity;                 // positions
	uint32_t n_positions, n_items;
	struct request_item **items;       // (n_items) in the order of their rows
	uint32_t *tokens, *positions;      // (n_positions)
	uint32_t *starts;                  // (n_items + 1)
	uint32_t *rows;                    // (n_positions) the row of each position of item i, from rows + starts[i]
};

// What waits for the engine, oldest first; the engine's alone.
struct batch_backlog { struct queue_item *first, **end; };

int batch_new(uint32_t capacity, struct batch **ret_batch, struct error *err);
struct batch *batch_free(struct batch *b);                 // NULL is fine; returns NULL

void batch_backlog_init(struct batch_backlog *backlog);
void batch_backlog_append(struct batch_backlog *backlog, struct queue_item *item);
struct queue_item *batch_backlog_pop(struct batch_backlog *backlog);      // NULL when empty

// Empties the batch, then moves items into it, oldest first, while they fit into `budget` positions. The oldest always goes, alone if it is
// over the budget (capacity is at least the longest sequence allowed): nobody starves. Items that do not fit are passed over
// for smaller ones behind them, at most BATCH_LOOKAHEAD of them.
#define BATCH_LOOKAHEAD 256
void batch_fill(struct batch *b, struct batch_backlog *backlog, uint32_t budget);
struct layout batch_layout(const struct batch *b);
bool batch_is_mixed(const struct batch *b);                // sequences of more than one request
