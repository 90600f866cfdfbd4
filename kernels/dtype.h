// SPDX-License-Identifier: Apache-2.0
// Element types of weights as they lie in model files: names, block geometry, and the one definition of what a block means.
#pragma once

#include <stddef.h>
#include <stdint.h>

enum dtype {
	DTYPE_F32, DTYPE_F16, DTYPE_BF16,
	DTYPE_Q8_0, DTYPE_Q4_0, DTYPE_Q4_1, DTYPE_Q5_0, DTYPE_Q5_1, DTYPE_IQ4_NL, DTYPE_MXFP4,      // blocks of 32
	DTYPE_Q2_K, DTYPE_Q3_K, DTYPE_Q4_K, DTYPE_Q5_K, DTYPE_Q6_K, DTYPE_IQ4_XS,                   // blocks of 256
	DTYPE_TQ1_0, DTYPE_TQ2_0, DTYPE_IQ1_S, DTYPE_IQ1_M, DTYPE_IQ2_XXS, DTYPE_IQ2_XS, DTYPE_IQ2_S, DTYPE_IQ3_XXS, DTYPE_IQ3_S,
	N_DTYPES
};

#define TENSOR_MAX_DIMS 4

// A read-only view of a tensor in host memory, row-major: dims[0] rows of dims[1] columns (a vector has n_dims 1).
// Blocks of a quantised type run along a row.
struct error;

// Reads rows of a tensor that is not in memory: n of them from row `first` on, as stored, to `to`. Any thread may call it.
struct tensor_rows {
	int (*read)(const struct tensor_rows *rows, uint64_t first, uint64_t n, void *to, struct error *err);
};

struct tensor {
	enum dtype dtype;
	uint32_t n_dims;
	uint64_t dims[TENSOR_MAX_DIMS];
	const void *data;
	size_t n_bytes;
	const struct tensor_rows *rows;        // where there is no data
};

// Rows and columns of the matrix that parts make when stacked by rows, checked: two dimensions each, the same columns, bytes enough for
// the shape, both sizes below 2^31. ERROR_INVALID otherwise.
int tensor_stack_shape(const struct tensor *parts, uint32_t n_parts, uint32_t *ret_rows, uint32_t *ret_columns, struct error *err);

const char *dtype_name(enum dtype t);                  // "F32", "Q4_1", ...
uint32_t dtype_block_elements(enum dtype t);           // 1, 32 or 256
uint32_t dtype_block_bytes(enum dtype t);
// Bytes of one row of n elements; 0 when n is not a whole number of blocks (or overflows).
size_t dtype_row_bytes(enum dtype t, uint64_t n);
// A matrix in memory.
struct tensor tensor_matrix(enum dtype t, uint64_t n_rows, uint64_t n_columns, const void *data);
uint64_t tensor_matrix_bytes(const struct tensor *matrix);        // of its rows, as stored
// n elements (whole blocks) to float, exactly as ggml defines each type.
void dtype_to_float(enum dtype t, const void *blocks, float *ret_values, size_t n);

float float_from_f16(uint16_t h);
uint16_t float_to_f16(float f);                        // round to nearest even; overflow gives infinity
float float_from_bf16(uint16_t h);
uint16_t float_to_bf16(float f);                       // round to nearest even
