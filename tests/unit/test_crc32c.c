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
		cmocka_unit_test(instruction_and_table_agree),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
