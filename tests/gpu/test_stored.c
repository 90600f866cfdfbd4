// SPDX-License-Identifier: Apache-2.0
// Quantised matrices that stay as the file has them on the device: the bits of the same matrices unpacked when they were loaded,
// in every operation that reads one; and a reserve that holds what it must and refuses with the numbers what it cannot.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "kernels/backend.h"
#include "tests/ops/quantised.h"
#ifdef EMULATED
#include "tests/gpu/emulate/faults.h"
#endif

enum { MAX_ROWS = 40 };

static struct backend *open_storing(const struct backend_options *options)
{
	struct backend *be = NULL;
	struct error err = {0};
	int r = backend_open("cuda", options, &be, &err);
	if (r == -EOPNOTSUPP)      // no GPU here
		skip();
	if (r < 0)
		fail_msg("%s", err.message);
	assert_true(be->stores && be->memory_bytes == options->memory_bytes);
	return be;
}

// A device that may take 512 MiB, for matrices of 2 GiB unpacked.
static struct backend *open_small(enum backend_numeric numeric, uint64_t n_largest)
{
	struct backend_options options = {.numeric = numeric, .max_rows = MAX_ROWS, .memory_bytes = UINT64_C(512) << 20};
	options.need.parts[BACKEND_PART_WEIGHTS] = (struct backend_count){.n_weight = UINT64_C(1) << 30, .stored_bytes = 1, .n_arrays = 64};
	options.need.n_largest = n_largest;
	return open_storing(&options);
}

struct results { double *embedded, *y, *sum, *dx; };

static double *numbers(size_t n)
{
	double *x = calloc(n, sizeof *x);
	assert_non_null(x);
	return x;
}

// embed of every third row, both products, and the way back through one.
static struct results compute(struct backend *be, const struct weight *w, uint32_t N, uint32_t K, uint32_t rows)
{
	struct results r = {numbers((size_t)rows * K), numbers((size_t)rows * N), numbers((size_t)rows * N), numbers((size_t)rows * K)};
	float *from = calloc((size_t)rows * (N > K ? N : K), sizeof *from);
	uint32_t tokens[MAX_ROWS], positions[MAX_ROWS], starts[] = {0, rows};
	assert_non_null(from);
	for (uint32_t i = 0; i < rows; i++) {
		tokens[i] = i * 3 % N;
		positions[i] = i;
	}
	for (size_t i = 0; i < (size_t)rows * (N > K ? N : K); i++)
		from[i] = (float)((i * 2654435761u >> 16) % 512) / 256 - 1;
	const struct layout layout = {.n_positions = rows, .n_sequences = 1, .tokens = tokens, .positions = positions, .starts = starts};
	struct real *embedded = be->ops->real_new(be, (size_t)rows * K, NULL), *sum = be->ops->real_new(be, (size_t)rows * N, NULL);
	struct act *x = be->ops->act_new(be, (size_t)rows * K, NULL), *y = be->ops->act_new(be, (size_t)rows * N, NULL);
	struct act *dx = be->ops->act_new(be, (size_t)rows * K, NULL);
	assert_true(embedded && sum && x && y && dx);
	be->ops->begin(be, &layout);
	be->ops->embed(be, embedded, w);
	be->ops->real_read(be, r.embedded, embedded, (size_t)rows * K);
	be->ops->act_write(be, x, from, (size_t)rows * K);
	be->ops->linear(be, y, x, w, NULL, rows);
	be->ops->act_read(be, r.y, y, (size_t)rows * N);
	be->ops->real_write(be, sum, from, (size_t)rows * N);
	be->ops->linear_real(be, sum, true, x, w, NULL, rows);
	be->ops->real_read(be, r.sum, sum, (size_t)rows * N);
	be->ops->act_write(be, y, from, (size_t)rows * N);
	be->ops->linear_backward(be, dx, NULL, NULL, y, x, w, rows);
	be->ops->act_read(be, r.dx, dx, (size_t)rows * K);
	be->ops->real_free(be, embedded);
	be->ops->real_free(be, sum);
	be->ops->act_free(be, x);
	be->ops->act_free(be, y);
	be->ops->act_free(be, dx);
	free(from);
	return r;
}

static void assert_same(struct results a, struct results b, uint32_t N, uint32_t K, uint32_t rows)
{
	assert_memory_equal(a.embedded, b.embedded, (size_t)rows * K * 8);
	assert_memory_equal(a.y, b.y, (size_t)rows * N * 8);
	assert_memory_equal(a.sum, b.sum, (size_t)rows * N * 8);
	assert_memory_equal(a.dx, b.dx, (size_t)rows * K * 8);
	double *all[] = {a.embedded, a.y, a.sum, a.dx, b.embedded, b.y, b.sum, b.dx};
	for (int i = 0; i < 8; i++)
		free(all[i]);
}

// Two matrices as stored, so that each finds the other in the window.
static void assert_bits(enum backend_numeric numeric, enum dtype type, uint32_t N, uint32_t K, uint32_t rows)
{
	struct backend *be = open_small(numeric, (uint64_t)N * K);
	struct weight *loaded = quantised_load(be, false, type, N, K), *stored = quantised_load(be, true, type, N, K);
	struct weight *other = quantised_load(be, true, DTYPE_Q8_0, N, K);
	size_t bytes = N / 2 * dtype_row_bytes(type, K) + (N - N / 2) * dtype_row_bytes(DTYPE_Q8_0, K);
	assert_int_equal(be->stored_bytes, bytes + N * dtype_row_bytes(DTYPE_Q8_0, K));
	struct results want = compute(be, loaded, N, K, rows), others = compute(be, other, N, K, rows);
	assert_same(want, compute(be, stored, N, K, rows), N, K, rows);
	assert_same(others, compute(be, other, N, K, rows), N, K, rows);
	assert_int_equal(backend_sync(be, NULL), 0);
	be->ops->weight_free(be, other);
	other = quantised_load(be, true, type, N, K);      // perhaps where that lay, whose values are in the window
	assert_same(compute(be, loaded, N, K, rows), compute(be, other, N, K, rows), N, K, rows);
	be->ops->weight_free(be, other);
	be->ops->weight_free(be, stored);
	be->ops->weight_free(be, loaded);
	backend_close(be);
}

static void stored_matrices_have_the_bits_of_unpacked_ones(void **state)
{
	(void)state;
	for (int numeric = BACKEND_NUMERIC_F32; numeric <= BACKEND_NUMERIC_BF16; numeric++) {
		for (int type = 0; type < N_DTYPES; type++)
			assert_bits((enum backend_numeric)numeric, (enum dtype)type, 67, 512, 9);
		assert_bits((enum backend_numeric)numeric, DTYPE_Q4_1, 260, 4128, 3);
		assert_bits((enum backend_numeric)numeric, DTYPE_Q4_0, 2, 32, 1);
	}
}

#ifdef EMULATED
// Asked for again, as the tiles of a head do, what lies in the window is not unpacked again.
static void what_lies_in_the_window_is_used_again(void **state)
{
	(void)state;
	struct backend *be = open_small(BACKEND_NUMERIC_BF16, 64 * 256);
	struct weight *a = quantised_load(be, true, DTYPE_Q4_K, 64, 256), *b = quantised_load(be, true, DTYPE_Q4_K, 64, 256);
	struct act *x = be->ops->act_new(be, 256, NULL), *y = be->ops->act_new(be, 64, NULL);
	const struct weight *turns[] = {a, a, b, b, b, a};
	const uint64_t want[] = {2, 0, 2, 0, 0, 2};       // a kernel for each part
	for (int i = 0; i < 6; i++) {
		uint64_t before = emulate_count(EMULATE_LAUNCH);
		be->ops->linear(be, y, x, turns[i], NULL, 1);
		assert_int_equal(emulate_count(EMULATE_LAUNCH) - before, want[i]);
	}
	assert_int_equal(backend_sync(be, NULL), 0);
	be->ops->act_free(be, x);
	be->ops->act_free(be, y);
	be->ops->weight_free(be, a);
	be->ops->weight_free(be, b);
	backend_close(be);
}

static int open_with(uint64_t n_weight, uint64_t stored_bytes, enum backend_numeric numeric, struct error *err)
{
	struct backend_options options = {.max_rows = 8, .numeric = numeric};
	struct backend *be = NULL;
	options.need.parts[BACKEND_PART_WEIGHTS] = (struct backend_count){
		.n_weight = n_weight, .n_block = n_weight, .fp8_bytes = n_weight, .stored_bytes = stored_bytes, .n_arrays = 2};
	options.need.n_largest = n_weight / 16;
	*err = (struct error){0};
	int r = backend_open("cuda", &options, &be, err);
	backend_close(be);
	return r;
}

// On a device of 1 GiB.
static void what_does_not_even_fit_as_stored_is_refused(void **state)
{
	(void)state;
	const uint64_t mib = 1 << 20;
	struct error err;
	emulate_set_memory(1024 * mib);
	assert_int_equal(open_with(512 * mib, 300 * mib, BACKEND_NUMERIC_BF16, &err), 0);
	assert_true(open_with(1024 * mib, 640 * mib, BACKEND_NUMERIC_BF16, &err) < 0);
	assert_int_equal(err.code, ERROR_TOO_LARGE);
	assert_string_equal(err.field, "gpu-memory");
	assert_string_equal(err.message, "0.91 GiB of GPU memory are needed (weights as stored 0.63, buffers 0.28); 0.75 may be taken, "
			    "1.00 are free of 1.00");
	assert_true(open_with(1024 * mib, 0, BACKEND_NUMERIC_BF16, &err) < 0);
	assert_int_equal(err.code, ERROR_TOO_LARGE);
	assert_non_null(strstr(err.message, "(weights 2.00, "));
	assert_true(open_with(1536 * mib, 300 * mib, BACKEND_NUMERIC_FP8, &err) < 0);      // its matrices are made when they are loaded
	assert_non_null(strstr(err.message, "(weights 1.50, "));
	emulate_set_memory(UINT64_C(8) << 30);
}
#endif

// What has room unpacked is, and the rest of the reserve suffices for all others.
static void the_reserve_holds_all_that_was_counted(void **state)
{
	(void)state;
	enum { N = 256, K = 1024, MATRICES = 40 };
	struct backend_options options = {.max_rows = 8, .memory_bytes = UINT64_C(172) << 20};
	struct weight *w[MATRICES];
	struct error err = {0};
	size_t stored = N * dtype_row_bytes(DTYPE_Q4_0, K);
	uint8_t *bytes = calloc(1, stored);
	uint32_t kept = 0;
	struct tensor part = tensor_matrix(DTYPE_Q4_0, N, K, bytes);
	options.need.parts[BACKEND_PART_WEIGHTS] = (struct backend_count){
		.n_weight = MATRICES * N * K, .stored_bytes = MATRICES * stored, .n_arrays = MATRICES};
	options.need.n_largest = N * K;
	struct backend *be = open_storing(&options);
	for (int i = 0; i < MATRICES; i++) {
		bool keep = backend_keeps(be, N * K, stored);
		w[i] = (keep ? be->ops->weight_load : be->ops->weight_load_apart)(be, WEIGHT_BLOCK, &part, 1, &err);
		if (!w[i])
			fail_msg("%s", err.message);
		kept += keep;
	}
	assert_in_range(kept, 1, MATRICES - 1);
	assert_int_equal(be->stored_bytes, (MATRICES - kept) * stored);
	assert_true(be->room < backend_matrix_bytes(N * K, be->element_bytes) - stored);
	for (int i = 0; i < MATRICES; i++)
		be->ops->weight_free(be, w[i]);
	assert_int_equal(backend_sync(be, NULL), 0);
	backend_close(be);
	free(bytes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(stored_matrices_have_the_bits_of_unpacked_ones),
#ifdef EMULATED
		cmocka_unit_test(what_lies_in_the_window_is_used_again),
		cmocka_unit_test(what_does_not_even_fit_as_stored_is_refused),
#endif
		cmocka_unit_test(the_reserve_holds_all_that_was_counted),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
