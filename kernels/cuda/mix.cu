// SPDX-License-Identifier: Apache-2.0
// Several teachers' rows of logits as one: a weighted sum of logits, or the logarithm of a weighted mean of probabilities.
#include "kernels/cuda/cuda.cuh"

#include <float.h>
#include <math.h>

#define LEAST 1e-38f      // a probability no teacher gives: its logarithm is still a number

static __global__ void mix_kernel(float *y, bool add, const float *x, float weight, uint64_t n)
{
	for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x)
		y[i] = (add ? y[i] : 0.0f) + weight * x[i];
}

// One block per row. The difference is taken in double: lse is large where the probabilities are small.
static __global__ void probabilities_kernel(float *y, bool add, const float *x, float weight, const double *lse, uint32_t V)
{
	size_t at = (size_t)blockIdx.x * V;
	double normal = lse[blockIdx.x];
	for (uint32_t j = threadIdx.x; j < V; j += blockDim.x)
		y[at + j] = (add ? y[at + j] : 0.0f) + weight * expf((float)(x[at + j] - normal));
}

void cuda_mix(backend *be, struct real *y, bool add, const struct real *x, double weight, const double *lse, uint32_t n, uint32_t V)
{
	cuda *c = cuda_of(be);
	uint64_t size = (uint64_t)n * V;
	if (backend_failed(be) || !size)
		return;
	if (!lse) {
		cuda_launch(be, "mix", blocks_of(size, CUDA_BLOCK), CUDA_BLOCK, 0, mix_kernel, real_of(y), add, real_of(x),
			(float)weight, size);
		return;
	}
	uint32_t most = CUDA_SCRATCH_BYTES / sizeof *lse;
	for (uint32_t first = 0; first < n; first += most) {
		uint32_t rows = n - first < most ? n - first : most;
		if (cuda_send(be, c->scratch, lse + first, rows * sizeof *lse, "sending normalisers"))
			cuda_launch(be, "mix", rows, CUDA_BLOCK, 0, probabilities_kernel, real_of(y) + (size_t)first * V, add,
				    real_of(x) + (size_t)first * V, (float)weight, (const double *)c->scratch, V);
	}
}

static __global__ void cap_kernel(float *x, float cap, uint64_t n)
{
	for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x)
		x[i] = cap * tanhf(x[i] / cap);
}

void cuda_soft_cap(backend *be, struct real *x, float cap, size_t n)
{
	if (!backend_failed(be) && n)
		cuda_launch(be, "soft_cap", blocks_of(n, CUDA_BLOCK), CUDA_BLOCK, 0, cap_kernel, real_of(x), cap, (uint64_t)n);
}

// max() of a NaN and a number is the number: the comparison keeps the NaN.
static __global__ void log_kernel(float *y, uint64_t n)
{
	for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x)
		y[i] = logf(y[i] < LEAST ? LEAST : y[i]);
}

void cuda_mix_log(backend *be, struct real *y, uint32_t n, uint32_t V)
{
	uint64_t size = (uint64_t)n * V;
	if (!backend_failed(be) && size)
		cuda_launch(be, "mix_log", blocks_of(size, CUDA_BLOCK), CUDA_BLOCK, 0, log_kernel, real_of(y), size);
}
