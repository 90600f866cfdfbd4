// SPDX-License-Identifier: Apache-2.0
// See plan.h. The error numbers are cudaError_t's, stable across toolkits; cuda.cu asserts at compile time that they still agree.
#include "kernels/cuda/plan.h"

#include <stdio.h>

#include "common/saturate.h"
#include "kernels/backend.h"
#include "kernels/cuda/arena.h"

#define CUDA_SUCCESS_NUMBER 0
#define CUDA_MEMORY_ALLOCATION 2
#define CUDA_INITIALIZATION 3
#define CUDA_INSUFFICIENT_DRIVER 35
#define CUDA_DEVICES_UNAVAILABLE 46
#define CUDA_NO_DEVICE 100
#define CUDA_SYSTEM_NOT_READY 802
#define CUDA_ECC_UNCORRECTABLE 214
#define CUDA_NVLINK_UNCORRECTABLE 220
#define CUDA_UNKNOWN 999

static bool add_product(uint64_t *sum, uint64_t n, uint64_t bytes)
{
	uint64_t product;
	return !__builtin_mul_overflow(n, bytes, &product) && !__builtin_add_overflow(*sum, product, sum);
}

uint64_t plan_part_bytes(const struct backend_count *count, struct plan_form form)
{
	uint64_t bytes = form.stored ? count->stored_bytes : form.fp8 ? count->fp8_bytes : 0;
	uint64_t n_wide = form.stored ? 0 : count->n_weight - (form.fp8 ? count->n_block : 0);
	size_t view_bytes = form.act_bytes == sizeof(float) ? 0 : form.act_bytes;          // a float matrix is its own copy
	bool fits = add_product(&bytes, count->n_real, sizeof(float)) && add_product(&bytes, count->n_act, form.act_bytes) &&
		    add_product(&bytes, n_wide, form.act_bytes) && add_product(&bytes, count->n_view, view_bytes) &&
		    add_product(&bytes, count->n_arrays, ARENA_ALIGNMENT);       // what rounding up may add
	return fits ? bytes : UINT64_MAX;
}

uint64_t plan_need_bytes(const struct backend_need *need, struct plan_form form)
{
	uint64_t bytes = 0;
	bool fits = add_product(&bytes, need->n_slots, sizeof(uint32_t));
	for (int i = 0; i < N_BACKEND_PARTS && fits; i++)
		fits = add_product(&bytes, 1, plan_part_bytes(&need->parts[i], form));
	return fits ? bytes : UINT64_MAX;
}

void plan_describe(const struct backend_need *need, struct plan_form form, char *to, size_t n)
{
	static const char *const names[N_BACKEND_PARTS] = {"weights", "work", "head", "cache", "training"};
	size_t at = 0;
	*to = '\0';
	for (int i = 0; i < N_BACKEND_PARTS; i++) {
		uint64_t bytes = plan_part_bytes(&need->parts[i], form);
		const char *how = form.stored && i == BACKEND_PART_WEIGHTS ? " as stored" : "";
		int more = bytes && at < n
			? snprintf(to + at, n - at, "%s%s%s %.2f", at ? ", " : "", names[i], how, (double)bytes / (1u << 30)) : 0;
		at += more > 0 ? (size_t)more : 0;
	}
}

uint64_t plan_limit(uint64_t bytes, double share, uint64_t free_bytes, uint64_t total_bytes)
{
	uint64_t limit = free_bytes > PLAN_MARGIN_BYTES ? free_bytes - PLAN_MARGIN_BYTES : 0;
	if (bytes || share > 0)
		limit = UINT64_MAX;
	if (bytes)
		limit = bytes;
	if (share > 0 && share * (double)total_bytes < (double)limit)
		limit = (uint64_t)(share * (double)total_bytes);
	return limit;
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

bool plan_reserve(const struct backend_need *need, struct plan_form form, uint64_t own_bytes, uint64_t limit_bytes, uint64_t free_bytes,
		  struct plan_room *ret_room)
{
	uint64_t all = size_plus(plan_need_bytes(need, form), own_bytes), window = 0;
	*ret_room = (struct plan_room){.bytes = all, .least_bytes = all, .room = UINT64_MAX};
	if (all <= smaller(limit_bytes, free_bytes))
		return true;
	form.stored = !form.fp8 && need->parts[BACKEND_PART_WEIGHTS].stored_bytes && add_product(&window, need->n_largest, form.act_bytes);
	uint64_t least = form.stored ? size_plus(size_plus(plan_need_bytes(need, form), own_bytes), window) : UINT64_MAX;
	if (least >= all)
		return false;
	// All there is, but for the driver's: what is more than the least unpacks some matrices for good.
	uint64_t most = smaller(limit_bytes, plan_limit(0, 0, free_bytes, free_bytes));
	*ret_room = (struct plan_room){.stores = true, .bytes = smaller(most, all), .least_bytes = least, .window_bytes = window};
	ret_room->room = least <= most ? ret_room->bytes - least : 0;
	return least <= most;
}

uint32_t plan_chunk_rows(size_t scratch_bytes, size_t row_bytes, uint32_t n)
{
	if (!row_bytes || row_bytes > scratch_bytes)
		return 0;
	size_t rows = scratch_bytes / row_bytes;
	return rows < n ? (uint32_t)rows : n;
}

uint32_t plan_fp8_rows(size_t scratch_bytes, uint32_t N, uint32_t K, uint32_t rows)
{
	uint64_t wide = ((uint64_t)N + FP8_TILE - 1) / FP8_TILE * FP8_TILE, deep = ((uint64_t)K + FP8_TILE - 1) / FP8_TILE * FP8_TILE;
	uint64_t tile_bytes = FP8_TILE * ((wide + 1) * sizeof(float) + deep), n_tiles = ((uint64_t)rows + FP8_TILE - 1) / FP8_TILE;
	uint64_t most = scratch_bytes / tile_bytes;
	if (!most || !n_tiles)
		return 0;
	uint64_t n_times = (n_tiles + most - 1) / most;
	return (uint32_t)((n_tiles + n_times - 1) / n_times * FP8_TILE);
}

uint32_t plan_sum_rows(uint32_t n, uint32_t least, uint32_t max_chunks)
{
	uint32_t rows = n / max_chunks + (n % max_chunks != 0);
	return rows > least ? rows : least;
}

enum plan_error plan_error_class(int cuda_error)
{
	switch (cuda_error) {
	case CUDA_SUCCESS_NUMBER:
		return PLAN_ERROR_NONE;
	case CUDA_MEMORY_ALLOCATION:
		return PLAN_ERROR_MEMORY;
	case CUDA_INSUFFICIENT_DRIVER:
	case CUDA_NO_DEVICE:
		return PLAN_ERROR_ABSENT;
	case CUDA_INITIALIZATION:
	case CUDA_DEVICES_UNAVAILABLE:
	case CUDA_SYSTEM_NOT_READY:
		return PLAN_ERROR_NOT_READY;
	default:
		return PLAN_ERROR_STICKY;
	}
}

// driver_types.h says of the others that the process must be terminated and relaunched.
enum device_fault plan_fault(int cuda_error)
{
	if (plan_error_class(cuda_error) != PLAN_ERROR_STICKY)
		return DEVICE_FAULT_NONE;
	switch (cuda_error) {
	case CUDA_ECC_UNCORRECTABLE:
	case CUDA_NVLINK_UNCORRECTABLE:
		return DEVICE_FAULT_RESET;
	case CUDA_UNKNOWN:
		return DEVICE_FAULT_SUPPORT;
	default:
		return DEVICE_FAULT_RESTART;
	}
}
