// SPDX-License-Identifier: Apache-2.0
// WordPiece, BERT's way from a word to tokens: the longest token that the word begins with, then the longest that goes on with it, spelled
// with a prefix ("##"). A word that cannot be cut so, or is too long, is the unknown token.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/model/normalizer.h"
#include "daemon/model/vocabulary.h"

struct error;

#define WORDPIECE_PREFIX "##"
#define WORDPIECE_MAX_CHARACTERS 256     // of a word, at most: its work is the square of that

struct wordpiece {
	bool on;                         // the tokenizer is one
	struct bert_normalizer normalizer;
	bool cleanup;                    // decoding puts no space before punctuation
	uint32_t unknown;                // id
	uint32_t max_characters;         // of a word
};

struct wordpiece_token { uint32_t id; size_t begin, end; };
// Cuts the word text[0..n), n > 0, well-formed; ret_tokens has room for WORDPIECE_MAX_CHARACTERS. Returns how many.
size_t wordpiece_encode(const struct wordpiece *w, const struct vocabulary *v, const char *text, size_t n,
			struct wordpiece_token *ret_tokens);
// The next word of text from *at on, as BERT's pre-tokenizer cuts: at white space, which goes, and around each punctuation character. False
// at the end.
bool wordpiece_next(const char *text, size_t n, size_t *at, size_t *ret_begin, size_t *ret_end);
// What decoding puts for token `bytes` that is not the first: how many of its bytes are left out at the front, and whether a space comes
// before.
size_t wordpiece_join(const struct wordpiece *w, const char *bytes, size_t n, bool *ret_space);
