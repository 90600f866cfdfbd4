// SPDX-License-Identifier: Apache-2.0
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "kernels/dtype.h"
#include "tests/unit/dtype_golden.h"

static uint32_t bits_of(float f)
{
	uint32_t bits;
	memcpy(&bits, &f, sizeof bits);
	return bits;
}

static float float_of(uint32_t bits)
{
	float f;
	memcpy(&f, &bits, sizeof f);
	return f;
}

static void quantised_blocks_equal_ggml_to_the_bit(void **state)
{
	(void)state;
	for (size_t g = 0; g < sizeof golden / sizeof *golden; g++) {
		enum dtype t = golden[g].dtype;
		uint32_t n = dtype_block_elements(t), bytes = dtype_block_bytes(t);
		// Two copies of the block, the second at an odd address.
		uint8_t blocks[2 * 210 + 1];
		float values[2 * 256];
		memcpy(blocks + 1, golden[g].block, bytes);
		memcpy(blocks + 1 + bytes, golden[g].block, bytes);
		dtype_to_float(t, blocks + 1, values, 2 * n);
		for (uint32_t i = 0; i < 2 * n; i++)
			if (bits_of(values[i]) != golden[g].values[i % n])
				fail_msg("%s value %u: %.9g, ggml has %.9g", dtype_name(t), i, (double)values[i],
					 (double)float_of(golden[g].values[i % n]));
	}
}

static void plain_types_convert(void **state)
{
	(void)state;
	const uint8_t bytes[] = {0x00, 0x00, 0xc0, 0xbf};      // f32 -1.5; f16 0, -1.9375; bf16 0, -1.5
	float v[2];
	dtype_to_float(DTYPE_F32, bytes, v, 1);
	assert_true(v[0] == -1.5f);
	dtype_to_float(DTYPE_F16, bytes, v, 2);
	assert_true(v[0] == 0.0f && v[1] == -1.9375f);
	dtype_to_float(DTYPE_BF16, bytes, v, 2);
	assert_true(v[0] == 0.0f && v[1] == -1.5f);
}

static void row_bytes_refuse_part_blocks_and_overflow(void **state)
{
	(void)state;
	assert_int_equal(dtype_row_bytes(DTYPE_F32, 3), 12);
	assert_int_equal(dtype_row_bytes(DTYPE_Q4_1, 64), 40);
	assert_int_equal(dtype_row_bytes(DTYPE_Q6_K, 512), 420);
	assert_int_equal(dtype_row_bytes(DTYPE_Q4_1, 33), 0);
	assert_int_equal(dtype_row_bytes(DTYPE_Q4_K, 128), 0);
	assert_int_equal(dtype_row_bytes(DTYPE_IQ4_XS, 256), 136);
	assert_int_equal(dtype_row_bytes(DTYPE_F32, UINT64_C(1) << 62), 0);
	assert_true(dtype_row_bytes(DTYPE_F32, (UINT64_C(1) << 62) - 1) == ~(size_t)3);
	assert_int_equal(dtype_row_bytes(DTYPE_Q8_0, UINT64_MAX - 31), 0);
}

// The nearest half by search: every finite f16 is a float, so the true neighbours are known.
static uint16_t nearest_f16(float f)
{
	uint16_t sign = signbit(f) ? 0x8000 : 0;
	double x = fabs((double)f);
	if (x >= 65520)
		return sign | 0x7c00;
	uint16_t low = 0, high = 0x7bff;
	while (low < high) {      // largest half not above x
		uint16_t middle = (uint16_t)((low + high + 1) / 2);
		if ((double)float_from_f16(middle) <= x)
			low = middle;
		else
			high = (uint16_t)(middle - 1);
	}
	double below = x - (double)float_from_f16(low);
	double above = (low == 0x7bff ? 65536.0 : (double)float_from_f16((uint16_t)(low + 1))) - x;
	return (uint16_t)(sign | (low + (below > above || (below == above && (low & 1)))));
}

static void f16_rounds_to_nearest_even(void **state)
{
	(void)state;
	for (uint32_t h = 0; h < 0x10000; h++) {
		float f = float_from_f16((uint16_t)h);
		if (isnan(f))
			assert_true(isnan(float_from_f16(float_to_f16(f))));
		else
			assert_int_equal(float_to_f16(f), h);
	}
	uint32_t x = 12345;
	for (int i = 0; i < 200000; i++) {
		x = x * 1664525u + 1013904223u;
		// Spread over the exponents that matter: 2^-30 .. 2^17.
		float f = float_of((x & 0x80000000u) | (97 + (x >> 8) % 48) << 23 |
			(i % 3 ? (x * 2654435761u) >> 9 : ((x >> 3) & 0x7ff) << 12));
		assert_int_equal(float_to_f16(f), nearest_f16(f));
	}
	assert_int_equal(float_to_f16(65519.996f), 0x7bff);
	assert_int_equal(float_to_f16(65520.0f), 0x7c00);
	assert_int_equal(float_to_f16(-INFINITY), 0xfc00);
	assert_int_equal(float_to_f16(0x1p-25f), 0);                  // tie with zero: even
	assert_int_equal(float_to_f16(0x1.000002p-25f), 1);
	assert_int_equal(float_to_f16(0x1.ff8p-15f), 0x3ff);
	assert_int_equal(float_to_f16(0x1.ffcp-15f), 0x400);          // a tie carries into the normal range
	assert_int_equal(float_to_f16(-0.0f), 0x8000);
}

static void bf16_rounds_to_nearest_even(void **state)
{
	(void)state;
	for (uint32_t h = 0; h < 0x10000; h++) {
		float f = float_from_bf16((uint16_t)h);
		if (isnan(f))
			assert_true(isnan(float_from_bf16(float_to_bf16(f))));
		else
			assert_int_equal(float_to_bf16(f), h);
	}
	assert_int_equal(float_to_bf16(float_of(0x3f808000)), 0x3f80);       // tie to even
	assert_int_equal(float_to_bf16(float_of(0x3f818000)), 0x3f82);
	assert_int_equal(float_to_bf16(float_of(0x3f808001)), 0x3f81);
	assert_int_equal(float_to_bf16(float_of(0x7f7fffff)), 0x7f80);       // overflow
	assert_true(isnan(float_from_bf16(float_to_bf16(float_of(0x7f800001)))));
}

static void names_are_ggmls(void **state)
{
	(void)state;
	assert_string_equal(dtype_name(DTYPE_Q4_K), "Q4_K");
	assert_string_equal(dtype_name(DTYPE_BF16), "BF16");
	assert_string_equal(dtype_name(N_DTYPES), "unknown");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(quantised_blocks_equal_ggml_to_the_bit),
		cmocka_unit_test(plain_types_convert),
		cmocka_unit_test(row_bytes_refuse_part_blocks_and_overflow),
		cmocka_unit_test(f16_rounds_to_nearest_even),
		cmocka_unit_test(bf16_rounds_to_nearest_even),
		cmocka_unit_test(names_are_ggmls),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
