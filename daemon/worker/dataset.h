// SPDX-License-Identifier: Apache-2.0
// The sequences of a run as one fixed list, and the order in which they are trained: a pure function of (list, options, position), so that
// a run can be resumed from one number and two machines ask the teacher the same questions.
//
// The list comes from texts, tokenised once and packed one after another into sequences of one length, an end-of-text token between files
// (tokens that do not fill a last sequence are left out), in the order of the corpus; or from sequences given whole, in the order of their
// content ids, each once; or from documents, none of which shares a sequence with another: longer ones are cut. Which sequences are held
// out depends on where they stand in the list alone, never on the seed.
//
// What is trained at a time is a place of sequence_length tokens: one sequence, or (packed) as many as fit, which stay apart: positions,
// attention and losses are those of each alone. Places are filled once, best fit by decreasing length, equal lengths in an order of the
// seed's; in a sequential run in the list's order, as long as the next fits.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/sequence.h"

struct error;
struct tokenizer;
struct dataset;

#define DATASET_MAX_DOMAINS 64
// How places are drawn from domains from one position of the stream on.
struct dataset_domains {
	uint64_t n, position;                  // n 0: they are not
	double shares[DATASET_MAX_DOMAINS];    // sum to 1
	uint64_t taken[DATASET_MAX_DOMAINS];   // places of each that were drawn before
};

struct dataset_options {
	uint32_t sequence_length;      // L >= 2: of packed sequences, at most of whole ones
	const uint32_t *prefix;        // (n_prefix < L) starts each sequence: what the tokenizer's template puts first (a BOS), or none
	uint32_t n_prefix;
	double held_out;               // share of the sequences, spread evenly over the list
	uint32_t held_out_max;         // but no more than this many, and at least one unless held_out is 0
	bool sequential;               // train in the order of appending (the corpus, the shards), every epoch the same; else shuffled
	uint64_t seed;                 // of the order within each epoch when shuffled
	bool documents;                // what is appended are documents
	bool packed;
};

int dataset_new(const struct dataset_options *options, struct dataset **ret, struct error *err);
struct dataset *dataset_free(struct dataset *d);       // returns NULL; NULL is fine

// One of the two ways: packed, or whole sequences (2 to L tokens).
int dataset_append(struct dataset *d, const uint32_t *tokens, size_t n, struct error *err);
// Tokenises a UTF-8 text file piece by piece (cut at line ends by a fixed rule) and appends it and an end-of-text token.
int dataset_append_file(struct dataset *d, const struct tokenizer *t, bool specials, const char *path, struct error *err);
int dataset_append_sequence(struct dataset *d, const uint32_t *tokens, uint32_t n, struct error *err);
// Of options.documents the only way: a document as one sequence, or as many as it takes, each with the prefix; of one token alone there is
// nothing to learn, and it is left out.
int dataset_append_document(struct dataset *d, const uint32_t *tokens, size_t n, struct error *err);

// Of options.documents too: a prompt of n_prompt tokens and its answer, one sequence, of which the answer alone is learned; its end is cut
// off where it is too long. *ret_taken false: the prompt leaves no room for an answer, and it is left out.
int dataset_append_answer(struct dataset *d, const uint32_t *tokens, size_t n, size_t n_prompt, bool *ret_taken, struct error *err);
// The first token to be learned of a sequence that the dataset gave: 1 but for answers.
uint32_t dataset_first(const struct dataset *d, const struct sequence *s);

// After the last append: fixes the list. dataset_split does it too.
int dataset_list(struct dataset *d, struct error *err);
uint32_t dataset_n_sequences(const struct dataset *d);
struct sequence dataset_at(const struct dataset *d, uint32_t i);       // tokens are the dataset's own, as below
void dataset_keep(struct dataset *d, const bool *keep);                // (n_sequences) the others leave the list
// Splits training from held-out sequences. ERROR_INVALID when nothing is left to train on.
int dataset_split(struct dataset *d, struct error *err);

uint64_t dataset_n_train(const struct dataset *d);
uint64_t dataset_n_held_out(const struct dataset *d);
// Training sequences come from an endless stream of places: each epoch is every one of them once.
uint64_t dataset_n_places(const struct dataset *d);
uint32_t dataset_per_place(const struct dataset *d);           // most sequences of a place; 1 unless packed
// Those of n places from `position` on: ret (n * per_place); returns how many.
// Not thread-safe: the order of the current epoch is kept inside.
uint32_t dataset_places_at(struct dataset *d, uint64_t position, uint32_t n, struct sequence *ret);
struct sequence dataset_train_at(struct dataset *d, uint64_t position);        // the first of a place

// Domains: what is appended up to a call of dataset_end_domain is one more of them. ERROR_TOO_LARGE. Splitting then refuses one without a
// training sequence. Not with options.packed.
int dataset_end_domain(struct dataset *d, struct error *err);
uint32_t dataset_n_domains(const struct dataset *d);
// (n_domains) where each ends, for a dataset that was made of another's bytes
const uint32_t *dataset_domain_ends(const struct dataset *d);
void dataset_set_domains(struct dataset *d, const uint32_t *ends, uint32_t n);         // before it is split
uint32_t dataset_held_out_domain(const struct dataset *d, uint64_t i);
// From its position on the stream is drawn by these shares, each domain with epochs of its own;
// how it stands at a position not before that.
void dataset_draw_domains(struct dataset *d, const struct dataset_domains *from);
void dataset_domains_at(struct dataset *d, uint64_t position, struct dataset_domains *ret);

// 64 random bits, a function of its arguments.
uint64_t dataset_random(uint64_t seed, uint64_t epoch, uint64_t i);
struct sequence dataset_held_out_at(const struct dataset *d, uint64_t i);
struct content_id dataset_id(const struct dataset *d);         // of the list: all its tokens, where sequences end, where they came from

// The list as bytes (the caller frees), with the id of what it was made from; and back, all checked. ERROR_CORRUPT.
int dataset_encode(const struct dataset *d, const struct content_id *source, uint8_t **ret_bytes, size_t *ret_n, struct error *err);
int dataset_decode(const struct dataset_options *options, const void *bytes, size_t n, struct content_id *ret_source, struct dataset **ret,
		   struct error *err);
