// SPDX-License-Identifier: Apache-2.0
// Products of 8-bit integers: sums are exact, whatever the processor's instructions do to bytes. Elsewhere (forward.c) they are held to ref
// like other products, with the bounds of float: an integer that is off by one is off by far more.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/ops/harness.h"

enum { N = 37, K = 576, ROWS = 29 };

static bool is_int8(const struct pair *p)
{
	return strncmp(p->be->numeric, "int8", 4) == 0;
}

// Integers up to 127, which is in each group: every scale is 1.
static void fill_integers(struct pair *p, float *x, size_t rows)
{
	for (size_t i = 0; i < rows * K; i++) {
		double v = rint(80 * random_unit(&p->random));
		x[i] = (float)fmin(fmax(v, -127), 127);
	}
	for (size_t r = 0; r < rows; r++)
		for (size_t k = r % INT8_GROUP; k < K; k += INT8_GROUP)
			x[r * K + k] = r % 2 ? -127 : 127;
}

static struct weight *load(struct pair *p, const float *values)
{
	struct tensor part = tensor_matrix(DTYPE_F32, N, K, values);
	struct weight *w = p->be->ops->weight_load(p->be, WEIGHT_BLOCK, &part, 1, NULL);
	assert_non_null(w);
	return w;
}

static void multiply(struct pair *p, double *y, const float *x, const struct weight *w)
{
	const struct backend_ops *ops = p->be->ops;
	struct act *from = ops->act_new(p->be, ROWS * K, NULL);
	struct real *to = ops->real_new(p->be, ROWS * N, NULL);
	assert_true(from && to);
	ops->act_write(p->be, from, x, ROWS * K);
	ops->linear_real(p->be, to, false, from, w, NULL, ROWS);
	ops->real_read(p->be, y, to, ROWS * N);
	ops->act_free(p->be, from);
	ops->real_free(p->be, to);
}

void int8_products_are_exact(void **state)
{
	struct pair *p = *state;
	static float x[ROWS * K], w[N * K];
	static double y[ROWS * N];
	if (!is_int8(p))
		return;
	for (int all = 0; all < 2; all++) {
		fill_integers(p, x, ROWS);
		fill_integers(p, w, N);
		for (size_t i = 0; all && i < ROWS * K; i++)     // the largest sums there are, where 16 bits would not do
			x[i] = i / K % 2 ? -127 : 127;
		for (size_t i = 0; all && i < N * K; i++)
			w[i] = i / K % 3 ? -127 : 127;
		struct weight *weight = load(p, w);
		multiply(p, y, x, weight);
		for (size_t r = 0; r < ROWS; r++) {
			for (size_t n = 0; n < N; n++) {
				int32_t sum = 0;
				for (size_t k = 0; k < K; k++)
					sum += (int32_t)x[r * K + k] * (int32_t)w[n * K + k];
				if (y[r * N + n] != sum)
					fail_msg("row %zu, output %zu: %.9g, not %d", r, n, y[r * N + n], sum);
			}
		}
		p->be->ops->weight_free(p->be, weight);
	}
}

// Around what implementations cut products into: groups and chunks of groups, panels and groups of panels,
// blocks of rows and units of blocks.
void int8_products_of_any_shape_match_ref(void **state)
{
	static const uint32_t rows_of[] = {1, 5, 33, 97, 200}, outputs[] = {1, 15, 37, 129, 261}, terms[] = {1, 31, 33, 577, 1700};
	struct pair *p = *state;
	if (!is_int8(p))
		return;
	for (size_t i = 0; i < 5 * 5 * 5; i++) {
		uint32_t rows = rows_of[i % 5], n = outputs[i / 5 % 5], k = terms[i / 25];
		pair_reset(p, i + 1);
		struct twin_act x = twin_act_random(p, (size_t)rows * k, 1);
		struct twin_weight w = twin_weight_random(p, WEIGHT_BLOCK, n, k);
		struct twin y = twin_poisoned(p, (size_t)rows * n), bias = twin_random(p, n, 1);
		struct bound b = bound_product(p, p->eps_product, k, false);
		p->ref->ops->linear_real(p->ref, y.ref, false, x.ref, w.ref, bias.ref, rows);
		p->be->ops->linear_real(p->be, y.be, false, x.be, w.be, bias.be, rows);
		assert_twin(p, "int8", y, b);
		y = twin_random(p, y.n, 1);
		p->ref->ops->linear_real(p->ref, y.ref, true, x.ref, w.ref, NULL, rows);
		p->be->ops->linear_real(p->be, y.be, true, x.be, w.be, NULL, rows);
		assert_twin(p, "int8, added", y, b);
	}
}

void int8_products_keep_what_is_not_a_number_in_its_row(void **state)
{
	struct pair *p = *state;
	static const float bad[] = {NAN, INFINITY, -INFINITY};
	static float x[ROWS * K], w[N * K];
	static double want[ROWS * N], y[ROWS * N];
	if (!is_int8(p))
		return;
	fill_integers(p, x, ROWS);
	fill_integers(p, w, N);
	memset(x + 7 * K, 0, K * sizeof *x);                     // nothing to scale
	x[8 * K] = 1e-38f;
	struct weight *weight = load(p, w);
	multiply(p, want, x, weight);
	for (size_t n = 0; n < N; n++)
		assert_true(want[7 * N + n] == 0);
	for (size_t i = 0; i < 3; i++) {
		float kept = x[5 * K + 100 * i + 1];
		x[5 * K + 100 * i + 1] = bad[i];
		multiply(p, y, x, weight);
		for (size_t n = 0; n < N; n++)
			assert_true(isnan(y[5 * N + n]));
		memcpy(y + 5 * N, want + 5 * N, N * sizeof *y);
		assert_memory_equal(y, want, sizeof y);
		x[5 * K + 100 * i + 1] = kept;
	}
	p->be->ops->weight_free(p->be, weight);
}
