// SPDX-License-Identifier: Apache-2.0
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/worker/dataset.h"

// A dataset of the tokens 0, 1, 2, ...
static struct dataset *dataset_of(size_t n_tokens, uint32_t length, double held_out, uint32_t held_out_max, uint64_t seed)
{
	struct dataset_options o = {.sequence_length = length, .held_out = held_out, .held_out_max = held_out_max, .seed = seed};
	struct dataset *d = NULL;
	assert_int_equal(dataset_new(&o, &d, NULL), 0);
	for (uint32_t i = 0; i < n_tokens; i++)
		assert_int_equal(dataset_append(d, &i, 1, NULL), 0);
	assert_int_equal(dataset_split(d, NULL), 0);
	return d;
}

static void every_epoch_is_each_sequence_once_in_its_own_order(void **state)
{
	(void)state;
	struct dataset *d = dataset_of(1000, 10, .1, 100, 7);
	uint64_t n = dataset_n_train(d), same = 0;
	assert_int_equal(n, 90);
	assert_int_equal(dataset_n_held_out(d), 10);
	uint8_t seen[100] = {0};
	for (uint64_t i = 0; i < 2 * n; i++) {
		const uint32_t *s = dataset_train_at(d, i);
		for (int k = 1; k < 10; k++)
			assert_int_equal(s[k], s[0] + (uint32_t)k);
		seen[s[0] / 10]++;
		if (i < n) {
			uint32_t first = s[0];
			same += dataset_train_at(d, i + n)[0] == first;
		}
	}
	for (uint64_t i = 0; i < dataset_n_held_out(d); i++)
		seen[dataset_held_out_at(d, i)[0] / 10] = 2;
	for (int i = 0; i < 100; i++)
		assert_int_equal(seen[i], 2);
	assert_true(same < n / 4);
	dataset_free(d);
}

static void the_order_is_a_function_of_seed_and_position_alone(void **state)
{
	(void)state;
	struct dataset *a = dataset_of(2000, 8, .05, 100, 7), *b = dataset_of(2000, 8, .05, 100, 7), *c = dataset_of(2000, 8, .05, 100, 8);
	uint64_t n = dataset_n_train(a), differs = 0;
	for (uint64_t i = 3 * n; i-- > 0;)     // b is read backwards: no history
		assert_memory_equal(dataset_train_at(a, 3 * n - 1 - i), dataset_train_at(b, 3 * n - 1 - i), 8 * sizeof(uint32_t));
	for (uint64_t i = 3 * n; i-- > 0;)
		assert_int_equal(dataset_train_at(a, i)[0], dataset_train_at(b, i)[0]);
	for (uint64_t i = 0; i < n; i++)
		differs += dataset_train_at(a, i)[0] != dataset_train_at(c, i)[0];
	assert_true(differs > n / 2);
	for (uint64_t i = 0; i < dataset_n_held_out(a); i++)   // the split knows no seed
		assert_int_equal(dataset_held_out_at(a, i)[0], dataset_held_out_at(c, i)[0]);
	struct content_id x = dataset_id(a), y = dataset_id(c);
	assert_memory_equal(&x, &y, sizeof x);
	dataset_free(a), dataset_free(b), dataset_free(c);
}

static void held_out_sequences_are_bounded_and_spread(void **state)
{
	(void)state;
	struct dataset *d = dataset_of(4000, 10, .5, 4, 1);
	assert_int_equal(dataset_n_held_out(d), 4);
	for (uint64_t i = 0; i < 4; i++)
		assert_int_equal(dataset_held_out_at(d, i)[0], (i + 1) * 1000 - 10);
	dataset_free(d);
	d = dataset_of(40, 10, 0, 4, 1);
	assert_int_equal(dataset_n_held_out(d), 0);
	assert_int_equal(dataset_n_train(d), 4);
	dataset_free(d);
}

static void the_prefix_starts_each_sequence(void **state)
{
	(void)state;
	uint32_t prefix = 99, tokens[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
	struct dataset_options o = {.sequence_length = 4, .prefix = &prefix, .n_prefix = 1, .seed = 1};
	struct dataset *d = NULL;
	assert_int_equal(dataset_new(&o, &d, NULL), 0);
	assert_int_equal(dataset_append(d, tokens, 2, NULL), 0);
	assert_int_equal(dataset_append(d, tokens + 2, 7, NULL), 0);
	assert_int_equal(dataset_split(d, NULL), 0);
	assert_int_equal(dataset_n_train(d), 3);
	for (uint64_t i = 0; i < 3; i++) {
		const uint32_t *s = dataset_train_at(d, i);
		assert_int_equal(s[0], 99);
		assert_int_equal(s[1] % 3, 1);
		assert_int_equal(s[3], s[1] + 2);
	}
	dataset_free(d);
}

static void too_little_text_is_an_error(void **state)
{
	(void)state;
	static const size_t sizes[] = {0, 9, 10, 19};
	for (size_t i = 0; i < 4; i++) {
		struct dataset_options o = {.sequence_length = 10, .held_out = .1, .held_out_max = 8, .seed = 1};
		struct dataset *d = NULL;
		struct error err = {0};
		uint32_t tokens[19] = {0};
		assert_int_equal(dataset_new(&o, &d, NULL), 0);
		assert_int_equal(dataset_append(d, tokens, sizes[i], NULL), 0);
		assert_int_equal(dataset_split(d, &err), error_errno(ERROR_INVALID));
		assert_string_equal(err.field, "corpus");
		dataset_free(d);
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_epoch_is_each_sequence_once_in_its_own_order),
		cmocka_unit_test(the_order_is_a_function_of_seed_and_position_alone),
		cmocka_unit_test(held_out_sequences_are_bounded_and_spread),
		cmocka_unit_test(the_prefix_starts_each_sequence),
		cmocka_unit_test(too_little_text_is_an_error),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
