// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/tokenizer_lines.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/error.h"
#include "daemon/model/tokenizer.h"
#include "daemon/model/unicode.h"

#define N_LINES 10000
#define BLOCK 20
#define MAX_LINE 65536

struct line { char bytes[MAX_LINE]; size_t n; };

static uint32_t random_below(uint64_t *state, uint32_t n)    // splitmix64
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return (uint32_t)((z ^ z >> 31) >> 32) % n;
}

static void line_append(struct line *line, const char *bytes, size_t n)
{
	assert_true(line->n + n <= MAX_LINE);
	memcpy(line->bytes + line->n, bytes, n);
	line->n += n;
}

static void line_append_character(struct line *line, uint32_t c)
{
	char bytes[4];

	line_append(line, bytes, unicode_utf8_encode(c, bytes));
}

static void line_append_fragment(struct line *line, const json_t *fragments, uint32_t i)
{
	const json_t *fragment = json_array_get(fragments, i);

	line_append(line, json_string_value(fragment), json_string_length(fragment));
}

static void line_make(struct line *line, uint64_t *state, const json_t *fragments)
{
	uint32_t n_fragments = (uint32_t)json_array_size(fragments);

	line->n = 0;
	for (uint32_t i = 1 + random_below(state, 12); i > 0; i--) {
		uint32_t kind = random_below(state, 32);

		if (kind < 24) {
			line_append_fragment(line, fragments, random_below(state, n_fragments));
		} else if (kind < 26) {
			line_append_character(line, random_below(state, 0x800));
		} else if (kind < 28) {
			line_append_character(line, 0x800 + random_below(state, 0xd000));
		} else if (kind < 29) {
			line_append_character(line, 0x10000 + random_below(state, 0x22000));
		} else if (kind < 30) {
			line_append(line, (const char[]){ (char)(0x80 + random_below(state, 0x80)) }, 1);
		} else {
			uint32_t which = random_below(state, n_fragments);

			for (uint32_t times = 2 + random_below(state, 9); times > 0; times--)
				line_append_fragment(line, fragments, which);
		}
	}
}

static uint32_t crc32_ids(uint32_t crc, const struct tokens *tokens)
{
	crc = ~crc;
	for (size_t i = 0; i < 4 * tokens->n; i++) {
		crc ^= (tokens->ids[i / 4] >> (8 * (i % 4))) & 0xff;
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
	}
	return ~crc;
}

json_t *golden_load(const char *name)
{
	const char *top = getenv("top_srcdir");
	char path[4096];
	json_error_t why;
	json_t *root;

	snprintf(path, sizeof(path), "%s/tests/golden/tokenizer/%s", top ? top : ".", name);
	root = json_load_file(path, JSON_ALLOW_NUL, &why);
	if (!root)
		fail_msg("%s: %s", path, why.text);
	return root;
}

struct tokenizer *golden_open(const json_t *root)
{
	char *text = json_dumps(root, 0);
	struct tokenizer *t = NULL;
	struct error err = { 0 };

	assert_non_null(text);
	if (tokenizer_open_json(text, strlen(text), &t, &err))
		fail_msg("%s: %s", err.field, err.message);
	free(text);
	return t;
}

json_t *golden_variant(const json_t *base, const json_t *changes)
{
	json_t *whole = json_deep_copy(base), *model = json_deep_copy(json_object_get(base, "model"));

	json_object_update(model, json_object_get(changes, "model"));
	json_object_update(whole, (json_t *)changes);
	json_object_set_new(whole, "model", model);
	return whole;
}

static void full_compare(const struct tokens *tokens, const json_t *expected, const char *name, int number)
{
	for (size_t i = 0; i < tokens->n && i < json_array_size(expected); i++)
		if (tokens->ids[i] != json_integer_value(json_array_get(expected, i)))
			fail_msg("%s: line %d: token %zu is %u, not %lld", name, number, i, tokens->ids[i],
				 (long long)json_integer_value(json_array_get(expected, i)));
	if (tokens->n != json_array_size(expected))
		fail_msg("%s: line %d: %zu tokens, not %zu", name, number, tokens->n, json_array_size(expected));
}

void golden_compare(const struct tokenizer *t, const char *name)
{
	golden_compare_in(t, "expected.json", name);
}

void golden_compare_in(const struct tokenizer *t, const char *file, const char *name)
{
	json_t *fragments = golden_load("fragments.json"), *all = golden_load(file);
	const json_t *expected = json_object_get(all, name), *full = json_object_get(expected, "full");
	const char *blocks = json_string_value(json_object_get(expected, "blocks"));
	static struct line line;
	struct tokens tokens = { 0 };
	uint64_t state = 2026;
	uint32_t crc = 0;

	assert_non_null(blocks);
	assert_int_equal(strlen(blocks), 8 * N_LINES / BLOCK);
	for (int i = 0; i < N_LINES; i++) {
		struct error err = { 0 };
		char hex[9];

		line_make(&line, &state, fragments);
		// Every second block takes special tokens for text; the template is applied throughout.
		if (tokenizer_encode(t, line.bytes, line.n, i / BLOCK % 2 == 0, true, SIZE_MAX, &tokens, &err))
			fail_msg("%s: line %d: %s", name, i, err.message);
		if ((size_t)i < json_array_size(full))
			full_compare(&tokens, json_array_get(full, (size_t)i), name, i);
		crc = crc32_ids(crc, &tokens);
		if (i % BLOCK < BLOCK - 1)
			continue;
		snprintf(hex, sizeof(hex), "%08x", crc);
		if (memcmp(hex, blocks + 8 * (i / BLOCK), 8))
			fail_msg("%s: lines %d to %d differ from the reference", name, i - BLOCK + 1, i);
		crc = 0;
	}
	tokens_done(&tokens);
	json_decref(fragments);
	json_decref(all);
}
