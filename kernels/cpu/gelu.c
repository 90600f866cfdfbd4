// SPDX-License-Identifier: Apache-2.0
// GELU in its two forms, and copies between the two kinds of array, which are both float here.
#include <string.h>

#include "kernels/cpu/cpu.h"

void cpu_gelu(struct backend *be, struct act *y, const struct act *x, enum gelu form, uint32_t rows, uint32_t F)
{
	const struct cpu *cpu = cpu_of(be);

#pragma omp parallel for schedule(static) num_threads(cpu->n_threads)
	for (size_t r = 0; r < rows; r++)
		cpu->vector->gelu[form](cpu_act(y) + r * F, cpu_act_in(x) + r * F, F);
}

void cpu_geglu(struct backend *be, struct act *y, const struct act *gate_up, uint32_t rows, uint32_t F)
{
	const struct cpu *cpu = cpu_of(be);

#pragma omp parallel for schedule(static) num_threads(cpu->n_threads)
	for (size_t r = 0; r < rows; r++) {
		const float *gate = cpu_act_in(gate_up) + r * 2 * F, *up = gate + F;
		float *to = cpu_act(y) + r * F;
		cpu->vector->gelu[GELU_TANH](to, gate, F);
		for (size_t i = 0; i < F; i++)
			to[i] *= up[i];
	}
}

void cpu_gelu_backward(struct backend *be, struct act *dx, const struct act *dy, const struct act *x, enum gelu form, uint32_t rows,
		       uint32_t F)
{
	const struct cpu *cpu = cpu_of(be);

#pragma omp parallel for schedule(static) num_threads(cpu->n_threads)
	for (size_t r = 0; r < rows; r++)
		cpu->vector->gelu_backward[form](cpu_act(dx) + r * F, cpu_act_in(dy) + r * F, cpu_act_in(x) + r * F, F);
}

void cpu_widen(struct backend *be, struct real *y, const struct act *x, size_t n)
{
	(void)be;
	memcpy(cpu_real(y), cpu_act_in(x), n * sizeof(float));
}

void cpu_narrow(struct backend *be, struct act *y, const struct real *x, size_t n)
{
	(void)be;
	memcpy(cpu_act(y), cpu_real_in(x), n * sizeof(float));
}
