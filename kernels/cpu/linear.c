// SPDX-License-Identifier: Apache-2.0
// Products with a matrix of N rows and K columns: y = x Wᵀ, dx = dy W (both in packed tiles), dW += dyᵀ x.
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/int8.h"
#include "kernels/cpu/product.h"

#define UNIT_ROWS 96                 // of a unit of panels: its x (bfloat16) and a panel of weights stay in the second-level cache
#define SHARES 8                     // of a thread in a product: the last to finish is at most so much behind
#define GRADIENT_BLOCK 192           // rows of dw in one unit: their share of dy, packed, stays in the second-level cache

// x as the tiles of a product read it. Most often x itself will do, but for the last tile, which is padded.
struct tiles {
	const char *rows;                // x, or NULL when every tile was copied
	const char *copy;                // the last tile, or all: [chunk][tile](TILE, depth)
	size_t element, n_tiles, last, tile;
};

static const void *tile_at(const struct tiles *t, const struct matrix *m, size_t tile, uint32_t chunk, uint32_t chunk_size)
{
	size_t depth = matrix_chunk_depth(m, chunk);

	if (t->rows && tile < t->last)
		return t->rows + tile * t->tile * depth * t->element;
	if (t->rows)
		return t->copy;
	return t->copy + (t->n_tiles * t->tile * chunk * chunk_size + tile * t->tile * depth) * t->element;
}

static void row_copy(const struct cpu *cpu, void *to, const float *from, size_t n, enum operand operand)
{
	if (operand == OPERAND_BF16)
		cpu->vector->to_bf16(to, from, n);
	else if (operand == OPERAND_ROUNDED)
		cpu->vector->round_bf16(to, from, n);
	else
		memcpy(to, from, n * sizeof(float));
}

// False after backend_fail.
static bool tiles_init(struct backend *be, struct tiles *t, const struct matrix *m, enum operand operand, const float *x, size_t rows,
		       size_t K)
{
	const struct cpu *cpu = cpu_of(be);
	size_t tile = products_tile(cpu->products), n_tiles = (rows + tile - 1) / tile, chunk_size = products_chunk(cpu->products);
	bool direct = operand == OPERAND_F32 && matrix_chunks(m) == 1;

	*t = (struct tiles){.element = operand == OPERAND_BF16 ? 2 : 4, .n_tiles = n_tiles, .tile = tile, .last = n_tiles};
	if (direct) {
		t->rows = (const char *)x;
		t->last = rows / tile;
		if (t->last == n_tiles)
			return true;
	}
	char *copy = (char *)memory_shared(be, (n_tiles - (direct ? t->last : 0)) * tile * K);
	if (!copy)
		return false;
	t->copy = copy;
	size_t first = direct ? t->last * tile : 0;
#pragma omp parallel for schedule(static) num_threads(cpu->n_threads)
	for (size_t r = first; r < n_tiles * tile; r++) {
		for (uint32_t chunk = 0; chunk < matrix_chunks(m); chunk++) {
			size_t depth = matrix_chunk_depth(m, chunk);
			char *to = copy + ((n_tiles * tile * chunk * chunk_size) + (r - first) * depth) * t->element;
			if (r < rows)
				row_copy(cpu, to, x + r * K + chunk * chunk_size, depth, operand);
			else
				memset(to, 0, depth * t->element);
		}
	}
	return true;
}

// y (rows, N) {=, +=} x (rows, K) times a packed matrix, + bias.
struct multiplication {
	float *y;
	bool add;
	const float *x, *bias;           // bias: (N) or NULL
	const struct matrix *matrix;
	size_t N, K, rows;
	enum operand operand;
};

// n_rows rows of x in bfloat16, rows `even` apart: an odd last term has a zero beside it.
static void rows_narrow(const struct cpu *cpu, uint16_t *to, size_t even, const float *x, size_t ldx, size_t depth, size_t n_rows)
{
	for (size_t r = 0; r < n_rows; r++) {
		to[r * even + even - 1] = 0;
		cpu->vector->to_bf16(to + r * even, x + r * ldx, depth);
	}
}

// Outputs of blocks first..last-1. False when a tile failed.
static bool multiply_blocks(const struct cpu *cpu, const struct multiplication *p, const struct tiles *t,
	uint32_t first_block, uint32_t last)
{
	const struct matrix *m = p->matrix;
	uint32_t block_size = products_block(cpu->products), chunk_size = products_chunk(cpu->products);
	size_t N = p->N, rows = p->rows, n_units = (last - first_block) * t->n_tiles, share = n_units / (SHARES * (size_t)cpu->n_threads);
	size_t step = share < 1 ? 1 : share < 4 ? share : 4;      // NOLINT(clang-analyzer-deadcode.DeadStores): the pragma reads it
	int failure = 0;

	for (uint32_t chunk = 0; chunk < matrix_chunks(m); chunk++) {
#pragma omp parallel for schedule(dynamic, step) collapse(2) num_threads(cpu->n_threads)
		for (uint32_t block = first_block; block < last; block++) {
			for (size_t i = 0; i < t->n_tiles; i++) {
				int worker = omp_get_thread_num();
				size_t first = i * t->tile, n = rows - first < t->tile ? rows - first : t->tile,
					column = (size_t)block * block_size;
				float *tile = cpu->own[worker];
				if (matrix_tile(m, block, chunk, tile_at(t, m, i, chunk, chunk_size), tile, worker) < 0) {
#pragma omp atomic write
					failure = 1;
				}
				cpu->vector->tile_store(p->y + first * N + column, N, tile, p->bias && chunk == 0 ? p->bias + column : NULL,
							p->add || chunk > 0, (uint32_t)n, matrix_block_width(m, block));
			}
		}
	}
	return !failure;
}

// Rows i UNIT_ROWS.. times a block's chunk; x and its stride are left to the caller.
static struct bf16_unit unit_at(const struct cpu *cpu, const struct multiplication *p, size_t i, uint32_t block, uint32_t chunk)
{
	size_t first = i * UNIT_ROWS, column = (size_t)block * products_block(cpu->products);
	struct bf16_unit u = {
		.y = p->y + first * p->N + column, .ldy = p->N, .n = matrix_block_width(p->matrix, block),
		.n_rows = p->rows - first < UNIT_ROWS ? p->rows - first : UNIT_ROWS,
		.add = p->add || chunk > 0, .bias = p->bias && chunk == 0 ? p->bias + column : NULL};
	u.w = matrix_panels(p->matrix, block, chunk, &u.panel_stride);
	return u;
}

// The same of a matrix in panels, unit by unit; each thread has the rows of x that it is at in bfloat16.
static void multiply_panels(const struct cpu *cpu, const struct multiplication *p, uint32_t first_block, uint32_t last)
{
	size_t n_units = (p->rows + UNIT_ROWS - 1) / UNIT_ROWS;
	// NOLINTNEXTLINE(clang-analyzer-deadcode.DeadStores): the pragma reads it
	size_t step = n_units * (last - first_block) / ((size_t)cpu->n_threads * SHARES) + 1;

	for (uint32_t chunk = 0; chunk < matrix_chunks(p->matrix); chunk++) {
		size_t depth = matrix_chunk_depth(p->matrix, chunk), even = depth + depth % 2;
		const float *terms = p->x + (size_t)chunk * products_chunk(cpu->products);
#pragma omp parallel num_threads(cpu->n_threads)
		{
			uint16_t *x = (uint16_t *)cpu->own[omp_get_thread_num()];
			size_t there = n_units;
#pragma omp for schedule(dynamic, step) collapse(2)
			for (size_t i = 0; i < n_units; i++) {
				for (uint32_t block = first_block; block < last; block++) {
					struct bf16_unit u = unit_at(cpu, p, i, block, chunk);
					u.x = x;
					u.ldx = u.depth = even;
					if (i != there)
						rows_narrow(cpu, x, even, terms + i * UNIT_ROWS * p->K, p->K, depth, u.n_rows);
					there = i;
					cpu->vector->bf16_unit(&u);
				}
			}
		}
	}
}

// apart: the matrix's owner, when its blocks come in pieces; else NULL.
static void multiply(struct backend *be, const struct multiplication *p, const struct weight *apart)
{
	const struct cpu *cpu = cpu_of(be);
	uint32_t first = 0, last = matrix_blocks(p->matrix), n_pieces = apart ? apart_pieces(apart) : 1;
	size_t depth = matrix_chunk_depth(p->matrix, 0) / 2 + 1;
	size_t tile = (size_t)products_tile(cpu->products) * products_block(cpu->products);
	int threads = omp_get_max_threads();
	bool done = true, panels = matrix_in_panels(p->matrix);
	struct tiles t;

	if (!p->rows || backend_failed(be) || !memory_own(be, panels ? UNIT_ROWS * depth : tile) ||
	    (!panels && !tiles_init(be, &t, p->matrix, p->operand, p->x, p->rows, p->K)))
		return;
	omp_set_num_threads(1);          // inside the region oneDNN must stay on its thread even when ours is the only one
	for (uint32_t i = 0; i < n_pieces && done; i++) {
		done = !apart || apart_find(be, apart, i, NULL, 0, &first, &last);
		if (done && panels)
			multiply_panels(cpu, p, first, last);
		else if (done)
			done = multiply_blocks(cpu, p, &t, first, last);
	}
	omp_set_num_threads(threads);
	if (!done)
		backend_fail(be, "a product of %zu x %zu failed", p->N, p->K);
}

static void forward(struct backend *be, float *y, bool add, const float *x, const struct weight *w, const float *bias, size_t rows)
{
	struct multiplication p = {.y = y, .add = add, .x = x, .bias = bias, .matrix = w->forward, .N = w->n_rows, .K = w->n_columns,
				   .rows = rows, .operand = w->operand};

	if (w->int8)
		int8_multiply(be, y, add, x, w->int8, bias, rows);
	else
		multiply(be, &p, w->n_pieces ? w : NULL);
}

void cpu_linear(struct backend *be, struct act *y, const struct act *x, const struct weight *w, const struct real *bias, uint32_t rows)
{
	forward(be, cpu_act(y), false, cpu_act_in(x), w, cpu_real_in(bias), rows);
}

void cpu_linear_real(struct backend *be, struct real *y, bool add, const struct act *x, const struct weight *w, const struct real *bias,
		     uint32_t rows)
{
	forward(be, cpu_real(y), add, cpu_act_in(x), w, cpu_real_in(bias), rows);
}

// dw (N, K) += dyᵀ x, in blocks of rows of dw, with operands as in the other products. Sums run over rows in order, so they do not depend
// on threads (but they do on T).
static void gradient(struct backend *be, float *dw, const float *dy, const float *x, size_t N, size_t K, size_t rows, enum operand operand)
{
	const struct cpu *cpu = cpu_of(be);
	size_t panel = cpu->vector->panel, n_panels = (K + panel - 1) / panel;
	size_t panel_floats = panel * (operand == OPERAND_BF16 ? (rows + 1) / 2 : rows);
	float *packed = memory_shared(be, n_panels * panel_floats);

	if (!packed || !memory_own(be, gradient_scratch(GRADIENT_BLOCK)))
		return;
#pragma omp parallel num_threads(cpu->n_threads)
	{
#pragma omp for schedule(static)
		for (size_t k = 0; k < n_panels; k++)
			cpu->vector->gradient_pack(packed + k * panel_floats, x, rows, K, k * panel, operand);
#pragma omp for schedule(dynamic)
		for (size_t n = 0; n < N; n += GRADIENT_BLOCK)
			cpu->vector->gradient(dw + n * K, dy + n, N, N - n < GRADIENT_BLOCK ? N - n : GRADIENT_BLOCK, packed, rows, K,
					      cpu->own[omp_get_thread_num()], operand);
	}
}

#define BIAS_COLUMNS 64

static void bias_gradient(const struct cpu *cpu, float *dbias, const float *dy, size_t N, size_t rows)
{
#pragma omp parallel for schedule(static) num_threads(cpu->n_threads)
	for (size_t n = 0; n < N; n += BIAS_COLUMNS)
		for (size_t r = 0; r < rows; r++)
			cpu->vector->add(dbias + n, dy + r * N + n, N - n < BIAS_COLUMNS ? N - n : BIAS_COLUMNS);
}

static void backward(struct backend *be, float *dx, float *dw, const float *dy, const float *x, const struct weight *w, size_t rows)
{
	if (dx && !w->backward)
		backend_fail(be, "the gradient through an immutable matrix was asked for");
	if (!rows || backend_failed(be))
		return;
	struct multiplication p = {
		.y = dx, .x = dy, .matrix = w->backward, .N = w->n_columns, .K = w->n_rows, .rows = rows, .operand = w->operand};
	if (dx)
		multiply(be, &p, NULL);
	if (dw)
		gradient(be, dw, dy, x, w->n_rows, w->n_columns, rows, w->operand);
}

void cpu_linear_backward(struct backend *be, struct act *dx, struct real *dw, struct real *dbias, const struct act *dy, const struct act *x,
			 const struct weight *w, uint32_t rows)
{
	backward(be, cpu_act(dx), cpu_real(dw), cpu_act_in(dy), cpu_act_in(x), w, rows);
	if (dbias)
		bias_gradient(cpu_of(be), cpu_real(dbias), cpu_act_in(dy), w->n_rows, rows);
}

void cpu_linear_real_backward(struct backend *be, struct act *dx, struct real *dw, struct real *dbias, const struct real *dy,
			      const struct act *x, const struct weight *w, uint32_t rows)
{
	backward(be, cpu_act(dx), cpu_real(dw), cpu_real_in(dy), cpu_act_in(x), w, rows);
	if (dbias)
		bias_gradient(cpu_of(be), cpu_real(dbias), cpu_real_in(dy), w->n_rows, rows);
}
