// SPDX-License-Identifier: Apache-2.0
// GELU in its two forms, with gradients; copies between the two kinds of array.
#include "kernels/cuda/cuda.cuh"

// The share of x that passes, and its derivative.
static __device__ __forceinline__ float share_of(float x, enum gelu form, float *slope)
{
	if (form == GELU_ERF) {
		*slope = expf(-x * x / 2) * 0.398942280f;
		return 0.5f * erfcf(x * -0.707106781f);
	}
	float p = 1.0f / (1.0f + expf(-1.59576912f * x * (1.0f + 0.044715f * x * x)));    // sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3)
	*slope = p * (1.0f - p) * 1.59576912f * (1.0f + 3.0f * 0.044715f * x * x);
	return p;
}

// dx = dy (share + x slope), or, with dy NULL, y = x share.
template <int N, typename A> static __global__ void gelu_kernel(A *y, const A *dy, const A *x, enum gelu form, uint64_t n)
{
	for (uint64_t i = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * N; i < n; i += (uint64_t)gridDim.x * blockDim.x * N) {
		cuda_pack<A, N> v = load_pack<N>(x + i), d = load_pack<N>((dy ? dy : x) + i), out;
		for (int j = 0; j < N; j++) {
			float slope, at = to_float(v.v[j]), p = share_of(at, form, &slope);
			out.v[j] = from_float<A>(dy ? to_float(d.v[j]) * (p + at * slope) : at * p);
		}
		store_pack(y + i, out);
	}
}

static void run(backend *be, const char *what, struct act *y, const struct act *dy, const struct act *x, enum gelu form, uint64_t n)
{
	cuda *c = cuda_of(be);
	if (backend_failed(be) || !n)
		return;
	with_act(c, [&](auto *type) {
		using A = ACT_TYPE(type);
		constexpr int MOST = 16 / sizeof(A);
		bool fit = packs_fit<MOST>((const A *)y, n) && packs_fit<MOST>((const A *)x, n) &&
			(!dy || packs_fit<MOST>((const A *)dy, n));
		with_packs<MOST>(fit, [&](auto width) {
			constexpr int N = decltype(width)::value;
			cuda_launch(be, what, blocks_of(n / N, CUDA_BLOCK), CUDA_BLOCK, 0, gelu_kernel<N, A>, (A *)y, (const A *)dy,
				(const A *)x, form, n);
		});
	});
}

void cuda_gelu(backend *be, struct act *y, const struct act *x, enum gelu form, uint32_t rows, uint32_t F)
{
	run(be, "gelu", y, NULL, x, form, (uint64_t)rows * F);
}

void cuda_gelu_backward(backend *be, struct act *dx, const struct act *dy, const struct act *x, enum gelu form, uint32_t rows, uint32_t F)
{
	run(be, "gelu_backward", dx, dy, x, form, (uint64_t)rows * F);
}

// Thread i takes the i-th product: row i / F.
template <typename A> static __global__ void geglu_kernel(A *y, const A *gate_up, uint64_t n, uint32_t F)
{
	for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x) {
		uint64_t at = i + i / F * F;
		float slope, gate = to_float(gate_up[at]);
		y[i] = from_float<A>(gate * share_of(gate, GELU_TANH, &slope) * to_float(gate_up[at + F]));
	}
}

void cuda_geglu(backend *be, struct act *y, const struct act *gate_up, uint32_t rows, uint32_t F)
{
	cuda *c = cuda_of(be);
	uint64_t n = (uint64_t)rows * F;
	if (backend_failed(be) || !n)
		return;
	with_act(c, [&](auto *type) {
		using A = ACT_TYPE(type);
		cuda_launch(be, "geglu", blocks_of(n, CUDA_BLOCK), CUDA_BLOCK, 0, geglu_kernel<A>, (A *)y, (const A *)gate_up, n, F);
	});
}

template <typename To, typename From> static __global__ void convert_kernel(To *y, const From *x, uint64_t n)
{
	for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x)
		y[i] = from_float<To>(to_float(x[i]));
}

void cuda_widen(backend *be, struct real *y, const struct act *x, size_t n)
{
	if (backend_failed(be) || !n)
		return;
	with_act(cuda_of(be), [&](auto *type) {
		using A = ACT_TYPE(type);
		cuda_launch(be, "widen", blocks_of(n, CUDA_BLOCK), CUDA_BLOCK, 0, convert_kernel<float, A>, real_of(y),
			(const A *)x, (uint64_t)n);
	});
}

void cuda_narrow(backend *be, struct act *y, const struct real *x, size_t n)
{
	if (backend_failed(be) || !n)
		return;
	with_act(cuda_of(be), [&](auto *type) {
		using A = ACT_TYPE(type);
		cuda_launch(be, "narrow", blocks_of(n, CUDA_BLOCK), CUDA_BLOCK, 0, convert_kernel<A, float>, (A *)y,
			real_of(x), (uint64_t)n);
	});
}
