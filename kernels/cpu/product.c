// SPDX-License-Identifier: Apache-2.0
// Tiles of products on oneDNN.
//
// The one complication is the route. With AVX-512 oneDNN's matmul with packed weights runs near the processor's peak. With AVX2 its
// matmul packs both operands anew in each call (80 to 95 % of peak, 45 % where rows lie a power of two apart), but a convolution with
// a 1x1 kernel over a row of TILE pixels is the same product, takes packed weights, and runs at 93 to 98 %. So a tile is described to
// oneDNN as either; a shape that the convolution's fast kernel does not take goes to matmul. Products of bfloat16 without AMX are not
// oneDNN's: its tiles cost as much time again where they are called and copied (a fifth of it all), and a few rows cost as much as a
// tile. Here oneDNN only packs, in a format that vector_bf16.c reads.
//
// Primitives are made with one thread in mind and used inside parallel regions, where oneDNN does not start threads of its own; their
// scratchpads are ours, one per worker, as oneDNN's default one is shared.
#include "kernels/cpu/product.h"

#include <assert.h>
#include <errno.h>
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "kernels/cpu/cpu.h"

// Terms of a chunk. A block of weights 4096 deep stays in the outer cache while all rows pass by. Long sums of floats lose digits where
// one term dwarfs the others (the first position of a sequence, in many models): sums of 384 terms, added up, come as close to double
// precision as PyTorch does, but cost a quarter of the speed (192 or 96 terms gain nothing more).
#define CHUNK_FAST 4096
#define CHUNK_EXACT 384

struct product {      // one shape of tile
	struct product *next;
	uint32_t n, k;
	bool bf16, convolution, panels;
	dnnl_primitive_t primitive;              // NULL of panels
	dnnl_memory_desc_t weights;
	size_t weights_bytes;
	uint32_t *row_offset, *column_offset;    // (n), (k): element (i, j) of packed weights is at row_offset[i] + column_offset[j]
	struct product_io { dnnl_memory_t x, y, scratchpad; void *scratch; } *io;    // (n_threads)
};

struct products {
	int n_threads;
	enum products_route route;
	uint32_t tile, block, chunk;
	dnnl_engine_t engine;
	dnnl_stream_t *streams;                  // (n_threads)
	struct product *list;
};

struct matrix {
	struct products *products;
	uint32_t n, k, n_blocks, n_chunks;
	struct product *shapes[2][2];            // [is last chunk][is last block]
	dnnl_memory_t *weights;                  // (n_chunks, n_blocks)
	float *bytes;
};

static bool has_isa(unsigned bits)
{
	return ((unsigned)dnnl_get_effective_cpu_isa() & bits) == bits;
}

bool products_have_bf16(void) { return has_isa(dnnl_cpu_isa_avx512_core_bf16); }
bool products_have_amx(void) { return has_isa(dnnl_cpu_isa_avx512_core_amx); }

uint32_t products_tile(const struct products *p) { return p->tile; }
uint32_t products_block(const struct products *p) { return p->block; }
uint32_t products_chunk(const struct products *p) { return p->chunk; }
uint32_t matrix_blocks(const struct matrix *m) { return m->n_blocks; }
uint32_t matrix_chunks(const struct matrix *m) { return m->n_chunks; }

int products_open(int n_threads, enum products_route route, bool exact, struct products **ret_products, struct error *err)
{
	struct products *p = calloc(1, sizeof *p);
	bool convolution = route == PRODUCTS_CONVOLUTION;
	if (!p)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for products");
	// Measured: narrower blocks cost the convolution 1 to 4 %, taller tiles gain it 1 %. The matmul's calls cost more, hence larger.
	*p = (struct products){.n_threads = n_threads, .route = route, .tile = convolution ? 32 : 64,
			       .block = convolution ? 192 : 256, .chunk = exact ? CHUNK_EXACT : CHUNK_FAST};
	p->streams = calloc((size_t)n_threads, sizeof *p->streams);
	bool ok = p->streams && dnnl_engine_create(&p->engine, dnnl_cpu, 0) == dnnl_success;
	for (int i = 0; ok && i < n_threads; i++)
		ok = dnnl_stream_create(&p->streams[i], p->engine, dnnl_stream_default_flags) == dnnl_success;
	if (!ok) {
		products_close(p);
		return error_set(err, ERROR_INTERNAL, NULL, "oneDNN does not start");
	}
	*ret_products = p;
	return 0;
}

static void product_free(struct product *t, int n_threads)
{
	for (int i = 0; t->io && i < n_threads; i++) {
		dnnl_memory_destroy(t->io[i].x);
		dnnl_memory_destroy(t->io[i].y);
		dnnl_memory_destroy(t->io[i].scratchpad);
		free(t->io[i].scratch);
	}
	free(t->io);
	free(t->row_offset);
	free(t->column_offset);
	dnnl_primitive_destroy(t->primitive);
	free(t);
}

struct products *products_close(struct products *p)
{
	if (!p)
		return NULL;
	for (struct product *t = p->list, *next; t; t = next) {
		next = t->next;
		product_free(t, p->n_threads);
	}
	for (int i = 0; p->streams && i < p->n_threads; i++)
		dnnl_stream_destroy(p->streams[i]);
	free(p->streams);
	dnnl_engine_destroy(p->engine);
	free(p);
	return NULL;
}

// What a tile looks like to oneDNN: x (rows, k), weights in a format of its choice, y (rows, n).
struct tile_descs { dnnl_memory_desc_t x, w, y; };

static bool describe_convolution(struct tile_descs *d, dnnl_convolution_desc_t *op, dnnl_dim_t rows, dnnl_dim_t n, dnnl_dim_t k)
{
	dnnl_dims_t x = {1, k, 1, rows}, w = {n, k, 1, 1}, y = {1, n, 1, rows}, strides = {1, 1}, padding = {0, 0};

	return dnnl_memory_desc_init_by_tag(&d->x, 4, x, dnnl_f32, dnnl_nhwc) == dnnl_success &&
	       dnnl_memory_desc_init_by_tag(&d->w, 4, w, dnnl_f32, dnnl_format_tag_any) == dnnl_success &&
	       dnnl_memory_desc_init_by_tag(&d->y, 4, y, dnnl_f32, dnnl_nhwc) == dnnl_success &&
	       dnnl_convolution_forward_desc_init(op, dnnl_forward_inference, dnnl_convolution_direct, &d->x, &d->w, NULL, &d->y, strides,
						  padding, padding) == dnnl_success;
}

static bool describe_matmul(struct tile_descs *d, dnnl_matmul_desc_t *op, dnnl_dim_t rows, dnnl_dim_t n, dnnl_dim_t k, bool bf16)
{
	dnnl_dims_t x = {rows, k}, w = {k, n}, y = {rows, n};
	dnnl_data_type_t operand = bf16 ? dnnl_bf16 : dnnl_f32;

	return dnnl_memory_desc_init_by_tag(&d->x, 2, x, operand, dnnl_ab) == dnnl_success &&
	       dnnl_memory_desc_init_by_tag(&d->w, 2, w, operand, dnnl_format_tag_any) == dnnl_success &&
	       dnnl_memory_desc_init_by_tag(&d->y, 2, y, dnnl_f32, dnnl_ab) == dnnl_success &&
	       dnnl_matmul_desc_init(op, &d->x, &d->w, NULL, &d->y) == dnnl_success;
}

// The primitive descriptor by the route that takes the shape; NULL when none does.
static dnnl_primitive_desc_t choose_route(const struct products *p, struct product *t, const_dnnl_primitive_attr_t attr,
					  struct tile_descs *d)
{
	dnnl_primitive_desc_t pd = NULL;
	dnnl_convolution_desc_t convolution;
	dnnl_matmul_desc_t matmul;

	t->convolution = p->route == PRODUCTS_CONVOLUTION && !t->bf16 && describe_convolution(d, &convolution, p->tile, t->n, t->k);
	if (t->convolution && dnnl_primitive_desc_create(&pd, &convolution, attr, p->engine, NULL) == dnnl_success) {
		const char *name = NULL;
		dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, &name);
		if (name && strncmp(name, "jit_1x1", 7) == 0)
			return pd;
		dnnl_primitive_desc_destroy(pd);
	}
	t->convolution = false;
	if (!describe_matmul(d, &matmul, p->tile, t->n, t->k, t->bf16) ||
	    dnnl_primitive_desc_create(&pd, &matmul, attr, p->engine, NULL) != dnnl_success)
		return NULL;
	return pd;
}

// Where index `index` of dimension `dim` lies in a blocked format: the offset is a sum of such parts, one per dimension.
static size_t blocked_offset(const dnnl_memory_desc_t *md, int dim, dnnl_dim_t index)
{
	const dnnl_blocking_desc_t *b = &md->format_desc.blocking;
	dnnl_dim_t offset = 0, stride = 1;

	for (int i = b->inner_nblks - 1; i >= 0; i--) {
		if (b->inner_idxs[i] == dim) {
			offset += index % b->inner_blks[i] * stride;
			index /= b->inner_blks[i];
		}
		stride *= b->inner_blks[i];
	}
	return (size_t)(offset + index * b->strides[dim]);
}

static bool product_offsets(struct product *t)
{
	int row = t->convolution ? 0 : 1;

	if (t->weights.format_kind != dnnl_blocked || t->weights.extra.flags != dnnl_memory_extra_flag_none)
		return false;
	t->row_offset = calloc(t->n, sizeof *t->row_offset);
	t->column_offset = calloc(t->k, sizeof *t->column_offset);
	if (!t->row_offset || !t->column_offset)
		return false;
	for (uint32_t i = 0; i < t->n; i++)
		t->row_offset[i] = (uint32_t)blocked_offset(&t->weights, row, i);
	for (uint32_t j = 0; j < t->k; j++)
		t->column_offset[j] = (uint32_t)blocked_offset(&t->weights, 1 - row, j);
	return true;
}

static bool product_buffers(const struct products *p, struct product *t, const struct tile_descs *d, const dnnl_memory_desc_t *scratchpad)
{
	size_t bytes = dnnl_memory_desc_get_size(scratchpad);

	t->io = calloc((size_t)p->n_threads, sizeof *t->io);
	for (int i = 0; t->io && i < p->n_threads; i++) {
		struct product_io *io = &t->io[i];
		io->scratch = memory_floats(bytes / sizeof(float) + 16);
		if (!io->scratch || dnnl_memory_create(&io->x, &d->x, p->engine, DNNL_MEMORY_NONE) != dnnl_success ||
		    dnnl_memory_create(&io->y, &d->y, p->engine, DNNL_MEMORY_NONE) != dnnl_success ||
		    dnnl_memory_create(&io->scratchpad, scratchpad, p->engine, io->scratch) != dnnl_success)
			return false;
	}
	return t->io;
}

// Packed weights alone: (n / BF16_PANEL, k / 2, BF16_PANEL, 2), filled up with zeros.
static bool panels_create(struct product *t)
{
	dnnl_dims_t w = {t->k, t->n};

	if (dnnl_memory_desc_init_by_tag(&t->weights, 2, w, dnnl_bf16, dnnl_BA16a64b2a) != dnnl_success)
		return false;
	t->panels = true;
	t->weights_bytes = dnnl_memory_desc_get_size(&t->weights);
	return product_offsets(t);
}

static bool product_create(const struct products *p, struct product *t)
{
	struct tile_descs d;
	dnnl_primitive_attr_t attr = NULL;
	dnnl_primitive_desc_t pd = NULL;
	int threads = omp_get_max_threads();
	bool ok = false;

	if (t->bf16 && p->route == PRODUCTS_PANELS)
		return panels_create(t);
	omp_set_num_threads(1);
	if (dnnl_primitive_attr_create(&attr) != dnnl_success ||
	    dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user) != dnnl_success)
		goto out;
	pd = choose_route(p, t, attr, &d);
	if (!pd || dnnl_primitive_create(&t->primitive, pd) != dnnl_success)
		goto out;
	t->weights = *dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
	t->weights_bytes = dnnl_memory_desc_get_size(&t->weights);
	ok = product_offsets(t) && product_buffers(p, t, &d, dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0));
out:
	omp_set_num_threads(threads);
	dnnl_primitive_desc_destroy(pd);
	dnnl_primitive_attr_destroy(attr);
	return ok;
}

static struct product *product_find(struct products *p, uint32_t n, uint32_t k, bool bf16, struct error *err)
{
	for (struct product *t = p->list; t; t = t->next)
		if (t->n == n && t->k == k && t->bf16 == bf16)
			return t;
	struct product *t = calloc(1, sizeof *t);
	if (t) {
		*t = (struct product){.n = n, .k = k, .bf16 = bf16};
		if (product_create(p, t)) {
			t->next = p->list;
			return p->list = t;
		}
		product_free(t, p->n_threads);
	}
	error_set(err, ERROR_INTERNAL, NULL, "oneDNN makes no product of %u terms and %u outputs (or there is no memory for it)", k, n);
	return NULL;
}

static size_t tile_bytes(const struct product *t)
{
	return (t->weights_bytes + 63) / 64 * 64;
}

// Every shape of tile the matrix has; *ret_bytes: of all tiles.
static int matrix_shapes(struct matrix *m, bool bf16, size_t *ret_bytes, struct error *err)
{
	size_t bytes = 0;
	for (uint32_t chunk = 0; chunk < m->n_chunks; chunk++) {
		for (uint32_t block = 0; block < m->n_blocks; block++) {
			struct product **shape = &m->shapes[chunk + 1 == m->n_chunks][block + 1 == m->n_blocks];
			if (!*shape)
				*shape = product_find(m->products, matrix_block_width(m, block), matrix_chunk_depth(m, chunk), bf16, err);
			if (!*shape)
				return -EPROTO;
			bytes += tile_bytes(*shape);
		}
	}
	*ret_bytes = bytes;
	return 0;
}

int matrix_new(struct products *p, uint32_t n, uint32_t k, bool bf16, bool apart, struct matrix **ret_matrix, struct error *err)
{
	struct matrix *m = calloc(1, sizeof *m);
	if (!m)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a matrix");
	*m = (struct matrix){.products = p, .n = n, .k = k, .n_blocks = (n - 1) / p->block + 1, .n_chunks = (k - 1) / p->chunk + 1};
	size_t bytes = 0, n_tiles = (size_t)m->n_blocks * m->n_chunks;
	int r = matrix_shapes(m, bf16, &bytes, err);
	if (r < 0) {
		matrix_free(m);
		return r;
	}
	m->bytes = apart ? NULL : memory_floats(bytes / sizeof(float));
	m->weights = calloc(n_tiles, sizeof *m->weights);
	bool ok = (apart || m->bytes) && m->weights;
	char *at = (char *)m->bytes;
	for (size_t i = 0; ok && i < n_tiles; i++) {
		const struct product *t = m->shapes[i / m->n_blocks + 1 == m->n_chunks][i % m->n_blocks + 1 == m->n_blocks];
		ok = dnnl_memory_create(&m->weights[i], &t->weights, p->engine, apart ? DNNL_MEMORY_NONE : at) == dnnl_success;
		at += apart ? 0 : tile_bytes(t);
	}
	if (!ok) {
		matrix_free(m);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a matrix of %u x %u", n, k);
	}
	*ret_matrix = m;
	return 0;
}

struct matrix *matrix_free(struct matrix *m)
{
	if (!m)
		return NULL;
	for (size_t i = 0; m->weights && i < (size_t)m->n_blocks * m->n_chunks; i++)
		dnnl_memory_destroy(m->weights[i]);
	free(m->weights);
	free(m->bytes);
	free(m);
	return NULL;
}

static uint32_t part(uint32_t total, uint32_t size, uint32_t i)
{
	return total - i * size < size ? total - i * size : size;
}

uint32_t matrix_block_width(const struct matrix *m, uint32_t block) { return part(m->n, m->products->block, block); }
uint32_t matrix_chunk_depth(const struct matrix *m, uint32_t chunk) { return part(m->k, m->products->chunk, chunk); }

static const struct product *shape_of(const struct matrix *m, uint32_t block, uint32_t chunk)
{
	return m->shapes[chunk + 1 == m->n_chunks][block + 1 == m->n_blocks];
}

static dnnl_memory_t weights_of(const struct matrix *m, uint32_t block, uint32_t chunk)
{
	return m->weights[(size_t)chunk * m->n_blocks + block];
}

size_t matrix_block_bytes(const struct matrix *m, uint32_t block)
{
	size_t bytes = 0;
	for (uint32_t chunk = 0; chunk < m->n_chunks; chunk++)
		bytes += tile_bytes(shape_of(m, block, chunk));
	return bytes;
}

bool matrix_attach(struct matrix *m, uint32_t block, void *bytes)
{
	char *at = bytes;
	for (uint32_t chunk = 0; chunk < m->n_chunks; chunk++) {
		if (dnnl_memory_set_data_handle(weights_of(m, block, chunk), at) != dnnl_success)
			return false;
		at += tile_bytes(shape_of(m, block, chunk));
	}
	return true;
}

// One reorder from a strided matrix of floats into packed weights. oneDNN keeps the code it made for the last shapes.
static int pack(const struct matrix *m, const struct product *t, dnnl_memory_t weights, const float *from, size_t row_stride,
		size_t column_stride, int worker)
{
	dnnl_dim_t n = t->n, k = t->k, rs = (dnnl_dim_t)row_stride, cs = (dnnl_dim_t)column_stride;
	dnnl_dims_t dims = {t->convolution ? n : k, t->convolution ? k : n, 1, 1};
	dnnl_dims_t strides = {t->convolution ? rs : cs, t->convolution ? cs : rs, 1, 1};
	dnnl_memory_desc_t plain;
	dnnl_primitive_desc_t pd = NULL;
	dnnl_primitive_t reorder = NULL;
	dnnl_memory_t source = NULL;
	int r = -EIO;

	if (dnnl_memory_desc_init_by_strides(&plain, t->convolution ? 4 : 2, dims, dnnl_f32, strides) != dnnl_success ||
	    dnnl_reorder_primitive_desc_create(&pd, &plain, m->products->engine, &t->weights, m->products->engine, NULL) != dnnl_success ||
	    dnnl_primitive_create(&reorder, pd) != dnnl_success ||
	    dnnl_memory_create(&source, &plain, m->products->engine, (void *)(uintptr_t)from) != dnnl_success)
		goto out;
	dnnl_exec_arg_t arguments[] = {{DNNL_ARG_FROM, source}, {DNNL_ARG_TO, weights}};
	if (dnnl_primitive_execute(reorder, m->products->streams[worker], 2, arguments) == dnnl_success &&
	    dnnl_stream_wait(m->products->streams[worker]) == dnnl_success)
		r = 0;
out:
	dnnl_memory_destroy(source);
	dnnl_primitive_destroy(reorder);
	dnnl_primitive_desc_destroy(pd);
	return r;
}

int matrix_pack(struct matrix *m, uint32_t block, const float *from, size_t row_stride, size_t column_stride, int worker)
{
	for (uint32_t chunk = 0; chunk < m->n_chunks; chunk++) {
		int r = pack(m, shape_of(m, block, chunk), weights_of(m, block, chunk),
			     from + (size_t)chunk * m->products->chunk * column_stride, row_stride, column_stride, worker);
		if (r < 0)
			return r;
	}
	return 0;
}

void matrix_row(const struct matrix *m, uint32_t row, float *ret_values)
{
	uint32_t block = row / m->products->block;

	row -= block * m->products->block;
	for (uint32_t chunk = 0; chunk < m->n_chunks; chunk++) {
		const struct product *t = shape_of(m, block, chunk);
		void *data = NULL;
		dnnl_memory_get_data_handle(weights_of(m, block, chunk), &data);
		size_t at = t->row_offset[row];
		for (uint32_t j = 0; j < t->k; j++, ret_values++)
			*ret_values = t->bf16 ? float_from_bf16(((const uint16_t *)data)[at + t->column_offset[j]]) :
						((const float *)data)[at + t->column_offset[j]];
	}
}

bool matrix_in_panels(const struct matrix *m) { return m->shapes[1][1]->panels; }

uint16_t *matrix_panels(const struct matrix *m, uint32_t block, uint32_t chunk, size_t *ret_stride)
{
	const struct product *t = shape_of(m, block, chunk);
	void *data = NULL;

	dnnl_memory_get_data_handle(weights_of(m, block, chunk), &data);
	*ret_stride = (size_t)t->weights.format_desc.blocking.strides[1];
	return data;
}

int matrix_tile(const struct matrix *m, uint32_t block, uint32_t chunk, const void *x, float *tile, int worker)
{
	const struct product *t = shape_of(m, block, chunk);
	const struct product_io *io = &t->io[worker];
	dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, io->x}, {DNNL_ARG_WEIGHTS, weights_of(m, block, chunk)}, {DNNL_ARG_DST, io->y},
				       {DNNL_ARG_SCRATCHPAD, io->scratchpad}};

	if (dnnl_memory_set_data_handle(io->x, (void *)(uintptr_t)x) != dnnl_success ||
	    dnnl_memory_set_data_handle(io->y, tile) != dnnl_success ||
	    dnnl_primitive_execute(t->primitive, m->products->streams[worker], 4, arguments) != dnnl_success ||
	    dnnl_stream_wait(m->products->streams[worker]) != dnnl_success)
		return -EIO;
	return 0;
}
