// SPDX-License-Identifier: Apache-2.0
// A door's view of one answer while it grows: what is new since it last looked, tokens and text.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/buffer.h"

struct error;
struct generation;
struct tokenizer;

struct generation_reader {             // zero-initialise
	uint32_t n_tokens;             // taken
	size_t n_text;                 // bytes taken
	struct buffer text;            // of all tokens taken
};

struct generation_news {
	uint32_t first, n;             // tokens first..first+n-1 of the answer are new
	const char *text;              // until the next take
	size_t text_bytes;
};

// complete: the item has come back for the last time, so all of it is sure; until then text is held back while it may be the beginning of
// a stop string or of a character.
int generation_reader_take(struct generation_reader *r, const struct generation *g, const struct tokenizer *tokenizer, bool complete,
			   struct generation_news *ret_news, struct error *err);
void generation_reader_done(struct generation_reader *r);
