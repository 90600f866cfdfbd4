// SPDX-License-Identifier: Apache-2.0
// Products of E4M3 numbers, as backend.h defines them: the numbers are those of any device, their sums are double.
#include <float.h>
#include <math.h>

#include "kernels/ref/ref.h"

#define ROWS 6                   // of x that share a pass over the matrix
#define TERMS 256                // of them at a time, on the stack: 12 KiB

float ref_to_e4m3(float x)
{
	float size = fabsf(x);
	if (size >= FP8_MAX)
		return copysignf(FP8_MAX, x);
	int exponent = size < 0x1p-6f ? -6 : ilogbf(size);
	float step = ldexpf(1, exponent - 3);    // between neighbours from here to the next power of two, which is one of them
	return copysignf(fminf(nearbyintf(size / step) * step, FP8_MAX), x);
}

// Of n values: what they are to be multiplied by, and the scale.
static float factor_of(float most, float *ret_scale)
{
	*ret_scale = most > FLT_MAX ? NAN : most < FP8_SMALLEST ? 0 : most / FP8_MAX;
	return *ret_scale > 0 ? FP8_MAX / most : 0;
}

// The largest |x|; infinity where one is not finite.
static float largest(const double *x, size_t n)
{
	float most = 0;
	for (size_t i = 0; i < n; i++) {
		float size = fabsf((float)x[i]);
		most = fmaxf(most, size <= FLT_MAX ? size : INFINITY);
	}
	return most;
}

static double number_of(double x, float factor)
{
	return factor > 0 ? (double)ref_to_e4m3((float)x * factor) : 0;
}

void ref_weight_to_fp8(struct weight *w)
{
	for (size_t row = 0; row < w->n_rows; row++) {
		double *x = w->owned + row * w->n_columns;
		float factor = factor_of(largest(x, w->n_columns), &w->scales[row]);
		for (size_t k = 0; k < w->n_columns; k++)
			x[k] = number_of(x[k], factor);
	}
	w->fp8 = true;
}

// At most ROWS rows.
static void tile_product(double *y, bool add, const double *x, const struct weight *w, const double *bias, size_t rows)
{
	size_t N = w->n_rows, K = w->n_columns;
	float scales[ROWS], factors[ROWS];
	double numbers[ROWS][TERMS];
	for (size_t r = 0; r < rows; r++) {
		factors[r] = factor_of(largest(x + r * K, K), &scales[r]);
		for (size_t n = 0; n < N; n++)
			y[r * N + n] = (bias ? bias[n] : 0) + (add ? y[r * N + n] : 0);
	}
	for (size_t first = 0; first < K; first += TERMS) {
		size_t terms = K - first < TERMS ? K - first : TERMS;
		for (size_t r = 0; r < rows; r++)
			for (size_t k = 0; k < terms; k++)
				numbers[r][k] = number_of(x[r * K + first + k], factors[r]);
		for (size_t n = 0; n < N; n++)
			for (size_t r = 0; r < rows; r++)
				y[r * N + n] += ref_dot(numbers[r], w->values + n * K + first, terms) * (double)scales[r] *
						(double)w->scales[n];
	}
}

void ref_fp8_product(const struct backend *be, double *y, bool add, const double *x, const struct weight *w, const double *bias,
		     size_t rows)
{
	size_t N = w->n_rows, K = w->n_columns;
#pragma omp parallel for schedule(static) num_threads(ref_of(be)->n_threads)
	for (size_t first = 0; first < rows; first += ROWS)
		tile_product(y + first * N, add, x + first * K, w, bias, rows - first < ROWS ? rows - first : ROWS);
}
