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

#include "common/cursor.h"
#include "common/error.h"
#include "common/half.h"
#include "common/record_layout.h"
#include "common/rice.h"
#include "tests/unit/rows_example.h"

static struct record *encode(const struct record_rows *rows)
{
	struct record *record = NULL;
	struct error err = {0};
	int r = record_encode(rows, &record, &err);
	if (r)
		fail_msg("%s: %s", err.field, err.message);
	return record;
}

static int decode_bytes(const void *bytes, size_t n)
{
	struct record *record = NULL;
	struct record_rows *rows = NULL;
	int r = record_from_bytes(bytes, n, &record, NULL);
	if (!r)
		r = record_decode(record, &rows, NULL);
	record_rows_free(rows);
	record_unref(record);
	return r;
}

static void round_trip(struct record_rows *rows)
{
	struct record *made = encode(rows), *received = NULL;
	struct record_rows *back = NULL;
	struct error err = {0};
	size_t n, again;
	const void *bytes = record_bytes(made, &n);
	assert_true(n <= record_max_bytes(&rows->query, rows->sequence.n_tokens, rows->vocab_size));
	assert_int_equal(record_from_bytes(bytes, n, &received, &err), 0);
	assert_memory_equal(record_bytes(received, &again), bytes, n);
	assert_int_equal(again, n);
	assert_memory_equal(record_key(received), record_key(made), CONTENT_ID_BYTES);
	assert_int_equal(record_n_rows(received), rows->n_rows);
	if (record_decode(received, &back, &err))
		fail_msg("%s: %s", err.field, err.message);
	assert_rows_equal(rows, back);
	record_rows_free(back);
	record_rows_free(rows);
	record_unref(received);
	record_unref(made);
}

static void comes_back_as_it_was(void **state)
{
	(void)state;
	const struct query queries[] = {
		{.last = -1, .own = true},
		{.last = -1, .entropy = true, .n_temperatures = 3, .temperatures = {2, 1, 0.5f}},
		{.last = -1, .n_temperatures = 1, .temperatures = {4}},
		{.last = -1, .top_k = 1},
		{.last = -1, .top_k = 64, .own = true, .entropy = true, .n_temperatures = 2, .temperatures = {1, 2}},
		{.first = -1, .last = -1, .top_k = 7},
		{.first = 3, .last = 20, .top_k = 100, .own = true},
	};
	for (size_t i = 0; i < sizeof queries / sizeof *queries; i++)
		for (uint32_t n_tokens = 21; n_tokens < 24; n_tokens++)
			for (int broken = 0; broken < 2; broken++)
				round_trip(rows_random(i, &queries[i], n_tokens, 49152, broken));
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

static void values_that_round_together_go_to_the_lower_id(void **state)
{
	(void)state;
	struct record_rows *rows = rows_example(), *back;
	memcpy(rows->ids, (uint32_t[]){7, 4, 9, 0}, 16);
	rows->max_logit[0] = rows->logits[0] = 20;
	rows->logits[1] = 10;
	rows->max_logit[1] = rows->logits[2] = 1.5f;
	rows->logits[3] = 1.5f - 0x1p-23f;    // above half the smallest f16: survives, but not in f32 beside 1.5
	struct record *record = encode(rows);
	assert_int_equal(record_decode(record, &back, NULL), 0);
	assert_true(back->logits[3] <= back->logits[2]);
	if (back->logits[3] == back->logits[2])
		assert_true(back->ids[2] == 0 && back->ids[3] == 9);
	record_rows_free(back);
	record_unref(record);
	rows->logits[3] = 1.5f - 0x1p-25f;    // == 1.5f
	record = encode(rows);
	assert_int_equal(record_decode(record, &back, NULL), 0);
	assert_int_equal(back->ids[2], 0);
	assert_int_equal(back->ids[3], 9);
	record_rows_free(back);
	record_rows_free(rows);
	record_unref(record);
}

#include "tests/unit/record_golden.h"

static void example_has_the_bytes_of_the_manual(void **state)
{
	(void)state;
	struct record_rows *rows = rows_example();
	struct record *record = encode(rows);
	size_t n;
	const uint8_t *bytes = record_bytes(record, &n);
	for (size_t i = 0; getenv("SHOW_GOLDEN") && i < n; i++)
		printf("0x%02x,%s", bytes[i], i % 16 == 15 ? "\n" : " ");
	assert_int_equal(n, sizeof record_golden);
	assert_memory_equal(bytes, record_golden, n);
	round_trip(rows);
	record_unref(record);
}

static void every_truncation_and_extension_is_refused(void **state)
{
	(void)state;
	uint8_t longer[sizeof record_golden + 1] = {0};
	memcpy(longer, record_golden, sizeof record_golden);
	assert_int_equal(decode_bytes(longer, sizeof record_golden), 0);
	for (size_t n = 0; n < sizeof record_golden; n++)
		assert_int_equal(decode_bytes(longer, n), -EBADMSG);
	assert_int_equal(decode_bytes(longer, sizeof longer), -EBADMSG);
}

static void every_flipped_bit_is_refused(void **state)
{
	(void)state;
	struct query q = {.last = -1, .top_k = 5, .own = true, .entropy = true};
	struct record_rows *rows = rows_random(9, &q, 9, 500, true);
	struct record *record = encode(rows);
	size_t n;
	const void *good = record_bytes(record, &n);
	uint8_t *bytes = malloc(n);
	assert_non_null(bytes);
	memcpy(bytes, good, n);
	for (size_t bit = 0; bit < 8 * n; bit++) {
		bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_int_not_equal(decode_bytes(bytes, n), 0);
		bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	assert_int_equal(decode_bytes(bytes, n), 0);
	free(bytes);
	record_rows_free(rows);
	record_unref(record);
}

// With the checksum mended, as an attacker would: the codec's own checks must hold.
static int decode_with(size_t at, const void *data, size_t n)
{
	uint8_t bytes[sizeof record_golden];
	memcpy(bytes, record_golden, sizeof bytes);
	memcpy(bytes + at, data, n);
	store_u32(bytes + RECORD_CRC_AT, 0, record_checksum(bytes, sizeof bytes));
	return decode_bytes(bytes, sizeof bytes);
}

static void hostile_bytes_are_refused_by_name(void **state)
{
	(void)state;
	const size_t query = 96, tokens = query + 20, sections = tokens + 12;
	const size_t status = sections + 8, max = status + 2 + 8, lse = max + 8 + 8, ids = lse + 8 + 8;
	const size_t own = sizeof record_golden - 8, values = own - 8 - 8;
	struct { size_t at; uint8_t value; int want; } cases[] = {
		{4, 2, -EOPNOTSUPP},               // record version
		{6, 1, -EOPNOTSUPP},               // flags
		{16, 9, -EBADMSG},                 // teacher: the key no longer fits
		{48, 0, -EBADMSG},                 // key
		{80, 3, -EBADMSG},                 // vocabulary of 3: token outside
		{80, 0, -EBADMSG},                 // none at all
		{84, 2, -EBADMSG},                 // n_tokens
		{87, 255, -EBADMSG},               // n_tokens beyond the record
		{88, 3, -EBADMSG},                 // n_rows
		{92, 24, -EBADMSG},                // query bytes
		{94, 7, -EBADMSG},                 // n_sections
		{query, 2, -EOPNOTSUPP},           // query version
		{query + 1, 5, -EOPNOTSUPP},       // unknown signal
		{query + 8, 255, -EBADMSG},        // first: not resolved
		{tokens, 2, -EBADMSG},             // another token: the key no longer fits
		{sections, 2, -EBADMSG},           // tag
		{sections + 2, 1, -EBADMSG},       // reserved
		{sections + 4, 1, -EBADMSG},       // length
		{status, 2, -EBADMSG},             // unknown status
		{status, 1, -EBADMSG},             // not OK, yet numbers are there
		{ids, 24, -EBADMSG},               // Rice parameter
		{ids + 1, 0xff, -EBADMSG},         // ids leave the vocabulary
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
		if (decode_with(cases[i].at, &cases[i].value, 1) != cases[i].want)
			fail_msg("case %zu (byte %zu)", i, cases[i].at);
	const uint32_t not_a_number = 0x7fc00000, infinite = 0x7f800000, zero = 0;
	assert_int_equal(decode_with(max, &not_a_number, 4), -EBADMSG);
	assert_int_equal(decode_with(lse, &infinite, 4), -EBADMSG);
	assert_int_equal(decode_with(own, &not_a_number, 4), -EBADMSG);     // a token follows this row
	assert_int_equal(decode_with(own + 4, &zero, 4), -EBADMSG);         // none follows this one
	const uint16_t above = 0x3c00, half_infinite = 0xfc00;
	assert_int_equal(decode_with(values, &above, 2), -EBADMSG);         // more than the maximum
	assert_int_equal(decode_with(values, &half_infinite, 2), -EBADMSG);
	assert_int_equal(decode_with(0, record_golden, 1), 0);
}

static void rows_that_break_the_rules_are_not_encoded(void **state)
{
	(void)state;
	struct error err;
	struct record *record = NULL;
	for (int i = 0; i < 9; i++) {
		struct record_rows *rows = rows_example();
		switch (i) {
		case 0: rows->ids[1] = rows->ids[0]; break;
		case 1: rows->ids[1] = 10; break;
		case 2: rows->logits[1] = NAN; break;
		case 3: rows->max_logit[0] = 3; break;
		case 4: rows->lse[1] = INFINITY; break;
		case 5: rows->own_logit[0] = NAN; break;
		case 6: rows->status[0] = 2; break;
		case 7: rows->query.last = -1; break;
		case 8: rows->logits[1] = 3; break;
		}
		if (record_encode(rows, &record, &err) != -EPROTO)
			fail_msg("case %d", i);
		assert_string_equal(err.field, "record");
		record_rows_free(rows);
	}
	struct record_rows *rows = rows_example();
	rows->logits[1] = -70000;
	assert_int_equal(record_encode(rows, &record, &err), -EOPNOTSUPP);
	assert_string_equal(err.field, "values");
	record_rows_free(rows);
	assert_null(record);
}

static void top_k_entry_costs_little(void **state)
{
	(void)state;
	// Ids spread evenly are the worst case; a real row's lean to low ids.
	struct query q = {.last = -1, .top_k = 64, .values = QUERY_VALUES_F16};
	struct record_rows *rows = rows_random(5, &q, 512, 151936, false);
	struct record *record = encode(rows);
	size_t n;
	(void)record_bytes(record, &n);
	print_message("%.3f bytes per top-k entry, all included\n", (double)n / (512 * 64));
	assert_true((double)n / (512 * 64) <= 4.3);
	record_rows_free(rows);
	record_unref(record);
}

static void half_precision_is_exact_both_ways(void **state)
{
	(void)state;
	for (uint32_t h = 0; h < 0x10000; h++) {
		float v = half_to_float((uint16_t)h);
		if (isnan(v))
			assert_true((h & 0x7fff) > 0x7c00);
		else
			assert_int_equal(half_from_float(v), h);
	}
	assert_int_equal(half_from_float(1.0f + 0x1p-11f), 0x3c00);              // half way: to even
	assert_int_equal(half_from_float(1.0f + 0x1p-11f + 0x1p-20f), 0x3c01);
	assert_int_equal(half_from_float(1.0f + 0x3p-11f), 0x3c02);
	assert_int_equal(half_from_float(65519.99f), 0x7bff);
	assert_int_equal(half_from_float(65520.0f), 0x7c00);
	assert_int_equal(half_from_float(0x1p-25f), 0);                          // half the smallest: to even
	assert_int_equal(half_from_float(0x1.8p-25f), 1);
	assert_int_equal(half_from_float(-0x1p-24f), 0x8001);
	assert_int_equal(half_from_float(NAN) & 0x7c00, 0x7c00);
}

static void rice_streams_of_every_parameter_come_back(void **state)
{
	(void)state;
	uint64_t keys[] = {0, 1, 2, 40, 1000, 1001, 65535, (1 << 20) - 1};
	uint32_t ids[8];
	for (int i = 0; i < 8; i++)
		keys[i] <<= 32;
	struct rice_cost cost = {{0}};
	rice_cost_append(&cost, keys, 8);
	for (unsigned b = 0; b <= RICE_MAX_PARAMETER; b++) {
		size_t n = (size_t)(cost.bits[b] + 7) / 8;
		uint8_t *bytes = malloc(n);
		assert_non_null(bytes);
		struct rice_writer w = rice_writer_init(bytes, b);
		rice_writer_append(&w, keys, 8);
		rice_writer_done(&w);
		assert_ptr_equal(w.to, bytes + n);
		struct rice_reader r = rice_reader_init(bytes, n, b);
		assert_int_equal(rice_reader_next(&r, ids, 8, 1 << 20), 0);
		assert_int_equal(rice_reader_done(&r), 0);
		for (int i = 0; i < 8; i++)
			assert_int_equal(ids[i], keys[i] >> 32);
		r = rice_reader_init(bytes, n, b);
		assert_int_equal(rice_reader_next(&r, ids, 8, (1 << 20) - 1), -EBADMSG);
		r = rice_reader_init(bytes, n - 1, b);
		assert_true(rice_reader_next(&r, ids, 8, 1 << 20) || rice_reader_done(&r));
		free(bytes);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(half_precision_is_exact_both_ways),
		cmocka_unit_test(rice_streams_of_every_parameter_come_back),
		cmocka_unit_test(comes_back_as_it_was),
		cmocka_unit_test(comes_back_for_every_k_and_vocabulary),
		cmocka_unit_test(f16_values_are_near_and_still_in_order),
		cmocka_unit_test(values_that_round_together_go_to_the_lower_id),
		cmocka_unit_test(example_has_the_bytes_of_the_manual),
		cmocka_unit_test(every_truncation_and_extension_is_refused),
		cmocka_unit_test(every_flipped_bit_is_refused),
		cmocka_unit_test(hostile_bytes_are_refused_by_name),
		cmocka_unit_test(rows_that_break_the_rules_are_not_encoded),
		cmocka_unit_test(top_k_entry_costs_little),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
