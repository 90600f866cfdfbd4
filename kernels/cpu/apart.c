// SPDX-License-Identifier: Apache-2.0
// Matrices that memory has no room for, in pieces of whole blocks. Either they are stored: their rows stay as the file has them, and a
// piece is packed anew, by all threads, whenever a product asks for it (stored.c). Or they lie on a shelf, packed as the products read
// them: bringing one back is a read, nothing is computed. Each block's checksum is taken when it is packed and compared whenever it comes
// back, by all threads at once, so that a disk can stop a pass but not change a number.
#include <stdlib.h>

#include "common/crc32c.h"
#include "common/error.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/product.h"

uint32_t apart_pieces(const struct weight *w)
{
	return w->n_pieces ? w->n_pieces : 1;
}

static uint32_t last_block(const struct weight *w, uint32_t first)
{
	uint32_t n_blocks = matrix_blocks(w->forward);
	return n_blocks - first < w->piece_blocks ? n_blocks : first + w->piece_blocks;
}

// Blocks first..last-1 lie one after the other at `bytes`; returns what they take, 0 when oneDNN refuses.
static size_t attach(const struct weight *w, uint32_t first, uint32_t last, char *bytes)
{
	size_t n = 0;
	for (uint32_t block = first; block < last; block++) {
		if (!matrix_attach(w->forward, block, bytes + n))
			return 0;
		n += matrix_block_bytes(w->forward, block);
	}
	return n;
}

// Where block `block` of a piece that begins with block `first` lies in it: all but a matrix's last block are alike.
static size_t block_at(const struct weight *w, uint32_t first, uint32_t block)
{
	return block == first ? 0 : (block - first) * matrix_block_bytes(w->forward, first);
}

static uint32_t sum_of(const struct weight *w, uint32_t first, uint32_t block, const char *bytes)
{
	return crc32c(0, bytes + block_at(w, first, block), matrix_block_bytes(w->forward, block));
}

static int make_piece(struct backend *be, struct weight *w, const struct tensor *parts, uint32_t first, struct error *err)
{
	struct cpu *cpu = cpu_of(be);
	const struct backend_shelf *shelf = cpu->shelf;
	uint32_t last = last_block(w, first);
	char *bytes = shelf->begin(shelf->shelf, err);
	size_t n;

	if (!bytes)
		return -1;
	if (!(n = attach(w, first, last, bytes)))
		return error_set(err, ERROR_INTERNAL, NULL, "a matrix of %u x %u cannot be packed", w->n_rows, w->n_columns);
	if (weight_pack(be, w, parts, first, last, err) < 0)
		return -1;
#pragma omp parallel for schedule(dynamic) num_threads(cpu->n_threads)
	for (uint32_t block = first; block < last; block++)
		w->sums[block] = sum_of(w, first, block, bytes);
	if (shelf->append(shelf->shelf, n, err) < 0)
		return -1;
	cpu->n_pieces++;
	w->n_pieces++;
	be->apart_bytes += n;
	return 0;
}

// Every piece is made once, in order.
static int shelve(struct backend *be, struct weight *w, const struct tensor *parts, struct error *err)
{
	uint32_t n_blocks = matrix_blocks(w->forward);
	int r = 0;

	w->first_piece = cpu_of(be)->n_pieces;
	w->sums = calloc(n_blocks, sizeof *w->sums);
	if (!w->sums)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the checksums of a matrix");
	for (uint32_t first = 0; first < n_blocks && r == 0; first = last_block(w, first))
		r = make_piece(be, w, parts, first, err);
	return r;
}

static int keep_stored(struct backend *be, struct weight *w, const struct tensor *parts, uint32_t n_parts, struct error *err)
{
	w->stored = stored_new(parts, n_parts, err);
	if (!w->stored)
		return -1;
	w->n_pieces = (matrix_blocks(w->forward) - 1) / w->piece_blocks + 1;
	be->stored_bytes += stored_bytes(w->stored);
	return 0;
}

struct weight *cpu_weight_load_apart(struct backend *be, enum weight_kind kind, const struct tensor *parts, uint32_t n_parts,
				     struct error *err)
{
	const struct cpu *cpu = cpu_of(be);
	size_t bytes = be->stores ? cpu->window_bytes : cpu->shelf ? cpu->shelf->piece_bytes : 0;
	struct weight *w;

	if (!bytes)
		return cpu_weight_load(be, kind, parts, n_parts, err);
	w = weight_new(be, parts, n_parts, true, err);
	if (!w)
		return NULL;
	w->piece_blocks = (uint32_t)(bytes / matrix_block_bytes(w->forward, 0));
	if (!w->piece_blocks)
		error_set(err, ERROR_INTERNAL, NULL, "pieces of %zu bytes are too small for a matrix of %u columns", bytes, w->n_columns);
	else if ((be->stores ? keep_stored(be, w, parts, n_parts, err) : shelve(be, w, parts, err)) == 0)
		return w;
	cpu_weight_free(be, w);
	return NULL;
}

// Pieces of the whole shelf; after its last comes its first: the next pass begins there, as does the head that is the embedding.
static uint32_t name_next(const struct cpu *cpu, const struct weight *w, uint32_t i, const uint32_t *next, uint32_t n_next,
			  uint32_t ret[BACKEND_MAX_AHEAD])
{
	uint32_t n = cpu->shelf->n_ahead < BACKEND_MAX_AHEAD ? cpu->shelf->n_ahead : BACKEND_MAX_AHEAD;

	if (next && n_next < n)
		n = n_next;
	if (!next && cpu->n_pieces - 1 < n)
		n = cpu->n_pieces - 1;
	for (uint32_t j = 0; j < n; j++)
		ret[j] = next ? w->first_piece + next[j] : (w->first_piece + i + 1 + j) % cpu->n_pieces;
	return n;
}

// Blocks first..last-1, read from the shelf. False after backend_fail.
static bool read_piece(struct backend *be, const struct weight *w, uint32_t i, const uint32_t *next, uint32_t n_next, uint32_t first,
		       uint32_t last)
{
	const struct cpu *cpu = cpu_of(be);
	uint32_t ahead[BACKEND_MAX_AHEAD], n = name_next(cpu, w, i, next, n_next, ahead), n_wrong = 0;
	struct error err = {0};
	char *bytes = cpu->shelf->find(cpu->shelf->shelf, w->first_piece + i, ahead, n, &err);

	if (!bytes || !attach(w, first, last, bytes)) {
		backend_fail(be, "%s", bytes ? "oneDNN refuses a piece of a matrix" : err.message);
		return false;
	}
#pragma omp parallel for schedule(dynamic) num_threads(cpu->n_threads) reduction(+ : n_wrong)
	for (uint32_t block = first; block < last; block++)
		n_wrong += sum_of(w, first, block, bytes) != w->sums[block];
	if (n_wrong)
		backend_fail(be, "piece %u of the weights on disk is not what was written there (checksums differ)", w->first_piece + i);
	return !n_wrong;
}

// The same, packed from what is stored.
static bool pack_piece(struct backend *be, const struct weight *w, uint32_t first, uint32_t last)
{
	struct error err = {0};

	if (attach(w, first, last, cpu_of(be)->window) && weight_pack(be, w, stored_parts(w->stored), first, last, &err) == 0)
		return true;
	backend_fail(be, "%s", err.code ? err.message : "oneDNN refuses a piece of a matrix");
	return false;
}

bool apart_find(struct backend *be, const struct weight *w, uint32_t i, const uint32_t *next, uint32_t n_next, uint32_t *ret_first,
		uint32_t *ret_last)
{
	uint32_t first = i * w->piece_blocks, last = last_block(w, first);

	*ret_first = first;
	*ret_last = last;
	return w->stored ? pack_piece(be, w, first, last) : read_piece(be, w, i, next, n_next, first, last);
}
