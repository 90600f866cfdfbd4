// SPDX-License-Identifier: Apache-2.0
// Text on its way into the tokenizer, with the way back: which bytes of the caller's text each byte came from.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct source_text {
	const char *bytes;            // well-formed UTF-8; `owned`, or a view
	size_t n;
	uint32_t base;                // caller's offset of the first byte when begin is NULL (then bytes are as the caller gave them)
	uint32_t *begin, *end;        // (n) caller's range behind each byte, or NULL
	char *owned;
	size_t capacity;
};

static inline uint32_t source_text_begin(const struct source_text *t, size_t i) { return t->begin ? t->begin[i] : t->base + (uint32_t)i; }
static inline uint32_t source_text_end(const struct source_text *t, size_t i) { return t->end ? t->end[i] : t->base + (uint32_t)i + 1; }

// A view of n caller's bytes, repaired: each maximal ill-formed subsequence becomes U+FFFD. n < 2^32. -ENOMEM.
int source_text_init(struct source_text *t, const char *bytes, size_t n);
// NFC of bytes [begin, end) of `in`: a view where nothing changes. A composed character refers to all the bytes it was made of. -ENOMEM.
int source_text_nfc(struct source_text *t, const struct source_text *in, size_t begin, size_t end);
// BERT's: characters taken out or made spaces, ideographs set apart, accents taken off (NFD without \p{Mn}), lower case. -ENOMEM.
struct bert_normalizer { bool clean, ideographs, strip_accents, lower; };
int source_text_bert(struct source_text *t, const struct source_text *in, size_t begin, size_t end, const struct bert_normalizer *how);
// SentencePiece's spelling of spaces: a mark (U+2581) for each, and one put before the text,
// which stands for no byte of the caller's. -ENOMEM.
#define SPACE_MARK "\xe2\x96\x81"
#define SPACE_MARK_BYTES (sizeof(SPACE_MARK) - 1)
struct space_normalizer { bool prepend, replace; };
int source_text_spaces(struct source_text *t, const struct source_text *in, size_t begin, size_t end, struct space_normalizer how);
// A view of bytes [begin, end) of `in`, which must outlive it.
void source_text_view(struct source_text *t, const struct source_text *in, size_t begin, size_t end);
void source_text_done(struct source_text *t);
