// SPDX-License-Identifier: Apache-2.0
// Sums down the columns of an array, for gradients of vectors: partial sums of some rows each, then the sum of those, both in row order, so
// that the same input gives the same bits.
#pragma once

#include "kernels/cuda/cuda.cuh"

#define COLUMN_LEAST_ROWS 32      // of a partial sum: fewer would not pay for the second step
#define COLUMN_MAX_CHUNKS 256

// f(row, column) is the value to sum.
template <typename F> static __global__ void column_partial_kernel(float *partial, uint32_t rows, uint32_t N, uint32_t chunk, F f)
{
	uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * chunk, end = min(first + chunk, rows);
	if (i >= N)
		return;
	float sum = 0;
	for (uint32_t t = first; t < end; t++)
		sum += f(t, i);
	partial[(size_t)blockIdx.y * N + i] = sum;
}

static __global__ void column_total_kernel(float *to, const float *partial, uint32_t n_chunks, uint32_t N)
{
	uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
	if (i >= N)
		return;
	float sum = 0;
	for (uint32_t c = 0; c < n_chunks; c++)
		sum += partial[(size_t)c * N + i];
	to[i] += sum;
}

// to (N) += column sums over `rows` rows. Uses the scratch buffer from `scratch_used` bytes on.
template <typename F> static void columns_add(backend *be, const char *what, float *to, uint32_t rows, uint32_t N, size_t scratch_used, F f)
{
	size_t used = (scratch_used + 255) / 256 * 256;
	if (backend_failed(be) || !rows || !N)
		return;
	uint32_t most = used < CUDA_SCRATCH_BYTES ? plan_chunk_rows(CUDA_SCRATCH_BYTES - used, N * sizeof(float), COLUMN_MAX_CHUNKS) : 0;
	if (!most) {
		backend_fail(be, "%s: %u columns do not fit the scratch buffer", what, N);
		return;
	}
	uint32_t chunk = plan_sum_rows(rows, COLUMN_LEAST_ROWS, most), n_chunks = (rows + chunk - 1) / chunk;
	float *partial = (float *)((char *)cuda_of(be)->scratch + used);
	dim3 grid((N + CUDA_BLOCK - 1) / CUDA_BLOCK, n_chunks);
	cuda_launch(be, what, grid, CUDA_BLOCK, 0, column_partial_kernel<F>, partial, rows, N, chunk, f);
	cuda_launch(be, what, grid.x, CUDA_BLOCK, 0, column_total_kernel, to, (const float *)partial, n_chunks, N);
}
