// SPDX-License-Identifier: Apache-2.0
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "common/cursor.h"

static void reads_back_what_was_written(void **state)
{
	(void)state;
	uint8_t bytes[64];
	struct writer w = writer_init(bytes, sizeof bytes);
	writer_u8(&w, 0x12);
	writer_u16(&w, 0x3456);
	writer_u32(&w, 0x789abcde);
	writer_u64(&w, UINT64_C(0xfedcba9876543210));
	writer_f32(&w, -1.5f);
	writer_f64(&w, 3.25);
	writer_bytes(&w, "abc", 3);
	assert_false(w.failed);
	assert_int_equal(bytes[1], 0x56);
	struct reader r = reader_init(bytes, w.position);
	assert_int_equal(reader_u8(&r), 0x12);
	assert_int_equal(reader_u16(&r), 0x3456);
	assert_int_equal(reader_u32(&r), 0x789abcde);
	assert_true(reader_u64(&r) == UINT64_C(0xfedcba9876543210));
	assert_true(reader_f32(&r) == -1.5f);
	assert_true(reader_f64(&r) == 3.25);
	assert_memory_equal(reader_bytes(&r, 3), "abc", 3);
	assert_int_equal(reader_left(&r), 0);
	assert_false(r.failed);
}

static void failure_sticks(void **state)
{
	(void)state;
	uint8_t bytes[3] = {1, 2, 3};
	struct reader r = reader_init(bytes, sizeof bytes);
	assert_int_equal(reader_u32(&r), 0);
	assert_true(r.failed);
	assert_int_equal(reader_u8(&r), 0);
	assert_null(reader_bytes(&r, 0));
	assert_int_equal(reader_left(&r), 0);
	struct writer w = writer_init(bytes, sizeof bytes);
	writer_u32(&w, 9);
	assert_true(w.failed);
	writer_u8(&w, 9);
	assert_int_equal(bytes[0], 1);
}

static void sizes_near_the_limit_do_not_wrap(void **state)
{
	(void)state;
	uint8_t byte = 7;
	struct reader r = reader_init(&byte, 1);
	(void)reader_u8(&r);
	assert_null(reader_bytes(&r, SIZE_MAX));
	assert_true(r.failed);
	struct writer count = writer_init(NULL, 0);
	writer_bytes(&count, &byte, 1);
	assert_int_equal(count.position, 1);
	writer_bytes(&count, NULL, SIZE_MAX);
	assert_true(count.failed);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reads_back_what_was_written),
		cmocka_unit_test(failure_sticks),
		cmocka_unit_test(sizes_near_the_limit_do_not_wrap),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
