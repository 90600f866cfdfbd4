// SPDX-License-Identifier: Apache-2.0
// y = silu(gate) * up, and its gradients.
#include "kernels/cuda/cuda.cuh"

// Thread i takes N neighbours of the product's i-th place: row i N / F.
template <int N, typename A> static __global__ void swiglu_kernel(A *y, const A *gate_up, uint64_t n, uint32_t F)
{
	for (uint64_t i = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * N; i < n; i += (uint64_t)gridDim.x * blockDim.x * N) {
		uint64_t at = i + i / F * F;    // row * 2F + column
		cuda_pack<A, N> gate = load_pack<N>(gate_up + at), up = load_pack<N>(gate_up + at + F), out;
		for (int j = 0; j < N; j++) {
			float g = to_float(gate.v[j]);
			out.v[j] = from_float<A>(g / (1.0f + expf(-g)) * to_float(up.v[j]));
		}
		store_pack(y + i, out);
	}
}

void cuda_swiglu(backend *be, struct act *y, const struct act *gate_up, uint32_t rows, uint32_t F)
{
	cuda *c = cuda_of(be);
	uint64_t n = (uint64_t)rows * F;
	if (backend_failed(be) || !n)
		return;
	with_act(c, [&](auto *type) {
		using A = ACT_TYPE(type);
		constexpr int MOST = 16 / sizeof(A);
		with_packs<MOST>(packs_fit<MOST>((const A *)y, F) && packs_fit<MOST>((const A *)gate_up, F), [&](auto width) {
			constexpr int N = decltype(width)::value;
			cuda_launch(be, "swiglu", blocks_of(n / N, CUDA_BLOCK), CUDA_BLOCK, 0, swiglu_kernel<N, A>, (A *)y,
				(const A *)gate_up, n, F);
		});
	});
}

// silu'(g) = s (1 + g (1 - s)), s = sigmoid(g)
template <int N, typename A> static __global__ void swiglu_backward_kernel(A *dgate_up, const A *dy, const A *gate_up, uint64_t n,
									   uint32_t F)
{
	for (uint64_t i = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * N; i < n; i += (uint64_t)gridDim.x * blockDim.x * N) {
		uint64_t at = i + i / F * F;
		cuda_pack<A, N> gate = load_pack<N>(gate_up + at), up = load_pack<N>(gate_up + at + F),
			d = load_pack<N>(dy + i), dgate, dup;
		for (int j = 0; j < N; j++) {
			float g = to_float(gate.v[j]), dj = to_float(d.v[j]), s = 1.0f / (1.0f + expf(-g));
			dgate.v[j] = from_float<A>(dj * to_float(up.v[j]) * s * (1.0f + g * (1.0f - s)));
			dup.v[j] = from_float<A>(dj * g * s);
		}
		store_pack(dgate_up + at, dgate);
		store_pack(dgate_up + at + F, dup);
	}
}

void cuda_swiglu_backward(backend *be, struct act *dgate_up, const struct act *dy, const struct act *gate_up, uint32_t rows, uint32_t F)
{
	cuda *c = cuda_of(be);
	uint64_t n = (uint64_t)rows * F;
	if (backend_failed(be) || !n)
		return;
	with_act(c, [&](auto *type) {
		using A = ACT_TYPE(type);
		constexpr int MOST = 16 / sizeof(A);
		bool fit = packs_fit<MOST>((const A *)dy, F) && packs_fit<MOST>((const A *)gate_up, F) &&
			packs_fit<MOST>((const A *)dgate_up, F);
		with_packs<MOST>(fit, [&](auto width) {
			constexpr int N = decltype(width)::value;
			cuda_launch(be, "swiglu_backward", blocks_of(n / N, CUDA_BLOCK), CUDA_BLOCK, 0, swiglu_backward_kernel<N, A>,
				    (A *)dgate_up, (const A *)dy,
				    (const A *)gate_up, n, F);
		});
	});
}
