// SPDX-License-Identifier: Apache-2.0
// Products with a matrix of N rows and K columns: y = x W^T, dx = dy W, dW += dy^T x.
// Rows go in small tiles only so that a tile of x stays in the cache while W streams by; each output is one sum in one order.
#include <assert.h>
#include <string.h>

#include "kernels/ref/ref.h"

#define TILE 32

static void product(const struct backend *be, double *y, bool add, const double *x, const struct weight *w, const double *bias, size_t rows)
{
	size_t N = w->n_rows, K = w->n_columns;
	if (w->integers || w->fp8) {
		(w->fp8 ? ref_fp8_product : ref_int8_product)(be, y, add, x, w, bias, rows);
		return;
	}
#pragma omp parallel for collapse(2) schedule(static) num_threads(ref_of(be)->n_threads)
	for (size_t tile = 0; tile < rows; tile += TILE) {
		for (size_t n = 0; n < N; n++) {
			for (size_t r = tile; r < rows && r < tile + TILE; r++) {
				double sum = ref_dot(x + r * K, w->values + n * K, K);
				y[r * N + n] = sum + (bias ? bias[n] : 0) + (add ? y[r * N + n] : 0);
			}
		}
	}
}

static void product_dx(const struct backend *be, double *dx, const double *dy, const struct weight *w, size_t rows)
{
	assert(!w->fp8);
	size_t N = w->n_rows, K = w->n_columns;
#pragma omp parallel for schedule(static) num_threads(ref_of(be)->n_threads)
	for (size_t tile = 0; tile < rows; tile += TILE) {
		size_t end = tile + TILE < rows ? tile + TILE : rows;
		memset(dx + tile * K, 0, (end - tile) * K * sizeof *dx);
		for (size_t n = 0; n < N; n++)
			for (size_t r = tile; r < end; r++)
				for (size_t k = 0; k < K; k++)
					dx[r * K + k] += dy[r * N + n] * w->values[n * K + k];
	}
}

static void product_dw(const struct backend *be, double *dw, const double *dy, const double *x, const struct weight *w, size_t rows)
{
	size_t N = w->n_rows, K = w->n_columns;
#pragma omp parallel for schedule(static) num_threads(ref_of(be)->n_threads)
	for (size_t n = 0; n < N; n++)
		for (size_t r = 0; r < rows; r++)
			for (size_t k = 0; k < K; k++)
				dw[n * K + k] += dy[r * N + n] * x[r * K + k];
}

void ref_linear(struct backend *be, struct act *y, const struct act *x, const struct weight *w, const struct real *bias, uint32_t rows)
{
	product(be, ref_act(y), false, ref_act_in(x), w, ref_real_in(bias), rows);
}

void ref_linear_real(struct backend *be, struct real *y, bool add, const struct act *x, const struct weight *w, const struct real *bias,
		     uint32_t rows)
{
	product(be, ref_real(y), add, ref_act_in(x), w, ref_real_in(bias), rows);
}

static void bias_gradient(double *dbias, const double *dy, size_t N, size_t rows)
{
	for (size_t r = 0; r < rows; r++)
		for (size_t n = 0; n < N; n++)
			dbias[n] += dy[r * N + n];
}

void ref_linear_backward(struct backend *be, struct act *dx, struct real *dw, struct real *dbias, const struct act *dy, const struct act *x,
			 const struct weight *w, uint32_t rows)
{
	if (dx)
		product_dx(be, ref_act(dx), ref_act_in(dy), w, rows);
	if (dw)
		product_dw(be, ref_real(dw), ref_act_in(dy), ref_act_in(x), w, rows);
	if (dbias)
		bias_gradient(ref_real(dbias), ref_act_in(dy), w->n_rows, rows);
}

void ref_linear_real_backward(struct backend *be, struct act *dx, struct real *dw, struct real *dbias, const struct real *dy,
			      const struct act *x, const struct weight *w, uint32_t rows)
{
	if (dx)
		product_dx(be, ref_act(dx), ref_real_in(dy), w, rows);
	if (dw)
		product_dw(be, ref_real(dw), ref_real_in(dy), ref_act_in(x), w, rows);
	if (dbias)
		bias_gradient(ref_real(dbias), ref_real_in(dy), w->n_rows, rows);
}
