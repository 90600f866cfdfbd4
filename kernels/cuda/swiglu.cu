// SPDX-License-Identifier: Apache-2.0
// y = silu(gate) * up, and its gradients.
#include "kernels/cuda/cuda.cuh"

template <typename A> static __global__ void swiglu_kernel(A *y, const A *gate_up, uint64_t n, uint32_t F)
{
	for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x) {
		const A *row = gate_up + i / F * 2 * F;
		float gate = to_float(row[i % F]), up = to_float(row[F + i % F]);
		y[i] = from_float<A>(gate / (1.0f + expf(-gate)) * up);
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
		swiglu_kernel<A><<<blocks_of(n, CUDA_BLOCK), CUDA_BLOCK, 0, c->stream>>>((A *)y, (const A *)gate_up, n, F);
	});
	CUDA_LAUNCHED(be, "swiglu");
}

// silu'(g) = s (1 + g (1 - s)), s = sigmoid(g)
template <typename A> static __global__ void swiglu_backward_kernel(A *dgate_up, const A *dy, const A *gate_up, uint64_t n, uint32_t F)
{
	for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x) {
		uint64_t at = i / F * 2 * F + i % F;
		float gate = to_float(gate_up[at]), up = to_float(gate_up[at + F]), d = to_float(dy[i]), s = 1.0f / (1.0f + expf(-gate));
		dgate_up[at] = from_float<A>(d * up * s * (1.0f + gate * (1.0f - s)));
		dgate_up[at + F] = from_float<A>(d * gate * s);
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
		swiglu_backward_kernel<A><<<blocks_of(n, CUDA_BLOCK), CUDA_BLOCK, 0, c->stream>>>((A *)dgate_up, (const A *)dy, (const A *)gate_up, n, F);
	});
	CUDA_LAUNCHED(be, "swiglu_backward");
}
