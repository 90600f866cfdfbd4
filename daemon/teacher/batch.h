// SPDX-License-Identifier: Apache-2.0
// What one forward pass computes: whole sequences to be scored, and the next parts of sequences being generated. Arrays are allocated once,
// for the largest pass, but for the lists that grow with shared prefixes.
//
// Scores that begin alike compute the common part once: each item has a list that says which row of the pass each of its positions is.
// Then, as when anything is generated, keys and values go through the cache, so that sequences can read what others' rows wrote.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/teacher/request.h"
#include "kernels/backend.h"

struct cache;
struct error;

#define BATCH_SHARE_MIN 32                 // tokens: a shorter common prefix is not looked for
#define BATCH_LOOKAHEAD 256                // items that do not fit and are passed over for smaller ones

struct batch_item {
	struct request_item *item;
	uint32_t rows;                     // offset in batch.rows of the list of its n_tokens rows
	uint32_t next;                     // item + 1 with the same first tokens, earlier in the pass; 0 = none
};

struct batch_sequence {
	uint32_t start, n_rows;
	const uint32_t *slots;             // (n_slots) of the cache, from position 0; NULL for a score
	uint32_t n_slots;                  // position of its last row + 1
	uint32_t item;                     // of a score
	bool held;                         // slots for its rows are taken
};

struct batch {
	uint32_t capacity;                 // rows
	uint32_t n_rows, n_sequences, n_items;
	struct batch_item *items;          // (n_items) scores
	struct batch_sequence *sequences;  // (n_sequences) that have rows
	uint32_t *tokens, *positions;      // (n_rows)
	uint32_t *starts, *slot_starts;    // (n_sequences + 1)
	uint32_t *rows, n_listed, rows_capacity;       // of all items
	uint32_t *slots, slots_capacity;   // of all sequences
	uint32_t *row_slots;               // (n_rows) of the rows of scores that hold slots
	uint32_t *buckets, n_buckets;      // item + 1 by the hash of its first tokens
	uint32_t n_generated;              // sequences being generated
	uint32_t n_score_rows, n_shared;   // rows of scores; positions of scores that needed none
};

// What waits for the engine, oldest first; the engine's alone.
struct batch_backlog { struct queue_item *first, **end; };

int batch_new(uint32_t capacity, struct batch **ret_batch, struct error *err);
struct batch *batch_free(struct batch *b);                 // NULL is fine; returns NULL

// Positions of scores that one pass lists, at most: the longest slots of its layout, but for what is generated.
uint64_t batch_max_listed(uint32_t capacity, uint32_t max_tokens);

void batch_backlog_init(struct batch_backlog *backlog);
void batch_backlog_append(struct batch_backlog *backlog, struct queue_item *item);
struct queue_item *batch_backlog_pop(struct batch_backlog *backlog);      // NULL when empty

void batch_clear(struct batch *b);
uint32_t batch_room(const struct batch *b);                // rows left

// How scores may be added: while they fit into `budget` rows; `oldest`: the oldest goes even if it alone is over the budget, where there is
// room (else it must fit like the others); `share`: prefixes may be shared (the cache has that many slots free, now and when the batch is
// sealed). slots: the cache from which slots for the rows are taken at once, because others take from it too; NULL: when sealed, if needed.
struct batch_terms { uint32_t budget; bool oldest, share; struct cache *slots; };
// Moves items into the batch, oldest first. Items that do not fit are passed over for smaller ones behind them, BATCH_LOOKAHEAD at most.
void batch_fill(struct batch *b, struct batch_backlog *backlog, const struct batch_terms *terms);
// Rows of a sequence being generated: positions first..first+n-1, whose tokens are tokens[first].. and slots slots[first]..; both lists are
// from position 0 and must stay until the pass is over. Returns the first row. There must be room.
uint32_t batch_append(struct batch *b, const uint32_t *tokens, const uint32_t *slots, uint32_t first, uint32_t n);

// Ready for forward(): with slots where something is generated or shared; those of scores are given back by batch_unseal, whether sealing
// succeeded or not.
int batch_seal(struct batch *b, struct cache *cache, struct layout *ret_layout, struct error *err);
void batch_unseal(struct batch *b, struct cache *cache);
bool batch_is_mixed(const struct batch *b);                // scores of more than one request
