// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/crc32c.h"
#include "common/error.h"
#include "common/record_layout.h"
#include "tests/unit/rows_example.h"

static void expect_parts(const struct record *record)
{
	uint64_t parts[RECORD_N_PARTS], sum = 0;
	size_t n;
	(void)record_bytes(record, &n);
	assert_int_equal(record_parts(record, parts), 0);
	for (unsigned i = 0; i < RECORD_N_PARTS; i++)
		sum += parts[i];
	assert_int_equal(sum, n);
}

static void round_trip(struct record_rows *rows)
{
	struct record *made = rows_encode(rows), *received = NULL;
	struct record_rows *back = NULL;
	struct error err = {0};
	size_t n, again;
	const void *bytes = record_bytes(made, &n);
	struct query_limits limits = {.vocab_size = rows->vocab_size, .width = 100, .q_width = 100, .kv_width = 100};
	assert_true(n <= record_max_bytes(&rows->query, rows->sequence.n_tokens, &limits));
	assert_int_equal(record_from_bytes(bytes, n, &received, &err), 0);
	assert_memory_equal(record_bytes(received, &again), bytes, n);
	assert_int_equal(again, n);
	assert_int_equal(record_crc(received), crc32c(0, bytes, n));
	assert_memory_equal(record_key(received), record_key(made), CONTENT_ID_BYTES);
	assert_int_equal(record_n_rows(received), rows->n_rows);
	if (record_decode(received, &back, &err) || record_check(received, &err))
		fail_msg("%s: %s", err.field, err.message);
	expect_parts(received);
	assert_rows_equal(rows, back);
	record_rows_free(back);
	record_rows_free(rows);
	record_unref(received);
	record_unref(made);
}

static void comes_back_as_it_was(void **state)
{
	(void)state;
	uint32_t one[] = {0, 4}, ids[] = {5, 49151, 5, 0};
	const struct query queries[] = {
		{.last = -1, .own = true},
		{.last = -1, .entropy = true, .n_temperatures = 3, .temperatures = {2, 1, 0.5f}},
		{.last = -1, .n_temperatures = 1, .temperatures = {4}},
		{.last = -1, .top_k = 1},
		{.last = -1, .top_k = 64, .own = true, .entropy = true, .n_temperatures = 2, .temperatures = {1, 2}},
		{.first = -1, .last = -1, .top_k = 7},
		{.first = 3, .last = 20, .top_k = 100, .own = true},
		{.last = -1, .max_prob = true},
		{.last = -1, .argmax = true},
		{.last = -1, .sum_squares = true},
		{.last = -1, .top_k = 5, .tail = true},
		{.last = -1, .top_k = 40, .top_mass = 0.5f},
		{.last = -1, .top_k = 1, .top_mass = 0.5f},
		{.last = -1, .gather = {1, one, ids}},
		{.last = -1, .draws = {.n = 50, .tau = 1}},
		{.last = -1, .draws = {.n = 1, .tau = 1}},
		{.last = -1, .draws = {.n = 50, .tau = 2}},
		{.last = -1, .top_k = 20, .draws = {.n = 50, .tau = 1, .tail = true}},
	};
	for (size_t i = 0; i < sizeof queries / sizeof *queries; i++)
		for (uint32_t n_tokens = 21; n_tokens < 24; n_tokens++)
			for (int variant = 0; variant < 6; variant++) {
				struct query q = queries[i];
				q.values = (enum query_values)(variant / 2);
				round_trip(rows_random(i, &q, n_tokens, 49152, variant % 2));
			}
}

// Each signal alone and everything at once, in every format, with and without kept ids.
static void every_signal_comes_back_alone_and_with_all_others(void **state)
{
	(void)state;
	for (int i = 0; i < 13; i++) {
		struct query all, q;
		rows_everything(&all);
		q = i ? (struct query){.last = -1, .draws.tau = 1} : all;
		switch (i) {
		case 1: q.dense = true; break;
		case 2: q.gather = all.gather; break;
		case 3: q.n_spans = all.n_spans, q.spans = all.spans; break;
		case 4: q.n_features = all.n_features, memcpy(q.features, all.features, sizeof q.features); break;
		case 5: q = all, q.top_k = 0, q.top_mass = 0, q.tail = q.draws.tail = false; break;
		case 6: q = all, q.top_mass = 0; break;
		case 7: q = all, q.draws.tail = false, q.draws.tau = 1; break;
		case 8: q = all, q.pooling = QUERY_POOLING_MEAN; break;
		case 9: q.n_features = all.n_features, memcpy(q.features, all.features, sizeof q.features),
			q.pooling = QUERY_POOLING_LAST; break;
		case 10: q = all, q.n_temperatures = 0; break;
		case 11: q = all, q.dense = false; break;
		case 12: q.own = true; break;
		}
		for (int variant = 0; variant < 36; variant++) {
			struct query v = q;
			v.values = (enum query_values)(variant % 3);
			v.feature_values = (enum query_feature_values)(variant / 3 % 3);
			if (variant / 9 % 2)
				v.n_keep = all.n_keep, v.keep = all.keep;
			round_trip(rows_random((uint64_t)(100 * i + variant), &v, 9, 500 + (uint32_t)variant, variant / 18));
		}
	}
}

static void spans_alone_take_a_header_and_four_bytes_each(void **state)
{
	(void)state;
	struct query_span spans[] = {{1, 1000}, {500, 600}};
	struct query q = {.last = -1, .n_spans = 2, .spans = spans};
	struct record_rows *rows = rows_random(4, &q, 1000, 49152, true);
	struct record *record = rows_encode(rows);
	size_t n;
	(void)record_bytes(record, &n);
	assert_null(rows->status);
	assert_int_equal(n, RECORD_HEADER_BYTES + query_bytes(&rows->query) + 4 * 1000 + SECTION_HEADER_BYTES + 4 * 2);
	record_rows_free(rows);
	record_unref(record);
}

static void comes_back_for_every_k_and_vocabulary(void **state)
{
	(void)state;
	const uint32_t vocabularies[] = {1, 2, 3, 31, 64, 1000};
	for (size_t v = 0; v < sizeof vocabularies / sizeof *vocabularies; v++)
		for (uint32_t k = 1; k <= vocabularies[v] && k <= 70; k++) {
			struct query q = {.last = -1, .top_k = k};
			round_trip(rows_random(k, &q, 6, vocabularies[v], true));
		}
	struct query all = {.last = -1, .top_k = 1000}, huge = {.last = -1, .top_k = 3};
	round_trip(rows_random(1, &all, 3, 1000, false));
	round_trip(rows_random(2, &huge, 40, 1 << 24, false));
}

static void f16_values_are_near_and_still_in_order(void **state)
{
	(void)state;
	struct query q = {.last = -1, .top_k = 64, .own = true, .values = QUERY_VALUES_F16};
	// Values are multiples of 2^-6 within 32 of the maximum: exact in binary16, so ids keep their order too.
	round_trip(rows_random(3, &q, 40, 49152, true));
}

// Half of the 255 steps between the maximum and the smallest value sent, whatever the size of either.
static void u8_values_are_within_half_a_step(void **state)
{
	(void)state;
	struct query q = {.last = -1, .top_k = 3, .values = QUERY_VALUES_U8};
	const float rows_of_three[][3] = {{20, 19.5f, -30}, {1e-30f, 0, -1e-30f}, {3e38f, 0, -1e37f}, {5, 5, 5}, {-1, -2, -1e30f},
					  {0x1p-149f, 0, 0}, {1, 1 - 0x1p-24f, 1 - 0x1p-23f}};
	for (size_t i = 0; i < sizeof rows_of_three / sizeof *rows_of_three; i++) {
		struct record_rows *rows = rows_random(1, &q, 1, 100, false), *back;
		const float *v = rows_of_three[i];
		memcpy(rows->logits, v, 12);
		rows->max_logit[0] = v[0];
		struct record *record = rows_encode(rows);
		assert_int_equal(record_decode(record, &back, NULL), 0);
		double range = (double)v[0] - (double)v[2];
		for (int j = 0; j < 3; j++) {
			double off = fabs((double)back->logits[j] - (double)v[j]);
			assert_true(off <= range / 510 * (1 + 1e-6) + fabs((double)v[j]) * 0x1p-24 + 0x1p-150);
		}
		assert_true(back->logits[0] == v[0]);
		record_rows_free(rows);
		record_rows_free(back);
		record_unref(record);
	}
}

static void values_that_round_together_go_to_the_lower_id(void **state)
{
	(void)state;
	struct record_rows *rows = rows_example(), *back;
	memcpy(rows->ids, (uint32_t[]){7, 4, 9, 0}, 16);
	rows->max_logit[0] = rows->logits[0] = 20;
	rows->logits[1] = 10;
	rows->max_logit[1] = rows->logits[2] = 1.5f;
	rows->logits[3] = 1.5f - 0x1p-23f;    // above half the smallest f16: survives, but not in f32 beside 1.5
	struct record *record = rows_encode(rows);
	assert_int_equal(record_decode(record, &back, NULL), 0);
	assert_true(back->logits[3] <= back->logits[2]);
	if (back->logits[3] == back->logits[2])
		assert_true(back->ids[2] == 0 && back->ids[3] == 9);
	record_rows_free(back);
	record_unref(record);
	rows->logits[3] = 1.5f - 0x1p-25f;    // == 1.5f
	record = rows_encode(rows);
	assert_int_equal(record_decode(record, &back, NULL), 0);
	assert_int_equal(back->ids[2], 0);
	assert_int_equal(back->ids[3], 9);
	record_rows_free(back);
	record_rows_free(rows);
	record_unref(record);
}

#include "tests/unit/record_golden.h"

static void expect_golden(struct record_rows *rows, const uint8_t *want, size_t n_want)
{
	struct record *record = rows_encode(rows);
	size_t n;
	const uint8_t *bytes = record_bytes(record, &n);
	assert_int_equal(n, n_want);
	assert_memory_equal(bytes, want, n);
	round_trip(rows);
	record_unref(record);
}

static void examples_have_the_bytes_of_the_manual(void **state)
{
	(void)state;
	expect_golden(rows_example(), record_golden, sizeof record_golden);
	expect_golden(rows_second_example(), record_golden_2, sizeof record_golden_2);
}

static double bytes_per_entry(const struct query *q, uint32_t n_tokens)
{
	struct record_rows *rows = rows_random(5, q, n_tokens, 151936, false);
	struct record *record = rows_encode(rows);
	size_t n;
	(void)record_bytes(record, &n);
	double entries = q->top_k ? (double)n_tokens * q->top_k : rows->draw_starts[n_tokens];
	record_rows_free(rows);
	record_unref(record);
	return (double)n / entries;
}

static void top_k_entry_costs_little(void **state)
{
	(void)state;
	// Ids spread evenly are the worst case; a real row's lean to low ids.
	struct query f16 = {.last = -1, .top_k = 64, .values = QUERY_VALUES_F16}, u8 = f16;
	u8.values = QUERY_VALUES_U8;
	print_message("%.3f bytes per f16 top-k entry, %.3f per u8 one, all included\n", bytes_per_entry(&f16, 512),
		bytes_per_entry(&u8, 512));
	assert_true(bytes_per_entry(&f16, 512) <= 4.3);
	assert_true(bytes_per_entry(&u8, 512) <= 3.3);
}

static uint64_t next(uint64_t *seed)
{
	*seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return *seed >> 33;
}

// 50 draws from rows like a model's: p(rank) falls as a power of the rank, some rows sharp and some flat, ids anywhere in the vocabulary.
static void draw_rows_like_a_teacher(struct record_rows *rows, uint64_t *seed)
{
	enum { RANKS = 4096 };
	static double sums[RANKS];
	for (uint32_t row = 0; row < rows->n_rows; row++) {
		uint32_t drawn[50], at = rows->draw_starts[row];
		double power = 0.8 + (double)(next(seed) % 1000) / 1000 * 1.6, sum = 0;
		uint64_t base = next(seed);
		for (int i = 0; i < RANKS; i++)
			sums[i] = sum += pow(i + 1, -power);
		for (int i = 0; i < 50; i++) {
			double u = (double)next(seed) / (double)(UINT64_C(1) << 31) * sum;
			uint32_t rank = 0;
			while (rank < RANKS - 1 && sums[rank] < u)
				rank++;
			uint64_t hash = base + rank;
			drawn[i] = (uint32_t)(next(&hash) % rows->vocab_size);
			for (int j = i; j && drawn[j] < drawn[j - 1]; j--) {
				uint32_t swap = drawn[j];
				drawn[j] = drawn[j - 1];
				drawn[j - 1] = swap;
			}
		}
		assert_int_equal(record_rows_reserve_draws(rows, at + 50, NULL), 0);
		for (int i = 0; i < 50; i++) {
			if (i && drawn[i] == drawn[i - 1]) {
				rows->draw_counts[at - 1]++;
				continue;
			}
			rows->draw_ids[at] = drawn[i];
			rows->draw_counts[at++] = 1;
		}
		rows->draw_starts[row + 1] = at;
	}
}

static void drawn_id_costs_little(void **state)
{
	(void)state;
	struct query q = {.last = -1, .draws = {.n = 50, .tau = 1}};
	struct record_rows *rows = rows_random(5, &q, 512, 151936, false), *back;
	uint64_t seed = 3;
	draw_rows_like_a_teacher(rows, &seed);
	struct record *record = rows_encode(rows);
	size_t position = record->sections_at, n_distinct = rows->draw_starts[512];
	while (record->bytes[position] != SECTION_DRAWS)
		position += SECTION_HEADER_BYTES + load_u32(record->bytes + position + 4, 0);
	double bytes = load_u32(record->bytes + position + 4, 0);
	print_message("%.3f bytes per distinct drawn id (%.1f a row)\n", bytes / (double)n_distinct, (double)n_distinct / 512);
	assert_true(bytes / (double)n_distinct <= 2.2);
	assert_int_equal(record_decode(record, &back, NULL), 0);
	assert_rows_equal(rows, back);
	record_rows_free(back);
	record_rows_free(rows);
	record_unref(record);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(comes_back_as_it_was),
		cmocka_unit_test(every_signal_comes_back_alone_and_with_all_others),
		cmocka_unit_test(spans_alone_take_a_header_and_four_bytes_each),
		cmocka_unit_test(u8_values_are_within_half_a_step),
		cmocka_unit_test(comes_back_for_every_k_and_vocabulary),
		cmocka_unit_test(f16_values_are_near_and_still_in_order),
		cmocka_unit_test(values_that_round_together_go_to_the_lower_id),
		cmocka_unit_test(examples_have_the_bytes_of_the_manual),
		cmocka_unit_test(top_k_entry_costs_little),
		cmocka_unit_test(drawn_id_costs_little),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
