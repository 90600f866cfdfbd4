// SPDX-License-Identifier: Apache-2.0
// See plan.h. The error numbers are cudaError_t's, stable across toolkits; cuda.cu asserts at compile time that they still agree.
#include "kernels/cuda/plan.h"

#define CUDA_SUCCESS_NUMBER 0
#define CUDA_MEMORY_ALLOCATION 2
#define CUDA_INITIALIZATION 3
#define CUDA_INSUFFICIENT_DRIVER 35
#define CUDA_DEVICES_UNAVAILABLE 46
#define CUDA_NO_DEVICE 100
#define CUDA_SYSTEM_NOT_READY 802

uint64_t plan_memory(uint64_t asked, uint64_t free_bytes)
{
	if (!asked)
		return free_bytes / 10 * 9;
	return asked <= free_bytes ? asked : 0;
}

uint32_t plan_chunk_rows(size_t scratch_bytes, size_t row_bytes, uint32_t n)
{
	if (!row_bytes || row_bytes > scratch_bytes)
		return 0;
	size_t rows = scratch_bytes / row_bytes;
	return rows < n ? (uint32_t)rows : n;
}

size_t plan_sweep_row_bytes(uint32_t top_k, uint32_t n_temperatures, uint32_t n_gather)
{
	size_t bytes = (size_t)top_k * 8 + ((size_t)n_temperatures + n_gather) * 8 + 16;
	return (bytes + 15) & ~(size_t)15;
}

enum plan_error plan_error_class(int cuda_error)
{
	switch (cuda_error) {
	case CUDA_SUCCESS_NUMBER:
		return PLAN_ERROR_NONE;
	case CUDA_MEMORY_ALLOCATION:
		return PLAN_ERROR_MEMORY;
	case CUDA_INITIALIZATION:
	case CUDA_INSUFFICIENT_DRIVER:
	case CUDA_DEVICES_UNAVAILABLE:
	case CUDA_NO_DEVICE:
	case CUDA_SYSTEM_NOT_READY:
		return PLAN_ERROR_NOT_READY;
	default:
		return PLAN_ERROR_STICKY;
	}
}
