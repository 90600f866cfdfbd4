// SPDX-License-Identifier: Apache-2.0
// The numbers and streams that records are made of.
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/cursor.h"
#include "common/half.h"
#include "common/golomb.h"
#include "tests/unit/golomb_reference.h"

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

static void bfloat_is_the_upper_half_rounded(void **state)
{
	(void)state;
	for (uint32_t b = 0; b < 0x10000; b++) {
		float v = bfloat_to_float((uint16_t)b);
		if (isnan(v))
			assert_true((bfloat_from_float(v) & 0x7fff) > 0x7f80);
		else
			assert_int_equal(bfloat_from_float(v), b);
	}
	assert_int_equal(bfloat_from_float(1.0f + 0x1p-8f), 0x3f80);             // half way: to even
	assert_int_equal(bfloat_from_float(1.0f + 0x3p-8f), 0x3f82);
	assert_int_equal(bfloat_from_float(__FLT_MAX__), 0x7f80);
	assert_int_equal(bfloat_from_float(NAN), 0x7fc0);
}

static void golomb_streams_of_every_parameter_come_back(void **state)
{
	(void)state;
	const uint32_t ids[] = {0, 1, 2, 40, 1000, 1001, 65535, (1 << 20) - 1};
	uint32_t gaps[8], back[8], count = 0;
	uint64_t least = UINT64_MAX, best_bits;
	for (int i = 0; i < 8; i++)
		gaps[i] = i ? ids[i] - ids[i - 1] - 1 : ids[i];
	unsigned best = golomb_best(gaps, 8, &best_bits), first_best = 0;
	for (unsigned b = 0; b <= GOLOMB_MAX_PARAMETER; b++) {
		uint64_t bits = golomb_count_bits(300);
		for (int i = 0; i < 8; i++)
			for (uint32_t rest = gaps[i] + (1u << b), length = 0; rest; rest >>= 1, length++)
				bits += rest == 1 ? 2 * length + 1 - b : 0;
		if (bits < least) {
			least = bits;
			first_best = b;
		}
		size_t n = (size_t)(bits + 7) / 8;
		uint8_t *bytes = malloc(n);
		assert_non_null(bytes);
		struct golomb_writer w = golomb_writer_init(bytes, b);
		golomb_writer_append(&w, gaps, 8);
		golomb_writer_append_count(&w, 300);
		golomb_writer_done(&w);
		assert_ptr_equal(w.to, bytes + n);
		struct golomb_reader r = golomb_reader_init(bytes, n, b);
		assert_int_equal(golomb_reader_next_many(&r, 1 << 20, back, 8), 0);
		assert_int_equal(golomb_reader_next_count(&r, 300, &count), 0);
		assert_int_equal(count, 300);
		assert_int_equal(golomb_reader_done(&r), 0);
		assert_memory_equal(back, gaps, sizeof gaps);
		r = golomb_reader_init(bytes, n, b);
		assert_int_equal(golomb_reader_next_many(&r, gaps[7] - 1, back, 8), -EBADMSG);
		r = golomb_reader_init(bytes, n, b);
		assert_int_equal(golomb_reader_next_many(&r, 1 << 20, back, 8), 0);
		assert_int_equal(golomb_reader_next_count(&r, 299, &count), -EBADMSG);
		r = golomb_reader_init(bytes, n - 1, b);
		assert_true(golomb_reader_next_many(&r, 1 << 20, back, 8) || golomb_reader_next_count(&r, 300, &count) ||
			golomb_reader_done(&r));
		free(bytes);
	}
	assert_int_equal(best, first_best);
	assert_int_equal(best_bits + golomb_count_bits(300), least);
}

static uint32_t next_random(void)
{
	static uint64_t state = 42;
	state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(state >> 33);
}

// Written numbers of all sizes, whole, cut short, with a bit flipped and with limits around the largest; and bytes that nobody wrote, with
// more or fewer one bits among them. Each lies at the end of its memory.
static void numbers_are_read_as_bit_by_bit(void **state)
{
	(void)state;
	enum { N = 150 };
	for (int round = 0; round < 6000; round++) {
		unsigned b = (unsigned)round % (GOLOMB_MAX_PARAMETER + 1), spread = next_random() % 22;
		uint32_t numbers[N], n = next_random() % N, largest = 0;
		uint64_t bits = 0;
		for (uint32_t i = 0; i < n; i++) {
			numbers[i] = next_random() & ((1u << (spread + next_random() % 3)) - 1);
			largest = numbers[i] > largest ? numbers[i] : largest;
			bits += 2 * (31 - (unsigned)__builtin_clz(numbers[i] + (1u << b))) + 1 - b;
		}
		size_t n_bytes = (size_t)(bits + 7) / 8;
		uint8_t *bytes = malloc(n_bytes + 1);
		assert_non_null(bytes);
		struct golomb_writer w = golomb_writer_init(bytes, b);
		golomb_writer_append(&w, numbers, n);
		golomb_writer_done(&w);
		bytes = realloc(bytes, n_bytes ? n_bytes : 1);
		golomb_reference_compare(bytes, n_bytes, b, UINT32_MAX, n, next_random() % N);
		golomb_reference_compare(bytes, n_bytes, b, largest, n + next_random() % 2, next_random() % N);
		golomb_reference_compare(bytes, n_bytes, b, largest - (largest > 0), n, 0);
		uint8_t *part = malloc(n_bytes + 1);
		assert_non_null(part);
		size_t cut = n_bytes ? next_random() % n_bytes : 0;
		memcpy(part + n_bytes + 1 - cut, bytes, cut);
		golomb_reference_compare(part + n_bytes + 1 - cut, cut, b, UINT32_MAX, n, 0);
		if (n_bytes)
			bytes[next_random() % n_bytes] ^= (uint8_t)(1u << next_random() % 8);
		golomb_reference_compare(bytes, n_bytes, b, 1u << 24, n, next_random() % N);
		for (size_t i = 0; i < n_bytes; i++)
			bytes[i] = (uint8_t)(next_random() & (round & 1 ? next_random() : next_random() | next_random()));
		golomb_reference_compare(bytes, n_bytes, b, UINT32_MAX, n_bytes / 2, next_random() % N);
		free(part);
		free(bytes);
	}
}

static void counts_of_every_size_come_back(void **state)
{
	(void)state;
	for (uint32_t count = 1; count <= 70000; count += 1 + count / 50) {
		uint8_t bytes[8];
		uint32_t back = 0;
		struct golomb_writer w = golomb_writer_init(bytes, 0);
		golomb_writer_append_count(&w, count);
		golomb_writer_done(&w);
		assert_int_equal(w.to - bytes, (golomb_count_bits(count) + 7) / 8);
		struct golomb_reader r = golomb_reader_init(bytes, (size_t)(w.to - bytes), 0);
		assert_int_equal(golomb_reader_next_count(&r, count, &back), 0);
		assert_int_equal(back, count);
		assert_int_equal(golomb_reader_done(&r), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(half_precision_is_exact_both_ways),
		cmocka_unit_test(bfloat_is_the_upper_half_rounded),
		cmocka_unit_test(golomb_streams_of_every_parameter_come_back),
		cmocka_unit_test(numbers_are_read_as_bit_by_bit),
		cmocka_unit_test(counts_of_every_size_come_back),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
