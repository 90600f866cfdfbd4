// SPDX-License-Identifier: Apache-2.0
// Products by oneDNN, in tiles of fixed shape: TILE rows of x, one block of outputs, one chunk of the sum. A tile is computed by one
// thread, always in full (short ones are padded), so that a row's result never depends on how many rows came with it.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct backend;
struct error;
struct matrix;
struct product;
struct products;

// How products are computed: see product.c.
enum products_route {
	PRODUCTS_MATMUL,
	PRODUCTS_CONVOLUTION,             // of floats, with AVX2 and no AVX-512
	PRODUCTS_PANELS,                  // of bfloat16, with AVX512-BF16 and no AMX: by the caller, from matrix_panels()
};

// Opens oneDNN for n_threads workers. exact: shorter sums, more digits, less speed.
int products_open(int n_threads, enum products_route route, bool exact, struct products **ret_products, struct error *err);
struct products *products_close(struct products *p);
bool products_have_bf16(void);        // the processor multiplies bfloat16
bool products_have_amx(void);         // whole tiles of them

uint32_t products_tile(const struct products *p);         // rows of a tile
uint32_t products_block(const struct products *p);        // outputs of a block
uint32_t products_chunk(const struct products *p);        // terms of a chunk

// A matrix (N outputs, K terms) packed in blocks and chunks. bf16: operands in bfloat16 (products_have_bf16()). apart: it has no memory of
// its own; matrix_attach says where a block lies before it is packed or used.
int matrix_new(struct products *p, uint32_t n, uint32_t k, bool bf16, bool apart, struct matrix **ret_matrix, struct error *err);
size_t matrix_block_bytes(const struct matrix *m, uint32_t block);         // all its chunks; a multiple of 64
bool matrix_attach(struct matrix *m, uint32_t block, void *bytes);         // aligned to 64; false when oneDNN refuses
struct matrix *matrix_free(struct matrix *m);              // returns NULL; NULL is fine
uint32_t matrix_blocks(const struct matrix *m);
uint32_t matrix_chunks(const struct matrix *m);
uint32_t matrix_block_width(const struct matrix *m, uint32_t block);       // products_block(), less for the last
uint32_t matrix_chunk_depth(const struct matrix *m, uint32_t chunk);       // products_chunk(), less for the last
// Packs one block from floats: its element (i, j) is from[i * row_stride + j * column_stride]. -EIO when oneDNN refuses.
int matrix_pack(struct matrix *m, uint32_t block, const float *from, size_t row_stride, size_t column_stride, int worker);
void matrix_row(const struct matrix *m, uint32_t row, float *ret_values);  // one row, unpacked (k)
// Whether its products are the caller's, from panels of bfloat16 as struct bf16_unit takes them, *ret_stride apart; else matrix_tile()'s.
bool matrix_in_panels(const struct matrix *m);
uint16_t *matrix_panels(const struct matrix *m, uint32_t block, uint32_t chunk, size_t *ret_stride);
// tile (TILE, width) = x (TILE, depth) times one chunk of one block. x: float, or bfloat16 as matrix_new() was told.
int matrix_tile(const struct matrix *m, uint32_t block, uint32_t chunk, const void *x, float *tile, int worker);
