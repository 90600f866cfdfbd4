// SPDX-License-Identifier: Apache-2.0
// Layer norm of rows. Backward in three steps: each row's mean and deviation; gradients of gain and bias, where each thread owns columns
// and rows add in order; then dx, which may take the place of dz.
#include "kernels/cpu/cpu.h"

#define COLUMNS 64

void cpu_layernorm(struct backend *be, struct act *y, struct real *z, const struct real *x, const struct real *gain,
		   const struct real *bias, float epsilon, uint32_t rows, uint32_t C)
{
	const struct cpu *cpu = cpu_of(be);

#pragma omp parallel for schedule(static) num_threads(cpu->n_threads)
	for (size_t r = 0; r < rows; r++)
		cpu->vector->layernorm(y ? cpu_act(y) + r * C : NULL, z ? cpu_real(z) + r * C : NULL, cpu_real_in(x) + r * C,
				       cpu_real_in(gain), cpu_real_in(bias), epsilon, C);
}

void cpu_layernorm_backward(struct backend *be, struct real *dx, struct real *dgain, struct real *dbias, const struct act *dy,
			    const struct real *dz, const struct real *x, const struct real *gain, float epsilon, uint32_t rows, uint32_t C)
{
	const struct cpu *cpu = cpu_of(be);
	struct layernorm_moments *moments = (struct layernorm_moments *)memory_shared(be, 2 * (size_t)rows);

	if (!moments)
		return;
#pragma omp parallel num_threads(cpu->n_threads)
	{
#pragma omp for schedule(static)
		for (size_t r = 0; r < rows; r++)
			moments[r] = cpu->vector->layernorm_moments(cpu_real_in(x) + r * C, epsilon, C);
#pragma omp for schedule(static)
		for (size_t c = 0; c < C; c += COLUMNS)
			for (size_t r = 0; r < rows; r++)
				cpu->vector->layernorm_gains(cpu_real(dgain) + c, cpu_real(dbias) + c,
							     dy ? cpu_act_in(dy) + r * C + c : NULL,
							     dz ? cpu_real_in(dz) + r * C + c : NULL, cpu_real_in(x) + r * C + c,
							     moments[r], C - c < COLUMNS ? C - c : COLUMNS);
#pragma omp for schedule(static)
		for (size_t r = 0; r < rows; r++)
			cpu->vector->layernorm_backward(cpu_real(dx) + r * C, dx != dz, dy ? cpu_act_in(dy) + r * C : NULL,
							dz ? cpu_real_in(dz) + r * C : NULL, cpu_real_in(x) + r * C, cpu_real_in(gain),
							moments[r], C);
	}
}
