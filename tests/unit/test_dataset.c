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
		assert_memory_equal(dataset_train_at(a, 3 * n - 1 - i).tokens, dataset_train_at(b, 3 * n - 1 - i).tokens,
			8 * sizeof(uint32_t));
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

#define LENGTH 16
#define N_DOCUMENTS 400

// Documents of 1 to 40 tokens, numbered through: token i is the i-th of all. ret_n: how many of them can be learned from.
static struct dataset *documents_of(bool packed, bool sequential, uint32_t n_prefix, double held_out, uint64_t seed, uint32_t *ret_n)
{
	static const uint32_t prefix = UINT32_MAX;
	struct dataset_options o = {
		.sequence_length = LENGTH, .prefix = &prefix, .n_prefix = n_prefix, .held_out = held_out,
		.held_out_max = 1000, .sequential = sequential, .seed = seed, .documents = true, .packed = packed};
	struct dataset *d = NULL;
	uint32_t tokens[40], next = 0;
	*ret_n = 0;
	assert_int_equal(dataset_new(&o, &d, NULL), 0);
	for (uint32_t i = 0; i < N_DOCUMENTS; i++) {
		uint32_t n = 1 + i * 2654435761u % 40;
		bool learned = n + n_prefix >= 2;
		for (uint32_t k = 0; k < n; k++)
			tokens[k] = learned ? next++ : 12345;
		*ret_n += learned ? n : 0;
		assert_int_equal(dataset_append_document(d, tokens, n, NULL), 0);
	}
	assert_int_equal(dataset_split(d, NULL), 0);
	return d;
}

static uint32_t tokens_count(const struct sequence *s, uint32_t n_prefix, uint32_t *seen)
{
	assert_in_range(s->n_tokens, 2, LENGTH);
	for (uint32_t k = 0; k < s->n_tokens; k++) {
		if (k < n_prefix) {
			assert_int_equal(s->tokens[k], UINT32_MAX);
			continue;
		}
		seen[s->tokens[k]]++;
		if (k > n_prefix)
			assert_int_equal(s->tokens[k], s->tokens[k - 1] + 1);
	}
	return s->n_tokens - n_prefix;
}

// Nothing is lost and nothing is doubled, in each of two epochs; no place holds more than its tokens.
static void count_documents(bool packed, bool sequential, uint32_t n_prefix, double held_out)
{
	uint32_t n_all, seen[N_DOCUMENTS * 40] = {0};
	struct dataset *d = documents_of(packed, sequential, n_prefix, held_out, 3, &n_all);
	uint64_t n_places = dataset_n_places(d), n_tokens = 0, n_sequences = 0;
	struct sequence *s = calloc(dataset_per_place(d), sizeof *s);
	assert_non_null(s);
	for (uint64_t p = 0; p < 2 * n_places; p++) {
		uint32_t n = dataset_places_at(d, p, 1, s), room = LENGTH;
		assert_in_range(n, 1, dataset_per_place(d));
		assert_int_equal(dataset_train_at(d, p).tokens[0], s[0].tokens[0]);
		for (uint32_t i = 0; i < n; i++) {
			assert_true(s[i].n_tokens <= room);
			room -= s[i].n_tokens;
			n_tokens += tokens_count(&s[i], n_prefix, seen);
		}
		n_sequences += n;
	}
	assert_int_equal(n_sequences, 2 * dataset_n_train(d));
	for (uint64_t i = 0; i < dataset_n_held_out(d); i++) {
		struct sequence h = dataset_held_out_at(d, i);
		uint32_t once[N_DOCUMENTS * 40] = {0};
		n_tokens += 2 * tokens_count(&h, n_prefix, once);
		for (uint32_t k = n_prefix; k < h.n_tokens; k++)
			seen[h.tokens[k]] += 2;
	}
	assert_int_equal(n_tokens, 2 * (uint64_t)n_all);
	for (uint32_t i = 0; i < n_all; i++)
		assert_int_equal(seen[i], 2);
	if (packed && !sequential)     // what best fit leaves empty
		assert_true(n_places * LENGTH * 19 / 20 < n_tokens / 2 + dataset_n_train(d) * n_prefix);
	if (!packed)
		assert_int_equal(n_places, dataset_n_train(d));
	free(s);
	dataset_free(d);
}

static void packing_loses_nothing_and_doubles_nothing(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < 16; i++)
		count_documents(i & 1, i & 2, i >> 2 & 1, i & 8 ? .1 : 0);
}

static void places_are_a_function_of_the_seed(void **state)
{
	(void)state;
	uint32_t n;
	struct dataset *a = documents_of(true, false, 0, .1, 3, &n), *b = documents_of(true, false, 0, .1, 3, &n);
	struct dataset *c = documents_of(true, false, 0, .1, 4, &n), *apart = documents_of(false, false, 0, .1, 3, &n);
	uint64_t n_places = dataset_n_places(a), differs = 0;
	uint32_t most = dataset_per_place(a);
	struct sequence *x = calloc(most, sizeof *x), *y = calloc(most, sizeof *y);
	assert_true(x && y && most > 1);
	assert_int_equal(dataset_n_places(c), n_places);
	for (uint64_t p = 3 * n_places; p-- > 0;) {
		uint32_t n_x = dataset_places_at(a, p, 1, x);
		assert_int_equal(dataset_places_at(b, p, 1, y), n_x);
		for (uint32_t i = 0; i < n_x; i++)
			assert_int_equal(x[i].tokens[0], y[i].tokens[0]);
		differs += dataset_train_at(c, p).tokens[0] != x[0].tokens[0];
	}
	assert_true(differs > n_places);
	struct content_id packed = dataset_id(a), same = dataset_id(b), other = dataset_id(apart);
	assert_memory_equal(&packed, &same, sizeof same);
	assert_true(memcmp(&packed, &other, sizeof other) != 0);       // a run cannot be resumed as the other
	free(x), free(y);
	dataset_free(a), dataset_free(b), dataset_free(c), dataset_free(apart);
}

static void sequential_places_keep_the_order_of_documents(void **state)
{
	(void)state;
	uint32_t n;
	struct dataset *d = documents_of(true, true, 0, .1, 3, &n);
	struct sequence *s = calloc(dataset_per_place(d), sizeof *s);
	uint32_t before = 0;
	assert_non_null(s);
	for (uint64_t p = 0; p < dataset_n_places(d); p++)
		for (uint32_t i = 0, of = dataset_places_at(d, p, 1, s); i < of; i++) {
			assert_true((p == 0 && i == 0) || s[i].tokens[0] > before);
			before = s[i].tokens[0];
		}
	free(s);
	dataset_free(d);
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
		cmocka_unit_test(packing_loses_nothing_and_doubles_nothing),
		cmocka_unit_test(places_are_a_function_of_the_seed),
		cmocka_unit_test(sequential_places_keep_the_order_of_documents),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
