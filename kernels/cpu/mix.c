// SPDX-License-Identifier: Apache-2.0
// Several teachers' rows of logits as one: a weighted sum of logits, or the logarithm of a weighted mean of probabilities.
#include "kernels/cpu/cpu.h"

void cpu_mix(struct backend *be, struct real *y, bool add, const struct real *x, double weight, const double *lse, uint32_t n, uint32_t V)
{
	const struct cpu *cpu = cpu_of(be);

#pragma omp parallel for schedule(static) num_threads(cpu->n_threads)
	for (uint32_t i = 0; i < n; i++) {
		float *to = cpu_real(y) + (size_t)i * V;
		const float *from = cpu_real_in(x) + (size_t)i * V;
		if (lse)
			cpu->vector->softmax(to, add, from, V, 1, lse[i], weight);
		else
			cpu->vector->mix(to, add, from, (float)weight, V);
	}
}

void cpu_mix_log(struct backend *be, struct real *y, uint32_t n, uint32_t V)
{
	const struct cpu *cpu = cpu_of(be);

#pragma omp parallel for schedule(static) num_threads(cpu->n_threads)
	for (uint32_t i = 0; i < n; i++)
		cpu->vector->mix_log(cpu_real(y) + (size_t)i * V, V);
}
