// SPDX-License-Identifier: Apache-2.0
// The tokens of a byte-level vocabulary: id -> bytes, bytes -> id. Files spell a token's bytes in the GPT-2 alphabet (a printable
// character for each byte: space is U+0120); here tokens hold the bytes themselves. A token that is not so spelled, and any added
// token, is *literal*: its bytes are its spelling.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

#define VOCABULARY_MAX_IDS (1u << 24)
#define VOCABULARY_NONE UINT32_MAX

enum {
	TOKEN_PRESENT = 1,     // ids may have gaps
	TOKEN_LITERAL = 2,
	TOKEN_ADDED = 4,
	TOKEN_SPECIAL = 8,     // left out by tokenizer_decode(skip_special)
};

struct vocabulary_token {
	size_t offset;         // in `bytes`
	uint32_t n;
	uint32_t flags;
};

struct vocabulary {
	struct vocabulary_token *tokens;    // (n_ids)
	uint32_t n_ids;                     // highest id + 1
	uint32_t n_tokens;                  // present
	char *bytes;
	size_t n_bytes, bytes_capacity;
	uint32_t *slots;                    // open addressing: id + 1, 0 = empty
	size_t mask;
};

// Room for ids below n_ids, of which n_tokens will be added. Refuses ids past VOCABULARY_MAX_IDS and absurdly sparse ones.
int vocabulary_init(struct vocabulary *v, uint64_t n_ids, uint64_t n_tokens, struct error *err);
void vocabulary_done(struct vocabulary *v);

// spelling: as in the file. literal: take it as it is; else the alphabet is undone where the whole spelling is in it.
int vocabulary_append(struct vocabulary *v, uint64_t id, const char *spelling, size_t n, bool literal, struct error *err);
uint32_t vocabulary_find(const struct vocabulary *v, const char *bytes, size_t n, bool literal);
uint32_t vocabulary_find_spelling(const struct vocabulary *v, const char *spelling, size_t n);
static inline const char *vocabulary_bytes(const struct vocabulary *v, uint32_t id) { return v->bytes + v->tokens[id].offset; }

// The alphabet. encode writes at most 2n bytes and returns how many; decode at most n, or SIZE_MAX when a character is not in it.
size_t alphabet_encode(const char *bytes, size_t n, char *ret_spelling);
size_t alphabet_decode(const char *spelling, size_t n, char *ret_bytes);
