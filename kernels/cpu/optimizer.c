// SPDX-License-Identifier: Apache-2.0
// Optimiser steps as kernels/ref defines them, and the norm that clipping needs.
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

// Memory sets the pace: plain loops that the compiler makes vectors of.
void cpu_lion(struct backend *be, struct real *w, struct real *m, const struct real *g, size_t n, const struct lion *l)
{
	float *weight = cpu_real(w), *moment = cpu_real(m);
	const float *gradient = cpu_real_in(g);
	const float scale = (float)l->grad_scale, beta1 = (float)l->beta1, rest1 = (float)(1 - l->beta1), beta2 = (float)l->beta2,
		    rest2 = (float)(1 - l->beta2), rate = (float)l->learning_rate, decay = (float)(1 - l->learning_rate * l->weight_decay);

#pragma omp parallel for simd schedule(static) num_threads(cpu_of(be)->n_threads)
	for (size_t i = 0; i < n; i++) {
		float grad = gradient[i] * scale, direction = beta1 * moment[i] + rest1 * grad;
		weight[i] = weight[i] * decay - (direction > 0 ? rate : direction < 0 ? -rate : 0);
		moment[i] = beta2 * moment[i] + rest2 * grad;
	}
}

void cpu_fake_quantize(struct backend *be, struct real *x, uint32_t rows, uint32_t columns, uint32_t group, uint32_t bits)
{
	const float steps = (float)((1u << (bits - 1)) - 1);
	size_t n_groups = (size_t)rows * columns / group;

#pragma omp parallel for schedule(static) num_threads(cpu_of(be)->n_threads)
	for (size_t k = 0; k < n_groups; k++) {
		float *v = cpu_real(x) + k * group, max = 0;
		for (uint32_t i = 0; i < group; i++)
			max = fmaxf(max, fabsf(v[i]));
		float scale = max / steps;
		for (uint32_t i = 0; i < group && scale > 0; i++)
			v[i] = scale * rintf(v[i] / scale);
	}
}
