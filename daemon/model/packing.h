// SPDX-License-Identifier: Apache-2.0
// Tokens packed one after another into sequences of one length. Whoever trains on a corpus and whoever has captured a teacher's answers for
// it must come to the very same sequences: this is the one place where they are made.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct error;
struct tokenizer;

struct packing {
	uint32_t length;               // L >= 2
	uint32_t *prefix;              // (n_prefix < L) starts each sequence; own copy
	uint32_t n_prefix;
	uint32_t *tokens;              // packed sequences; the last may be incomplete
	size_t n_tokens, capacity;     // n_tokens < 2^32
};

int packing_init(struct packing *p, uint32_t length, const uint32_t *prefix, uint32_t n_prefix, struct error *err);
void packing_done(struct packing *p);
int packing_append(struct packing *p, const uint32_t *tokens, size_t n, struct error *err);
// Drops the first n sequences, which must be whole: for those who do not keep a corpus in memory.
void packing_drop(struct packing *p, size_t n);

// The prefix that goes with a tokenizer: what its own template puts before a text (a BOS), if that is all it does. *ret_n is 0 or 1.
int packing_prefix(const struct tokenizer *t, uint32_t *ret_prefix, uint32_t *ret_n, struct error *err);
