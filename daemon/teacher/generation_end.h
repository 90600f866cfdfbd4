// SPDX-License-Identifier: Apache-2.0
// When an answer ends: at a token that ends it, before a string that does, or at its length. Written by the engine, token by token.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct request_item;
struct tokenizer;

struct generation_end {
	size_t longest;                    // of the stop strings, bytes
	size_t n_text;                     // bytes of the answer so far
	char *tail;                        // their last: what a stop string may have begun in; (longest - 1)
	size_t n_tail;
};

int generation_end_init(struct generation_end *e, const struct request_item *item);    // -ENOMEM
void generation_end_done(struct generation_end *e);
// Token `at` of the answer is written: publishes it and the text that is sure, and sets finish where it is the last; or sets item->error.
// given: it was forced, and ends nothing. eos_ids: two, -1 = none.
void generation_end_check(struct generation_end *e, struct request_item *item, const struct tokenizer *tokenizer, const int32_t *eos_ids,
			  uint32_t at, bool given);
