// SPDX-License-Identifier: Apache-2.0
// Embedding: row of the matrix for each token; rows of a table added by position.
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/int8.h"
#include "kernels/cpu/product.h"

void cpu_embed(struct backend *be, struct real *x, const struct weight *w)
{
	const struct cpu *cpu = cpu_of(be);
	size_t C = w->n_columns;

#pragma omp parallel for schedule(static) num_threads(cpu->n_threads)
	for (uint32_t t = 0; t < cpu->n_positions; t++) {
		if (w->view)
			memcpy(cpu_real(x) + t * C, w->view + cpu->tokens[t] * C, C * sizeof(float));
		else if (w->int8)
			int8_matrix_row(w->int8, cpu->tokens[t], cpu_real(x) + t * C);
		else
			matrix_row(w->forward, cpu->tokens[t], cpu_real(x) + t * C);
	}
}

#define COLUMNS 64    // of the gradient that one thread owns: a token may occur many times, and its rows add in order

void cpu_embed_backward(struct backend *be, struct real *dw, const struct real *dx, uint32_t C)
{
	const struct cpu *cpu = cpu_of(be);

#pragma omp parallel for schedule(static) num_threads(cpu->n_threads)
	for (uint32_t c = 0; c < C; c += COLUMNS)
		for (uint32_t t = 0; t < cpu->n_positions; t++)
			cpu->vector->add(cpu_real(dw) + (size_t)cpu->tokens[t] * C + c, cpu_real_in(dx) + (size_t)t * C + c,
					 C - c < COLUMNS ? C - c : COLUMNS);
}

static size_t table_row(const struct cpu *cpu, uint32_t t, bool by_position)
{
	return by_position ? cpu->positions[t] : 0;
}

void cpu_embed_add(struct backend *be, struct real *x, const struct real *table, bool by_position, uint32_t C)
{
	const struct cpu *cpu = cpu_of(be);

#pragma omp parallel for schedule(static) num_threads(cpu->n_threads)
	for (uint32_t t = 0; t < cpu->n_positions; t++)
		cpu->vector->add(cpu_real(x) + (size_t)t * C, cpu_real_in(table) + table_row(cpu, t, by_position) * C, C);
}

void cpu_embed_add_backward(struct backend *be, struct real *dtable, const struct real *dx, bool by_position, uint32_t C)
{
	const struct cpu *cpu = cpu_of(be);

#pragma omp parallel for schedule(static) num_threads(cpu->n_threads)
	for (uint32_t c = 0; c < C; c += COLUMNS)
		for (uint32_t t = 0; t < cpu->n_positions; t++)
			cpu->vector->add(cpu_real(dtable) + table_row(cpu, t, by_position) * C + c, cpu_real_in(dx) + (size_t)t * C + c,
					 C - c < COLUMNS ? C - c : COLUMNS);
}
