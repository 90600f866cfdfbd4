// SPDX-License-Identifier: Apache-2.0
// Leftmost, longest; the flags then may veto a match or widen it over white space, exactly in the reference's order.
#include "daemon/model/added.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/normalizer.h"
#include "daemon/model/unicode.h"

#define MAX_ADDED_BYTES 1024    // of one token: bounds the work at each place of a text

int added_append(struct added *a, const struct added_token *flags, const char *content, size_t n, struct error *err)
{
	if (!n || n > MAX_ADDED_BYTES || memchr(content, 0, n))
		return error_set(err, ERROR_INVALID, "added_tokens", "added token %u has %zu bytes (1 to %d, without NUL, are allowed)",
				 flags->id, n, MAX_ADDED_BYTES);
	if (a->n == a->capacity) {
		size_t capacity = a->capacity ? 2 * a->capacity : 32;
		struct added_token *tokens = realloc(a->tokens, capacity * sizeof(*tokens));

		if (!tokens)
			return error_set(err, ERROR_MEMORY, NULL, "no memory for added tokens");
		a->tokens = tokens;
		a->capacity = capacity;
	}
	struct added_token *token = &a->tokens[a->n];

	*token = *flags;
	token->match = NULL;
	token->content = strndup(content, n);
	if (!token->content)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for added tokens");
	a->n++;
	return 0;
}

static int id_compare(const void *a, const void *b)
{
	const struct added_token *x = a, *y = b;

	return x->id < y->id ? -1 : x->id > y->id;
}

static int match_compare(const void *a, const void *b)
{
	const struct added_token *x = *(struct added_token *const *)a, *y = *(struct added_token *const *)b;

	return strcmp(x->match, y->match);
}

static int match_init(struct added_token *token, bool nfc, struct space_normalizer spaces)
{
	struct source_text given = { .bytes = token->content, .n = strlen(token->content) }, normal;
	int ret = 0;

	if (nfc && token->normalized)
		ret = source_text_nfc(&normal, &given, 0, given.n);
	else if ((spaces.prepend || spaces.replace) && token->normalized)
		ret = source_text_spaces(&normal, &given, 0, given.n, spaces);
	else
		source_text_view(&normal, &given, 0, given.n);
	if (ret)
		return ret;
	token->match = strndup(normal.bytes, normal.n);
	token->n = (uint32_t)normal.n;
	source_text_done(&normal);
	return token->match ? 0 : -ENOMEM;
}

static int set_init(struct added_set *set, struct added *a, bool normalized)
{
	size_t at = 0;

	set->list = calloc(a->n + 1, sizeof(struct added_token *));
	if (!set->list)
		return -ENOMEM;
	for (size_t i = 0; i < a->n; i++)
		if (a->tokens[i].normalized == normalized)
			set->list[set->n++] = &a->tokens[i];
	qsort(set->list, set->n, sizeof(struct added_token *), match_compare);
	for (unsigned byte = 0; byte < 256; byte++) {
		set->first[byte] = at;
		while (at < set->n && (uint8_t)set->list[at]->match[0] == byte)
			at++;
	}
	set->first[256] = at;
	return 0;
}

int added_finish(struct added *a, bool nfc, struct space_normalizer spaces, struct error *err)
{
	int ret = 0;

	if (a->n)      // qsort must not be given NULL, even for nothing
		qsort(a->tokens, a->n, sizeof(*a->tokens), id_compare);
	for (size_t i = 1; i < a->n; i++)
		if (a->tokens[i].id == a->tokens[i - 1].id)
			return error_set(err, ERROR_INVALID, "added_tokens", "added token id %u is given twice", a->tokens[i].id);
	for (size_t i = 0; i < a->n && !ret; i++)
		ret = match_init(&a->tokens[i], nfc, spaces);
	if (!ret)
		ret = set_init(&a->set[0], a, false);
	if (!ret)
		ret = set_init(&a->set[1], a, true);
	if (ret)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for added tokens");
	for (unsigned s = 0; s < 2; s++)
		for (size_t i = 1; i < a->set[s].n; i++)
			if (!match_compare(&a->set[s].list[i - 1], &a->set[s].list[i]))
				return error_set(err, ERROR_INVALID, "added_tokens", "added tokens %u and %u have the same text",
						 a->set[s].list[i - 1]->id, a->set[s].list[i]->id);
	return 0;
}

void added_done(struct added *a)
{
	for (size_t i = 0; i < a->n; i++) {
		free(a->tokens[i].content);
		free(a->tokens[i].match);
	}
	free(a->tokens);
	free(a->set[0].list);
	free(a->set[1].list);
	memset(a, 0, sizeof(*a));
}

const struct added_token *added_find(const struct added *a, uint32_t id)
{
	struct added_token key = { .id = id };

	return a->n ? bsearch(&key, a->tokens, a->n, sizeof(*a->tokens), id_compare) : NULL;
}

// First of list[low..high), equal in the bytes before `depth`, whose byte there is >= `byte`.
static size_t range_bound(const struct added_set *set, size_t low, size_t high, size_t depth, unsigned byte)
{
	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if ((uint8_t)set->list[middle]->match[depth] < byte)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static const struct added_token *longest_at(const struct added_set *set, const char *text, size_t n)
{
	size_t low = set->first[(uint8_t)text[0]], high = set->first[(uint8_t)text[0] + 1];
	const struct added_token *best = NULL;

	for (size_t depth = 1; low < high; depth++) {
		unsigned byte;

		if (set->list[low]->n == depth)    // the shortest of a range with a common prefix comes first
			best = set->list[low];
		if (depth == n)
			break;
		byte = (uint8_t)text[depth];
		if (!byte)
			break;
		low = range_bound(set, low, high, depth, byte);
		high = range_bound(set, low, high, depth, byte + 1);
	}
	return best;
}

// The character that ends at `at` > 0.
static uint32_t character_before(const char *text, size_t at, size_t *ret_begin)
{
	unsigned n;

	do
		at--;
	while (((uint8_t)text[at] & 0xc0) == 0x80);
	*ret_begin = at;
	return unicode_utf8_decode(text + at, &n);
}

static bool touches_word(const char *text, size_t n, size_t begin, size_t end)
{
	size_t before;
	unsigned ignored;

	if (begin > 0 && unicode_is_word(unicode_class(character_before(text, begin, &before))))
		return true;
	return end < n && unicode_is_word(unicode_class(unicode_utf8_decode(text + end, &ignored)));
}

static void match_widen(struct added_match *m, const char *text, size_t n, size_t covered)
{
	size_t before;
	unsigned bytes;

	while (m->token->lstrip && m->begin > covered && unicode_class(character_before(text, m->begin, &before)) == UNICODE_SPACE)
		m->begin = before;
	while (m->token->rstrip && m->end < n && unicode_class(unicode_utf8_decode(text + m->end, &bytes)) == UNICODE_SPACE)
		m->end += bytes;
}

bool added_next(const struct added_set *set, const char *text, size_t n, bool specials, size_t covered, size_t *at,
		struct added_match *ret_match)
{
	for (size_t i = *at; set->n && i < n;) {
		const struct added_token *token = longest_at(set, text + i, n - i);
		size_t begin = i;

		if (!token) {
			i++;
			continue;
		}
		i += token->n;
		// One inside the white space that the match before has taken along is found all the same, as in the reference.
		if ((!specials && token->special) || (token->single_word && touches_word(text, n, begin, i)))
			continue;
		*at = i;
		*ret_match = (struct added_match){ token, begin, i };
		match_widen(ret_match, text, n, covered);
		return true;
	}
	return false;
}
