// SPDX-License-Identifier: Apache-2.0
// Sequences being generated: which of their rows the next pass computes, and what its results make of them. The engine's alone.
//
// A sample is begun when there is a place for it. Its prompt is read in as many parts as the budget makes of it; then each pass adds one
// token. Samples of one prompt are begun one after the other, so that the later ones find the prompt in the cache.
//
// A pass steps max_active samples. So many are begun, and beyond them those of askers who have less than an even share (lanes.h), at most
// as many again: then samples rest in turn, which costs nothing but time, for their places in the cache are their own until they end.
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct act;
struct backend;
struct batch;
struct cache;
struct error;
struct generator;
struct head;
struct request_item;
struct tokenizer;

// Tokens chosen; positions of prompts found in the cache; samples. Read from any thread.
struct generator_counters { atomic_uint_fast64_t n_tokens, n_reused; atomic_uint n_active, n_waiting; };

struct generator_options {
	struct backend *backend;
	struct head *head;
	struct cache *cache;
	const struct tokenizer *tokenizer;
	uint32_t vocab_size, max_active, max_top_k;
	int32_t eos_ids[2];                // tokens that end an answer; -1 = none
	struct generator_counters *counters;
};

int generator_open(const struct generator_options *options, struct generator **ret_generator, struct error *err);
struct generator *generator_close(struct generator *g);        // idle; NULL is fine; returns NULL

void generator_submit(struct generator *g, struct request_item *item);     // it waits for its turn
bool generator_is_busy(const struct generator *g);
// Gives back every item of which `fate` says that it is over (and has set item->error).
typedef bool generator_fate_fn(void *arg, struct request_item *item);
void generator_drop(struct generator *g, generator_fate_fn *fate, void *arg);

// The pass's rows. Steps first, one for each sample whose prompt was read: how many there will be, then (where the batch has room) they
// themselves. Then prompts, up to `budget` rows and max_active samples. Both, in this order, for every pass that generates.
uint32_t generator_n_steps(const struct generator *g);
void generator_fill_steps(struct generator *g, struct batch *b);
void generator_fill_prompts(struct generator *g, struct batch *b, uint32_t budget);
// After the pass: the next token of every sample whose last row it held; those that end are given back. An error is the device's.
int generator_take(struct generator *g, const struct act *hidden, struct error *err);
