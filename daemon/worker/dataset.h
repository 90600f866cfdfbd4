// SPDX-License-Identifier: Apache-2.0
// The corpus as sequences of one fixed length, and the order in which they are trained: a pure function of (texts, options, position),
// so that a run can be resumed from one number and two machines ask the teacher the same questions.
//
// Texts are tokenised once and packed one after another (packing.h, text_file.h), an end-of-text token after each file; tokens that do
// not fill a last sequence are left out. Which sequences are held out depends on their place in the corpus alone, never on the seed.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/sequence.h"

struct error;
struct tokenizer;
struct dataset;

struct dataset_options {
	uint32_t sequence_length;      // L >= 2
	const uint32_t *prefix;        // (n_prefix < L) starts each sequence: what the tokenizer's template puts first (a BOS), or none
	uint32_t n_prefix;
	double held_out;               // share of the sequences, spread evenly over the corpus
	uint32_t held_out_max;         // but no more than this many, and at least one unless held_out is 0
	uint64_t seed;                 // of the order within each epoch
};

int dataset_new(const struct dataset_options *options, struct dataset **ret, struct error *err);
struct dataset *dataset_free(struct dataset *d);       // returns NULL; NULL is fine

int dataset_append(struct dataset *d, const uint32_t *tokens, size_t n, struct error *err);
// Tokenises a UTF-8 text file and appends it and an end-of-text token.
int dataset_append_file(struct dataset *d, const struct tokenizer *t, bool specials, const char *path, struct error *err);
// After the last append: splits training from held-out sequences. ERROR_INVALID when nothing is left to train on.
int dataset_split(struct dataset *d, struct error *err);

uint64_t dataset_n_train(const struct dataset *d);
uint64_t dataset_n_held_out(const struct dataset *d);
// L tokens, the dataset's own. Training sequences come from an endless stream: each epoch is every one of them once, shuffled.
// Not thread-safe: the order of the current epoch is kept inside.
const uint32_t *dataset_train_at(struct dataset *d, uint64_t position);
const uint32_t *dataset_held_out_at(const struct dataset *d, uint64_t i);
struct content_id dataset_id(const struct dataset *d);         // of all its tokens in corpus order
