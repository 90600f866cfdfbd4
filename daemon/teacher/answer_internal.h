// SPDX-License-Identifier: Apache-2.0
// Private to answer*.c: one item's way from its question to its rows.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/query.h"
#include "daemon/model/config.h"
#include "daemon/teacher/answer.h"
#include "daemon/teacher/draw.h"
#include "kernels/backend.h"

struct record_rows;

#define PLAN_TEMPERATURES (QUERY_MAX_TEMPERATURES + 2)    // the question's, 1 and 1/2

// What a question comes to for the head.
struct plan {
	const struct query *query;
	const struct sequence *sequence;
	uint32_t V;                        // ids of a row: the vocabulary's, or those kept
	uint32_t top_k;                    // of the sweep: also 1 where only the largest is wanted
	uint32_t n_gather;                 // of the longest row, its own token included
	bool cut;                          // top_mass, with signals about what is outside: they need a second sweep
	uint32_t n_temperatures, one, half;    // places of T = 1 and T = 1/2, where needed
	float temperatures[PLAN_TEMPERATURES];
	struct draw_key key;
	uint32_t after;                    // answer_input's
	size_t row_bytes;                  // of the results of a row in the arena
	uint32_t chunk_rows;
	uint8_t *needs;                    // (max_tokens) NEED_*
	double *own;                       // (max_tokens) ln p of each position's own token
};

// What is wanted of a position.
#define NEED_ROW 1u                        // a row of the record
#define NEED_OWN 2u                        // ln p of the own token, for a span

// Hidden states and such of one item, read while they passed by.
struct features;

// Some rows of an item, from the question to the sweep's results.
struct chunk {
	struct real *logits;
	uint32_t n, positions[ANSWER_CHUNK_ROWS], rows[ANSWER_CHUNK_ROWS], n_top[ANSWER_CHUNK_ROWS];
	bool has_own[ANSWER_CHUNK_ROWS];   // gathered[0] is the own token's
	struct sweep_row sweep[ANSWER_CHUNK_ROWS];
	double lse[ANSWER_CHUNK_ROWS * PLAN_TEMPERATURES];
	uint8_t *arena;                    // the sweep's other results
};

// An item under way.
struct work {
	struct request_item *item;         // NULL: none
	struct answer_input in;
	struct plan plan;
	struct record_rows *rows;
	struct answer_counts counts;
	uint32_t position;                 // the next one that somebody needs
	uint32_t at;                       // of the list of rows announced, or HEAD_UNEXPECTED
	uint32_t n_started;                // chunks
	bool asked;                        // about all positions
	bool alone;                        // its logits are looked at again, or are several teachers': nothing else is under way meanwhile
	bool not_finite;
	int r;
};

#define MAX_STARTED 2                      // chunks under way: while the results of one are read, the device computes the other

struct answer {
	struct answer_limits limits;
	struct backend *backend;
	struct chunk chunks[MAX_STARTED];  // in turn
	uint32_t n_begun, n_started;       // chunks so far, and those of them not yet finished
	size_t arena_bytes;                // of a chunk
	struct work works[2];              // of items, in turn: the one that is made, and the next one
	struct answer_input in;            // what the items of the batch have in common
	const struct batch *made;          // which is answered; NULL = none
	uint32_t n_made;                   // items of it
	double *line;                      // values on their way from the device
	size_t line_values;
	const struct batch *batch;         // watched, or NULL...
	const struct architecture *architecture;    // ...and of whom
	struct activations *activations;
	uint32_t *expected, n_expected;    // rows of the batch that its items will ask the head for, in order; 0 = it is not told
	size_t expected_capacity;
	uint32_t *expected_at;             // (max_items) where each item's begin, or HEAD_UNEXPECTED
	struct features **features;        // (max_items) of the batch; NULL where none are asked
};

// answer_plan.c
size_t plan_row_bytes(uint32_t top_k, uint32_t n_gather, uint32_t n_draws);
// Anew, but for its two arrays.
void plan_init(struct plan *plan, const struct answer *a, const struct request_item *item, uint32_t after, uint32_t tile_rows);
// Entry i of the chunk becomes a question about position `position`, row `row` of the batch.
void plan_ask(const struct plan *plan, struct chunk *c, uint32_t i, uint32_t position, uint32_t row);
// After the first sweep: how many ids top_mass leaves each row; where plan->cut, the entries become questions about what is outside.
void plan_cut(const struct plan *plan, struct chunk *c);

// answer_rows.c: entry i of the chunk, when the sweep is done, goes into the record's rows and into plan->own.
int rows_keep(const struct plan *plan, struct chunk *c, uint32_t i, struct record_rows *rows, struct error *err);

// answer_features.c: what was watched goes into the record's rows; before any other row is kept.
int features_keep(struct answer *a, uint32_t index, struct record_rows *rows, bool *ret_not_finite, struct error *err);
