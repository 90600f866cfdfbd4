// SPDX-License-Identifier: Apache-2.0
// Gated unit: y = g sigmoid(g) u, rows hold the F gates, then the F ups.
#include "kernels/cpu/cpu.h"

void cpu_swiglu(struct backend *be, struct act *y, const struct act *gate_up, uint32_t rows, uint32_t F)
{
	const struct cpu *cpu = cpu_of(be);

#pragma omp parallel for schedule(static) num_threads(cpu->n_threads)
	for (size_t r = 0; r < rows; r++) {
		const float *gate = cpu_act_in(gate_up) + r * 2 * F;
		cpu->vector->swiglu(cpu_act(y) + r * F, gate, gate + F, F);
	}
}

void cpu_swiglu_backward(struct backend *be, struct act *dgate_up, const struct act *dy, const struct act *gate_up, uint32_t rows,
			 uint32_t F)
{
	const struct cpu *cpu = cpu_of(be);

#pragma omp parallel for schedule(static) num_threads(cpu->n_threads)
	for (size_t r = 0; r < rows; r++) {
		const float *gate = cpu_act_in(gate_up) + r * 2 * F;
		float *dgate = cpu_act(dgate_up) + r * 2 * F;
		cpu->vector->swiglu_backward(dgate, dgate + F, cpu_act_in(dy) + r * F, gate, gate + F, F);
	}
}
