// SPDX-License-Identifier: Apache-2.0
// The random numbers behind seeded draws.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "common/sequence.h"
#include "daemon/model/philox.h"
#include "daemon/teacher/draw.h"

// The published vectors of Philox4x32-10 (Random123, kat_vectors).
static void blocks_are_philox(void **state)
{
	static const struct { uint32_t counter[4]; struct draw_key key; uint32_t want[4]; } cases[] = {
		{{0, 0, 0, 0}, {{0, 0}}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
		{{UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX}, {{UINT32_MAX, UINT32_MAX}},
		{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
			{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {{0xa4093822, 0x299f31d0}},
				{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
	};
	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		uint32_t got[4];
		philox(cases[i].key.words, cases[i].counter, got);
		assert_memory_equal(got, cases[i].want, sizeof got);
	}
}

static const struct content_id sequence = {{1, 2, 3}}, other = {{1, 2, 4}};

static void uniforms_ascend_within_the_unit_interval(void **state)
{
	struct draw_key key = draw_key(7, &sequence);
	double u[1001], sum = 0, squares = 0;
	(void)state;
	draw_uniforms(&key, 3, 1001, u);
	for (int i = 0; i < 1001; i++) {
		assert_true(u[i] >= 0 && u[i] < 1 && (!i || u[i] > u[i - 1]));
		sum += u[i];
		squares += u[i] * u[i];
	}
	assert_true(fabs(sum / 1001 - 0.5) < 4 * sqrt(1 / 12.0 / 1001));
	assert_true(fabs(squares / 1001 - 1 / 3.0) < 4 * sqrt(4 / 45.0 / 1001));
}

// More draws of the same position begin with the fewer: a draw is a function of its own number.
static void draws_do_not_depend_on_how_many_there_are(void **state)
{
	struct draw_key key = draw_key(7, &sequence);
	double few[5], many[50];
	(void)state;
	draw_uniforms(&key, 9, 5, few);
	draw_uniforms(&key, 9, 50, many);
	for (int i = 0, j = 0; i < 5; i++, j++) {
		while (j < 50 && many[j] != few[i])
			j++;
		assert_true(j < 50);
	}
}

static void seed_sequence_and_position_all_count(void **state)
{
	struct draw_key key = draw_key(7, &sequence), same = draw_key(7, &sequence), keys[] = {draw_key(8, &sequence), draw_key(7, &other),
		draw_key(UINT64_C(7) << 56, &sequence)};
	double first[4], u[4];
	(void)state;
	draw_uniforms(&key, 0, 4, first);
	draw_uniforms(&same, 0, 4, u);
	assert_memory_equal(u, first, sizeof u);
	draw_uniforms(&key, 1, 4, u);
	assert_memory_not_equal(u, first, sizeof u);
	for (int i = 0; i < 3; i++) {
		draw_uniforms(&keys[i], 0, 4, u);
		assert_memory_not_equal(u, first, sizeof u);
	}
}

// Counts in a cache must mean the same in every later version.
static void draws_of_today_are_draws_of_tomorrow(void **state)
{
	struct draw_key key = draw_key(0x0123456789abcdef, &sequence);
	double u[3];
	(void)state;
	draw_uniforms(&key, 5, 3, u);
	assert_true(u[0] == 0x1.afc1fca4eed20p-6 && u[1] == 0x1.6666fe0203dd8p-4 && u[2] == 0x1.c6bbe3239714cp-3);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(blocks_are_philox),
		cmocka_unit_test(uniforms_ascend_within_the_unit_interval),
		cmocka_unit_test(draws_do_not_depend_on_how_many_there_are),
		cmocka_unit_test(seed_sequence_and_position_all_count),
		cmocka_unit_test(draws_of_today_are_draws_of_tomorrow),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
