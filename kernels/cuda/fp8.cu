// SPDX-License-Identifier: Apache-2.0
// Products of E4M3 numbers (backend.h, FP8) through cuBLASLt, whose conditions for them are: the first operand transposed and the second
// not, which y = x Wᵀ is; every dimension and address a multiple of 16, hence tiles filled up with zeros. Its own scales, one for a matrix,
// stay 1, and fast accumulation stays off, as both are when not set: sums come as float, and a kernel brings in the scales of rows.
// Sums and the numbers of x lie in the scratch buffer, some rows at a time; a row gets the same in any company.
#include "kernels/cuda/cuda.cuh"

#include <cfloat>
#include <cuda_fp8.h>

#define PASSES 4                 // of a block over its share of a row

static uint32_t tiles(uint32_t n) { return (n + FP8_TILE - 1) / FP8_TILE * FP8_TILE; }

// A block for each row of to (., stride); those from `rows` on, and columns from K on, are zeros.
template <int N, typename X> static __global__ void to_fp8_kernel(uint8_t *to, float *scales, const X *x, uint32_t rows, uint32_t K,
								  uint32_t stride)
{
	__shared__ float shared[CUDA_WARP];
	const X *from = x + (size_t)blockIdx.x * K;
	float most = 0;
	bool row = blockIdx.x < rows;
	for (uint32_t i = threadIdx.x * N; row && i < K; i += blockDim.x * N) {
		cuda_pack<X, N> v = load_pack<N>(from + i);
		for (int j = 0; j < N; j++) {
			float size = fabsf(to_float(v.v[j]));
			most = fmaxf(most, size <= FLT_MAX ? size : INFINITY);
		}
	}
	most = block_max(most, shared);
	float scale = most > FLT_MAX ? NAN : most < FP8_SMALLEST ? 0.0f : most / FP8_MAX;
	float factor = FP8_MAX / most;
	bool any = scale > 0;            // NaN is not
	if (row && threadIdx.x == 0)
		scales[blockIdx.x] = scale;
	for (uint32_t i = threadIdx.x * N; i < stride; i += blockDim.x * N) {
		cuda_pack<uint8_t, N> out = {};
		if (any && i < K) {
			cuda_pack<X, N> v = load_pack<N>(from + i);
			for (int j = 0; j < N; j++)
				out.v[j] = __nv_cvt_float_to_fp8(to_float(v.v[j]) * factor, __NV_SATFINITE, __NV_E4M3);
		}
		store_pack(to + (size_t)blockIdx.x * stride + i, out);
	}
}

template <typename X> static void to_fp8(backend *be, uint8_t *to, float *scales, const X *x, uint32_t rows, uint32_t K, uint32_t filled)
{
	constexpr int most = 16 / sizeof(X);
	with_packs<most>(packs_fit<most>(x, K), [&](auto n) {
		cuda_launch(be, "to fp8", filled, CUDA_BLOCK, 0, to_fp8_kernel<decltype(n)::value, X>, to, scales, x, rows, K, tiles(K));
	});
}

void cuda_fp8_fill(backend *be, weight *w, uint32_t first, const float *x, uint32_t n)
{
	if (n)
		to_fp8(be, (uint8_t *)w->data + (size_t)first * tiles(w->n_columns), w->scales + first, x, n, w->n_columns, n);
}

// y = sums scale (+ bias) (+ y): a row for each blockIdx.x.
template <int N, typename Y> static __global__ void scale_kernel(Y *y, bool add, const float *sums, const float *x_scales,
								 const float *w_scales, const float *bias, uint32_t columns,
								 uint32_t stride)
{
	float scale = x_scales[blockIdx.x];
	sums += (size_t)blockIdx.x * stride;
	y += (size_t)blockIdx.x * columns;
	for (uint32_t i = (blockIdx.y * blockDim.x + threadIdx.x) * N; i < columns; i += gridDim.y * blockDim.x * N) {
		cuda_pack<float, N> v = load_pack<N>(sums + i), s = load_pack<N>(w_scales + i), b = {};
		cuda_pack<Y, N> out;
		if (bias)
			b = load_pack<N>(bias + i);
		if (add)
			out = load_pack<N>(y + i);
		for (int j = 0; j < N; j++) {
			float value = v.v[j] * scale * s.v[j] + b.v[j];
			out.v[j] = from_float<Y>(add ? to_float(out.v[j]) + value : value);
		}
		store_pack(y + i, out);
	}
}

template <typename Y> static void scale(backend *be, Y *y, bool add, const float *sums, const float *x_scales, const weight *w,
					const float *bias, uint32_t rows)
{
	uint32_t columns = w->n_rows;
	with_packs<4>(packs_fit<4>(y, columns) && packs_fit<4>(bias, columns) && packs_fit<4>(w->scales, columns), [&](auto width) {
		constexpr int N = decltype(width)::value;
		dim3 grid(rows, blocks_of(columns, CUDA_BLOCK * N * PASSES));
		cuda_launch(be, "scales", grid, CUDA_BLOCK, 0, scale_kernel<N, Y>, y, add, sums, x_scales, (const float *)w->scales, bias,
			    columns, tiles(columns));
	});
}

// Some rows at a time: sums (rows in tiles, N in tiles), scales of rows, numbers (rows in tiles, K in tiles).
template <typename Y> static void multiply(backend *be, Y *y, bool add, const __nv_bfloat16 *x, const weight *w, const float *bias,
					   uint32_t rows)
{
	uint32_t N = w->n_rows, K = w->n_columns, step = plan_fp8_rows(CUDA_SCRATCH_BYTES, N, K, rows);
	float *sums = (float *)cuda_of(be)->scratch, *scales = sums + (size_t)step * tiles(N);
	uint8_t *numbers = (uint8_t *)(scales + step);
	if (!step && rows)
		backend_fail(be, "a product of %u x %u does not fit the scratch buffer", N, K);
	for (uint32_t first = 0; first < rows && !backend_failed(be); first += step) {
		uint32_t n = rows - first < step ? rows - first : step;
		to_fp8(be, numbers, scales, x + (size_t)first * K, n, K, tiles(n));
		cuda_gemm g = {tiles(n), tiles(N), tiles(K), numbers, w->data, sums, false, true, false, CUDA_R_8F_E4M3, CUDA_R_32F};
		cuda_gemm_run(be, &g);
		scale(be, y + (size_t)first * N, add, sums, scales, w, bias, n);
	}
}

void cuda_fp8_linear(backend *be, struct act *y, const struct act *x, const weight *w, const struct real *bias, uint32_t rows)
{
	multiply(be, (__nv_bfloat16 *)y, false, (const __nv_bfloat16 *)x, w, real_of(bias), rows);
}

void cuda_fp8_linear_real(backend *be, struct real *y, bool add, const struct act *x, const weight *w, const struct real *bias,
			  uint32_t rows)
{
	multiply(be, real_of(y), add, (const __nv_bfloat16 *)x, w, real_of(bias), rows);
}
