// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/int8.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

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
	*m = (struct int8_matrix){.n = n, .k = k, .n_groups = (k - 1) / INT8_GROUP + 1, .panel = vector->panel,
				   .terms = vector->int8_terms, .offset = vector->int8_offset};
	size_t rows = (size_t)int8_matrix_panels(m) * m->panel;
	m->values = (int8_t *)memory_floats(rows * depth_of(m) / sizeof(float));
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

// Where the first terms of a row lie; the next are `terms` panels further.
static size_t first_terms(const struct int8_matrix *m, uint32_t row)
{
	return row / m->panel * m->panel * depth_of(m) + row % m->panel * m->terms;
}

static size_t first_scale(const struct int8_matrix *m, uint32_t row)
{
	return (size_t)(row / m->panel) * m->panel * m->n_groups + row % m->panel;
}

void int8_matrix_pack(struct int8_matrix *m, const struct cpu_vector *vector, uint32_t row, const float *from, float *scratch)
{
	const int16_t *q = (const int16_t *)scratch;
	int8_t *to = m->values + first_terms(m, row);
	float *scales = scratch + depth_of(m) / 2;

	memset(scratch, 0, int8_matrix_scratch(m) * sizeof *scratch);
	if (row < m->n)
		vector->quantize((int16_t *)scratch, scales, from, m->k);
	for (size_t k = 0; k < depth_of(m); k++) {
		size_t block = k / m->terms;
		to[block * m->terms * m->panel + k % m->terms] = (int8_t)(q[k] + (int32_t)m->offset);
	}
	for (size_t g = 0; g < m->n_groups; g++)
		m->scales[first_scale(m, row) + g * m->panel] = scales[g];
}

void int8_matrix_row(const struct int8_matrix *m, uint32_t row, float *ret_values)
{
	const int8_t *from = m->values + first_terms(m, row);
	const float *scales = m->scales + first_scale(m, row);

	for (size_t k = 0; k < m->k; k++) {
		size_t block = k / m->terms, group = k / INT8_GROUP;
		int8_t q = (int8_t)(from[block * m->terms * m->panel + k % m->terms] - (int32_t)m->offset);
		ret_values[k] = (float)q * scales[group * m->panel];
	}
}

// (rows, depth) as products read them, (rows, n_groups), (rows, n_groups)
struct operands { const char *x; const float *scales; const int32_t *starts; };

// x quantised in scratch; false after backend_fail.
static bool quantize_rows(struct backend *be, const struct int8_matrix *m, const float *x, size_t rows, struct operands *ret)
{
	const struct cpu *cpu = cpu_of(be);
	size_t bytes = depth_of(m) * cpu->vector->int8_operand_bytes;
	float *scratch = memory_shared(be, rows * (bytes / sizeof(float) + 2 * (size_t)m->n_groups));
	if (!scratch)
		return false;
	char *q = (char *)scratch;
	float *scales = scratch + rows * bytes / sizeof(float);
	int32_t *starts = (int32_t *)(scales + rows * m->n_groups);

#pragma omp parallel for schedule(static) num_threads(cpu->n_threads)
	for (size_t r = 0; r < rows; r++)
		cpu->vector->operands(q + r * bytes, scales + r * m->n_groups, starts + r * m->n_groups, x + r * m->k, m->k);
	*ret = (struct operands){q, scales, starts};
	return true;
}

void int8_multiply(struct backend *be, float *y, bool add, const float *x, const struct int8_matrix *m, const float *bias, size_t rows)
{
	const struct cpu *cpu = cpu_of(be);
	size_t depth = depth_of(m), bytes = depth * cpu->vector->int8_operand_bytes, width = (size_t)INT8_PANELS * m->panel;
	struct operands o;

	if (!rows || backend_failed(be) || !memory_own(be, INT8_SCRATCH) || !quantize_rows(be, m, x, rows, &o))
		return;
#pragma omp parallel for schedule(dynamic) collapse(2) num_threads(cpu->n_threads)
	for (size_t column = 0; column < m->n; column += width) {
		for (size_t first = 0; first < rows; first += INT8_ROWS) {
			cpu->vector->int8_unit(&(struct int8_unit){
				.y = y + first * m->n + column, .ldy = m->n, .n = m->n - column < width ? m->n - column : width,
				.n_rows = rows - first < INT8_ROWS ? rows - first : INT8_ROWS, .add = add,
				.bias = bias ? bias + column : NULL, .x = o.x + first * bytes, .x_scales = o.scales + first * m->n_groups,
				.x_starts = o.starts + first * m->n_groups,
				.n_groups = m->n_groups, .w = m->values + column * depth, .w_scales = m->scales + column * m->n_groups,
				.scratch = cpu->own[omp_get_thread_num()]});
		}
	}
}
