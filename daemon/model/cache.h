// SPDX-License-Identifier: Apache-2.0
// Keys and values of positions already read, and which of them the next sequence can use again.
//
// A slot holds one position in every layer. Slots of sequences that ended stay, keyed by their tokens, until their room is needed (the
// least recently used go first, from their ends): a sequence that begins with the same tokens does not compute them again. A slot's
// content is a function of the tokens up to it alone, bit for bit, so whoever may share it, shares it, even within the pass that computes
// it: backends write the keys and values of a pass before any of its rows reads them.
//
// One thread uses a cache. What was reserved by the caller's own account is always found: cache_extend fails only when sequences under way
// fill the cache.
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct act;
struct architecture;
struct backend_need;
struct cache;
struct cache_node;
struct error;
struct weights;

// The places of one sequence under way: positions 0..n-1 have slots; the first n_shared of them others may share. The caller reads it.
struct cache_sequence {
	uint32_t *slots;             // (capacity) owned
	uint32_t capacity, n, n_shared;
	struct cache_node *node;     // of the last shared position
};

// Reserves n_slots for every layer of the model.
int cache_open(const struct weights *w, uint32_t n_slots, struct cache **ret_cache, struct error *err);
// Adds to *need what cache_open will make.
int cache_need(const struct architecture *a, uint32_t n_slots, struct backend_need *need, struct error *err);
struct cache *cache_close(struct cache *c);                // no sequence under way; NULL is fine; returns NULL
struct act *cache_layer(struct cache *c, uint32_t layer);  // (n_slots, 2 NKV D), for the backend's cache operations

// A sequence of at most `capacity` positions that begins with these tokens: gets the slots of as many of them as are known (n of them).
int cache_begin(struct cache *c, const uint32_t *tokens, uint32_t n_tokens, uint32_t capacity, struct cache_sequence *ret_sequence,
		struct error *err);
// Slots for n more positions, which the next pass must fill; false when there are not so many.
bool cache_extend(struct cache *c, struct cache_sequence *s, uint32_t n);
// Lets others share all of its positions; tokens are those of the whole sequence, from 0. To be called before the pass that fills them.
void cache_share(struct cache *c, struct cache_sequence *s, const uint32_t *tokens);
// The sequence is over: the positions it shares stay known, the others are free.
void cache_end(struct cache *c, struct cache_sequence *s);

// Slots for the length of one pass, of positions that nobody will share.
bool cache_take(struct cache *c, uint32_t n, uint32_t *ret_slots);
void cache_give(struct cache *c, uint32_t n, const uint32_t *slots);

// Of n_slots, how many hold something; and how many of those are of no sequence under way, and can make room.
struct cache_usage { uint32_t n_slots, n_used, n_idle, n_nodes; };
struct cache_usage cache_usage(const struct cache *c);
