// SPDX-License-Identifier: Apache-2.0
// Blocks of a model's file to values: when a matrix is loaded, and, where it stays as stored, before each product with it.
#include "kernels/cuda/unpack.cuh"

// Where a block's values go, rounded to A.
template <typename A, typename Y> struct block_values { Y *to; };
#define BLOCK_HELPER static __device__ inline
#define BLOCK_FUNCTION template <typename Y> static __device__ inline
#define BLOCK_OUT Y
#define BLOCK_PUT(y, i, value) put_value(y, i, value)
#define BLOCK_MULTIPLY_ADD(a, b, c) __fadd_rn(__fmul_rn(a, b), c)
template <typename A, typename Y> static __device__ __forceinline__ void put_value(block_values<A, Y> y, uint32_t i, float v)
{
	A rounded = from_float<A>(v);
	if constexpr (std::is_same_v<A, Y>)
		y.to[i] = rounded;
	else
		y.to[i] = to_float(rounded);
}
#include "kernels/dtype_block.h"

// A block of one value.
template <typename Y> static __device__ inline void put_number(enum dtype type, const uint8_t *block, Y y)
{
	switch (type) {
	case DTYPE_F32: put_value(y, 0, block_bits(block_u32(block))); break;
	case DTYPE_F16: put_value(y, 0, block_f16(block)); break;
	case DTYPE_BF16: put_value(y, 0, block_bits((uint32_t)block_u16(block) << 16)); break;
	default: break;
	}
}

template <typename Y> static __device__ inline void put_block(enum dtype type, const uint8_t *block, Y y)
{
	switch (type) {
	case DTYPE_Q8_0: block_q8_0(block, y); break;
	case DTYPE_Q4_0: block_q4_0(block, y); break;
	case DTYPE_Q4_1: block_q4_1(block, y); break;
	case DTYPE_Q5_0: block_q5_0(block, y); break;
	case DTYPE_Q5_1: block_q5_1(block, y); break;
	case DTYPE_IQ4_NL: block_iq4_nl(block, y); break;
	case DTYPE_MXFP4: block_mxfp4(block, y); break;
	case DTYPE_Q2_K: block_q2_k(block, y); break;
	case DTYPE_Q3_K: block_q3_k(block, y); break;
	case DTYPE_Q4_K: block_q4_k(block, y); break;
	case DTYPE_Q5_K: block_q5_k(block, y); break;
	case DTYPE_Q6_K: block_q6_k(block, y); break;
	case DTYPE_IQ4_XS: block_iq4_xs(block, y); break;
	case DTYPE_TQ1_0: block_tq1_0(block, y); break;
	case DTYPE_TQ2_0: block_tq2_0(block, y); break;
	case DTYPE_IQ1_S: block_iq1_s(block, y); break;
	case DTYPE_IQ1_M: block_iq1_m(block, y); break;
	case DTYPE_IQ2_XXS: block_iq2_xxs(block, y); break;
	case DTYPE_IQ2_XS: block_iq2_xs(block, y); break;
	case DTYPE_IQ2_S: block_iq2_s(block, y); break;
	case DTYPE_IQ3_XXS: block_iq3_xxs(block, y); break;
	case DTYPE_IQ3_S: block_iq3_s(block, y); break;
	default: break;
	}
}

template <typename A> static __global__ void numbers_kernel(A *to, enum dtype type, const uint8_t *from, uint32_t block_bytes, uint64_t n)
{
	for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x)
		put_number(type, from + i * block_bytes, block_values<A, A>{to + i});
}

#define MAX_BLOCK_BYTES(ELEMENTS) ((ELEMENTS) * 9 / 8)

// As many blocks as threads at a time, by way of shared memory: bytes come and values go in whole lines, which a thread that takes a block
// would not read or write. Values lie in rows of one word more, so that the threads of a warp write to banks of their own.
template <typename A, int ELEMENTS, int THREADS> static __global__ void blocks_kernel(A *to, enum dtype type, const uint8_t *from,
										      uint32_t block_bytes, uint64_t n)
{
	constexpr uint32_t WORD = sizeof(uint32_t) / sizeof(A), STRIDE = ELEMENTS + WORD;
	__shared__ uint32_t words[THREADS * MAX_BLOCK_BYTES(ELEMENTS) / sizeof(uint32_t)];
	__shared__ cuda_pack<A, WORD> rows[THREADS * STRIDE / WORD];
	uint8_t *bytes = (uint8_t *)words;
	A *values = (A *)rows;
	for (uint64_t first = (uint64_t)blockIdx.x * THREADS; first < n; first += (uint64_t)gridDim.x * THREADS) {
		uint32_t some = n - first < THREADS ? (uint32_t)(n - first) : THREADS, n_bytes = some * block_bytes;
		const uint8_t *at = from + first * block_bytes;
		for (uint32_t i = threadIdx.x; i < n_bytes / sizeof(uint32_t); i += THREADS)
			words[i] = ((const uint32_t *)at)[i];
		for (uint32_t i = n_bytes / sizeof(uint32_t) * sizeof(uint32_t) + threadIdx.x; i < n_bytes; i += THREADS)
			bytes[i] = at[i];
		__syncthreads();
		if (threadIdx.x < some)
			put_block(type, bytes + threadIdx.x * block_bytes, block_values<A, A>{values + threadIdx.x * STRIDE});
		__syncthreads();
		for (uint32_t i = threadIdx.x * WORD; i < some * ELEMENTS; i += THREADS * WORD)
			store_pack(to + first * ELEMENTS + i, load_pack<WORD>(values + i / ELEMENTS * STRIDE + i % ELEMENTS));
	}
}

template <typename A, int ELEMENTS, int THREADS> static void launch_blocks(backend *be, A *to, enum dtype type, const uint8_t *from,
									   uint64_t n)
{
	assert(dtype_block_bytes(type) <= MAX_BLOCK_BYTES(ELEMENTS));
	cuda_launch(be, "unpacking a matrix", blocks_of(n, THREADS), THREADS, 0, blocks_kernel<A, ELEMENTS, THREADS>, to, type, from,
		    dtype_block_bytes(type), n);
}

template <typename A> void cuda_unpack(backend *be, A *to, enum dtype type, const uint8_t *from, uint64_t n)
{
	uint32_t elements = dtype_block_elements(type);
	if (backend_failed(be) || !n)
		return;
	assert(elements == 1 || elements == 32 || elements == 256);
	if (elements == 1)
		cuda_launch(be, "unpacking a matrix", blocks_of(n, CUDA_BLOCK), CUDA_BLOCK, 0, numbers_kernel<A>, to, type, from,
			    dtype_block_bytes(type), n);
	else if (elements == 32)
		launch_blocks<A, 32, 128>(be, to, type, from, n);
	else
		launch_blocks<A, 256, 32>(be, to, type, from, n);
}

template void cuda_unpack(backend *be, float *to, enum dtype type, const uint8_t *from, uint64_t n);
template void cuda_unpack(backend *be, __nv_bfloat16 *to, enum dtype type, const uint8_t *from, uint64_t n);

// A row for each blockIdx.x, a block of it for each thread.
template <typename A> static __global__ void tokens_kernel(float *x, enum dtype type, const uint8_t *from, uint32_t first, uint32_t n_rows,
							   uint32_t C, uint32_t elements, uint32_t block_bytes, const uint32_t *tokens)
{
	uint32_t row = tokens[blockIdx.x] - first, n = C / elements;
	for (uint32_t i = threadIdx.x; row < n_rows && i < n; i += blockDim.x) {
		const uint8_t *block = from + ((size_t)row * n + i) * block_bytes;
		block_values<A, float> y = {x + (size_t)blockIdx.x * C + (size_t)i * elements};
		if (elements == 1)
			put_number(type, block, y);
		else
			put_block(type, block, y);
	}
}

template <typename A> void cuda_unpack_tokens(backend *be, float *x, enum dtype type, const uint8_t *from, uint32_t first, uint32_t n_rows,
					      uint32_t C)
{
	cuda *c = cuda_of(be);
	cuda_launch(be, "embed", c->n_positions, CUDA_BLOCK, 0, tokens_kernel<A>, x, type, from, first, n_rows, C,
		    dtype_block_elements(type), dtype_block_bytes(type), (const uint32_t *)c->tokens);
}

template void cuda_unpack_tokens<float>(backend *be, float *x, enum dtype type, const uint8_t *from, uint32_t first, uint32_t n_rows,
					uint32_t C);
template void cuda_unpack_tokens<__nv_bfloat16>(backend *be, float *x, enum dtype type, const uint8_t *from, uint32_t first,
						uint32_t n_rows, uint32_t C);
