// SPDX-License-Identifier: Apache-2.0
// Products of E4M3 numbers (backend.h, FP8). Elsewhere (forward.c) what stays in more digits is held to ref like bf16's.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/ops/harness.h"

// Tensor cores keep about 13 bits of a sum below the largest product in it, until it goes to float after some products (fast accumulation
// is off).
#define EPS_SUM 0x1p-13
enum { N_NUMBERS = 127, MIDDLE = 16, ROWS = 29 };    // the numbers that are not negative

static bool is_fp8(const struct pair *p)
{
	return strncmp(p->be->numeric, "fp8", 3) == 0;
}

// In order, 0 to 448.
static float number(int i)
{
	return i < 8 ? (float)i * 0x1p-9f : ldexpf((float)(8 + i % 8), i / 8 - 10);
}

static struct weight *load(struct pair *p, const float *values, uint32_t N, uint32_t K)
{
	struct tensor part = tensor_matrix(DTYPE_F32, N, K, values);
	struct weight *w = p->be->ops->weight_load(p->be, WEIGHT_BLOCK, &part, 1, NULL);
	assert_non_null(w);
	return w;
}

static void multiply(struct pair *p, double *y, const float *x, const struct weight *w, uint32_t rows, uint32_t N, uint32_t K)
{
	const struct backend_ops *ops = p->be->ops;
	struct act *from = ops->act_new(p->be, (size_t)rows * K, NULL);
	struct real *to = ops->real_new(p->be, (size_t)rows * N, NULL);
	assert_true(from && to);
	ops->act_write(p->be, from, x, (size_t)rows * K);
	ops->linear_real(p->be, to, false, from, w, NULL, rows);
	ops->real_read(p->be, y, to, (size_t)rows * N);
	ops->act_free(p->be, from);
	ops->real_free(p->be, to);
	assert_int_equal(backend_sync(p->be, NULL), 0);
}

// A diagonal of 448s, whose numbers are 448 and scales 1.
static struct weight *load_diagonal(struct pair *p, uint32_t n)
{
	float *values = calloc((size_t)n * n, sizeof *values);
	assert_non_null(values);
	for (uint32_t i = 0; i < n; i++)
		values[(size_t)i * n + i] = FP8_MAX;
	struct weight *w = load(p, values, n, n);
	free(values);
	return w;
}

// x (MIDDLE steps between each two numbers, of either sign, and 448 in each row) times 448: the number that each is rounded to.
void fp8_rounds_to_the_nearest_number(void **state)
{
	struct pair *p = *state;
	enum { K = N_NUMBERS };
	static float x[2 * MIDDLE * K];
	static double y[2 * MIDDLE * K];
	if (!is_fp8(p))
		return;
	for (int r = 0; r < 2 * MIDDLE; r++) {
		for (int i = 0; i < K; i++) {
			float low = number(i), high = number(i + 1 < K ? i + 1 : i);
			float between = low + (high - low) * (float)(r % MIDDLE) / MIDDLE;       // 8 bits: bfloat16 has them
			x[r * K + i] = r < MIDDLE ? between : -between;
		}
	}
	struct weight *w = load_diagonal(p, K);
	multiply(p, y, x, w, 2 * MIDDLE, K, K);
	for (int r = 0; r < 2 * MIDDLE; r++) {
		for (int i = 0; i < K; i++) {
			int at = r % MIDDLE, up = at > MIDDLE / 2 || (at == MIDDLE / 2 && i % 2);
			double want = (r < MIDDLE ? 448.0 : -448.0) * number(up && i + 1 < K ? i + 1 : i);
			if (y[r * K + i] != want)
				fail_msg("%.9g became %.9g, not %.9g", x[r * K + i], y[r * K + i] / 448, want / 448);
		}
	}
	p->be->ops->weight_free(p->be, w);
}

// Rows of any size lose their size to the scale and no more: what comes back of 448 times the diagonal is off by half a step.
void fp8_rows_have_scales(void **state)
{
	struct pair *p = *state;
	enum { K = 100 };
	static const float sizes[] = {1e-28f, 3e-5f, 1, 7e9f, 1e30f};
	static float x[5 * K];
	static double y[5 * K];
	if (!is_fp8(p))
		return;
	for (int r = 0; r < 5; r++)
		random_fill(&p->random, x + r * K, K, sizes[r]);
	struct weight *w = load_diagonal(p, K);
	multiply(p, y, x, w, 5, K, K);
	for (int r = 0; r < 5; r++) {
		double most = 0;
		for (int i = 0; i < K; i++)
			most = fmax(most, fabs((double)x[r * K + i]));
		for (int i = 0; i < K; i++)      // bfloat16 has rounded it before
			assert_true(fabs(y[r * K + i] / 448 - x[r * K + i]) <= fabs((double)x[r * K + i]) * 0.068 + most * 0x1p-18);
	}
	p->be->ops->weight_free(p->be, w);
}

// Small integers, whose sums no device may round; 448, which makes scales 1, meets zeros.
void fp8_products_of_integers_are_exact(void **state)
{
	struct pair *p = *state;
	enum { N = 37, K = 583 };
	static float x[ROWS * K], w[N * K];
	static double y[ROWS * N];
	if (!is_fp8(p))
		return;
	for (size_t i = 0; i < ROWS * K; i++)
		x[i] = i % K == 0 ? 448 : i % K == K - 1 ? 0 : (float)rint(random_unit(&p->random) * 2);
	for (size_t i = 0; i < N * K; i++)
		w[i] = i % K == 0 ? 0 : i % K == K - 1 ? -448 : (float)rint(random_unit(&p->random) * 2);
	struct weight *weight = load(p, w, N, K);
	multiply(p, y, x, weight, ROWS, N, K);
	for (size_t r = 0; r < ROWS; r++) {
		for (size_t n = 0; n < N; n++) {
			double sum = 0;
			for (size_t k = 0; k < K; k++)
				sum += (double)x[r * K + k] * (double)w[n * K + k];
			if (y[r * N + n] != sum)
				fail_msg("row %zu, output %zu: %.9g, not %.9g", r, n, y[r * N + n], sum);
		}
	}
	p->be->ops->weight_free(p->be, weight);
}

static void check_shape(struct pair *p, uint32_t rows, uint32_t n, uint32_t k)
{
	const struct backend_ops *ref = p->ref->ops, *be = p->be->ops;
	struct twin_act x = twin_act_random(p, (size_t)rows * k, 1), act = twin_act_poisoned(p, (size_t)rows * n);
	struct twin_weight w = twin_weight_random(p, WEIGHT_BLOCK, n, k);
	struct twin y = twin_poisoned(p, (size_t)rows * n), bias = twin_random(p, n, 1);
	struct bound b = bound_product(p, EPS_SUM, k, false);
	ref->linear_real(p->ref, y.ref, false, x.ref, w.ref, bias.ref, rows);
	be->linear_real(p->be, y.be, false, x.be, w.be, bias.be, rows);
	assert_twin(p, "fp8", y, b);
	y = twin_random(p, y.n, 1);
	ref->linear_real(p->ref, y.ref, true, x.ref, w.ref, NULL, rows);
	be->linear_real(p->be, y.be, true, x.be, w.be, NULL, rows);
	assert_twin(p, "fp8, added", y, b);
	ref->linear(p->ref, act.ref, x.ref, w.ref, bias.ref, rows);
	be->linear(p->be, act.be, x.be, w.be, bias.be, rows);
	assert_twin_act(p, "fp8, to act", act, bound_product(p, EPS_SUM, k, true));
}

// Around the tiles.
void fp8_products_of_any_shape_match_ref(void **state)
{
	static const uint32_t rows_of[] = {1, 15, 33, 97, 130}, outputs[] = {1, 16, 37, 129, 260}, terms[] = {1, 16, 33, 577, 1700};
	struct pair *p = *state;
	if (!is_fp8(p))
		return;
	for (size_t i = 0; i < 5 * 5 * 5; i++) {
		pair_reset(p, i + 1);
		check_shape(p, rows_of[i % 5], outputs[i / 5 % 5], terms[i / 25]);
	}
}

// So many outputs that rows go in several steps.
void fp8_products_of_many_outputs_match_ref(void **state)
{
	enum { N_OUTPUTS = 110001, N_ROWS = 157, K = 3 };
	struct pair *p = *state;
	if (!is_fp8(p))
		return;
	pair_reset(p, 1);
	struct twin_act x = twin_act_random(p, N_ROWS * K, 1);
	struct twin_weight w = twin_weight_random(p, WEIGHT_BLOCK, N_OUTPUTS, K);
	struct twin y = twin_poisoned(p, (size_t)N_ROWS * N_OUTPUTS);
	p->ref->ops->linear_real(p->ref, y.ref, false, x.ref, w.ref, NULL, N_ROWS);
	p->be->ops->linear_real(p->be, y.be, false, x.be, w.be, NULL, N_ROWS);
	assert_twin(p, "fp8, many outputs", y, bound_product(p, EPS_SUM, K, false));
}

void fp8_matrices_of_mixed_types_match_ref(void **state)
{
	struct pair *p = *state;
	if (!is_fp8(p))
		return;
	for (uint32_t K = 32; K <= 576; K += 544) {
		pair_reset(p, K);
		struct twin_weight w = twin_weight_mixed(p, WEIGHT_BLOCK, K);
		struct twin_act x = twin_act_random(p, 65 * K, 1);
		struct twin y = twin_poisoned(p, 65 * 96);
		p->ref->ops->linear_real(p->ref, y.ref, false, x.ref, w.ref, NULL, 65);
		p->be->ops->linear_real(p->be, y.be, false, x.be, w.be, NULL, 65);
		assert_twin(p, "fp8 of mixed types", y, bound_product(p, EPS_SUM, K, false));
	}
}

void fp8_products_keep_what_is_not_a_number_in_its_row(void **state)
{
	struct pair *p = *state;
	enum { N = 21, K = 90 };
	static const float bad[] = {NAN, INFINITY, -INFINITY};
	static float x[ROWS * K], w[N * K];
	static double want[ROWS * N], y[ROWS * N];
	if (!is_fp8(p))
		return;
	random_fill(&p->random, x, ROWS * K, 1);
	random_fill(&p->random, w, N * K, 1);
	memset(x + 7 * K, 0, K * sizeof *x);                     // nothing to scale
	memset(x + 8 * K, 0, K * sizeof *x);
	x[8 * K] = 1e-38f;
	memset(w + 4 * K, 0, K * sizeof *w);
	struct weight *weight = load(p, w, N, K);
	multiply(p, want, x, weight, ROWS, N, K);
	for (size_t i = 0; i < ROWS * N; i++)
		assert_true(i / N == 7 || i / N == 8 || i % N == 4 ? want[i] == 0 : isfinite(want[i]) && want[i] != 0);
	for (size_t i = 0; i < 3; i++) {
		float kept = x[5 * K + 30 * i + 1];
		x[5 * K + 30 * i + 1] = bad[i];
		multiply(p, y, x, weight, ROWS, N, K);
		for (size_t n = 0; n < N; n++)
			assert_true(isnan(y[5 * N + n]));
		memcpy(y + 5 * N, want + 5 * N, N * sizeof *y);
		assert_memory_equal(y, want, sizeof y);
		x[5 * K + 30 * i + 1] = kept;
	}
	p->be->ops->weight_free(p->be, weight);
	w[9 * K + K - 1] = NAN;                                  // of a matrix: in its column
	weight = load(p, w, N, K);
	multiply(p, y, x, weight, ROWS, N, K);
	for (size_t i = 0; i < ROWS * N; i++)
		assert_true(i % N == 9 ? isnan(y[i]) : y[i] == want[i]);
	p->be->ops->weight_free(p->be, weight);
}
