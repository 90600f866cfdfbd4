// SPDX-License-Identifier: Apache-2.0
// From hidden rows to a record, a few rows at a time: memory of an answer is the answer itself, never [positions x anything large].
// Every buffer is reserved at open; a question with longer rows (k, gathered ids, draws) has fewer of them in a chunk.
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct act;
struct activations;
struct answer;
struct architecture;
struct backend;
struct batch;
struct choice;
struct error;
struct head_member;
struct request_item;

// Rows given to the head at once, at most. Enough to keep its product busy; results of a row do not depend on it.
#define ANSWER_CHUNK_ROWS 512

// widest: values of a row of any feature of any teacher (q, k and v of a position together).
struct answer_limits { uint32_t vocab_size, widest, max_tokens, max_items /* of a batch */, max_top_k, max_gather, max_draws; };

struct answer_input {
	const struct choice *choice;       // who is asked
	const struct head_member *members; // (choice->n_members) with the hidden rows of the whole batch
	const uint32_t *rows;              // (n_tokens) which of them each position of the sequence is: one after the other,
	                                   // but for a shared prefix
	uint32_t index;                    // the item's number in the batch
	uint32_t after;                    // a row's own token is so many tokens after it: 1, or 0 of masked models (the token itself)
};

struct answer_counts { uint64_t n_rows, n_not_finite; };      // read from the head

int answer_open(struct backend *be, const struct answer_limits *limits, struct answer **ret_answer, struct error *err);
struct answer *answer_close(struct answer *a);             // NULL is fine; returns NULL

// Around forward, for the features (hidden states, q, k, v rows) that items of the batch ask for: answer_watch before it (true when there are
// any: then forward waits for the device on its way), answer_unwatch when all is asked or nothing will be. An item for whose features there is
// no memory gets its error from answer_make.
bool answer_watch(struct answer *a, const struct architecture *arch, struct activations *activations, const struct batch *batch);
void answer_unwatch(struct answer *a);

// Around the items of a batch, when forward is through. `in`: what all have in common (not rows, not index). Where the head is read from
// disk, their rows are computed in full tiles, whosever they are. answer_begin gives the device the first of them at once; answer_end also
// drops what was begun and is not wanted any more.
void answer_begin(struct answer *a, const struct answer_input *in, const struct batch *batch);
void answer_end(struct answer *a);

// Fills the record of the batch's next item (the first call: the first), or its error, and returns -errno. While rows are read and written
// the device computes the next ones, also those of the item after it.
int answer_make(struct answer *a, struct answer_counts *ret_counts);
// Before the last item's answer_make: gives the device all of its rows that it has not got, and reads results only as far as it must for
// that. What is left to do waits for nothing that the device is given afterwards.
void answer_ask_last(struct answer *a);
