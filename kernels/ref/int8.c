// SPDX-License-Identifier: Apache-2.0
// Products of 8-bit integers, as backend.h defines them: the integers and their sums are exact, what is made of them is double.
#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/ref/ref.h"

float ref_quantize(int8_t *q, const float *x, size_t n)
{
	float most = 0;
	memset(q, 0, n);
	for (size_t i = 0; i < n; i++) {
		if (!(fabsf(x[i]) <= FLT_MAX))
			return NAN;
		most = fmaxf(most, fabsf(x[i]));
	}
	if (most < INT8_SMALLEST)
		return 0;
	float inverse = 127.0f / most;
	for (size_t i = 0; i < n; i++)
		q[i] = (int8_t)lrintf(x[i] * inverse);
	return most / 127.0f;
}

void ref_weight_quantize(struct weight *w)
{
	size_t n_groups = (w->n_columns - 1) / INT8_GROUP + 1;
	for (size_t row = 0; row < w->n_rows; row++) {
		for (size_t g = 0; g < n_groups; g++) {
			size_t first = row * w->n_columns + g * INT8_GROUP, n = w->n_columns - g * INT8_GROUP;
			float x[INT8_GROUP] = {0};
			n = n < INT8_GROUP ? n : INT8_GROUP;
			for (size_t i = 0; i < n; i++)
				x[i] = (float)w->owned[first + i];
			float scale = w->scales[row * n_groups + g] = ref_quantize(w->integers + first, x, n);
			for (size_t i = 0; i < n; i++)
				w->owned[first + i] = (float)w->integers[first + i] * scale;
		}
	}
}

// One group of one row of x, added to all outputs.
static void group_product(double *y, const int8_t *q, float scale, const struct weight *w, size_t g)
{
	size_t n_groups = (w->n_columns - 1) / INT8_GROUP + 1, first = g * INT8_GROUP;
	for (size_t n = 0; n < w->n_rows; n++) {
		const int8_t *v = w->integers + n * w->n_columns + first;
		int32_t sum = 0;
		for (size_t k = 0; k < INT8_GROUP && first + k < w->n_columns; k++)
			sum += q[k] * v[k];
		y[n] += (double)sum * (double)scale * (double)w->scales[n * n_groups + g];
	}
}

void ref_int8_product(const struct backend *be, double *y, bool add, const double *x, const struct weight *w, const double *bias,
		      size_t rows)
{
	size_t N = w->n_rows, K = w->n_columns;
#pragma omp parallel for schedule(static) num_threads(ref_of(be)->n_threads)
	for (size_t r = 0; r < rows; r++) {
		for (size_t n = 0; n < N; n++)
			y[r * N + n] = (bias ? bias[n] : 0) + (add ? y[r * N + n] : 0);
		for (size_t g = 0; g * INT8_GROUP < K; g++) {
			size_t left = K - g * INT8_GROUP, n = left < INT8_GROUP ? left : INT8_GROUP;
			float values[INT8_GROUP];
			int8_t q[INT8_GROUP];
			for (size_t k = 0; k < n; k++)
				values[k] = (float)x[r * K + g * INT8_GROUP + k];
			float scale = ref_quantize(q, values, n);
			group_product(y + r * N, q, scale, w, g);
		}
	}
}
