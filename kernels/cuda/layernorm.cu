// SPDX-License-Identifier: Apache-2.0
// Layer norm of rows, with gradients. One block per row; each row's mean and deviation are kept for the gradients of gain and bias.
#include "kernels/cuda/columns.cuh"

struct layernorm_moments { float mean, inverse; };

// Of the block's row: every thread gets them.
static __device__ layernorm_moments moments_of(const float *x, float epsilon, uint32_t C, float *shared)
{
	float sum = 0, squares = 0;
	for (uint32_t i = threadIdx.x; i < C; i += blockDim.x)
		sum += x[i];
	float mean = block_sum(sum, shared) / C;
	for (uint32_t i = threadIdx.x; i < C; i += blockDim.x)
		squares += (x[i] - mean) * (x[i] - mean);
	return layernorm_moments{mean, 1.0f / sqrtf(block_sum(squares, shared) / C + epsilon)};
}

// z may be x: a thread writes only what it alone reads after the sums.
template <typename A> static __global__ void layernorm_kernel(A *y, float *z, const float *x, const float *gain, const float *bias,
							      float epsilon, uint32_t C)
{
	__shared__ float shared[CUDA_WARP];
	size_t at = (size_t)blockIdx.x * C;
	layernorm_moments m = moments_of(x + at, epsilon, C, shared);
	for (uint32_t i = threadIdx.x; i < C; i += blockDim.x) {
		float v = (x[at + i] - m.mean) * m.inverse * gain[i] + bias[i];
		if (y)
			y[at + i] = from_float<A>(v);
		if (z)
			z[at + i] = v;
	}
}

void cuda_layernorm(backend *be, struct act *y, struct real *z, const struct real *x, const struct real *gain, const struct real *bias,
		    float epsilon,
		    uint32_t rows, uint32_t C)
{
	if (backend_failed(be) || !rows)
		return;
	with_act(cuda_of(be), [&](auto *type) {
		using A = ACT_TYPE(type);
		cuda_launch(be, "layernorm", rows, CUDA_BLOCK, 0, layernorm_kernel<A>, (A *)y, real_of(z), real_of(x), real_of(gain),
			    real_of(bias), epsilon, C);
	});
}

template <typename A> struct result_gradient {
	const A *dy;
	const float *dz;
	__device__ float operator()(size_t i) const { return (dy ? to_float(dy[i]) : 0.0f) + (dz ? dz[i] : 0.0f); }
};

static __global__ void moments_kernel(layernorm_moments *to, const float *x, float epsilon, uint32_t C)
{
	__shared__ float shared[CUDA_WARP];
	layernorm_moments m = moments_of(x + (size_t)blockIdx.x * C, epsilon, C, shared);
	if (threadIdx.x == 0)
		to[blockIdx.x] = m;
}

// d n = gain dy; dx = inverse (d n - mean(d n) - n mean(d n n))
template <typename A> static __global__ void backward_kernel(float *dx, bool add, result_gradient<A> d, const float *x, const float *gain,
							     const layernorm_moments *of_rows,
							     uint32_t C)
{
	__shared__ float shared[CUDA_WARP];
	size_t at = (size_t)blockIdx.x * C;
	layernorm_moments m = of_rows[blockIdx.x];
	float sum = 0, dot = 0;
	for (uint32_t i = threadIdx.x; i < C; i += blockDim.x) {
		float dn = gain[i] * d(at + i);
		sum += dn;
		dot += dn * (x[at + i] - m.mean) * m.inverse;
	}
	float mean = block_sum(sum, shared) / C, pull = block_sum(dot, shared) / C;
	for (uint32_t i = threadIdx.x; i < C; i += blockDim.x) {
		float v = (gain[i] * d(at + i) - mean - (x[at + i] - m.mean) * m.inverse * pull) * m.inverse;
		dx[at + i] = add ? dx[at + i] + v : v;
	}
}

template <typename A> struct layernorm_gain_term {
	result_gradient<A> d;
	const float *x;
	const layernorm_moments *of_rows;
	uint32_t C;
	__device__ float operator()(uint32_t t, uint32_t i) const
	{
		size_t at = (size_t)t * C + i;
		return d(at) * (x[at] - of_rows[t].mean) * of_rows[t].inverse;
	}
};

template <typename A> struct layernorm_bias_term {
	result_gradient<A> d;
	uint32_t C;
	__device__ float operator()(uint32_t t, uint32_t i) const { return d((size_t)t * C + i); }
};

// Gains and biases before dx, which may take the place of dz.
void cuda_layernorm_backward(backend *be, struct real *dx, struct real *dgain, struct real *dbias, const struct act *dy,
			     const struct real *dz,
			     const struct real *x, const struct real *gain, float epsilon, uint32_t rows, uint32_t C)
{
	cuda *c = cuda_of(be);
	if (backend_failed(be) || !rows)
		return;
	layernorm_moments *of_rows = (layernorm_moments *)c->scratch;    // (rows): max_rows is far below CUDA_SCRATCH_BYTES / 8
	size_t used = rows * sizeof *of_rows;
	cuda_launch(be, "layernorm_backward", rows, CUDA_BLOCK, 0, moments_kernel, of_rows, real_of(x), epsilon, C);
	with_act(c, [&](auto *type) {
		using A = ACT_TYPE(type);
		result_gradient<A> d = {(const A *)dy, real_of(dz)};
		columns_add(be, "layernorm_backward", real_of(dgain), rows, C, used, layernorm_gain_term<A>{d, real_of(x), of_rows, C});
		columns_add(be, "layernorm_backward", real_of(dbias), rows, C, used, layernorm_bias_term<A>{d, C});
		cuda_launch(be, "layernorm_backward", rows, CUDA_BLOCK, 0, backward_kernel<A>, real_of(dx), dx != dz, d, real_of(x),
			    real_of(gain), (const layernorm_moments *)of_rows, C);
	});
}
