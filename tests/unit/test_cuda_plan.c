// SPDX-License-Identifier: Apache-2.0
// The CUDA backend's host-side decisions, where there is no GPU.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "kernels/cuda/plan.h"

static void a_budget_is_what_was_asked_or_nothing(void **state)
{
	(void)state;
	assert_true(plan_memory(0, 1000) == 900);
	assert_true(plan_memory(1000, 1000) == 1000);
	assert_true(plan_memory(1001, 1000) == 0);
	assert_true(plan_memory(0, UINT64_MAX) < UINT64_MAX);
}

static void chunks_cover_all_rows_and_fit(void **state)
{
	(void)state;
	assert_int_equal(plan_chunk_rows(1000, 10, 50), 50);
	assert_int_equal(plan_chunk_rows(1000, 10, 500), 100);
	assert_int_equal(plan_chunk_rows(1000, 999, 500), 1);
	assert_int_equal(plan_chunk_rows(1000, 1001, 500), 0);
	assert_int_equal(plan_chunk_rows(1000, 0, 500), 0);
	assert_int_equal(plan_chunk_rows(SIZE_MAX, 1, UINT32_MAX), UINT32_MAX);
}

static void a_sweep_row_counts_every_result(void **state)
{
	(void)state;
	assert_true(plan_sweep_row_bytes(0, 0, 0) >= 16);
	assert_true(plan_sweep_row_bytes(64, 2, 3) >= 16 + 64 * 8 + 5 * 8);
	assert_true(plan_sweep_row_bytes(UINT32_MAX, UINT32_MAX, UINT32_MAX) > UINT32_MAX);    // no wrap in 32 bits
}

static void only_allocation_and_absence_spare_the_process(void **state)
{
	(void)state;
	assert_int_equal(plan_error_class(0), PLAN_ERROR_NONE);
	assert_int_equal(plan_error_class(2), PLAN_ERROR_MEMORY);
	assert_int_equal(plan_error_class(100), PLAN_ERROR_NOT_READY);
	static const int sticky[] = {1, 214, 700, 710, 714, 715, 716, 717, 718, 719, 999, 123456};
	for (size_t i = 0; i < sizeof sticky / sizeof *sticky; i++)
		assert_int_equal(plan_error_class(sticky[i]), PLAN_ERROR_STICKY);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_budget_is_what_was_asked_or_nothing),
		cmocka_unit_test(chunks_cover_all_rows_and_fit),
		cmocka_unit_test(a_sweep_row_counts_every_result),
		cmocka_unit_test(only_allocation_and_absence_spare_the_process),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
