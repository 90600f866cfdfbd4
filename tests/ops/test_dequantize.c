// SPDX-License-Identifier: Apache-2.0
// Every instruction set this processor has gives dtype_to_float's bits for any bytes of any type; and what they become in panels.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "kernels/cpu/vector.h"

enum { BLOCKS = 700, MOST_VALUES = BLOCKS * 256, MOST_BYTES = BLOCKS * 256 };

static const char *const sets[] = {"baseline", "avx2", "avx2vnni", "avx512", "avx512vnni", "avx512bf16"};

static uint64_t next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	return *state ^= *state << 17;
}

// n elements of random bytes, at an odd address. What is not a number may have any payload.
static void expect_bits(const struct cpu_vector *vector, enum dtype type, size_t n, uint64_t *seed)
{
	static uint8_t bytes[MOST_BYTES + 1];
	static float want[MOST_VALUES], have[MOST_VALUES + 1];
	size_t n_bytes = dtype_row_bytes(type, n);
	assert_true(n_bytes <= MOST_BYTES && n <= MOST_VALUES);
	for (size_t i = 0; i <= n_bytes; i++)
		bytes[i] = (uint8_t)(next(seed) >> 32);
	have[n] = 12345;
	dtype_to_float(type, bytes + 1, want, n);
	vector->dequantize(have, type, bytes + 1, n);
	for (size_t i = 0; i < n; i++)
		if (memcmp(&want[i], &have[i], sizeof *want) != 0 && !(isnan(want[i]) && isnan(have[i])))
			fail_msg("%s, %s, value %zu: %.9g is not %.9g", vector->name, dtype_name(type), i, (double)have[i],
				 (double)want[i]);
	assert_true(have[n] == 12345);
}

static void every_set_gives_the_same_bits(void **state)
{
	uint64_t seed = 88172645463325252u;
	(void)state;
	for (size_t s = 0; s < sizeof sets / sizeof *sets; s++) {
		setenv("KDSERVED_CPU", sets[s], 1);
		const struct cpu_vector *vector = vector_find();
		if (!vector) {
			print_message("# %s: not on this processor\n", sets[s]);
			continue;
		}
		for (int type = 0; type < N_DTYPES; type++) {
			uint32_t block = dtype_block_elements((enum dtype)type), few = block == 1 ? 61 : block;
			expect_bits(vector, (enum dtype)type, 0, &seed);
			expect_bits(vector, (enum dtype)type, few, &seed);
			expect_bits(vector, (enum dtype)type, (size_t)(block == 1 ? 61 * BLOCKS : BLOCKS * block), &seed);
		}
	}
	unsetenv("KDSERVED_CPU");
}

// All 65,536 of them.
static void every_half_is_the_float_it_was(void **state)
{
	static uint16_t halves[65536];
	static float have[65536];
	(void)state;
	for (uint32_t i = 0; i < 65536; i++)
		halves[i] = (uint16_t)i;
	for (size_t s = 0; s < sizeof sets / sizeof *sets; s++) {
		setenv("KDSERVED_CPU", sets[s], 1);
		const struct cpu_vector *vector = vector_find();
		if (!vector)
			continue;
		vector->dequantize(have, DTYPE_F16, halves, 65536);
		for (uint32_t i = 0; i < 65536; i++) {
			float want = float_from_f16((uint16_t)i);
			assert_true(memcmp(&want, &have[i], sizeof want) == 0 || (isnan(want) && isnan(have[i])));
		}
	}
	unsetenv("KDSERVED_CPU");
}

// Where the processor has products of bfloat16: every value at its place, rounded, and nothing beside.
static void rows_are_packed_to_panels(void **state)
{
	enum { N = 96, ROW = 100 };
	static float x[BF16_PACK_ROWS * ROW];
	static uint16_t panel[(N / 2 + 1) * BF16_PANEL * 2];
	uint64_t seed = 3;
	(void)state;
	unsetenv("KDSERVED_CPU");
	const struct cpu_vector *vector = vector_find();
	if (!vector->bf16_pack)
		skip();
	for (size_t i = 0; i < BF16_PACK_ROWS * ROW; i++)
		x[i] = ldexpf((float)(int32_t)next(&seed), -40);
	memset(panel, 0xee, sizeof panel);
	for (size_t first = 0; first < BF16_PANEL; first += 2 * BF16_PACK_ROWS)       // every other group of rows
		vector->bf16_pack(panel + 2 * first, x, ROW, N);
	for (size_t k = 0; k < N + 2; k++)
		for (size_t i = 0; i < BF16_PANEL; i++)
			assert_int_equal(panel[(k / 2 * BF16_PANEL + i) * 2 + k % 2], k >= N || i / BF16_PACK_ROWS % 2 ? 0xeeee
					 : float_to_bf16(x[i % BF16_PACK_ROWS * ROW + k]));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_set_gives_the_same_bits), cmocka_unit_test(every_half_is_the_float_it_was),
		cmocka_unit_test(rows_are_packed_to_panels),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
