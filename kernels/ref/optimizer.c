// SPDX-License-Identifier: Apache-2.0
// AdamW with decoupled weight decay, step for step as PyTorch defines it; gradients are scaled (clipped) first.
#include <math.h>

#include "kernels/ref/ref.h"

double ref_sum_squares(struct backend *be, const struct real *x, size_t n)
{
	(void)be;
	return ref_dot(ref_real_in(x), ref_real_in(x), n);
}

void ref_adamw(struct backend *be, struct real *w, struct real *m, struct real *v, const struct real *g, size_t n, const struct adamw *a)
{
	double *weight = ref_real(w), *moment1 = ref_real(m), *moment2 = ref_real(v);
	double correction1 = 1 - pow(a->beta1, (double)a->step), correction2 = 1 - pow(a->beta2, (double)a->step);
#pragma omp parallel for schedule(static) num_threads(ref_of(be)->n_threads)
	for (size_t i = 0; i < n; i++) {
		double grad = ref_real_in(g)[i] * a->grad_scale;
		moment1[i] = a->beta1 * moment1[i] + (1 - a->beta1) * grad;
		moment2[i] = a->beta2 * moment2[i] + (1 - a->beta2) * grad * grad;
		weight[i] *= 1 - a->learning_rate * a->weight_decay;
		weight[i] -= a->learning_rate * (moment1[i] / correction1) / (sqrt(moment2[i] / correction2) + a->epsilon);
	}
}

void ref_lion(struct backend *be, struct real *w, struct real *m, const struct real *g, size_t n, const struct lion *l)
{
	double *weight = ref_real(w), *moment = ref_real(m);
	(void)be;
	for (size_t i = 0; i < n; i++) {
		double grad = ref_real_in(g)[i] * l->grad_scale, direction = l->beta1 * moment[i] + (1 - l->beta1) * grad;
		weight[i] *= 1 - l->learning_rate * l->weight_decay;
		weight[i] -= l->learning_rate * ((direction > 0) - (direction < 0));
		moment[i] = l->beta2 * moment[i] + (1 - l->beta2) * grad;
	}
}

void ref_fake_quantize(struct backend *be, struct real *x, uint32_t rows, uint32_t columns, uint32_t group, uint32_t bits)
{
	double steps = (double)((1u << (bits - 1)) - 1);
	(void)be;
	for (size_t from = 0; from < (size_t)rows * columns; from += group) {
		double *v = ref_real(x) + from, max = 0;
		for (uint32_t i = 0; i < group; i++)
			max = fmax(max, fabs(v[i]));
		double scale = max / steps;
		for (uint32_t i = 0; i < group && scale > 0; i++)
			v[i] = scale * rint(v[i] / scale);
	}
}
