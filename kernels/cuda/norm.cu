// SPDX-License-Identifier: Apache-2.0
// RMSNorm over model rows, with gradients. One block per row.
#include "kernels/cuda/columns.cuh"

template <int N, typename A> static __global__ void rmsnorm_kernel(A *y, const float *x, const float *gain, float epsilon, uint32_t C)
{
	__shared__ float shared[CUDA_WARP];
	size_t row = (size_t)blockIdx.x * C;
	float sum = 0;
	for (uint32_t i = threadIdx.x * N; i < C; i += blockDim.x * N) {
		cuda_pack<float, N> v = load_pack<N>(x + row + i);
		for (int j = 0; j < N; j++)
			sum += v.v[j] * v.v[j];
	}
	float scale = 1.0f / sqrtf(block_sum(sum, shared) / C + epsilon);
	for (uint32_t i = threadIdx.x * N; i < C; i += blockDim.x * N) {
		cuda_pack<float, N> v = load_pack<N>(x + row + i), g = load_pack<N>(gain + i);
		cuda_pack<A, N> out;
		for (int j = 0; j < N; j++)
			out.v[j] = from_float<A>(v.v[j] * scale * g.v[j]);
		store_pack(y + row + i, out);
	}
}

void cuda_rmsnorm(backend *be, struct act *y, const struct real *x, const struct real *gain, float epsilon, uint32_t rows, uint32_t C)
{
	cuda *c = cuda_of(be);
	if (backend_failed(be) || !rows)
		return;
	with_act(c, [&](auto *type) {
		using A = ACT_TYPE(type);
		bool fit = packs_fit<4>((const A *)y, C) && packs_fit<4>(real_of(x), C) && packs_fit<4>(real_of(gain), C);
		with_packs<4>(fit, [&](auto n) {
			cuda_launch(be, "rmsnorm", rows, CUDA_BLOCK, 0, rmsnorm_kernel<decltype(n)::value, A>, (A *)y, real_of(x),
				real_of(gain), epsilon, C);
		});
	});
}

// dx += s (g dy - x s^2/C sum(g dy x)) with s = 1/sqrt(mean x^2 + epsilon), which the gain's gradient needs too
template <typename A> static __global__ void backward_kernel(float *dx, float *scales, const A *dy, const float *x, const float *gain,
							     float epsilon, uint32_t C)
{
	__shared__ float shared[CUDA_WARP];
	size_t at = (size_t)blockIdx.x * C;
	float squares = 0, dot = 0;
	for (uint32_t i = threadIdx.x; i < C; i += blockDim.x) {
		squares += x[at + i] * x[at + i];
		dot += gain[i] * to_float(dy[at + i]) * x[at + i];
	}
	float s = 1.0f / sqrtf(block_sum(squares, shared) / C + epsilon);
	float pull = block_sum(dot, shared) * s * s / C;
	for (uint32_t i = threadIdx.x; i < C; i += blockDim.x)
		dx[at + i] += s * (gain[i] * to_float(dy[at + i]) - x[at + i] * pull);
	if (threadIdx.x == 0)
		scales[blockIdx.x] = s;
}

template <typename A> struct gain_term {
	const A *dy;
	const float *x, *scales;
	uint32_t C;
	__device__ float operator()(uint32_t t, uint32_t i) const
	{
		return to_float(dy[(size_t)t * C + i]) * x[(size_t)t * C + i] * scales[t];
	}
};

void cuda_rmsnorm_backward(backend *be, struct real *dx, struct real *dgain, const struct act *dy, const struct real *x,
			   const struct real *gain,
			   float epsilon, uint32_t rows, uint32_t C)
{
	cuda *c = cuda_of(be);
	if (backend_failed(be) || !rows)
		return;
	float *scales = (float *)c->scratch;    // (rows): max_rows is far below CUDA_SCRATCH_BYTES / 4
	with_act(c, [&](auto *type) {
		using A = ACT_TYPE(type);
		cuda_launch(be, "rmsnorm_backward", rows, CUDA_BLOCK, 0, backward_kernel<A>, real_of(dx), scales, (const A *)dy, real_of(x),
			    real_of(gain),
			    epsilon, C);
		gain_term<A> term = {(const A *)dy, real_of(x), scales, C};
		columns_add(be, "rmsnorm_backward", real_of(dgain), rows, C, rows * sizeof(float), term);
	});
}
