// SPDX-License-Identifier: Apache-2.0
// The CUDA backend's host-side decisions, where there is no GPU.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>

#include "kernels/backend.h"
#include "kernels/cuda/arena.h"
#include "kernels/cuda/plan.h"

static void a_limit_is_the_smaller_of_what_was_said(void **state)
{
	(void)state;
	const uint64_t margin = PLAN_MARGIN_BYTES, gib = 1u << 30;
	assert_true(plan_limit(0, 0, 10 * gib, 16 * gib) == 10 * gib - margin);
	assert_true(plan_limit(0, 0, margin, 16 * gib) == 0);
	assert_true(plan_limit(3 * gib, 0, 10 * gib, 16 * gib) == 3 * gib);
	assert_true(plan_limit(0, 0.25, 10 * gib, 16 * gib) == 4 * gib);
	assert_true(plan_limit(3 * gib, 0.25, 10 * gib, 16 * gib) == 3 * gib);
	assert_true(plan_limit(5 * gib, 0.25, 10 * gib, 16 * gib) == 4 * gib);
	assert_true(plan_limit(20 * gib, 0, 10 * gib, 16 * gib) == 20 * gib);    // refused later, with the numbers
}

static const struct plan_form f32 = {4, false, false}, bf16 = {2, false, false}, fp8 = {2, true, false}, stored = {2, false, true};

static void a_need_counts_every_element_or_says_it_cannot(void **state)
{
	(void)state;
	struct backend_need need = {0};
	assert_true(plan_need_bytes(&need, bf16) == 0);
	struct backend_count *weights = &need.parts[BACKEND_PART_WEIGHTS], *cache = &need.parts[BACKEND_PART_CACHE];
	*weights = (struct backend_count){.n_real = 10, .n_weight = 30, .n_view = 7, .n_arrays = 2};
	*cache = (struct backend_count){.n_act = 20, .n_arrays = 1};
	need.n_slots = 5;
	assert_true(plan_need_bytes(&need, bf16) == 40 + 40 + 60 + 14 + 3 * ARENA_ALIGNMENT + 20);
	assert_true(plan_need_bytes(&need, f32) == 40 + 80 + 120 + 3 * ARENA_ALIGNMENT + 20);      // a float view is its own copy
	assert_true(plan_part_bytes(cache, bf16) == 40 + ARENA_ALIGNMENT);
	weights->n_block = 20;
	weights->fp8_bytes = 260;
	assert_true(plan_part_bytes(weights, bf16) == 40 + 60 + 14 + 2 * ARENA_ALIGNMENT);      // others do not ask whose they are
	assert_true(plan_part_bytes(weights, fp8) == 40 + 20 + 260 + 14 + 2 * ARENA_ALIGNMENT);
	weights->n_weight = UINT64_MAX / 3;
	assert_true(plan_part_bytes(weights, f32) == UINT64_MAX);
	assert_true(plan_need_bytes(&need, f32) == UINT64_MAX);
	weights->n_weight = UINT64_MAX / 5;      // each part fits, not their sum
	cache->n_act = UINT64_MAX / 5;
	assert_true(plan_part_bytes(weights, f32) < UINT64_MAX && plan_part_bytes(cache, f32) < UINT64_MAX);
	assert_true(plan_need_bytes(&need, f32) == UINT64_MAX);
}

// E4M3 numbers are padded in both directions, and a row has a float; more than 64 bits hold is told.
static void matrices_of_fp8_are_counted_with_tiles_and_scales(void **state)
{
	(void)state;
	assert_true(backend_fp8_bytes(16, 32) == 16 * 32 + 16 * 4);
	assert_true(backend_fp8_bytes(17, 33) == 32 * 48 + 17 * 4);
	assert_true(backend_fp8_bytes(1, 1) == 256 + 4);
	assert_true(backend_fp8_bytes(UINT64_MAX, 1) == UINT64_MAX && backend_fp8_bytes(1, UINT64_MAX) == UINT64_MAX);
	assert_true(backend_fp8_bytes(UINT64_C(1) << 33, UINT64_C(1) << 31) == UINT64_MAX);
}

// What a step takes fits the scratch buffer, steps are whole tiles, and no more of them than must be.
static void rows_of_fp8_products_fit_the_scratch_buffer(void **state)
{
	(void)state;
	static const uint32_t shapes[][2] = {{1, 1}, {17, 33}, {28672, 4096}, {4096, 14336}, {100000, 5}}, rows[] = {1, 16, 17, 500, 8192};
	const size_t scratch = 64 << 20;
	for (size_t i = 0; i < 5 * 5; i++) {
		uint32_t N = shapes[i % 5][0], K = shapes[i % 5][1], n = rows[i / 5], step = plan_fp8_rows(scratch, N, K, n);
		uint64_t wide = (N + 15) / 16 * 16, deep = (K + 15) / 16 * 16, row = 4 * wide + 4 + deep;
		assert_true(step && step % FP8_TILE == 0 && step * row <= scratch);
		uint64_t times = (n + step - 1) / step, most = scratch / (16 * row) * 16;
		assert_true(times == (n + most - 1) / most && step <= n + 15);
	}
	assert_int_equal(plan_fp8_rows(scratch, 28672, 4096, 2000), 512);        // 4 times of at most 560
	assert_int_equal(plan_fp8_rows(16 * (4 * 16 + 4 + 16), 16, 16, 9), 16);
	assert_int_equal(plan_fp8_rows(16 * (4 * 16 + 4 + 16) - 1, 16, 16, 9), 0);
	assert_int_equal(plan_fp8_rows(scratch, UINT32_MAX, UINT32_MAX, 9), 0);
}

// What has room unpacked is unpacked; else all as stored, a window, and what is left unpacks some; else it says what would be needed.
static void matrices_stay_stored_where_there_is_no_room(void **state)
{
	(void)state;
	const uint64_t mib = 1 << 20, own = 100 * mib, margin = PLAN_MARGIN_BYTES;
	struct backend_need need = {.n_largest = 32 * mib};
	struct plan_room room;
	need.parts[BACKEND_PART_WEIGHTS] = (struct backend_count){.n_weight = 512 * mib, .stored_bytes = 300 * mib};
	need.parts[BACKEND_PART_WORK].n_act = 10 * mib;
	uint64_t all = own + 20 * mib + 1024 * mib, least = own + 20 * mib + 300 * mib + 64 * mib;
	assert_true(plan_need_bytes(&need, stored) == 320 * mib);
	assert_true(plan_reserve(&need, bf16, own, all, all, &room));
	assert_true(!room.stores && room.bytes == all && room.room == UINT64_MAX && !room.window_bytes);
	assert_true(plan_reserve(&need, bf16, own, all - 1, all, &room));
	assert_true(room.stores && room.bytes == all - margin && room.window_bytes == 64 * mib && room.least_bytes == least);
	assert_true(room.room == room.bytes - least);
	assert_true(plan_reserve(&need, bf16, own, least, all, &room) && room.stores && room.bytes == least && room.room == 0);
	assert_true(plan_reserve(&need, bf16, own, all, least + margin, &room) && room.stores && room.bytes == least && room.room == 0);
	assert_false(plan_reserve(&need, bf16, own, all, least + margin - 1, &room));
	assert_true(room.stores && room.least_bytes == least);
	assert_true(plan_reserve(&need, f32, own, all + 1024 * mib, all + 1024 * mib, &room));
	assert_true(room.stores && room.window_bytes == 128 * mib);      // floats take more
	assert_false(plan_reserve(&need, fp8, own, least, all, &room) && room.stores);
	need.parts[BACKEND_PART_WEIGHTS].stored_bytes = 1024 * mib;       // as large as unpacked, and a window: nothing is won
	assert_false(plan_reserve(&need, bf16, own, all - 1, all, &room));
	assert_true(!room.stores && room.least_bytes == all);
	need.parts[BACKEND_PART_WEIGHTS].stored_bytes = 0;                // not known
	assert_false(plan_reserve(&need, bf16, own, all - 1, all, &room));
	need.parts[BACKEND_PART_WEIGHTS].stored_bytes = 1;
	need.n_largest = UINT64_MAX;                                      // no window of that size
	assert_false(plan_reserve(&need, bf16, own, all - 1, all, &room));
}

static void a_need_is_told_by_its_parts(void **state)
{
	(void)state;
	char text[160], small[12];
	struct backend_need need = {0};
	plan_describe(&need, bf16, text, sizeof text);
	assert_string_equal(text, "");
	need.parts[BACKEND_PART_WEIGHTS].n_weight = UINT64_C(3) << 29;
	need.parts[BACKEND_PART_TRAINING].n_real = 1 << 27;
	plan_describe(&need, bf16, text, sizeof text);
	assert_string_equal(text, "weights 3.00, training 0.50");
	plan_describe(&need, bf16, small, sizeof small);
	assert_string_equal(small, "weights 3.0");
	need.parts[BACKEND_PART_WEIGHTS].stored_bytes = UINT64_C(1) << 30;
	plan_describe(&need, stored, text, sizeof text);
	assert_string_equal(text, "weights as stored 1.00, training 0.50");
}

static void places_in_the_reserve_do_not_overlap(void **state)
{
	(void)state;
	struct arena a;
	uint64_t at[300], bytes[300], random = 1;
	arena_init(&a, 1 << 20);
	for (int i = 0; i < 300; i++)
		at[i] = ARENA_NONE;
	for (int step = 0; step < 20000; step++) {
		random = random * UINT64_C(6364136223846793005) + 1442695040888963407;
		int i = (int)(random >> 33) % 300;
		if (at[i] != ARENA_NONE) {
			assert_int_equal(arena_give(&a, at[i]), 0);
			at[i] = ARENA_NONE;
			continue;
		}
		bytes[i] = (random >> 40) % 9000;
		at[i] = arena_take(&a, bytes[i]);
		for (int j = 0; j < 300 && at[i] != ARENA_NONE; j++)
			if (j != i && at[j] != ARENA_NONE)
				assert_true(at[i] + arena_rounded(bytes[i]) <= at[j] || at[j] + arena_rounded(bytes[j]) <= at[i]);
		assert_true(at[i] == ARENA_NONE || (at[i] % ARENA_ALIGNMENT == 0 && at[i] + bytes[i] <= a.bytes));
	}
	for (int i = 0; i < 300; i++)
		if (at[i] != ARENA_NONE)
			assert_int_equal(arena_give(&a, at[i]), 0);
	assert_true(a.used == 0);
	assert_true(arena_take(&a, a.bytes) == 0);         // what came back is one piece again
	assert_true(arena_take(&a, 1) == ARENA_NONE);
	assert_int_equal(arena_give(&a, 256), -ENOENT);
	arena_done(&a);
}

static void a_reserve_gives_no_more_than_it_has(void **state)
{
	(void)state;
	struct arena a;
	arena_init(&a, 1000);                              // three whole places
	assert_true(arena_take(&a, 257) == 0);
	assert_true(arena_take(&a, 257) == ARENA_NONE);
	assert_true(arena_take(&a, UINT64_MAX) == ARENA_NONE);
	assert_true(arena_take(&a, 0) == 512);
	assert_true(arena_take(&a, 1) == ARENA_NONE);
	arena_done(&a);
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

static void partial_sums_are_few_and_cover_all_rows(void **state)
{
	(void)state;
	assert_int_equal(plan_sum_rows(10, 32, 256), 32);
	assert_int_equal(plan_sum_rows(8192, 32, 256), 32);
	assert_int_equal(plan_sum_rows(8193, 32, 256), 33);
	for (uint32_t n = 1; n < 100000; n += 997)
		assert_true((n + plan_sum_rows(n, 32, 256) - 1) / plan_sum_rows(n, 32, 256) <= 256);
	assert_true(plan_sum_rows(UINT32_MAX, 32, 256) >= UINT32_MAX / 256);
}

static void only_allocation_and_absence_spare_the_process(void **state)
{
	(void)state;
	assert_int_equal(plan_error_class(0), PLAN_ERROR_NONE);
	assert_int_equal(plan_error_class(2), PLAN_ERROR_MEMORY);
	assert_int_equal(plan_error_class(35), PLAN_ERROR_ABSENT);
	assert_int_equal(plan_error_class(100), PLAN_ERROR_ABSENT);
	static const int not_ready[] = {3, 46, 802};
	for (size_t i = 0; i < sizeof not_ready / sizeof *not_ready; i++)
		assert_int_equal(plan_error_class(not_ready[i]), PLAN_ERROR_NOT_READY);
	static const int sticky[] = {1, 214, 700, 710, 714, 715, 716, 717, 718, 719, 999, 123456};
	for (size_t i = 0; i < sizeof sticky / sizeof *sticky; i++)
		assert_int_equal(plan_error_class(sticky[i]), PLAN_ERROR_STICKY);
}

static void faults_say_what_to_do(void **state)
{
	(void)state;
	static const int spared[] = {0, 2, 3, 35, 46, 100, 802};
	static const int restart[] = {1, 226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721, 123456};
	for (size_t i = 0; i < sizeof spared / sizeof *spared; i++)
		assert_int_equal(plan_fault(spared[i]), DEVICE_FAULT_NONE);
	for (size_t i = 0; i < sizeof restart / sizeof *restart; i++)
		assert_int_equal(plan_fault(restart[i]), DEVICE_FAULT_RESTART);
	assert_int_equal(plan_fault(214), DEVICE_FAULT_RESET);
	assert_int_equal(plan_fault(220), DEVICE_FAULT_RESET);
	assert_int_equal(plan_fault(999), DEVICE_FAULT_SUPPORT);
	for (enum device_fault f = DEVICE_FAULT_NONE; f < N_DEVICE_FAULTS; f++)
		assert_int_equal(device_fault_of(device_fault_field(f)), f);
	assert_int_equal(device_fault_of("device"), DEVICE_FAULT_NONE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_limit_is_the_smaller_of_what_was_said),
		cmocka_unit_test(a_need_counts_every_element_or_says_it_cannot),
		cmocka_unit_test(matrices_of_fp8_are_counted_with_tiles_and_scales),
		cmocka_unit_test(rows_of_fp8_products_fit_the_scratch_buffer),
		cmocka_unit_test(matrices_stay_stored_where_there_is_no_room),
		cmocka_unit_test(a_need_is_told_by_its_parts),
		cmocka_unit_test(places_in_the_reserve_do_not_overlap),
		cmocka_unit_test(a_reserve_gives_no_more_than_it_has),
		cmocka_unit_test(chunks_cover_all_rows_and_fit),
		cmocka_unit_test(partial_sums_are_few_and_cover_all_rows),
		cmocka_unit_test(faults_say_what_to_do),
		cmocka_unit_test(only_allocation_and_absence_spare_the_process),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
