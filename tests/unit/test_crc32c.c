// SPDX-License-Identifier: Apache-2.0
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "common/crc32c.h"
#include "common/crc32c_internal.h"

static void gives_the_published_values(void **state)
{
	(void)state;
	uint8_t zeros[32] = {0}, ones[32], ascending[32];
	memset(ones, 0xff, sizeof ones);
	for (int i = 0; i < 32; i++)
		ascending[i] = (uint8_t)i;
	assert_int_equal(crc32c(0, "123456789", 9), 0xe3069283);    // RFC 3720 appendix B.4 and the usual check value
	assert_int_equal(crc32c(0, zeros, 32), 0x8a9136aa);
	assert_int_equal(crc32c(0, ones, 32), 0x62a8ab43);
	assert_int_equal(crc32c(0, ascending, 32), 0x46dd794e);
	assert_int_equal(crc32c(0, "", 0), 0);
	assert_int_equal(crc32c_portable(0, "123456789", 9), 0xe3069283);
}

static void may_be_continued(void **state)
{
	(void)state;
	const char text[] = "the quick brown fox jumps over the lazy dog";
	uint32_t whole = crc32c(0, text, sizeof text);
	for (size_t cut = 0; cut <= sizeof text; cut++)
		assert_int_equal(crc32c(crc32c(0, text, cut), text + cut, sizeof text - cut), whole);
}

static void parts_are_joined_without_their_bytes(void **state)
{
	(void)state;
	static uint8_t bytes[5000];
	for (size_t i = 0; i < sizeof bytes; i++)
		bytes[i] = (uint8_t)(i * i >> 3);
	for (size_t cut = 0; cut <= sizeof bytes; cut += cut < 40 ? 1 : 97) {
		uint32_t first = crc32c(12345, bytes, cut), second = crc32c(0, bytes + cut, sizeof bytes - cut);
		assert_int_equal(crc32c_join(first, second, sizeof bytes - cut), crc32c(12345, bytes, sizeof bytes));
	}
	// 2^36 zeros are 2^12 times 2^24 of them
	uint32_t far = crc32c_join(1, 0, UINT64_C(1) << 36), near = 1;
	for (int i = 0; i < 4096; i++)
		near = crc32c_join(near, 0, UINT64_C(1) << 24);
	assert_int_equal(far, near);
}

static void instruction_and_table_agree(void **state)
{
	(void)state;
#ifdef __x86_64__
	if (!__builtin_cpu_supports("sse4.2"))
		skip();
	uint8_t bytes[600];
	uint32_t x = 1;
	for (size_t i = 0; i < sizeof bytes; i++)
		bytes[i] = (uint8_t)((x = x * 1664525 + 1013904223) >> 24);
	for (size_t offset = 0; offset < 9; offset++)
		for (size_t n = 0; n + offset <= sizeof bytes; n++)
			assert_int_equal(crc32c_portable((uint32_t)n, bytes + offset, n), crc32c_sse42((uint32_t)n, bytes + offset, n));
	static uint8_t many[20000];      // three stretches side by side, several times, and what is left
	for (size_t i = 0; i < sizeof many; i++)
		many[i] = (uint8_t)((x = x * 1664525 + 1013904223) >> 24);
	for (size_t n = 3000; n < sizeof many - 3; n += 61)
		assert_int_equal(crc32c_portable((uint32_t)n, many + n % 3, n), crc32c_sse42((uint32_t)n, many + n % 3, n));
#else
	skip();
#endif
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(gives_the_published_values),
		cmocka_unit_test(may_be_continued),
		cmocka_unit_test(parts_are_joined_without_their_bytes),
		cmocka_unit_test(instruction_and_table_agree),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
