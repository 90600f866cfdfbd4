// SPDX-License-Identifier: Apache-2.0
// Byte-pair merging: from the bytes (or characters) of one piece, always the merge of lowest rank, leftmost first, until none applies.
// O(n log n) for a piece of n bytes, iterative. Which neighbours merge is said either by pairs of tokens (merges) or by what they spell
// together (SentencePiece: it must be a token, and those of higher score come first).
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "daemon/model/vocabulary.h"

struct error;

struct merge { uint32_t left, right, id; };    // id: of the merged token

struct merge_slot {
	uint64_t pair;         // left << 32 | right
	uint32_t rank;         // VOCABULARY_NONE = empty slot
};

struct bpe {
	struct merge *merges;            // by rank
	uint32_t n_merges, capacity;
	struct merge_slot *slots;
	size_t mask;
	uint32_t byte_ids[256];          // VOCABULARY_NONE where the vocabulary has no token for the byte
	uint32_t *ranks;                 // by what is spelled: (n_ids) of each token, VOCABULARY_NONE = nothing merges into it;
	                                 // NULL: by pairs
	const struct vocabulary *vocabulary;    // with ranks: where the spellings are, literal
	size_t longest;                  // with ranks: bytes of the longest token that has one
};

// One symbol of a piece while it is merged, at the index of its first byte: a doubly linked list. Kept small: a piece may be a megabyte.
struct symbol {
	uint32_t id, end;                // end: byte after its last
	uint32_t previous, next;         // indices, VOCABULARY_NONE at the ends
	uint32_t rank;                   // of the merge with `next`, VOCABULARY_NONE = there is none
};

struct bpe_work {                        // reused from piece to piece; zero-initialise
	struct symbol *symbols;          // the result: a list from `first` along `next`
	size_t capacity;
	uint32_t first, last;            // VOCABULARY_NONE when no byte of the piece has a token
	uint64_t *heap;                  // rank << 32 | position
	size_t n_heap;
};

// Room for n_merges; byte_ids from the vocabulary, which must be complete.
int bpe_init(struct bpe *bpe, const struct vocabulary *v, uint64_t n_merges, struct error *err);
void bpe_done(struct bpe *bpe);
// The next rank: spellings of both sides. All three tokens must be in the vocabulary.
int bpe_append(struct bpe *bpe, const struct vocabulary *v, const char *left, size_t n_left, const char *right, size_t n_right,
	       struct error *err);
// "left right" in one string.
int bpe_append_line(struct bpe *bpe, const struct vocabulary *v, const char *line, size_t n, struct error *err);

// Merges the n bytes of a piece into work->symbols. -ENOMEM.
int bpe_encode(const struct bpe *bpe, struct bpe_work *work, const uint8_t *bytes, size_t n);
void bpe_work_done(struct bpe_work *work);
// The same in parts, for symbols that are not single bytes: room for a piece of n bytes (-ENOMEM); each symbol in order, of the bytes
// [begin, end); merging. With ranks, symbols must leave no byte out, and the ids of merged ones are VOCABULARY_NONE.
int bpe_work_start(struct bpe_work *work, size_t n);
void bpe_work_append(struct bpe_work *work, uint32_t begin, uint32_t end, uint32_t id);
void bpe_merge(const struct bpe *bpe, struct bpe_work *work, const char *bytes);
