// SPDX-License-Identifier: Apache-2.0
// The hand-written matchers cut exactly where PCRE2 cuts with the pattern they stand for, on random strings of awkward characters.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/error.h"
#include "daemon/model/pretokenizer.h"
#include "daemon/model/unicode.h"

#define N_STRINGS 60000
#define MAX_CHARACTERS 24

// Few of each kind, so that every meeting of kinds happens often. All are older than any Unicode that PCRE2 may have.
static const uint32_t characters[] = {
	'a', 'B', 's', 'S', 't', 'r', 'e', 'v', 'm', 'l', 'L', 'd', 0x17f, 0xe9, 0x4e2d, 0x5d0, 0x301, '\'', '\'', '\'', '0', '7', 0x663,
	0xbd, 0x2167, ' ', ' ', ' ', '\n', '\n', '\r', '\t', '\v', 0x85, 0xa0, 0x3000, 0x2028, 0x180e, 0x200b, '_', '!', '-', '.',
	0x3002, 0x1f600, 0x200d,
};

static uint32_t random_below(uint64_t *state, uint32_t n)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(*state >> 33) % n;
}

static size_t string_make(uint64_t *state, char *text)
{
	size_t n = 0;

	for (uint32_t i = 1 + random_below(state, MAX_CHARACTERS); i > 0; i--)
		n += unicode_utf8_encode(characters[random_below(state, sizeof(characters) / sizeof(characters[0]))], text + n);
	return n;
}

static void walk_open(struct pretokenizer *p, struct pretokenizer_walk *w, const char *pattern, bool plain)
{
	struct error err = { 0 };

	memset(p, 0, sizeof(*p));
	if (pretokenizer_append_pattern(p, pattern, strlen(pattern), plain, &err) || pretokenizer_walk_init(w, p, &err))
		fail_msg("%s", err.message);
	assert_int_equal(p->steps[0].kind == PRETOKENIZER_REGEX, plain);
}

static void matcher_check(const char *pattern)
{
	struct pretokenizer by_hand, by_pcre;
	struct pretokenizer_walk hand, pcre;
	uint64_t state = 5;

	walk_open(&by_hand, &hand, pattern, false);
	walk_open(&by_pcre, &pcre, pattern, true);
	for (int i = 0; i < N_STRINGS; i++) {
		char text[4 * MAX_CHARACTERS];
		size_t n = string_make(&state, text), begin, end, begin2, end2, covered = 0;
		int more;

		pretokenizer_start(&hand, text, n);
		pretokenizer_start(&pcre, text, n);
		do {
			more = pretokenizer_next(&hand, &begin, &end, NULL);
			assert_int_equal(pretokenizer_next(&pcre, &begin2, &end2, NULL), more);
			if (more && (begin != begin2 || end != end2 || begin != covered || end <= begin))
				fail_msg("\"%.*s\": %zu..%zu by hand, %zu..%zu in PCRE2", (int)n, text, begin, end, begin2, end2);
			covered = more ? end : covered;
		} while (more);
		assert_int_equal(covered, n);
	}
	pretokenizer_walk_done(&hand);
	pretokenizer_walk_done(&pcre);
	pretokenizer_done(&by_hand);
	pretokenizer_done(&by_pcre);
}

static void gpt2_matcher_equals_its_pattern(void **state)
{
	(void)state;
	matcher_check(PATTERN_GPT2);
}

static void llama3_matcher_equals_its_pattern(void **state)
{
	(void)state;
	matcher_check(PATTERN_LLAMA3);
}

static void qwen2_matcher_equals_its_pattern(void **state)
{
	(void)state;
	matcher_check(PATTERN_QWEN2);
}

static void patterns_that_mean_something_else_are_refused(void **state)
{
	static const char *const patterns[] = { "\\h+", "a\\b", "[a[b]]", "[a&&b]", "(?R)", "(?1)", "(*UTF)", "\\Ka", "[\\W]", "(?m:a.)" };

	(void)state;
	for (size_t i = 0; i < sizeof(patterns) / sizeof(patterns[0]); i++) {
		struct pretokenizer p = { 0 };
		struct error err = { 0 };

		assert_int_not_equal(pretokenizer_append_pattern(&p, patterns[i], strlen(patterns[i]), false, &err), 0);
		assert_int_equal(err.code, ERROR_UNSUPPORTED);
		assert_int_equal(p.n_steps, 0);
	}
}

static void a_pattern_that_backtracks_without_end_is_stopped(void **state)
{
	struct pretokenizer p;
	struct pretokenizer_walk w;
	struct error err = { 0 };
	static char text[4096];
	size_t begin, end;

	(void)state;
	memset(text, 'a', sizeof(text));
	memcpy(text + sizeof(text) - 2, "cb", 2);    // without a b nothing would be tried
	walk_open(&p, &w, "(a|aa|aaa)+b", true);
	pretokenizer_start(&w, text, sizeof(text));
	assert_true(pretokenizer_next(&w, &begin, &end, &err) < 0);
	assert_int_equal(err.code, ERROR_TOO_LARGE);
	pretokenizer_walk_done(&w);
	pretokenizer_done(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(gpt2_matcher_equals_its_pattern), cmocka_unit_test(llama3_matcher_equals_its_pattern),
		cmocka_unit_test(qwen2_matcher_equals_its_pattern), cmocka_unit_test(patterns_that_mean_something_else_are_refused),
		cmocka_unit_test(a_pattern_that_backtracks_without_end_is_stopped),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
