// SPDX-License-Identifier: Apache-2.0
// AdamW with decoupled weight decay, as kernels/ref defines it, and the norm that clipping needs.
#include <math.h>

#include "kernels/cpu/cpu.h"

#define SPAN ((size_t)1 << 16)       // elements of one unit of work

double cpu_sum_squares(struct backend *be, const struct real *x, size_t n)
{
	const struct cpu *cpu = cpu_of(be);
	size_t n_spans = (n + SPAN - 1) / SPAN;
	double *partial = (double *)memory_shared(be, n_spans * (sizeof(double) / sizeof(float))), total = 0;

	if (!partial)
		return NAN;
#pragma omp parallel for schedule(static) num_threads(cpu->n_threads)
	for (size_t i = 0; i < n_spans; i++)
		partial[i] = cpu->vector->sum_squares(cpu_real_in(x) + i * SPAN, n - i * SPAN < SPAN ? n - i * SPAN : SPAN);
	for (size_t i = 0; i < n_spans; i++)
		total += partial[i];
	return total;
}

void cpu_adamw(struct backend *be, struct real *w, struct real *m, struct real *v, const struct real *g, size_t n, const struct adamw *a)
{
	const struct cpu *cpu = cpu_of(be);
	const struct adamw_factors f = {
		.grad_scale = (float)a->grad_scale,
		.beta1 = (float)a->beta1,
		.one_minus_beta1 = (float)(1 - a->beta1),
		.beta2 = (float)a->beta2,
		.one_minus_beta2 = (float)(1 - a->beta2),
		.step_size = (float)(a->learning_rate / (1 - pow(a->beta1, (double)a->step))),
		.inverse_correction2 = (float)(1 / (1 - pow(a->beta2, (double)a->step))),
		.epsilon = (float)a->epsilon,
		.decay = (float)(1 - a->learning_rate * a->weight_decay),
	};

#pragma omp parallel for schedule(static) num_threads(cpu->n_threads)
	for (size_t i = 0; i < n; i += SPAN)
		cpu->vector->adamw(cpu_real(w) + i, cpu_real(m) + i, cpu_real(v) + i, cpu_real_in(g) + i, n - i < SPAN ? n - i : SPAN, &f);
}
