// SPDX-License-Identifier: Apache-2.0
// Embedding: row of the matrix for each token; rows of a table added by position.
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/int8.h"
#include "kernels/cpu/product.h"

// Rows of blocks first..last-1, whose memory is there.
static void embed_blocks(const struct cpu *cpu, float *x, const struct weight *w, uint32_t first, uint32_t last)
{
	uint32_t block = products_block(cpu->products);
#pragma omp parallel for schedule(static) num_threads(cpu->n_threads)
	for (uint32_t t = 0; t < cpu->n_positions; t++)
		if (cpu->tokens[t] / block >= first && cpu->tokens[t] / block < last)
			matrix_row(w->forward, cpu->tokens[t], x + (size_t)t * w->n_columns);
}

// The pieces of a matrix apart that hold a token's row, in order; NULL after backend_fail. The caller frees it.
static uint32_t *pieces_of(struct backend *be, const struct weight *w, uint32_t *ret_n)
{
	const struct cpu *cpu = cpu_of(be);
	uint32_t *pieces = calloc(apart_pieces(w), sizeof *pieces), rows = products_block(cpu->products) * w->piece_blocks, n = 0;

	if (!pieces) {
		backend_fail(be, "no memory for a list of %u pieces", apart_pieces(w));
		return NULL;
	}
	for (uint32_t t = 0; t < cpu->n_positions; t++)
		pieces[cpu->tokens[t] / rows] = 1;
	for (uint32_t i = 0; i < apart_pieces(w); i++)
		if (pieces[i])
			pieces[n++] = i;
	*ret_n = n;
	return pieces;
}

static void embed_apart(struct backend *be, float *x, const struct weight *w)
{
	uint32_t n = 0, first, last, *pieces = backend_failed(be) ? NULL : pieces_of(be, w, &n);

	for (uint32_t i = 0; i < n && apart_find(be, w, pieces[i], pieces + i + 1, n - i - 1, &first, &last); i++)
		embed_blocks(cpu_of(be), x, w, first, last);
	free(pieces);
}

void cpu_embed(struct backend *be, struct real *x, const struct weight *w)
{
	if (w->n_pieces) {
		embed_apart(be, cpu_real(x), w);
		return;
	}
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
