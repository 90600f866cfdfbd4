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
#define N_CASED_STRINGS 200000
#define MAX_CHARACTERS 24
#define LENGTH(array) (sizeof(array) / sizeof(array[0]))

// Few of each kind, so that every meeting of kinds happens often. All are older than any Unicode that PCRE2 may have.
static const uint32_t characters[] = {
	'a', 'B', 's', 'S', 't', 'r', 'e', 'v', 'm', 'l', 'L', 'd', 0x17f, 0xe9, 0x4e2d, 0x5d0, 0x301, '\'', '\'', '\'', '0', '7', 0x663,
	0xbd, 0x2167, ' ', ' ', ' ', '\n', '\n', '\r', '\t', '\v', 0x85, 0xa0, 0x3000, 0x2028, 0x180e, 0x200b, '_', '!', '-', '.',
	0x3002, 0x1f600, 0x200d,
};

// For the patterns that know of case: letters small, capital (two of them title case), modifying and other, and marks of each kind.
static const uint32_t cased_characters[] = {
	'a', 's', 't', 'r', 'e', 'v', 'm', 'l', 'd', 0x17f, 0xe9, 0x10428, 'A', 'S', 'T', 'R', 'E', 'V', 'M', 'L', 'D', 0xc9, 0x10400,
	0x1c5, 0x1f88, 0x2b0, 0x3005, 0x1bb, 0x4e2d, 0x5d0, 0x301, 0x301, 0x903, 0x20dd, '0', '7', 0x663, 0xbd, 0x2167, ' ', ' ', '\t',
	0xa0, 0x3000, '\n', '\r', '/', '/', '\'', '\'', '\'', '\'', '!', '-', '_', 0x24b6, 0x200d, 0x1f600,
};

// One matcher, by hand and in PCRE2.
struct pair {
	struct pretokenizer by_hand, by_pcre;
	struct pretokenizer_walk hand, pcre;
};

static uint32_t random_below(uint64_t *state, uint32_t n)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(*state >> 33) % n;
}

static void walk_open(struct pretokenizer *p, struct pretokenizer_walk *w, const char *pattern, bool plain)
{
	struct error err = { 0 };

	memset(p, 0, sizeof(*p));
	if (pretokenizer_append_pattern(p, pattern, strlen(pattern), plain, &err) || pretokenizer_walk_init(w, p, &err))
		fail_msg("%s", err.message);
	assert_int_equal(p->steps[0].kind == PRETOKENIZER_REGEX, plain);
}

static void pair_open(struct pair *pair, const char *pattern)
{
	walk_open(&pair->by_hand, &pair->hand, pattern, false);
	walk_open(&pair->by_pcre, &pair->pcre, pattern, true);
}

static void pair_close(struct pair *pair)
{
	pretokenizer_walk_done(&pair->hand);
	pretokenizer_walk_done(&pair->pcre);
	pretokenizer_done(&pair->by_hand);
	pretokenizer_done(&pair->by_pcre);
}

static void pair_check(struct pair *pair, const char *text, size_t n)
{
	size_t begin, end, begin2, end2, covered = 0;
	int more;

	pretokenizer_start(&pair->hand, text, n);
	pretokenizer_start(&pair->pcre, text, n);
	do {
		more = pretokenizer_next(&pair->hand, &begin, &end, NULL);
		assert_int_equal(pretokenizer_next(&pair->pcre, &begin2, &end2, NULL), more);
		if (more && (begin != begin2 || end != end2 || begin != covered || end <= begin))
			fail_msg("\"%.*s\": %zu..%zu by hand, %zu..%zu in PCRE2", (int)n, text, begin, end, begin2, end2);
		covered = more ? end : covered;
	} while (more);
	assert_int_equal(covered, n);
}

static void random_check(const char *pattern, const uint32_t *alphabet, size_t n_alphabet, int n_strings)
{
	struct pair pair;
	uint64_t state = 5;

	pair_open(&pair, pattern);
	for (int i = 0; i < n_strings; i++) {
		char text[4 * MAX_CHARACTERS];
		size_t n = 0;

		for (uint32_t left = 1 + random_below(&state, MAX_CHARACTERS); left > 0; left--)
			n += unicode_utf8_encode(alphabet[random_below(&state, (uint32_t)n_alphabet)], text + n);
		pair_check(&pair, text, n);
	}
	pair_close(&pair);
}

// Every string of one to `longest` characters.
static void exhaustive_check(const char *pattern, const uint32_t *alphabet, size_t n_alphabet, unsigned longest)
{
	struct pair pair;
	size_t n_strings = 1;

	pair_open(&pair, pattern);
	for (unsigned length = 1; length <= longest; length++) {
		n_strings *= n_alphabet;
		for (size_t i = 0; i < n_strings; i++) {
			char text[4 * MAX_CHARACTERS];
			size_t n = 0, digits = i;

			for (unsigned k = 0; k < length; k++, digits /= n_alphabet)
				n += unicode_utf8_encode(alphabet[digits % n_alphabet], text + n);
			pair_check(&pair, text, n);
		}
	}
	pair_close(&pair);
}

static void gpt2_matcher_equals_its_pattern(void **state)
{
	(void)state;
	random_check(PATTERN_GPT2, characters, LENGTH(characters), N_STRINGS);
}

static void llama3_matcher_equals_its_pattern(void **state)
{
	(void)state;
	random_check(PATTERN_LLAMA3, characters, LENGTH(characters), N_STRINGS);
}

static void qwen2_matcher_equals_its_pattern(void **state)
{
	(void)state;
	random_check(PATTERN_QWEN2, characters, LENGTH(characters), N_STRINGS);
}

// One character of each kind, and of words alone: what the first alternative must give back depends on all that stands before.
static void cased_check(const char *pattern)
{
	static const uint32_t kinds[] = { 'S', 's', 0x4e2d, 0x301, '\'', '!', '/', '1', ' ', '\n' };
	static const uint32_t words[] = { 'S', 's', 0x2b0, 0x301, '-' };

	random_check(pattern, cased_characters, LENGTH(cased_characters), N_CASED_STRINGS);
	random_check(pattern, characters, LENGTH(characters), N_STRINGS);
	exhaustive_check(pattern, kinds, LENGTH(kinds), 5);
	exhaustive_check(pattern, words, LENGTH(words), 7);
}

static void o200k_matcher_equals_its_pattern(void **state)
{
	(void)state;
	cased_check(PATTERN_O200K);
}

static void tekken_matcher_equals_its_pattern(void **state)
{
	(void)state;
	cased_check(PATTERN_TEKKEN);
}

// Letters and marks of Unicode 15 and 16, which an older PCRE2 takes for symbols. Cuts as by Hugging Face's tokenizers 0.23.
static void matchers_know_the_characters_of_unicode_16(void **state)
{
	static const struct { const char *text; size_t cuts[4]; } cases[] = {
		{ "\xf0\x90\xb5\xb0\xf0\x90\xb5\x90\xf0\x90\xb5\xb0", { 4, 12 } },    // Garay: small, capital, small
		{ "\xea\x9f\x9a\xea\x9f\x9b\xea\x9f\x9a", { 6, 9 } },                  // Latin lambda: capital, small, capital
		{ "!\xf0\x9e\x93\x90\xf0\x9e\x93\xac!", { 9, 10 } },                      // Nag Mundari: letter, mark
		{ "A\xf0\x9e\x93\xac\xf0\x9e\x93\xac""B", { 9, 10 } },
	};

	(void)state;
	for (size_t i = 0; i < LENGTH(cases); i++) {
		struct pretokenizer p;
		struct pretokenizer_walk w;
		size_t begin, end = 0, n = strlen(cases[i].text);

		walk_open(&p, &w, PATTERN_O200K, false);
		pretokenizer_start(&w, cases[i].text, n);
		for (size_t k = 0; end < n; k++) {
			assert_int_equal(pretokenizer_next(&w, &begin, &end, NULL), 1);
			assert_int_equal(end, cases[i].cuts[k]);
		}
		pretokenizer_walk_done(&w);
		pretokenizer_done(&p);
	}
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
		cmocka_unit_test(qwen2_matcher_equals_its_pattern), cmocka_unit_test(o200k_matcher_equals_its_pattern),
		cmocka_unit_test(tekken_matcher_equals_its_pattern), cmocka_unit_test(matchers_know_the_characters_of_unicode_16),
		cmocka_unit_test(patterns_that_mean_something_else_are_refused),
		cmocka_unit_test(a_pattern_that_backtracks_without_end_is_stopped),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
