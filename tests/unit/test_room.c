// SPDX-License-Identifier: Apache-2.0
// What a memory cap leaves for matrices.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "kernels/cpu/cpu.h"

#define MIB (UINT64_C(1) << 20)
#define MORE (48 * MIB)          // by which the program grows

// 1 GiB of matrices in f32, of 256 Mi elements; 100 MiB of work, 64 of cache, a head whose tile of 512 rows is 64 MiB.
static struct backend_options sizes(void)
{
	struct backend_options o = {.max_rows = 1, .program_bytes = 20 * MIB};
	o.need.vocab_size = 32768;
	o.need.parts[BACKEND_PART_WEIGHTS].n_weight = 256 * MIB;
	o.need.parts[BACKEND_PART_WORK].n_act = 25 * MIB;
	o.need.parts[BACKEND_PART_CACHE].n_act = 16 * MIB;
	o.need.parts[BACKEND_PART_HEAD].n_real = UINT64_C(512) * 32768;
	return o;
}

static const struct backend_shelf shelf = {.memory_bytes = 40 * MIB};

static uint64_t sweep_bytes(void)      // of each thread
{
	return 3 * (32768 + 64) * 4;
}

static void everything_fits_or_not_to_the_byte(void **state)
{
	(void)state;
	struct backend_options o = sizes();
	struct room_plan plan;
	uint64_t all = 20 * MIB + MORE + (100 + 64 + 32) * MIB + sweep_bytes() * 2 + (1024 + 16) * MIB;
	o.shelf = &shelf;
	// two threads' sweeps are rounded to huge pages at most as far as they are large, as is the rest where there are arrays: none here
	o.host_bytes = all + sweep_bytes() * 2;
	assert_int_equal(room_plan(&o, 4, 256, 2, &plan, NULL), 0);
	assert_true(plan.room == UINT64_MAX);
	o.host_bytes--;
	assert_int_equal(room_plan(&o, 4, 256, 2, &plan, NULL), 0);
	assert_true(plan.room < 1040 * MIB);
}

static void what_is_left_is_for_matrices(void **state)
{
	(void)state;
	struct backend_options o = sizes();
	struct room_plan plan;
	uint64_t beside = 20 * MIB + MORE + (100 + 64 + 32) * MIB + 2 * sweep_bytes() * 2;
	o.shelf = &shelf;
	o.host_bytes = 512 * MIB;
	assert_int_equal(room_plan(&o, 4, 256, 2, &plan, NULL), 0);
	assert_int_equal(plan.room, 512 * MIB - 40 * MIB - beside);
	// loading is before work: the larger of the two counts
	o.loading_bytes = 300 * MIB;
	assert_int_equal(room_plan(&o, 4, 256, 2, &plan, NULL), 0);
	assert_int_equal(plan.room, (512 - 40 - 20 - 300) * MIB - MORE);
}

static void what_fits_as_stored_is_stored(void **state)
{
	(void)state;
	struct backend_options o = sizes();
	struct room_plan plan;
	uint64_t beside = 20 * MIB + MORE + (100 + 64 + 32) * MIB + 2 * sweep_bytes() * 2, all = beside + (160 + 16) * MIB + 10 * 4096;
	o.shelf = &shelf;
	o.need.parts[BACKEND_PART_WEIGHTS].stored_bytes = 160 * MIB;
	o.need.parts[BACKEND_PART_WEIGHTS].n_arrays = 10;
	o.host_bytes = all + 5;
	assert_int_equal(room_plan(&o, 4, 256, 2, &plan, NULL), 0);
	assert_true(plan.window_bytes == 16 * MIB && plan.room == 5);
	// one byte too few, or nobody knows how many: to the shelf
	o.host_bytes = all - 1;
	assert_int_equal(room_plan(&o, 4, 256, 2, &plan, NULL), 0);
	assert_true(plan.window_bytes == 0 && plan.room == all - 1 - beside - 40 * MIB);
	o.host_bytes = all;
	o.need.parts[BACKEND_PART_WEIGHTS].stored_bytes = 0;
	assert_int_equal(room_plan(&o, 4, 256, 2, &plan, NULL), 0);
	assert_true(plan.window_bytes == 0);
	// without a shelf it is still better than a refusal; a wide matrix needs a wider window
	o.shelf = NULL;
	o.need.parts[BACKEND_PART_WEIGHTS].stored_bytes = 160 * MIB;
	o.need.widest = 32768;
	o.host_bytes = 1024 * MIB;
	assert_int_equal(room_plan(&o, 4, 256, 2, &plan, NULL), 0);
	assert_int_equal(plan.window_bytes, backend_piece_bytes(32768));
	// where all is packed nothing is stored
	o.host_bytes = 2048 * MIB;
	assert_int_equal(room_plan(&o, 4, 256, 2, &plan, NULL), 0);
	assert_true(plan.window_bytes == 0 && plan.room == UINT64_MAX);
}

static void too_little_is_refused_with_the_numbers(void **state)
{
	(void)state;
	struct backend_options o = sizes();
	struct error err = {0};
	struct room_plan plan;
	o.shelf = &shelf;
	o.host_bytes = 100 * MIB;
	assert_true(room_plan(&o, 4, 256, 2, &plan, &err) < 0);
	assert_int_equal(err.code, ERROR_TOO_LARGE);
	assert_string_equal(err.field, "memory");
	assert_non_null(strstr(err.message, "memory = 100 MiB is not enough"));
	assert_non_null(strstr(err.message, "needs 306 MiB"));
	assert_non_null(strstr(err.message,
		"program 68, batch-tokens 102, head 32, cache-tokens 64, largest tensor while loading 0, buffers 40"));
	// without a shelf all matrices must have room
	o.shelf = NULL;
	o.host_bytes = 1024 * MIB;
	assert_true(room_plan(&o, 4, 256, 2, &plan, &err) < 0);
	assert_non_null(strstr(err.message, "its matrices can only be in memory: the teacher needs 1306 MiB"));
	assert_non_null(strstr(err.message, "matrices 1040)"));
}

static void sums_that_fit_no_memory_are_refused(void **state)
{
	(void)state;
	struct backend_options o = sizes();
	struct room_plan plan;
	o.shelf = &shelf;
	o.host_bytes = UINT64_MAX - 1;
	o.need.parts[BACKEND_PART_WORK].n_act = UINT64_MAX / 2;
	assert_true(room_plan(&o, 4, 256, 2, &plan, NULL) < 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(everything_fits_or_not_to_the_byte), cmocka_unit_test(what_is_left_is_for_matrices),
		cmocka_unit_test(what_fits_as_stored_is_stored),
		cmocka_unit_test(too_little_is_refused_with_the_numbers), cmocka_unit_test(sums_that_fit_no_memory_are_refused),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
