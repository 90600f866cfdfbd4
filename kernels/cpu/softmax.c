// SPDX-License-Identifier: Apache-2.0
// Gradient of a loss on a row of logits: weighted softmax rows plus a few corrections.
#include <string.h>

#include "kernels/cpu/cpu.h"

#define SOFT_CAP_BLOCK 4096      // logits a thread takes at a time

#define SPAN 1024    // logits kept aside while the terms, which read them all, are written over them

static void softmax_row(const struct cpu_vector *vector, float *z, size_t V, const struct softmax_grad_row *row)
{
	float logits[SPAN];

	for (size_t j = 0; j < V; j += SPAN) {
		size_t n = V - j < SPAN ? V - j : SPAN;
		memcpy(logits, z + j, n * sizeof *z);
		if (!row->n_terms)
			memset(z + j, 0, n * sizeof *z);
		for (uint32_t i = 0; i < row->n_terms; i++)
			vector->softmax(z + j, i > 0, logits, n, row->temperatures[i], row->lse[i], row->scales[i]);
	}
	for (uint32_t i = 0; i < row->n_corrections; i++)
		z[row->ids[i]] += (float)row->corrections[i];
}

void cpu_softmax_grad(struct backend *be, struct real *logits, uint32_t n, uint32_t V, const struct softmax_grad_row *rows)
{
	const struct cpu *cpu = cpu_of(be);

#pragma omp parallel for schedule(dynamic) num_threads(cpu->n_threads)
	for (uint32_t i = 0; i < n; i++)
		softmax_row(cpu->vector, cpu_real(logits) + (size_t)i * V, V, &rows[i]);
}

void cpu_soft_cap(struct backend *be, struct real *x, float cap, size_t n)
{
	const struct cpu *cpu = cpu_of(be);

#pragma omp parallel for schedule(static) num_threads(cpu->n_threads)
	for (size_t i = 0; i < n; i += SOFT_CAP_BLOCK)
		cpu->vector->soft_cap(cpu_real(x) + i, cap, n - i < SOFT_CAP_BLOCK ? n - i : SOFT_CAP_BLOCK);
}
