// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/int8.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

// Of one unit of work: a panel 1536 deep is 48 KiB, read once for 8 blocks of rows, which then are in the second-level cache for the next.
#define UNIT_BLOCKS 8
#define UNIT_PANELS 8

static size_t depth_of(const struct int8_matrix *m)
{
	return (size_t)m->n_groups * INT8_GROUP;
}

uint32_t int8_matrix_panels(const struct int8_matrix *m)
{
	return (m->n - 1) / m->panel + 1;
}

struct int8_matrix *int8_matrix_new(const struct cpu_vector *vector, uint32_t n, uint32_t k)
{
	struct int8_matrix *m = calloc(1, sizeof *m);
	if (!m)
		return NULL;
	*m = (struct int8_matrix){.n = n, .k = k, .n_groups = (k - 1) / INT8_GROUP + 1, .panel = vector->panel};
	size_t rows = (size_t)int8_matrix_panels(m) * m->panel;
	m->values = (int16_t *)memory_floats(rows * depth_of(m) / 2);
	m->scales = memory_floats(rows * m->n_groups);
	return m->values && m->scales ? m : int8_matrix_free(m);
}

struct int8_matrix *int8_matrix_free(struct int8_matrix *m)
{
	if (!m)
		return NULL;
	free(m->values);
	free(m->scales);
	free(m);
	return NULL;
}

size_t int8_matrix_scratch(const struct int8_matrix *m)
{
	return depth_of(m) / 2 + m->n_groups;
}

// Where the first pair of terms of a row lies; the next is 2 panels further.
static size_t first_pair(const struct int8_matrix *m, uint32_t row)
{
	return row / m->panel * m->panel * depth_of(m) + row % m->panel * 2;
}

static size_t first_scale(const struct int8_matrix *m, uint32_t row)
{
	return (size_t)(row / m->panel) * m->panel * m->n_groups + row % m->panel;
}

void int8_matrix_pack(struct int8_matrix *m, const struct cpu_vector *vector, uint32_t row, const float *from, float *scratch)
{
	int16_t *q = (int16_t *)scratch, *to = m->values + first_pair(m, row);
	float *scales = scratch + depth_of(m) / 2;

	memset(scratch, 0, int8_matrix_scratch(m) * sizeof *scratch);
	if (row < m->n)
		vector->quantize(q, scales, from, m->k);
	for (size_t k = 0; k < depth_of(m); k += 2)
		memcpy(to + k * m->panel, q + k, 2 * sizeof *q);
	for (size_t g = 0; g < m->n_groups; g++)
		m->scales[first_scale(m, row) + g * m->panel] = scales[g];
}

void int8_matrix_row(const struct int8_matrix *m, uint32_t row, float *ret_values)
{
	const int16_t *from = m->values + first_pair(m, row);
	const float *scales = m->scales + first_scale(m, row);

	for (size_t k = 0; k < m->k; k++) {
		size_t pair = k / 2, group = k / INT8_GROUP;
		ret_values[k] = (float)from[pair * 2 * m->panel + k % 2] * scales[group * m->panel];
	}
}

struct operands { const int16_t *x; const float *scales; };    // (rows up to whole blocks, depth), (rows, n_groups)

// x quantised in scratch, rows that fill up a block zeros; false after backend_fail.
static bool quantize_rows(struct backend *be, const struct int8_matrix *m, const float *x, size_t rows, struct operands *ret)
{
	const struct cpu *cpu = cpu_of(be);
	size_t depth = depth_of(m), block = cpu->vector->block_rows, all = (rows + block - 1) / block * block;
	float *scratch = memory_shared(be, all * (depth / 2 + m->n_groups));
	if (!scratch)
		return false;
	int16_t *q = (int16_t *)scratch;
	float *scales = scratch + all * depth / 2;

#pragma omp parallel for schedule(static) num_threads(cpu->n_threads)
	for (size_t r = 0; r < all; r++) {
		if (r < rows) {
			cpu->vector->quantize(q + r * depth, scales + r * m->n_groups, x + r * m->k, m->k);
		} else {
			memset(q + r * depth, 0, depth * sizeof *q);
			memset(scales + r * m->n_groups, 0, m->n_groups * sizeof *scales);
		}
	}
	*ret = (struct operands){q, scales};
	return true;
}

void int8_multiply(struct backend *be, float *y, bool add, const float *x, const struct int8_matrix *m, const float *bias, size_t rows)
{
	const struct cpu *cpu = cpu_of(be);
	size_t depth = depth_of(m), block = cpu->vector->block_rows, unit = UNIT_BLOCKS * block, n_panels = int8_matrix_panels(m);
	struct operands o;

	if (!rows || backend_failed(be) || !quantize_rows(be, m, x, rows, &o))
		return;
#pragma omp parallel for schedule(dynamic) collapse(2) num_threads(cpu->n_threads)
	for (size_t panels = 0; panels < n_panels; panels += UNIT_PANELS) {
		for (size_t first = 0; first < rows; first += unit) {
			for (size_t p = panels; p < n_panels && p < panels + UNIT_PANELS; p++) {
				size_t column = p * m->panel;
				for (size_t r = first; r < rows && r < first + unit; r += block)
					cpu->vector->int8_block(&(struct int8_block){
						.y = y + r * m->n + column, .ldy = m->n, .n = m->n - column < m->panel ? m->n - column : m->panel,
						.n_rows = rows - r < block ? rows - r : block, .add = add, .bias = bias ? bias + column : NULL,
						.x = o.x + r * depth, .x_scales = o.scales + r * m->n_groups, .n_groups = m->n_groups,
						.w = m->values + column * depth, .w_scales = m->scales + column * m->n_groups});
			}
		}
	}
}
