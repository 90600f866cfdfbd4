// SPDX-License-Identifier: Apache-2.0
// The CUDA backend's reserve, on the emulated device (8 GiB): what was counted is there and nothing more; what does not fit is refused
// with the numbers, before anything is loaded.
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "kernels/backend.h"
#include "tests/gpu/emulate/faults.h"

static struct backend *be;
static struct error err;

static int open_with(uint64_t n_real, uint64_t memory_bytes, double share)
{
	struct backend_options options = {.max_rows = 8, .memory_bytes = memory_bytes, .memory_share = share, 
		.need.parts[BACKEND_PART_WORK] = {.n_real = n_real, .n_arrays = 2}};
	err = (struct error){0};
	be = NULL;
	return backend_open("cuda", &options, &be, &err);
}

static void the_reserve_holds_what_was_counted(void **state)
{
	(void)state;
	double back[4];
	assert_int_equal(open_with(3000, 0, 0), 0);
	struct real *a = be->ops->real_new(be, 1000, &err), *b = be->ops->real_new(be, 2000, &err);
	assert_true(a && b);
	be->ops->real_write(be, a, (const float[]){1, 2, 3, 4}, 4);
	be->ops->real_read(be, back, be->ops->real_at(b, 1996), 4);
	assert_true(back[0] == 0 && back[3] == 0);
	assert_null(be->ops->real_new(be, 1 << 20, &err));      // never asks the device for more
	assert_int_equal(err.code, ERROR_MEMORY);
	assert_non_null(strstr(err.message, "reserved at start"));
	assert_int_equal(backend_sync(be, &err), 0);            // and that is the caller's error alone
	be->ops->real_free(be, b);
	b = be->ops->real_new(be, 2000, &err);
	assert_non_null(b);
	be->ops->real_free(be, a);
	be->ops->real_free(be, b);
	backend_close(be);
}

static void what_does_not_fit_is_refused_with_the_numbers(void **state)
{
	(void)state;
	assert_true(open_with(UINT64_C(5) << 30, 0, 0) < 0);    // 20 GiB on a device of 8
	assert_int_equal(err.code, ERROR_TOO_LARGE);
	assert_string_equal(err.field, "gpu-memory");
	assert_string_equal(err.message,
			    "20.16 GiB of GPU memory are needed (work 20.00, buffers 0.16); 7.75 may be taken, 8.00 are free of 8.00");
	assert_true(open_with(1 << 28, 1 << 30, 0) < 0);        // 1 GiB and the work buffers, 1 allowed
	assert_int_equal(err.code, ERROR_TOO_LARGE);
	assert_true(open_with(1 << 28, 0, 0.125) < 0);
	assert_non_null(strstr(err.message, "1.00 may be taken"));
	assert_true(open_with(UINT64_MAX / 2, 0, 0) < 0);
	assert_int_equal(err.code, ERROR_TOO_LARGE);
}

static void a_shape_it_cannot_do_is_refused_before_anything_is_loaded(void **state)
{
	(void)state;
	static const struct { struct attention_shape shape; bool good; } cases[] = {
		{{4, 2, 256, 1, false, 0, 0}, true}, {{64, 1, 16, 1, true, 0, 0}, true}, {{4, 2, 258, 1, false, 0, 0}, false}, {{65, 1, 16, 1, false, 0, 0}, false},
		{{130, 2, 16, 1, false, 0, 0}, false}, {{1, 1, 1024, 1, true, 0, 0}, false},
	};
	assert_int_equal(open_with(0, 0, 0), 0);
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		err = (struct error){0};
		assert_int_equal(be->ops->check_shape(be, &cases[i].shape, &err), cases[i].good ? 0 : -EOPNOTSUPP);
		assert_true(cases[i].good || strstr(err.message, "CUDA backend takes up to 256, and 64"));
	}
	assert_int_equal(backend_sync(be, &err), 0);
	backend_close(be);
}

static void a_gpu_without_code_for_it_is_refused(void **state)
{
	(void)state;
	setenv("EMULATE_NO_CODE", "1", 1);
	assert_int_equal(open_with(0, 0, 0), -EOPNOTSUPP);
	unsetenv("EMULATE_NO_CODE");
	assert_non_null(strstr(err.message, "no kernel image is available"));
	assert_non_null(strstr(err.message, "CUDA_ARCHITECTURES=90"));
}

static void arrays_longer_than_the_pinned_memory_come_and_go_whole(void **state)
{
	(void)state;
	enum { N = (20 << 20) / 2 + 3 };         // 16 MiB are kept for answers; of bfloat16
	float *from = calloc(N, sizeof *from);
	double *back = calloc(N, sizeof *back);
	assert_true(from && back);
	for (uint32_t i = 0; i < N; i++)
		from[i] = (float)(i % 251);      // exact in bfloat16
	assert_int_equal(open_with(2 * N, 0, 0), 0);
	struct act *x = be->ops->act_new(be, N, &err);
	struct real *y = be->ops->real_new(be, N, &err);
	assert_true(x && y);
	be->ops->act_write(be, x, from, N);
	be->ops->act_read(be, back, x, N);
	for (uint32_t i = 0; i < N; i++)
		assert_true(back[i] == (double)from[i]);
	be->ops->real_write(be, y, from, N);
	memset(back, 0, N * sizeof *back);
	be->ops->real_read(be, back, y, N);
	for (uint32_t i = 0; i < N; i++)
		assert_true(back[i] == (double)from[i]);
	be->ops->act_free(be, x);
	be->ops->real_free(be, y);
	backend_close(be);
	free(from);
	free(back);
}

// Attention of heads of 256 over 70 rows on a device with so much shared memory to a block.
static void attend(size_t shared, double *ret_y)
{
	enum { T = 70, D = 256, W = 3 * D };
	static float qkv[T * W];
	static uint32_t tokens[T], positions[T];
	const uint32_t starts[] = {0, 1, T};
	for (uint32_t i = 0; i < T * W; i++)
		qkv[i] = (float)((i * 2654435761u >> 16) % 512) / 256 - 1;
	for (uint32_t t = 1; t < T; t++)
		positions[t] = t - 1;
	const struct layout layout = {.n_positions = T, .n_sequences = 2, .tokens = tokens, .positions = positions, .starts = starts};
	const struct attention_shape shape = {1, 1, D, 0.0625f, false, 0, 0};
	const struct backend_options options = {.max_rows = T};
	emulate_set_shared(shared);
	assert_int_equal(backend_open("cuda", &options, &be, &err), 0);
	struct act *x = be->ops->act_new(be, T * W, &err), *y = be->ops->act_new(be, T * D, &err);
	be->ops->act_write(be, x, qkv, T * W);
	be->ops->begin(be, &layout);
	be->ops->attention(be, y, NULL, x, &shape);
	be->ops->act_read(be, ret_y, y, T * D);
	assert_int_equal(backend_sync(be, &err), 0);
	be->ops->act_free(be, x);
	be->ops->act_free(be, y);
	backend_close(be);
	emulate_set_shared(227 << 10);
}

static void large_heads_do_with_little_shared_memory(void **state)
{
	(void)state;
	static double much[70 * 256], little[70 * 256];
	attend(227 << 10, much);
	attend(99 << 10, little);                // compute capability 8.6, 8.9, 12.0
	for (size_t i = 0; i < 70 * 256; i++)
		assert_true(fabs(much[i] - little[i]) <= 0.02);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_reserve_holds_what_was_counted),
		cmocka_unit_test(large_heads_do_with_little_shared_memory),
		cmocka_unit_test(a_gpu_without_code_for_it_is_refused),
		cmocka_unit_test(arrays_longer_than_the_pinned_memory_come_and_go_whole),
		cmocka_unit_test(a_shape_it_cannot_do_is_refused_before_anything_is_loaded),
		cmocka_unit_test(what_does_not_fit_is_refused_with_the_numbers),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
