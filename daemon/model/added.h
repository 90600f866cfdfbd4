// SPDX-License-Identifier: Apache-2.0
// Added tokens: strings that become one id wherever they stand in the text, before anything else looks at it.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/model/normalizer.h"

struct error;

struct added_token {
	uint32_t id;
	uint32_t n;                  // bytes of `match`
	char *content;               // as written in the file, NUL-terminated
	char *match;                 // what is looked for: content, when `normalized` as the normalizer makes it
	bool special;                // can be ordinary text on demand; left out of decoded text on demand
	bool normalized;             // looked for after normalization, else before
	bool lstrip, rstrip;         // takes the white space on that side along
	bool single_word;            // only where no word character touches it
};

// Tokens of one phase, ordered by bytes so that the longest match at a place is found by narrowing a range.
struct added_set {
	struct added_token **list;
	size_t n;
	size_t first[257];           // by first byte: list[first[b]] .. list[first[b + 1] - 1]
};

struct added {
	struct added_token *tokens;  // ordered by id once finished
	size_t n, capacity;
	struct added_set set[2];     // [normalized]
};

int added_append(struct added *a, const struct added_token *flags, const char *content, size_t n, struct error *err);
// nfc, spaces: what the normalizer does to a text.
int added_finish(struct added *a, bool nfc, struct space_normalizer spaces, struct error *err);
void added_done(struct added *a);
const struct added_token *added_find(const struct added *a, uint32_t id);    // NULL when the id is not an added token's

struct added_match { const struct added_token *token; size_t begin, end; };

// The next match at or after *at in n bytes of text; specials = false passes over special ones. `covered`: the end of the match before.
// *at moves behind the match itself, without the white space it takes along. Linear in n times the longest token.
bool added_next(const struct added_set *set, const char *text, size_t n, bool specials, size_t covered, size_t *at,
		struct added_match *ret_match);
