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
