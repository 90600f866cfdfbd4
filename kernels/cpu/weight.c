// SPDX-License-Identifier: Apache-2.0
// Matrices. A loaded one is dequantised block by block and exists packed only (the embedding is read back from the packed form, so a
// tied head costs nothing more). A view is packed twice, for y = x Wᵀ and for dx = dy W, anew at every refresh: that is 1 % of a
// training step and lets training use the same fast tiles.
#include <errno.h>
#include <stdlib.h>

#include "common/error.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/int8.h"
#include "kernels/cpu/product.h"

static int rows_from_file(const struct cpu *cpu, const struct tensor *t, uint64_t first, uint32_t n, uint32_t n_columns, float *to,
			  struct error *err)
{
	void *stored = malloc(n * dtype_row_bytes(t->dtype, n_columns));
	int r = stored ? t->rows->read(t->rows, first, n, stored, err)
		: error_set(err, ERROR_MEMORY, NULL, "no memory for %u rows of a matrix", n);
	if (r == 0)
		cpu->vector->dequantize(to, t->dtype, stored, (size_t)n * n_columns);
	free(stored);
	return r;
}

// Rows first..first+n-1 of the stacked parts, as float (n, n_columns).
static int parts_read(const struct cpu *cpu, const struct tensor *part, uint64_t first, uint32_t n, uint32_t n_columns, float *to,
		      struct error *err)
{
	int r = 0;
	for (; n && r == 0; part++) {
		uint64_t rows = part->dims[0] > first ? part->dims[0] - first : 0, some = rows < n ? rows : n;
		if (!part->data && some)
			r = rows_from_file(cpu, part, first, (uint32_t)some, n_columns, to, err);
		else if (some)
			cpu->vector->dequantize(to, part->dtype, (const char *)part->data + first * dtype_row_bytes(part->dtype, n_columns),
						some * n_columns);
		first = rows ? 0 : first - part->dims[0];
		to += some * n_columns;
		n -= (uint32_t)some;
	}
	return r;
}

// Of what several threads do: the first that fails is told of.
struct failure { int result; struct error err; };

static void failure_note(struct failure *all, int result, const struct error *err)
{
#pragma omp critical(weight_failure)
	if (all->result == 0)
		*all = (struct failure){result, *err};
}

static int failure_result(const struct failure *all, struct error *err)
{
	if (all->result < 0 && err)
		*err = all->err;
	return all->result;
}

static int block_pack(struct cpu *cpu, struct weight *w, const struct tensor *parts, uint32_t block, struct error *err)
{
	float *plain = cpu->own[omp_get_thread_num()];
	uint32_t rows = matrix_block_width(w->forward, block);
	int r = parts_read(cpu, parts, (uint64_t)block * products_block(cpu->products), rows, w->n_columns, plain, err);
	if (r < 0)
		return r;
	if (w->operand == OPERAND_ROUNDED)
		cpu->vector->round_bf16(plain, plain, (size_t)rows * w->n_columns);
	r = matrix_pack(w->forward, block, plain, w->n_columns, 1, omp_get_thread_num());
	return r < 0 ? error_set(err, ERROR_INTERNAL, NULL, "a matrix of %u x %u cannot be packed", w->n_rows, w->n_columns) : 0;
}

static int no_memory(const struct weight *w, struct error *err)
{
	return error_set(err, ERROR_MEMORY, NULL, "no memory for a matrix of %u x %u", w->n_rows, w->n_columns);
}

int weight_pack(struct backend *be, struct weight *w, const struct tensor *parts, uint32_t first, uint32_t last, struct error *err)
{
	struct cpu *cpu = cpu_of(be);
	struct failure failure = {0};
	int threads = omp_get_max_threads();

	if (!memory_own(be, (size_t)products_block(cpu->products) * w->n_columns))
		return no_memory(w, err);
	omp_set_num_threads(1);          // of what oneDNN starts inside the region
#pragma omp parallel for schedule(dynamic) num_threads(cpu->n_threads)
	for (uint32_t block = first; block < last; block++) {
		struct error e = {0};
		int r = block_pack(cpu, w, parts, block, &e);
		if (r < 0)
			failure_note(&failure, r, &e);
	}
	omp_set_num_threads(threads);
	return failure_result(&failure, err);
}

static int panel_pack(const struct cpu *cpu, struct int8_matrix *m, const struct tensor *parts, uint32_t panel, uint32_t n_columns,
		      struct error *err)
{
	float *plain = cpu->own[omp_get_thread_num()];
	for (uint32_t i = 0, row = panel * m->panel; i < m->panel; i++, row++) {
		int r = row < m->n ? parts_read(cpu, parts, row, 1, n_columns, plain, err) : 0;
		if (r < 0)
			return r;
		int8_matrix_pack(m, cpu->vector, row, plain, plain + n_columns);
	}
	return 0;
}

static int load_int8(struct backend *be, struct weight *w, const struct tensor *parts, struct error *err)
{
	const struct cpu *cpu = cpu_of(be);
	struct int8_matrix *m = w->int8 = int8_matrix_new(cpu->vector, w->n_rows, w->n_columns);
	struct failure failure = {0};

	if (!m || !memory_own(be, w->n_columns + int8_matrix_scratch(m)))
		return no_memory(w, err);
#pragma omp parallel for schedule(dynamic) num_threads(cpu->n_threads)
	for (uint32_t panel = 0; panel < int8_matrix_panels(m); panel++) {
		struct error e = {0};
		int r = panel_pack(cpu, m, parts, panel, w->n_columns, &e);
		if (r < 0)
			failure_note(&failure, r, &e);
	}
	return failure_result(&failure, err);
}

struct weight *weight_new(struct backend *be, const struct tensor *parts, uint32_t n_parts, bool apart, struct error *err)
{
	const struct cpu *cpu = cpu_of(be);
	struct weight *w;
	uint32_t n_rows = 0, n_columns = 0;

	if (tensor_stack_shape(parts, n_parts, &n_rows, &n_columns, err) < 0)
		return NULL;
	w = calloc(1, sizeof *w);
	be->n_allocations++;
	if (!w) {
		error_set(err, ERROR_MEMORY, NULL, "no memory for a matrix");
		return NULL;
	}
	*w = (struct weight){.n_rows = n_rows, .n_columns = n_columns, .operand = cpu->operand};
	if (w->operand == OPERAND_INT8)
		return w;
	if (matrix_new(cpu->products, n_rows, n_columns, w->operand == OPERAND_BF16, apart, &w->forward, err) == 0)
		return w;
	cpu_weight_free(be, w);
	return NULL;
}

struct weight *cpu_weight_load(struct backend *be, enum weight_kind kind, const struct tensor *parts, uint32_t n_parts, struct error *err)
{
	(void)kind;
	struct weight *w = weight_new(be, parts, n_parts, false, err);

	if (!w)
		return NULL;
	int r = w->operand == OPERAND_INT8 ? load_int8(be, w, parts, err)
		: weight_pack(be, w, parts, 0, matrix_blocks(w->forward), err);
	if (r == 0)
		return w;
	cpu_weight_free(be, w);
	return NULL;
}

struct weight *cpu_weight_view(struct backend *be, struct real *array, uint32_t n_rows, uint32_t n_columns, struct error *err)
{
	struct cpu *cpu = cpu_of(be);
	struct weight *w = calloc(1, sizeof *w);
	be->n_allocations++;

	if (!w) {
		error_set(err, ERROR_MEMORY, NULL, "no memory for a matrix view");
		return NULL;
	}
	cpu->n_views++;
	*w = (struct weight){.n_rows = n_rows, .n_columns = n_columns, .operand = cpu->view_operand, .view = cpu_real_in(array)};
	if (matrix_new(cpu->products, n_rows, n_columns, w->operand == OPERAND_BF16, false, &w->forward, err) < 0 ||
	    matrix_new(cpu->products, n_columns, n_rows, w->operand == OPERAND_BF16, false, &w->backward, err) < 0) {
		cpu_weight_free(be, w);
		return NULL;
	}
	cpu_weight_refresh(be, w);
	return w;
}

static int pack_view(const struct cpu *cpu, struct matrix *m, const float *view, size_t row_stride, size_t column_stride)
{
	int threads = omp_get_max_threads(), failure = 0;

	omp_set_num_threads(1);
#pragma omp parallel for schedule(dynamic) num_threads(cpu->n_threads)
	for (uint32_t block = 0; block < matrix_blocks(m); block++) {
		int r = matrix_pack(m, block, view + (size_t)block * products_block(cpu->products) * row_stride, row_stride, column_stride,
				    omp_get_thread_num());
		if (r < 0) {
#pragma omp atomic write
			failure = r;
		}
	}
	omp_set_num_threads(threads);
	return failure;
}

#define ROUND_FLOATS 65536           // of one unit

// The view as its products are to read it: itself, or a rounded copy in scratch. NULL after backend_fail.
static const float *view_rounded(struct backend *be, const struct weight *w)
{
	const struct cpu *cpu = cpu_of(be);
	size_t n = (size_t)w->n_rows * w->n_columns;
	float *to = w->operand == OPERAND_ROUNDED ? memory_shared(be, n) : NULL;

	if (w->operand != OPERAND_ROUNDED)
		return w->view;
#pragma omp parallel for schedule(static) num_threads(cpu->n_threads)
	for (size_t i = 0; i < n; i += ROUND_FLOATS)
		if (to)
			cpu->vector->round_bf16(to + i, w->view + i, n - i < ROUND_FLOATS ? n - i : ROUND_FLOATS);
	return to;
}

void cpu_weight_refresh(struct backend *be, struct weight *w)
{
	const struct cpu *cpu = cpu_of(be);
	const float *view = w->view ? view_rounded(be, w) : NULL;

	if (!view)
		return;
	if (pack_view(cpu, w->forward, view, w->n_columns, 1) < 0 || pack_view(cpu, w->backward, view, 1, w->n_columns) < 0)
		backend_fail(be, "a matrix of %u x %u cannot be packed", w->n_rows, w->n_columns);
}

void cpu_weight_free(struct backend *be, struct weight *w)
{
	if (!w)
		return;
	if (w->view)
		cpu_of(be)->n_views--;
	int8_matrix_free(w->int8);
	matrix_free(w->forward);
	matrix_free(w->backward);
	free(w->sums);
	free(w);
}
