// SPDX-License-Identifier: Apache-2.0
// What the names of pre-tokenizers in GGUF metadata mean: one vocabulary, one text, cut as each name says.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/model/gguf.h"
#include "daemon/model/tokenizer.h"
#include "tests/unit/builder.h"

// "whole" cannot be made of its letters: who ignores merges finds it.
static const char *const tokens[] = {"<s>", "1", "2", "3", "4", "a", "B", "'", "s", "w", "h", "o", "l", "e",
				     "12", "123", "1234", "aB", "'s", "aB's", "whole"};
static const char *const merges[] = {"1 2", "12 3", "123 4", "a B", "' s", "aB 's"};
#define N_TOKENS (sizeof tokens / sizeof *tokens)
#define N_MERGES (sizeof merges / sizeof *merges)

static int open_with(const char *pre, struct tokenizer **ret, struct error *err)
{
	struct builder b = {0};
	struct gguf *file = NULL;
	build_gguf(&b, 3, 0, 5);
	build_key_string(&b, "tokenizer.ggml.model", "gpt2");
	build_key_string(&b, "tokenizer.ggml.pre", pre);
	build_key_u32(&b, "tokenizer.ggml.bos_token_id", 0);
	build_key_array(&b, "tokenizer.ggml.tokens", 8, N_TOKENS);
	for (size_t i = 0; i < N_TOKENS; i++)
		build_string(&b, tokens[i]);
	build_key_array(&b, "tokenizer.ggml.merges", 8, N_MERGES);
	for (size_t i = 0; i < N_MERGES; i++)
		build_string(&b, merges[i]);
	build_align(&b, 32);
	int r = gguf_open_bytes(b.bytes, b.n, &file, err);
	if (r == 0)
		r = tokenizer_open_gguf(file, ret, err);
	gguf_close(file);
	build_done(&b);
	return r;
}

static void cut(const char *pre, char *to, size_t n)
{
	static const char text[] = "1234aB's";
	struct tokenizer *t = NULL;
	struct error err = {0};
	struct tokens got = {0};
	if (open_with(pre, &t, &err) < 0 || tokenizer_encode(t, text, strlen(text), true, true, 64, &got, &err) < 0)
		fail_msg("%s: %s", pre, err.message);
	size_t at = 0;
	for (size_t i = 0; i < got.n; i++)
		at += (size_t)snprintf(to + at, n - at, "%s%s", i ? " " : "", tokens[got.ids[i]]);
	tokens_done(&got);
	tokenizer_close(t);
}

static void names_cut_as_their_models_do(void **state)
{
	(void)state;
	static const struct { const char *pre, *pieces; } cases[] = {
		{"gpt-2", "1234 aB 's"}, {"smollm", "1 2 3 4 aB 's"}, {"qwen2", "1 2 3 4 aB 's"}, {"llama-bpe", "<s> 123 4 aB 's"},
		{"dbrx", "123 4 aB 's"}, {"smaug-bpe", "123 4 aB 's"}, {"gpt-4o", "123 4 a B 's"}, {"tekken", "<s> 1 2 3 4 a B 's"},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		char pieces[128];
		cut(cases[i].pre, pieces, sizeof pieces);
		if (strcmp(pieces, cases[i].pieces) != 0)
			fail_msg("%s: \"%s\", expected \"%s\"", cases[i].pre, pieces, cases[i].pieces);
	}
}

static void whole_words_are_found_where_merges_are_ignored(void **state)
{
	(void)state;
	static const struct { const char *pre; size_t n; } cases[] = {{"llama-bpe", 2}, {"tekken", 2}, {"dbrx", 5}, {"gpt-4o", 5}};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct tokenizer *t = NULL;
		struct error err = {0};
		struct tokens got = {0};
		if (open_with(cases[i].pre, &t, &err) < 0 || tokenizer_encode(t, "whole", 5, true, true, 64, &got, &err) < 0)
			fail_msg("%s: %s", cases[i].pre, err.message);
		assert_int_equal(got.n, cases[i].n);
		tokens_done(&got);
		tokenizer_close(t);
	}
}

static void unknown_names_are_refused(void **state)
{
	(void)state;
	struct tokenizer *t = NULL;
	struct error err = {0};
	assert_int_equal(open_with("command-r", &t, &err), -EOPNOTSUPP);
	assert_string_equal(err.field, "tokenizer.ggml.pre");
	assert_string_equal(err.message, "pre-tokenizer command-r is not supported");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(names_cut_as_their_models_do),
		cmocka_unit_test(whole_words_are_found_where_merges_are_ignored),
		cmocka_unit_test(unknown_names_are_refused),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
