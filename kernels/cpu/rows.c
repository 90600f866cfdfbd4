// SPDX-License-Identifier: Apache-2.0
// Picking rows of an array, and the way back; adding to rows; picking columns.
#include <string.h>

#include "kernels/cpu/cpu.h"

void cpu_pick_rows(struct backend *be, struct act *y, const struct act *x, const uint32_t *rows, uint32_t n, uint32_t C)
{
	(void)be;
	for (size_t i = 0; i < n; i++)
		memcpy(cpu_act(y) + i * C, cpu_act_in(x) + (size_t)rows[i] * C, C * sizeof(float));
}

void cpu_put_rows(struct backend *be, struct act *dx, const struct act *dy, const uint32_t *rows, uint32_t n, uint32_t T, uint32_t C)
{
	cpu_real_zero(be, (struct real *)dx, (size_t)T * C);
	for (size_t i = 0; i < n; i++)
		memcpy(cpu_act(dx) + (size_t)rows[i] * C, cpu_act_in(dy) + i * C, C * sizeof(float));
}

void cpu_add_rows(struct backend *be, struct real *x, const struct real *y, const uint32_t *rows, const float *scales, uint32_t n,
		  uint32_t C)
{
	const struct cpu *cpu = cpu_of(be);

#pragma omp parallel for schedule(static) num_threads(cpu->n_threads)
	for (uint32_t i = 0; i < n; i++)
		cpu->vector->mix(cpu_real(x) + (size_t)rows[i] * C, true, cpu_real_in(y) + (size_t)i * C, scales[i], C);
}

void cpu_pick_columns(struct backend *be, struct real *y, const struct real *x, const uint32_t *ids, uint32_t n, uint32_t n_ids, uint32_t V)
{
#pragma omp parallel for schedule(static) num_threads(cpu_of(be)->n_threads)
	for (uint32_t i = 0; i < n; i++) {
		float *to = cpu_real(y) + (size_t)i * n_ids;
		const float *from = cpu_real_in(x) + (size_t)i * V;
		for (uint32_t j = 0; j < n_ids; j++)
			to[j] = from[ids[j]];
	}
}
