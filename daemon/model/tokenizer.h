// SPDX-License-Identifier: Apache-2.0
// Byte-level BPE, WordPiece and SentencePiece's BPE: text <-> token ids, with byte offsets. Equal to Hugging Face `tokenizers` (from the
// scores of a GGUF file: to SentencePiece) on valid UTF-8. n log n time at most, no recursion on the input's length. Invalid UTF-8: each
// maximal ill-formed subsequence is replaced by U+FFFD before splitting (as Python's errors="replace" does); offsets refer to the bytes the
// caller gave. Immutable once open: any number of threads may use one.
// A byte for which the vocabulary has no token (SmolLM2 lacks some control characters) is left out, as in the reference.
//
// Some put a space before a text that has none there (Llama 2, Mistral; not Gemma). Its token's bytes begin with that space, which is no
// byte of the text: offsets leave it out, and so does tokenizer_decode() at a text's beginning.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/sequence.h"

struct error;
struct gguf;
struct tokenizer;

// Bytes of the input, end exclusive. Exact: a token that holds part of a character covers that part only (the reference counts whole
// characters); the tokens of one replaced or composed character all cover what it stands for. Tokens of the template: {0, 0}. A space that
// is put before a stretch is an empty range at its beginning.
struct token_offsets { uint32_t begin, end; };

struct tokens {                                       // a growing result; zero-initialise, tokens_done frees
	uint32_t *ids;
	struct token_offsets *offsets;
	size_t n, capacity;
};
void tokens_done(struct tokens *t);

int tokenizer_open_json(const char *json, size_t n, struct tokenizer **ret, struct error *err);      // tokenizer.json
int tokenizer_open_gguf(const struct gguf *file, struct tokenizer **ret, struct error *err);         // tokenizer.ggml.* metadata
// Takes from the text of a tokenizer_config.json the tokens that begin and end a text, where the tokenizer knows none.
// Before others use it.
int tokenizer_read_ends(struct tokenizer *t, const char *json, size_t n, struct error *err);
// A GGUF file, a Hugging Face directory (its tokenizer.json is enough) or a tokenizer.json; with the tokenizer_config.json beside that.
int tokenizer_open_path(const char *path, struct tokenizer **ret, struct error *err);
struct tokenizer *tokenizer_close(struct tokenizer *t);

// specials: whether special tokens written in the text become their ids (else they are ordinary text); add_special: whether the
// tokenizer's own template (such as a leading BOS) is applied. Replaces what `ret` held (its arrays are used again), also when it
// fails. At most max_tokens are made: more is ERROR_TOO_LARGE, and so is a text of 1 GiB.
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, bool specials, bool add_special, size_t max_tokens,
		     struct tokens *ret, struct error *err);
// The same for text that goes on from another piece of a text: without the template, and with no space put before its beginning.
int tokenizer_encode_part(const struct tokenizer *t, const char *text, size_t n, bool specials, size_t max_tokens, struct tokens *ret,
			  struct error *err);
// The bytes of the ids, in order; skip_special leaves out special tokens. The caller frees *ret_text (also NUL-terminated).
int tokenizer_decode(const struct tokenizer *t, const uint32_t *ids, size_t n, bool skip_special, char **ret_text, size_t *ret_n,
		     struct error *err);
// The same for ids that go on from others: no space is left out at the beginning.
// What the parts give is what the whole gives after the first.
int tokenizer_decode_part(const struct tokenizer *t, const uint32_t *ids, size_t n, bool skip_special, char **ret_text, size_t *ret_n,
			  struct error *err);
// Whether encoding puts a space before a stretch of text: the first of one, or (first = false) what follows a special token.
bool tokenizer_puts_space(const struct tokenizer *t, bool first);
// The bytes of one id (a view; not terminated), and whether it is special; either may be NULL. NULL: no such token (ids may have gaps).
const char *tokenizer_bytes(const struct tokenizer *t, uint32_t id, size_t *ret_n, bool *ret_special);
// Whether id stands for one byte of characters that have no token.
bool tokenizer_is_fallback(const struct tokenizer *t, uint32_t id);
uint32_t tokenizer_vocab_size(const struct tokenizer *t);       // highest id + 1
// GGUF: as the file says. tokenizer.json names neither: what its template puts before and after a text,
// or tokenizer_read_ends(). -1 = none.
int32_t tokenizer_bos(const struct tokenizer *t);
int32_t tokenizer_eos(const struct tokenizer *t);
struct content_id tokenizer_id(const struct tokenizer *t);      // of the meaning (vocabulary, merges, pattern, specials), not of the file
// tokenizer.json / tokenizer_config.json that `transformers` loads as PreTrainedTokenizerFast with the same results. Caller frees.
int tokenizer_to_json(const struct tokenizer *t, char **ret_json, size_t *ret_n, struct error *err);
int tokenizer_config_to_json(const struct tokenizer *t, char **ret_json, size_t *ret_n, struct error *err);
