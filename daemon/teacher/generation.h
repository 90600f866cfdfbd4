// SPDX-License-Identifier: Apache-2.0
// What is asked when the teacher is to go on from prompts, and what it has said so far, one token at a time.
//
// A generation is a struct request with `generate` set. Its items are the samples: those of prompt p are items p n .. p n + n - 1, and the
// prompt's tokens are the sequence of the first of them (the others' are empty: prompts are kept, and computed, once).
//
// The engine writes a result while a door may read it: the arrays are made once, for all tokens there can be, and a counter says how many
// are there; what it counts does not change any more.
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/model/sampler.h"

struct error;
struct request;
struct request_item;
struct sequence;

#define GENERATION_MAX_STOPS 16            // stop strings
#define GENERATION_MAX_STOP_BYTES 256      // of each
#define GENERATION_MAX_STOP_IDS 64

struct generation_query {
	uint32_t n;                        // samples of each prompt
	uint32_t first_sample;             // number of the first of them: the generator of random numbers is keyed by (seed,
	                                   // sample, position)
	uint32_t max_tokens;               // to be chosen, after the forced ones
	struct sampler_options sampling;
	uint64_t seed;
	bool has_seed;                     // else service_generate() picks one, and writes it to `seed`
	bool ignore_eos;
	bool stream;                       // the door wants to hear of each token, not of the end alone
	uint32_t top_k;                    // ids and raw logits of each token's row; 0 = none
	uint32_t n_forced, *forced;        // how every answer begins, owned: tokens of the answer that are not chosen (but scored)
	uint32_t n_stops, n_stop_ids;
	char *stops[GENERATION_MAX_STOPS]; // owned; the text ends before the first of these, the tokens after it
	uint32_t stop_ids[GENERATION_MAX_STOP_IDS];
};

void generation_query_init(struct generation_query *q);        // one sample, 16 tokens, temperature 1
void generation_query_done(struct generation_query *q);        // frees what it owns
// A request of these prompts, n times each; takes what the query and the prompts own, also when it fails. At most max_items samples.
int generation_request_new(struct generation_query *q, struct sequence *prompts, uint32_t n_prompts, uint32_t max_items,
			   struct request **ret_request, struct error *err);

enum generation_finish { GENERATION_UNFINISHED, GENERATION_STOP, GENERATION_LENGTH };

struct generation {
	uint32_t capacity;                 // n_forced + max_tokens
	atomic_uint n_tokens;              // of the answer, the forced ones first
	// Bytes of the answer's text (its tokens decoded without special ones) that are sure: what might begin a stop string is not yet.
	_Atomic size_t n_text;
	// All (capacity): of token i of the answer,
	uint32_t *tokens;
	float *logprobs;                   // its ln p under the teacher's own distribution (T = 1): what /v1/score says, own_logit - lse
	float *sampled_logprobs;           // and under the one it was drawn from (0 for a forced token)
	float *lse;                        // T = 1, of the row that gave it
	uint32_t *ids;                     // (capacity, top_k) of that row, descending, ties to the lower id; NULL unless top_k
	float *logits;                     // (capacity, top_k) raw
	// Fixed when the item is complete:
	enum generation_finish finish;
	int64_t stop_id;                   // the token that ended it, eos or of stop_ids; -1 = none did
	int32_t stop;                      // the stop string that did, an index into stops; -1 = none did
	uint32_t n_reused;                 // positions of the prompt that were not computed, for the cache had them
};

// Results for every item of a request whose `generate` is set.
int generation_prepare(struct request *r, struct error *err);
struct generation *generation_free(struct generation *g);      // NULL is fine; returns NULL
const struct sequence *generation_prompt(const struct request_item *item);
uint32_t generation_sample(const struct request_item *item);    // its number, first_sample included

struct generation_limits { uint32_t max_tokens /* prompt, forced and chosen */, max_samples, max_top_k, vocab_size; };
// THE validator; `r->n_items` must be prompts x n. Fields are named as /v1/generate names them.
int generation_check(const struct request *r, const struct generation_limits *limits, struct error *err);
