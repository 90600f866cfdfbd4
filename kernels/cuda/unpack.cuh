// SPDX-License-Identifier: Apache-2.0
// What the bytes of a model's file mean, on the device.
#pragma once

#include "kernels/cuda/cuda.cuh"

// n blocks of `type` at `from` become values of A (float, or bfloat16, to which they are rounded) at `to`, both on the device: `from` at a
// multiple of 4 bytes, `to` at one of as many.
template <typename A> void cuda_unpack(backend *be, A *to, enum dtype type, const uint8_t *from, uint64_t n);

// x (T, C), the rows of the layout's tokens, from those of a matrix's rows first .. first + n_rows - 1 that lie at `from` as stored,
// rounded to A; rows of other tokens are left alone.
template <typename A> void cuda_unpack_tokens(backend *be, float *x, enum dtype type, const uint8_t *from, uint32_t first, uint32_t n_rows,
					      uint32_t C);
