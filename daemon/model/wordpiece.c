// SPDX-License-Identifier: Apache-2.0
#include "daemon/model/wordpiece.h"

#include <string.h>

#include "daemon/model/unicode.h"

#define PREFIX_BYTES (sizeof(WORDPIECE_PREFIX) - 1)
#define MAX_BYTES (4 * WORDPIECE_MAX_CHARACTERS)

// Where each of the word's characters begins, and its end; 0 when there are more than max.
static size_t characters_of(const char *text, size_t n, uint32_t max, size_t *ret_starts)
{
	size_t count = 0;
	unsigned length;

	for (size_t i = 0; i < n; i += length) {
		unicode_utf8_decode(text + i, &length);
		if (count == max)
			return 0;
		ret_starts[count++] = i;
	}
	ret_starts[count] = n;
	return count;
}

size_t wordpiece_encode(const struct wordpiece *w, const struct vocabulary *v, const char *text, size_t n,
			struct wordpiece_token *ret_tokens)
{
	size_t starts[WORDPIECE_MAX_CHARACTERS + 1], count = characters_of(text, n, w->max_characters, starts), n_tokens = 0;
	char spelled[PREFIX_BYTES + MAX_BYTES];

	memcpy(spelled, WORDPIECE_PREFIX, PREFIX_BYTES);
	for (size_t first = 0, last = 0; first < count; first = last) {
		uint32_t id = VOCABULARY_NONE;
		size_t begin = starts[first];

		if (first)
			memcpy(spelled + PREFIX_BYTES, text + begin, n - begin);
		for (last = count; last > first; last--) {
			size_t length = starts[last] - begin;
			id = first ? vocabulary_find(v, spelled, PREFIX_BYTES + length, true) : vocabulary_find(v, text, length, true);
			if (id != VOCABULARY_NONE)
				break;
		}
		if (id == VOCABULARY_NONE) {
			n_tokens = 0;
			break;
		}
		ret_tokens[n_tokens++] = (struct wordpiece_token){ id, begin, starts[last] };
	}
	if (n_tokens)
		return n_tokens;
	ret_tokens[0] = (struct wordpiece_token){ w->unknown, 0, n };
	return 1;
}

bool wordpiece_next(const char *text, size_t n, size_t *at, size_t *ret_begin, size_t *ret_end)
{
	bool found = false;
	unsigned length;

	for (; *at < n; *at += length) {
		uint32_t c = unicode_utf8_decode(text + *at, &length);
		bool space = unicode_class(c) == UNICODE_SPACE, alone = !space && unicode_is_punctuation(c);

		if (found && (space || alone))
			break;
		if (space)
			continue;
		if (!found)
			*ret_begin = *at;
		found = true;
		if (!alone)
			continue;
		*at += length;
		break;
	}
	*ret_end = *at;
	return found;
}

size_t wordpiece_join(const struct wordpiece *w, const char *bytes, size_t n, bool *ret_space)
{
	static const char *const close[] = { ".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re" };

	*ret_space = false;
	if (n >= PREFIX_BYTES && !memcmp(bytes, WORDPIECE_PREFIX, PREFIX_BYTES))
		return PREFIX_BYTES;
	*ret_space = true;
	for (size_t i = 0; w->cleanup && i < sizeof(close) / sizeof(close[0]); i++)
		if (n >= strlen(close[i]) && !memcmp(bytes, close[i], strlen(close[i])))
			*ret_space = false;
	return 0;
}
