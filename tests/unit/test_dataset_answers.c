// SPDX-License-Identifier: Apache-2.0
// Datasets of answers: of each the prompt's length is known, wherever the answer goes.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/worker/dataset.h"

// Prompts of tokens below 100 and answers of others, of every length; as many places as items, in an order of their own.
static struct dataset *answers_of(uint32_t n, uint32_t more_prompt, bool packed)
{
	const uint32_t bos = 7;
	struct dataset_options o = {.sequence_length = 12, .prefix = &bos, .n_prefix = 1, .held_out = .2, .held_out_max = 9, .seed = 3,
				    .documents = true, .packed = packed};
	struct dataset *d = NULL;
	assert_int_equal(dataset_new(&o, &d, NULL), 0);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t tokens[16], n_prompt = i % 5 + more_prompt, n_tokens = n_prompt + 1 + i % 4;
		bool taken = false;
		for (uint32_t k = 0; k < n_tokens; k++)
			tokens[k] = k < n_prompt ? k : 100 + i;
		assert_int_equal(dataset_append_answer(d, tokens, n_tokens, n_prompt, &taken, NULL), 0);
		assert_true(taken);
	}
	assert_int_equal(dataset_split(d, NULL), 0);
	return d;
}

static void of_an_answer_the_first_label_is_known_wherever_it_goes(void **state)
{
	(void)state;
	for (int packed = 0; packed < 2; packed++) {
		struct dataset *d = answers_of(40, 1, packed), *other = answers_of(40, 2, packed);
		struct sequence s[64];
		for (uint64_t p = 0; p < dataset_n_places(d); p++)
			for (uint32_t i = 0, of = dataset_places_at(d, p, 1, s); i < of; i++) {
				uint32_t first = dataset_first(d, &s[i]);
				assert_true(first >= 2 && first < s[i].n_tokens);
				assert_true(s[i].tokens[first] >= 100 && s[i].tokens[first - 1] < 100);
			}
		for (uint64_t i = 0; i < dataset_n_held_out(d); i++) {
			s[0] = dataset_held_out_at(d, i);
			assert_true(s[0].tokens[dataset_first(d, &s[0])] >= 100);
		}
		struct content_id a = dataset_id(d), b = dataset_id(other);
		assert_memory_not_equal(&a, &b, sizeof a);
		dataset_free(d), dataset_free(other);
	}
}

static void a_list_of_answers_that_was_written_down_knows_their_prompts(void **state)
{
	(void)state;
	for (int packed = 0; packed < 2; packed++) {
		struct dataset_options o = {
			.sequence_length = 12, .held_out = .2, .held_out_max = 9, .seed = 3, .documents = true, .packed = packed};
		struct dataset *d = answers_of(40, 1, packed), *back = NULL;
		struct content_id source = {{7}}, told, a = dataset_id(d), b;
		uint8_t *bytes = NULL;
		size_t n = 0;
		assert_int_equal(dataset_encode(d, &source, &bytes, &n, NULL), 0);
		assert_int_equal(dataset_decode(&o, bytes, n, &told, &back, NULL), 0);
		b = dataset_id(back);
		assert_memory_equal(&a, &b, sizeof a);
		assert_int_equal(dataset_split(back, NULL), 0);
		assert_int_equal(dataset_n_places(d), dataset_n_places(back));
		for (uint64_t p = 0; p < dataset_n_places(d); p++) {
			struct sequence s[2][64];
			uint32_t of = dataset_places_at(d, p, 1, s[0]);
			assert_int_equal(dataset_places_at(back, p, 1, s[1]), of);
			for (uint32_t i = 0; i < of; i++)
				assert_int_equal(dataset_first(back, &s[1][i]), dataset_first(d, &s[0][i]));
		}
		dataset_free(back);
		bytes[8 + CONTENT_ID_BYTES + 8 + 8] = 13;              // the first sequence's first answer token: beyond its end
		told = content_id_of(bytes, n - CONTENT_ID_BYTES);
		memcpy(bytes + n - CONTENT_ID_BYTES, &told, CONTENT_ID_BYTES);
		assert_int_equal(dataset_decode(&o, bytes, n, &told, &back, NULL), error_errno(ERROR_CORRUPT));
		free(bytes);
		dataset_free(d);
	}
}

static void answers_too_long_lose_their_end_and_prompts_too_long_are_left_out(void **state)
{
	(void)state;
	const uint32_t tokens[14] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13};
	struct dataset_options o = {.sequence_length = 8, .documents = true};
	struct dataset *d = NULL;
	bool taken;
	assert_int_equal(dataset_new(&o, &d, NULL), 0);
	assert_int_equal(dataset_append_answer(d, tokens, 14, 7, &taken, NULL), 0);
	assert_true(taken);
	assert_int_equal(dataset_append_answer(d, tokens, 14, 8, &taken, NULL), 0);
	assert_false(taken);
	assert_int_equal(dataset_append_answer(d, tokens, 3, 3, &taken, NULL), 0);     // no answer at all
	assert_false(taken);
	assert_int_equal(dataset_append_answer(d, tokens, 3, 0, &taken, NULL), 0);     // nothing that the first would follow
	assert_false(taken);
	assert_int_equal(dataset_list(d, NULL), 0);
	assert_int_equal(dataset_n_sequences(d), 1);
	struct sequence s = dataset_at(d, 0);
	assert_int_equal(s.n_tokens, 8);
	assert_int_equal(dataset_first(d, &s), 7);
	dataset_free(d);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(of_an_answer_the_first_label_is_known_wherever_it_goes),
		cmocka_unit_test(a_list_of_answers_that_was_written_down_knows_their_prompts),
		cmocka_unit_test(answers_too_long_lose_their_end_and_prompts_too_long_are_left_out),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
