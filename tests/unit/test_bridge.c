// SPDX-License-Identifier: Apache-2.0
// A text of a teacher's as a student with another tokenizer reads it, for each pair of kinds: bytes (GPT-2), characters with a space put
// first (Mistral, Mixtral, SentencePiece's own) and without (Gemma). It is read as the student would read the text itself,
// and both meet at its bytes.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/error.h"
#include "daemon/model/tokenizer.h"
#include "daemon/worker/bridge.h"
#include "tests/unit/tokenizer_lines.h"

#define N_KINDS 5
#define N_TEXTS 3

static const char *const texts[N_TEXTS] = {
	"The quick brown dog, and the fox", "caf\xc3\xa9 \xe6\xbc\xa2\xe5\xad\x97 \xf0\x9f\x98\x80 12\n\n  3", "a" };
static struct tokenizer *kinds[N_KINDS];

static struct tokenizer *open_json(const char *file, const char *name)
{
	json_t *all = golden_load(file), *base = strcmp(file, "spaces.json") ? golden_load("base.json")
		: json_incref(json_object_get(all, "base"));
	json_t *whole = golden_variant(base, json_object_get(all, name));
	struct tokenizer *t = golden_open(whole);

	json_decref(all);
	json_decref(base);
	json_decref(whole);
	return t;
}

static int open_all(void **state)
{
	const char *top = getenv("top_srcdir");
	char path[4096];

	(void)state;
	kinds[0] = open_json("variants.json", "gpt2");
	kinds[1] = open_json("spaces.json", "mistral");
	kinds[2] = open_json("spaces.json", "mixtral");
	kinds[3] = open_json("spaces.json", "gemma");
	snprintf(path, sizeof(path), "%s/tests/golden/tokenizer/spm-prefix.gguf", top ? top : ".");
	return tokenizer_open_path(path, &kinds[4], NULL);
}

static int close_all(void **state)
{
	(void)state;
	for (int i = 0; i < N_KINDS; i++)
		tokenizer_close(kinds[i]);
	return 0;
}

static struct tokens encode(const struct tokenizer *t, const char *text, bool add_special)
{
	struct tokens tokens = { 0 };

	assert_int_equal(tokenizer_encode(t, text, strlen(text), false, add_special, SIZE_MAX, &tokens, NULL), 0);
	return tokens;
}

static void open_bridge(struct bridge *b, int teacher, int student)
{
	assert_int_equal(bridge_open(b, kinds[teacher], tokenizer_vocab_size(kinds[teacher]), kinds[student],
				     tokenizer_vocab_size(kinds[student]), NULL), 0);
}

// Where both meet, both have read so many bytes of the text; they meet at its end.
static void meetings_check(const struct bridged *s, const struct tokens *teacher, const struct tokens *student, size_t n)
{
	assert_true(s->n_boundaries > 0);
	for (uint32_t i = 0; i < s->n_boundaries; i++) {
		const struct align_boundary *at = &s->boundaries[i];

		if (at->byte == 0)
			continue;
		assert_int_equal(teacher->offsets[at->a].end, at->byte);
		assert_int_equal(student->offsets[at->b].end, at->byte);
	}
	assert_int_equal(s->boundaries[s->n_boundaries - 1].byte, n);
}

static void a_text_is_read_as_the_student_reads_it(void **state)
{
	struct bridged s = { 0 };

	(void)state;
	for (int i = 0; i < N_KINDS * N_KINDS * N_TEXTS; i++) {
		const char *text = texts[i % N_TEXTS];
		int from = i / N_TEXTS / N_KINDS, to = i / N_TEXTS % N_KINDS;
		struct tokens teacher = encode(kinds[from], text, true), student = encode(kinds[to], text, true);
		struct bridge b;

		open_bridge(&b, from, to);
		assert_int_equal(bridge_sequence(&b, teacher.ids, (uint32_t)teacher.n, 4096, &s, NULL), 0);
		if (s.n != student.n || memcmp(s.tokens, student.ids, 4 * student.n))
			fail_msg("kinds %d and %d: \"%s\" is read otherwise", from, to, text);
		meetings_check(&s, &teacher, &student, strlen(text));
		bridge_done(&b);
		tokens_done(&teacher);
		tokens_done(&student);
	}
	bridged_done(&s);
}

// An end of text between two: the second begins anew, with a space put first or without.
static void each_text_of_a_sequence_begins_anew(void **state)
{
	struct bridged s = { 0 };

	(void)state;
	for (int to = 0; to < N_KINDS; to++) {
		struct tokens one = encode(kinds[4], "the dog", true), two = encode(kinds[4], "brown", false);
		struct tokens first = encode(kinds[to], "the dog", true), second = encode(kinds[to], "brown", false);
		uint32_t ids[64];
		struct bridge b;

		assert_in_range(one.n + two.n, 3, 60);
		memcpy(ids, one.ids, 4 * one.n);
		ids[one.n] = (uint32_t)tokenizer_eos(kinds[4]);
		memcpy(ids + one.n + 1, two.ids, 4 * two.n);
		open_bridge(&b, 4, to);
		assert_int_equal(bridge_sequence(&b, ids, (uint32_t)(one.n + 1 + two.n), 4096, &s, NULL), 0);
		size_t between = b.match[ids[one.n]] != BRIDGE_NONE;     // whether the student has an end of text

		assert_int_equal(s.n, first.n + between + second.n);
		assert_memory_equal(s.tokens, first.ids, 4 * first.n);
		assert_memory_equal(s.tokens + first.n + between, second.ids, 4 * second.n);
		bridge_done(&b);
		tokens_done(&one);
		tokens_done(&two);
		tokens_done(&first);
		tokens_done(&second);
	}
	bridged_done(&s);
}

// The letter, not the byte that stands for it in characters without a token.
static void letters_match_letters(void **state)
{
	(void)state;
	for (int i = 0; i < N_KINDS * N_KINDS; i++) {
		struct tokens teacher = encode(kinds[i / N_KINDS], "#d", false), student = encode(kinds[i % N_KINDS], "#d", false);
		struct bridge b;
		size_t n = 0;

		open_bridge(&b, i / N_KINDS, i % N_KINDS);
		assert_int_equal(tokenizer_bytes(kinds[i / N_KINDS], teacher.ids[teacher.n - 1], &n, NULL)[n - 1], 'd');
		if (n == 1 && student.offsets[student.n - 1].begin == 1)
			assert_int_equal(b.match[teacher.ids[teacher.n - 1]], student.ids[student.n - 1]);
		assert_true(n == 1);
		bridge_done(&b);
		tokens_done(&teacher);
		tokens_done(&student);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_text_is_read_as_the_student_reads_it), cmocka_unit_test(each_text_of_a_sequence_begins_anew),
		cmocka_unit_test(letters_match_letters),
	};

	return cmocka_run_group_tests(tests, open_all, close_all);
}
