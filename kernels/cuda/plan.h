// SPDX-License-Identifier: Apache-2.0
// The CUDA backend's host-side arithmetic, free of CUDA so that it is tested where there is no GPU: what fits, how many rows a chunk
// takes, which device errors end the process.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Bytes the backend may use: `asked` (0 = nine tenths of what is free), refused (0 returned) when that much is not free.
uint64_t plan_memory(uint64_t asked, uint64_t free_bytes);

// Rows of row_bytes each that fit in scratch_bytes, at least 1 and at most n; 0 when not even one fits.
uint32_t plan_chunk_rows(size_t scratch_bytes, size_t row_bytes, uint32_t n);

// Result bytes of one row of the vocabulary sweep: lse, ids, logits, gathered, scalars.
size_t plan_sweep_row_bytes(uint32_t top_k, uint32_t n_temperatures, uint32_t n_gather);

// Three kinds of CUDA error, by number (cudaError_t): an allocation that failed leaves the device usable; a device that is not there
// yet may be asked again; everything else poisons the context and the process must end (reliability: a poisoned context answers garbage).
enum plan_error { PLAN_ERROR_NONE, PLAN_ERROR_MEMORY, PLAN_ERROR_NOT_READY, PLAN_ERROR_STICKY };
enum plan_error plan_error_class(int cuda_error);

#ifdef __cplusplus
}
#endif
