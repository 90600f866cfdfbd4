// SPDX-License-Identifier: Apache-2.0
// SentencePiece's kind of BPE (Llama 2, Mistral, Mixtral, Gemma): symbols are characters, a space is the character U+2581, one may be put
// before the text, and a character without a token becomes its bytes' tokens "<0x00>" to "<0xFF>" or the unknown token. Tokens are kept as
// files spell them; what they stand for in a text is another string.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/model/added.h"
#include "daemon/model/bpe.h"
#include "daemon/model/normalizer.h"
#include "daemon/model/vocabulary.h"

struct error;

#define SENTENCEPIECE_MAX_SCORED 1024    // bytes of a token that others merge into: bounds the work at each place of a text

enum space_prefix { SPACE_PREFIX_NEVER, SPACE_PREFIX_FIRST, SPACE_PREFIX_ALWAYS };    // which stretches of text a space is put before
enum space_strip {                     // what decoding leaves out at the beginning of a text
	SPACE_STRIP_NONE,
	SPACE_STRIP_ONE,
	SPACE_STRIP_MARKS,             // every U+2581 of the first token
};

struct sentencepiece {
	bool on;                                 // the tokenizer is one
	struct space_normalizer normalizer;      // the first pass over a stretch between added tokens
	bool metaspace, split;                   // the pass after the second search for them; whether it cuts before each space
	enum space_prefix prefix;                // of that pass
	bool fallback;                           // a character without a token becomes its bytes'
	bool fuse;                               // several unknown characters in a row are one token
	uint32_t unknown;                        // id; VOCABULARY_NONE: such characters are left out
	bool decode_bytes;                       // "<0x41>" stands for A
	enum space_strip strip;
	uint32_t byte_ids[256];                  // VOCABULARY_NONE where the vocabulary has none
	char *text;                              // what the ids stand for, one after the other
	size_t *ends;                            // (n_ids) behind each
};

// Once vocabulary, flags and added tokens are finished: the bytes' tokens and what ids stand for.
int sentencepiece_finish(struct sentencepiece *s, const struct vocabulary *v, const struct added *added, struct error *err);
void sentencepiece_done(struct sentencepiece *s);

// Whether a space is put before a stretch of text: the first of a text, or one that follows an added token.
bool sentencepiece_prefixes(const struct sentencepiece *s, bool first);
// The bytes that id stands for (a view).
const char *sentencepiece_text(const struct sentencepiece *s, uint32_t id, size_t *ret_n);
// A spelling without its marks, into ret (room for n bytes). Returns how many bytes are left.
size_t sentencepiece_strip(const char *spelling, size_t n, char *ret);
// Ids of the n bytes of a piece, n > 0, well-formed UTF-8, into work's list of symbols. -ENOMEM.
int sentencepiece_encode(const struct sentencepiece *s, const struct bpe *bpe, const struct vocabulary *v, struct bpe_work *work,
			 const char *bytes, size_t n);
// End of the piece that begins at `at` < n: before the next mark.
size_t sentencepiece_cut(const char *text, size_t n, size_t at);
// Scores (n_ids; of those that are not mergeable not looked at) -> bpe->ranks: equal scores, equal ranks.
int sentencepiece_rank(struct bpe *bpe, const struct vocabulary *v, const float *scores, const bool *mergeable, struct error *err);
