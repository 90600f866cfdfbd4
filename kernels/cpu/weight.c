// SPDX-License-Identifier: Apache-2.0
// Matrices. A loaded one is dequantised block by block and exists packed only (the embedding is read back from the packed form, so a
// tied head costs nothing more). A view is packed twice, for y = x Wᵀ and for dx = dy W, anew at every refresh: that is 1 % of a
// training step and lets training use the same fast tiles.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/int8.h"
#include "kernels/cpu/product.h"

struct row { enum dtype type; const uint8_t *at; };

// Where rows first..first+n-1 of the stacked parts lie as stored; those of a file are read to *ret_read, which the caller frees.
static int rows_find(const struct tensor *part, uint64_t first, uint32_t n, uint32_t n_columns, struct row *rows, uint8_t **ret_read,
		     struct error *err)
{
	uint8_t *to = NULL;
	int r = 0;

	for (; n && r == 0; part++) {
		uint64_t there = part->dims[0] > first ? part->dims[0] - first : 0;
		uint32_t some = there < n ? (uint32_t)there : n;
		size_t bytes = dtype_row_bytes(part->dtype, n_columns);
		const uint8_t *at = part->data ? (const uint8_t *)part->data + first * bytes : NULL;
		if (some && !at) {
			if (!to)      // no type takes more of a row
				to = *ret_read = malloc(n * dtype_row_bytes(DTYPE_F32, n_columns));
			r = to ? part->rows->read(part->rows, first, some, to, err)
				: error_set(err, ERROR_MEMORY, NULL, "no memory for %u rows of a matrix", n);
			at = to;
			to = to ? to + some * bytes : NULL;
		}
		for (uint32_t i = 0; i < some; i++)
			*rows++ = (struct row){part->dtype, at + i * bytes};
		first = there ? 0 : first - part->dims[0];
		n -= some;
	}
	return r;
}

// The same n <= BACKEND_MAX_PIECE_ROWS rows as float (n, n_columns).
static int parts_read(const struct cpu *cpu, const struct tensor *parts, uint64_t first, uint32_t n, uint32_t n_columns, float *to,
		      struct error *err)
{
	struct row rows[BACKEND_MAX_PIECE_ROWS];
	uint8_t *read = NULL;
	int r = rows_find(parts, first, n, n_columns, rows, &read, err);

	for (uint32_t i = 0; i < n && r == 0; i++)
		cpu->vector->dequantize(to + (size_t)i * n_columns, rows[i].type, rows[i].at, n_columns);
	free(read);
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

#define PACK_COLUMNS 256u            // whole blocks of every type; 16 rows of so many stay in the first-level cache

// Columns of BF16_PACK_ROWS rows (of the n there are; zeros for others) to a place in a panel, some at a time.
static void panel_rows_pack(const struct cpu *cpu, uint16_t *to, const struct row *rows, uint32_t n, uint32_t first_column, uint32_t depth)
{
	float *plain = cpu->own[omp_get_thread_num()];

	for (uint32_t k = 0; k < depth; k += PACK_COLUMNS) {
		uint32_t some = depth - k < PACK_COLUMNS ? depth - k : PACK_COLUMNS, whole = (some + 31) / 32 * 32;
		if (n < BF16_PACK_ROWS || some < whole)
			memset(plain, 0, BF16_PACK_ROWS * PACK_COLUMNS * sizeof *plain);
		for (uint32_t i = 0; i < n; i++)
			cpu->vector->dequantize(plain + i * PACK_COLUMNS, rows[i].type,
						rows[i].at + dtype_row_bytes(rows[i].type, first_column + k), some);
		cpu->vector->bf16_pack(to + (size_t)k * BF16_PANEL, plain, PACK_COLUMNS, whole);
	}
}

// A block of a matrix in panels, straight from its rows.
static int panels_pack(const struct cpu *cpu, const struct weight *w, const struct tensor *parts, uint32_t block, struct error *err)
{
	const struct matrix *m = w->forward;
	uint32_t n = matrix_block_width(m, block), padded = (n + BF16_PANEL - 1) / BF16_PANEL * BF16_PANEL, column = 0;
	struct row rows[BACKEND_MAX_PIECE_ROWS];
	uint8_t *read = NULL;
	int r = rows_find(parts, (uint64_t)block * products_block(cpu->products), n, w->n_columns, rows, &read, err);

	for (uint32_t chunk = 0; chunk < matrix_chunks(m) && r == 0; column += matrix_chunk_depth(m, chunk++)) {
		size_t stride;
		uint16_t *to = matrix_panels(m, block, chunk, &stride);
		for (uint32_t i = 0; i < padded; i += BF16_PACK_ROWS)
			panel_rows_pack(cpu, to + i / BF16_PANEL * stride + i % BF16_PANEL * 2, rows + i,
					i >= n ? 0 : n - i < BF16_PACK_ROWS ? n - i : BF16_PACK_ROWS, column, matrix_chunk_depth(m, chunk));
	}
	free(read);
	return r;
}

static int block_pack(struct cpu *cpu, const struct weight *w, const struct tensor *parts, uint32_t block, struct error *err)
{
	float *plain = cpu->own[omp_get_thread_num()];
	uint32_t rows = matrix_block_width(w->forward, block);
	if (matrix_in_panels(w->forward))
		return panels_pack(cpu, w, parts, block, err);
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

int weight_pack(struct backend *be, const struct weight *w, const struct tensor *parts, uint32_t first, uint32_t last, struct error *err)
{
	struct cpu *cpu = cpu_of(be);
	struct failure failure = {0};
	int threads = omp_get_max_threads();

	if (!memory_own(be, matrix_in_panels(w->forward) ? BF16_PACK_ROWS * PACK_COLUMNS
			: (size_t)products_block(cpu->products) * w->n_columns))
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
	stored_free(w->stored);
	free(w);
}
