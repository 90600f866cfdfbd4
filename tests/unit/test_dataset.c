// SPDX-License-Identifier: Apache-2.0
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/model/packing.h"
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
		const uint32_t *s = dataset_train_at(d, i).tokens;
		for (int k = 1; k < 10; k++)
			assert_int_equal(s[k], s[0] + (uint32_t)k);
		seen[s[0] / 10]++;
		if (i < n) {
			uint32_t first = s[0];
			same += dataset_train_at(d, i + n).tokens[0] == first;
		}
	}
	for (uint64_t i = 0; i < dataset_n_held_out(d); i++)
		seen[dataset_held_out_at(d, i).tokens[0] / 10] = 2;
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
		assert_memory_equal(dataset_train_at(a, 3 * n - 1 - i).tokens, dataset_train_at(b, 3 * n - 1 - i).tokens, 8 * sizeof(uint32_t));
	for (uint64_t i = 3 * n; i-- > 0;)
		assert_int_equal(dataset_train_at(a, i).tokens[0], dataset_train_at(b, i).tokens[0]);
	for (uint64_t i = 0; i < n; i++)
		differs += dataset_train_at(a, i).tokens[0] != dataset_train_at(c, i).tokens[0];
	assert_true(differs > n / 2);
	for (uint64_t i = 0; i < dataset_n_held_out(a); i++)   // the split knows no seed
		assert_int_equal(dataset_held_out_at(a, i).tokens[0], dataset_held_out_at(c, i).tokens[0]);
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
		assert_int_equal(dataset_held_out_at(d, i).tokens[0], (i + 1) * 1000 - 10);
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
		const uint32_t *s = dataset_train_at(d, i).tokens;
		assert_int_equal(s[0], 99);
		assert_int_equal(s[1] % 3, 1);
		assert_int_equal(s[3], s[1] + 2);
	}
	dataset_free(d);
}

static void dropping_sequences_leaves_the_rest_as_it_is(void **state)
{
	(void)state;
	uint32_t prefix = 99, tokens[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
	struct packing all = {0}, some = {0};
	assert_int_equal(packing_init(&all, 4, &prefix, 1, NULL), 0);
	assert_int_equal(packing_init(&some, 4, &prefix, 1, NULL), 0);
	packing_drop(&some, 0);
	for (int i = 0; i < 10; i++) {
		assert_int_equal(packing_append(&all, tokens, 7, NULL), 0);
		assert_int_equal(packing_append(&some, tokens, 7, NULL), 0);
		size_t whole = some.n_tokens / 4;
		packing_drop(&some, whole - (whole > 1));
		assert_memory_equal(some.tokens, all.tokens + all.n_tokens - some.n_tokens, some.n_tokens * sizeof *tokens);
	}
	packing_done(&all);
	packing_done(&some);
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

// Twelve whole sequences of lengths 2 to 7, two of them twice.
static struct dataset *whole_of(bool sequential, uint64_t seed)
{
	struct dataset_options o = {.sequence_length = 8, .held_out = .1, .held_out_max = 100, .sequential = sequential, .seed = seed};
	struct dataset *d = NULL;
	assert_int_equal(dataset_new(&o, &d, NULL), 0);
	for (uint32_t i = 0; i < 14; i++) {
		uint32_t k = i < 12 ? i : i - 10, tokens[7] = {k, k, k, k, k, k, k};
		assert_int_equal(dataset_append_sequence(d, tokens, 2 + k % 6, NULL), 0);
	}
	assert_int_equal(dataset_list(d, NULL), 0);
	return d;
}

static void whole_sequences_stand_once_in_the_order_of_their_ids(void **state)
{
	(void)state;
	struct dataset *d = whole_of(false, 1);
	struct content_id before = {{0}}, id;
	assert_int_equal(dataset_n_sequences(d), 12);
	for (uint32_t i = 0; i < 12; i++) {
		struct sequence s = dataset_at(d, i);
		assert_int_equal(s.n_tokens, 2 + s.tokens[0] % 6);
		id = sequence_id(&s);
		assert_true(memcmp(&before, &id, sizeof id) < 0);
		before = id;
	}
	uint32_t tokens[9] = {0};
	assert_int_equal(dataset_append_sequence(d, tokens, 9, NULL), error_errno(ERROR_INVALID));
	assert_int_equal(dataset_append_sequence(d, tokens, 1, NULL), error_errno(ERROR_INVALID));
	dataset_free(d);
}

static void sequential_is_the_order_of_appending_in_every_epoch(void **state)
{
	(void)state;
	struct dataset *d = whole_of(true, 1), *other = whole_of(true, 2), *shuffled = whole_of(false, 1);
	assert_int_equal(dataset_split(d, NULL), 0);
	assert_int_equal(dataset_split(other, NULL), 0);
	assert_int_equal(dataset_split(shuffled, NULL), 0);
	uint64_t n = dataset_n_train(d), differs = 0;
	assert_int_equal(n, 11);
	for (uint64_t i = 0; i < 3 * n; i++) {
		uint32_t token = dataset_train_at(d, i).tokens[0];
		assert_true(i % n == 0 || token > dataset_train_at(d, i - 1).tokens[0]);
		assert_int_equal(token, dataset_train_at(other, i).tokens[0]);
		differs += token != dataset_train_at(shuffled, i).tokens[0];
	}
	assert_true(differs > n);
	assert_int_equal(dataset_held_out_at(d, 0).tokens[0], dataset_held_out_at(shuffled, 0).tokens[0]);
	dataset_free(d), dataset_free(other), dataset_free(shuffled);
}

static void what_is_not_kept_leaves_the_list_and_changes_its_id(void **state)
{
	(void)state;
	struct dataset *d = dataset_of(100, 10, 0, 1, 1), *whole = dataset_of(100, 10, 0, 1, 1);
	bool keep[10] = {true, false, true, true, true, true, true, true, true, false};
	struct content_id before = dataset_id(d), plain = dataset_id(whole), after;
	struct sequence all = {dataset_at(whole, 0).tokens, 100};
	assert_memory_equal(&before, &plain, sizeof before);
	plain = sequence_id(&all);                     // of a whole corpus: the id of its tokens
	assert_memory_equal(&before, &plain, sizeof before);
	dataset_free(d);
	struct dataset_options o = {.sequence_length = 10, .held_out_max = 1, .seed = 1};
	assert_int_equal(dataset_new(&o, &d, NULL), 0);
	for (uint32_t i = 0; i < 100; i++)
		assert_int_equal(dataset_append(d, &i, 1, NULL), 0);
	assert_int_equal(dataset_list(d, NULL), 0);
	dataset_keep(d, keep);
	assert_int_equal(dataset_n_sequences(d), 8);
	assert_int_equal(dataset_at(d, 1).tokens[0], 20);
	after = dataset_id(d);
	assert_true(memcmp(&before, &after, sizeof after) != 0);
	dataset_free(d), dataset_free(whole);
}

static void a_list_that_was_written_down_is_the_same_list(void **state)
{
	(void)state;
	for (int sequential = 0; sequential < 2; sequential++) {
		struct dataset *d = whole_of(sequential, 5), *back = NULL;
		struct dataset_options o = {.sequence_length = 8, .held_out = .1, .held_out_max = 100, .sequential = sequential, .seed = 5};
		struct content_id source = {{7}}, told, a, b;
		struct error err = {0};
		uint8_t *bytes = NULL;
		size_t n = 0;
		assert_int_equal(dataset_encode(d, &source, &bytes, &n, NULL), 0);
		assert_int_equal(dataset_decode(&o, bytes, n, &told, &back, NULL), 0);
		assert_memory_equal(&source, &told, sizeof told);
		a = dataset_id(d), b = dataset_id(back);
		assert_memory_equal(&a, &b, sizeof a);
		assert_int_equal(dataset_split(d, NULL), 0);
		assert_int_equal(dataset_split(back, NULL), 0);
		for (uint64_t i = 0; i < 40; i++)
			assert_int_equal(dataset_train_at(d, i).tokens[0], dataset_train_at(back, i).tokens[0]);
		dataset_free(back);
		o.sequence_length = 6;                         // shorter than what the list holds
		assert_int_equal(dataset_decode(&o, bytes, n, &told, &back, &err), error_errno(ERROR_CONFLICT));
		assert_string_equal(err.field, "sequence-length");
		o.sequence_length = 8;
		for (size_t cut = 0; cut < n; cut++)
			assert_int_equal(dataset_decode(&o, bytes, cut, &told, &back, NULL), error_errno(ERROR_CORRUPT));
		for (size_t bit = 0; bit < 8 * n; bit += 5) {
			bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
			assert_int_equal(dataset_decode(&o, bytes, n, &told, &back, NULL), error_errno(ERROR_CORRUPT));
			bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
		}
		free(bytes);
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
		cmocka_unit_test(dropping_sequences_leaves_the_rest_as_it_is),
		cmocka_unit_test(too_little_text_is_an_error),
		cmocka_unit_test(whole_sequences_stand_once_in_the_order_of_their_ids),
		cmocka_unit_test(sequential_is_the_order_of_appending_in_every_epoch),
		cmocka_unit_test(what_is_not_kept_leaves_the_list_and_changes_its_id),
		cmocka_unit_test(a_list_that_was_written_down_is_the_same_list),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
