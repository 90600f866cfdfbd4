// SPDX-License-Identifier: Apache-2.0
// One arena of bytes, one table of ids, one hash from bytes to id.
#include "daemon/model/vocabulary.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/unicode.h"

// Gaps among ids cost 16 bytes each; a file of a few tokens must not ask for 256 MiB of them.
#define MAX_GAPS_PER_TOKEN 16
#define FREE_GAPS 65536

// GPT-2's alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100, U+0101, ... in order.
static bool byte_is_plain(unsigned byte)
{
	return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
}

static uint32_t alphabet_character(uint8_t byte)
{
	if (byte_is_plain(byte))
		return byte;
	return 0x100 + (byte <= 0x20 ? byte : byte <= 0xa0 ? 33u + byte - 0x7f : 67u);    // 33 below '!', then 0x7f..0xa0, last 0xad
}

static int alphabet_byte(uint32_t c)
{
	if (c < 0x100)
		return byte_is_plain(c) ? (int)c : -1;
	c -= 0x100;
	return c <= 0x20 ? (int)c : c < 67 ? (int)(c - 33 + 0x7f) : c == 67 ? 0xad : -1;
}

size_t alphabet_encode(const char *bytes, size_t n, char *ret_spelling)
{
	size_t at = 0;

	for (size_t i = 0; i < n; i++)
		at += unicode_utf8_encode(alphabet_character((uint8_t)bytes[i]), ret_spelling + at);
	return at;
}

size_t alphabet_decode(const char *spelling, size_t n, char *ret_bytes)
{
	size_t at = 0;

	for (size_t i = 0; i < n;) {
		int length = unicode_utf8_length((const uint8_t *)spelling + i, n - i);
		unsigned ignored;
		int byte = length > 0 ? alphabet_byte(unicode_utf8_decode(spelling + i, &ignored)) : -1;

		if (byte < 0)
			return SIZE_MAX;
		ret_bytes[at++] = (char)byte;
		i += (size_t)length;
	}
	return at;
}

static size_t token_hash(const char *bytes, size_t n, bool literal)
{
	uint64_t h = 0xcbf29ce484222325u ^ literal;

	for (size_t i = 0; i < n; i++)
		h = (h ^ (uint8_t)bytes[i]) * 0x100000001b3u;
	return (size_t)(h ^ h >> 29);
}

int vocabulary_init(struct vocabulary *v, uint64_t n_ids, uint64_t n_tokens, struct error *err)
{
	size_t slots = 16;

	memset(v, 0, sizeof(*v));
	if (!n_tokens || !n_ids)
		return error_set(err, ERROR_INVALID, "vocab", "the vocabulary is empty");
	if (n_ids > VOCABULARY_MAX_IDS || n_tokens > VOCABULARY_MAX_IDS)
		return error_set(err, ERROR_TOO_LARGE, "vocab", "token id %llu is over the limit of %u", (unsigned long long)n_ids - 1,
				 VOCABULARY_MAX_IDS - 1);
	if (n_ids > n_tokens * MAX_GAPS_PER_TOKEN + FREE_GAPS)
		return error_set(err, ERROR_INVALID, "vocab", "token id %llu is absurd among %llu tokens", (unsigned long long)n_ids - 1,
				 (unsigned long long)n_tokens);
	while (slots < 2 * n_tokens)
		slots *= 2;
	v->tokens = calloc(n_ids, sizeof(*v->tokens));
	v->slots = calloc(slots, sizeof(*v->slots));
	if (!v->tokens || !v->slots) {
		vocabulary_done(v);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for %llu tokens", (unsigned long long)n_tokens);
	}
	v->n_ids = (uint32_t)n_ids;
	v->mask = slots - 1;
	return 0;
}

void vocabulary_done(struct vocabulary *v)
{
	free(v->tokens);
	free(v->bytes);
	free(v->slots);
	memset(v, 0, sizeof(*v));
}

// The slot of these bytes, or the empty one where they would go.
static uint32_t *slot_find(const struct vocabulary *v, const char *bytes, size_t n, bool literal)
{
	for (size_t i = token_hash(bytes, n, literal);; i++) {
		uint32_t *slot = &v->slots[i & v->mask];

		if (!*slot)
			return slot;
		const struct vocabulary_token *token = &v->tokens[*slot - 1];

		if (token->n == n && !(token->flags & TOKEN_LITERAL) == !literal && !memcmp(v->bytes + token->offset, bytes, n))
			return slot;
	}
}

static int bytes_reserve(struct vocabulary *v, size_t n)
{
	size_t capacity = v->bytes_capacity ? v->bytes_capacity : 4096;
	char *grown;

	while (capacity - v->n_bytes < n)
		if (__builtin_mul_overflow(capacity, 2, &capacity))
			return -ENOMEM;
	if (capacity == v->bytes_capacity)
		return 0;
	grown = realloc(v->bytes, capacity);
	if (!grown)
		return -ENOMEM;
	v->bytes = grown;
	v->bytes_capacity = capacity;
	return 0;
}

// Literal spellings go into JSON again: well-formed UTF-8 without NUL.
static bool spelling_is_text(const char *spelling, size_t n)
{
	for (size_t i = 0; i < n;) {
		int length = unicode_utf8_length((const uint8_t *)spelling + i, n - i);

		if (length < 0 || !spelling[i])
			return false;
		i += (size_t)length;
	}
	return true;
}

int vocabulary_append(struct vocabulary *v, uint64_t id, const char *spelling, size_t n, bool literal, struct error *err)
{
	size_t n_bytes = SIZE_MAX;
	uint32_t *slot;

	if (id >= v->n_ids || v->n_tokens >= (v->mask + 1) / 2)
		return error_set(err, ERROR_INVALID, "vocab", "token id %llu is out of range", (unsigned long long)id);
	if (v->tokens[id].flags & TOKEN_PRESENT)
		return error_set(err, ERROR_INVALID, "vocab", "token id %llu is given twice", (unsigned long long)id);
	if (n > UINT32_MAX)
		return error_set(err, ERROR_TOO_LARGE, "vocab", "token %llu is too long", (unsigned long long)id);
	if (bytes_reserve(v, n + 1))
		return error_set(err, ERROR_MEMORY, NULL, "no memory for token %llu", (unsigned long long)id);
	if (!literal)
		n_bytes = alphabet_decode(spelling, n, v->bytes + v->n_bytes);
	literal = n_bytes == SIZE_MAX;
	if (literal && !spelling_is_text(spelling, n))
		return error_set(err, ERROR_INVALID, "vocab", "token %llu is not text", (unsigned long long)id);
	if (literal) {
		memcpy(v->bytes + v->n_bytes, spelling, n);
		n_bytes = n;
	}
	slot = slot_find(v, v->bytes + v->n_bytes, n_bytes, literal);
	if (*slot)
		return error_set(err, ERROR_INVALID, "vocab", "tokens %u and %llu have the same text", *slot - 1, (unsigned long long)id);
	*slot = (uint32_t)id + 1;
	v->tokens[id] = (struct vocabulary_token){ v->n_bytes, (uint32_t)n_bytes, TOKEN_PRESENT | (literal ? TOKEN_LITERAL : 0) };
	v->n_bytes += n_bytes;
	v->n_tokens++;
	return 0;
}

uint32_t vocabulary_find(const struct vocabulary *v, const char *bytes, size_t n, bool literal)
{
	return v->slots ? *slot_find(v, bytes, n, literal) - 1 : VOCABULARY_NONE;
}

uint32_t vocabulary_find_spelling(const struct vocabulary *v, const char *spelling, size_t n)
{
	char *bytes = malloc(n + 1);
	uint32_t id = VOCABULARY_NONE;

	if (!bytes)
		return id;
	size_t n_bytes = alphabet_decode(spelling, n, bytes);

	if (n_bytes != SIZE_MAX)
		id = vocabulary_find(v, bytes, n_bytes, false);
	if (id == VOCABULARY_NONE)
		id = vocabulary_find(v, spelling, n, true);
	free(bytes);
	return id;
}
