// SPDX-License-Identifier: Apache-2.0
// Products of 8-bit integers in the form that processors with instructions for bytes take (vector_int8.c), with that one instruction
// written out in C: same bits as the form of words. It says nothing of the instruction itself, which takes such a processor.
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "kernels/cpu/cpu.h"
#include "tests/ops/harness.h"

extern const struct cpu_vector vector_bytes, vector_avx2bytes;

enum { MAX_N = 261, MAX_K = 1700, ROWS = 200 };

struct problem { uint32_t n, k, rows; float *w, *x, *bias; };

// Every value is at its group's largest, or random; one row holds what is no number, one nothing.
static void problem_fill(struct problem *p, uint64_t seed, bool extremes)
{
	random_fill(&seed, p->w, (size_t)p->n * p->k, 1);
	random_fill(&seed, p->x, (size_t)p->rows * p->k, 1);
	random_fill(&seed, p->bias, p->n, 1);
	for (size_t i = 0; extremes && i < (size_t)p->n * p->k; i++)
		p->w[i] = i / p->k % 3 ? -127 : 127;
	for (size_t i = 0; extremes && i < (size_t)p->rows * p->k; i++)
		p->x[i] = i / p->k % 2 ? -127 : 127;
	if (p->rows > 4) {
		p->x[2 * p->k] = NAN;
		memset(p->x + 3 * (size_t)p->k, 0, p->k * sizeof *p->x);
	}
}

// y: (rows, n) of the product, then (rows, k) of the matrix's rows as an embedding reads them.
static void problem_solve(struct backend *be, const struct cpu_vector *vector, const struct problem *p, double *y)
{
	const struct backend_ops *ops = be->ops;
	size_t n_y = (size_t)p->rows * p->n, n_x = (size_t)p->rows * p->k;
	uint32_t tokens[ROWS], positions[ROWS] = {0}, starts[2] = {0, p->rows};
	struct tensor part = tensor_matrix(DTYPE_F32, p->n, p->k, p->w);
	cpu_of(be)->vector = vector;
	struct weight *w = ops->weight_load(be, WEIGHT_PLAIN, &part, 1, NULL);
	struct act *x = ops->act_new(be, n_x, NULL);
	struct real *to = ops->real_new(be, n_y, NULL), *bias = ops->real_new(be, p->n, NULL), *rows = ops->real_new(be, n_x, NULL);
	assert_true(w && x && to && bias && rows);
	ops->act_write(be, x, p->x, n_x);
	ops->real_write(be, bias, p->bias, p->n);
	ops->linear_real(be, to, false, x, w, bias, p->rows);
	ops->linear_real(be, to, true, x, w, NULL, p->rows);
	for (uint32_t r = 0; r < p->rows; r++)
		tokens[r] = r % p->n;
	ops->begin(be, &(struct layout){.n_positions = p->rows, .n_sequences = 1, .tokens = tokens, .positions = positions,
					.starts = starts});
	ops->embed(be, rows, w);
	ops->real_read(be, y, to, n_y);
	ops->real_read(be, y + n_y, rows, n_x);
	ops->weight_free(be, w);
	ops->act_free(be, x);
	ops->real_free(be, to);
	ops->real_free(be, bias);
	ops->real_free(be, rows);
}

static void compare(struct backend *be, const struct cpu_vector *words, const struct cpu_vector *bytes)
{
	static const uint32_t shapes[][3] = {{1, 1, 1}, {15, 31, 5}, {37, 33, 33}, {129, 577, 97}, {MAX_N, MAX_K, 13}, {48, 64, ROWS}};
	struct problem p = {.w = calloc((size_t)MAX_N * MAX_K, 4), .x = calloc((size_t)ROWS * MAX_K, 4), .bias = calloc(MAX_N, 4)};
	double *want = calloc((size_t)ROWS * (MAX_N + MAX_K), sizeof *want), *have = calloc((size_t)ROWS * (MAX_N + MAX_K), sizeof *have);
	assert_true(p.w && p.x && p.bias && want && have);
	for (size_t i = 0; i < 2 * sizeof shapes / sizeof *shapes; i++) {
		p.n = shapes[i / 2][0];
		p.k = shapes[i / 2][1];
		p.rows = shapes[i / 2][2];
		problem_fill(&p, i + 1, i % 2);
		problem_solve(be, words, &p, want);
		problem_solve(be, bytes, &p, have);
		assert_int_equal(bytes->int8_terms, 4);
		assert_memory_equal(have, want, (size_t)p.rows * (p.n + p.k) * sizeof *want);
	}
	free(p.w);
	free(p.x);
	free(p.bias);
	free(want);
	free(have);
}

// words: the table that is there without such instructions.
static void bytes_say_what_words_say(const struct cpu_vector *words, const struct cpu_vector *bytes)
{
	struct backend_options options = {.n_threads = 2, .numeric = BACKEND_NUMERIC_INT8, .max_rows = ROWS};
	struct backend *be = NULL;
	struct error err = {0};
	setenv("KDSERVED_CPU", words->name, 1);
	int r = backend_open("cpu", &options, &be, &err);
	unsetenv("KDSERVED_CPU");
	if (r == -EOPNOTSUPP)
		skip();
	if (r < 0)
		fail_msg("%s", err.message);
	compare(be, words, bytes);
	backend_close(be);
}

static void bytes_say_what_words_say_in_four_lanes(void **state)
{
	(void)state;
	bytes_say_what_words_say(&vector_baseline, &vector_bytes);
}

#if defined(__x86_64__)
static void bytes_say_what_words_say_in_eight_lanes(void **state)
{
	(void)state;
	bytes_say_what_words_say(&vector_avx2, &vector_avx2bytes);
}
#endif

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bytes_say_what_words_say_in_four_lanes),
#if defined(__x86_64__)
		cmocka_unit_test(bytes_say_what_words_say_in_eight_lanes),
#endif
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
