// SPDX-License-Identifier: Apache-2.0
// Optimiser steps, and the gradient's sum of squares in a fixed order.
#include "kernels/cuda/cuda.cuh"

#include <math.h>

static __global__ void sum_squares_kernel(double *partial, const float *x, uint64_t n)
{
	__shared__ double shared[CUDA_WARP];
	double sum = 0;
	for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x)
		sum += (double)x[i] * x[i];
	sum = block_sum(sum, shared);
	if (threadIdx.x == 0)
		partial[blockIdx.x] = sum;
}

double cuda_sum_squares(backend *be, const struct real *x, size_t n)
{
	cuda *c = cuda_of(be);
	double sum = 0;
	if (backend_failed(be) || !n)
		return 0;
	cuda_launch(be, "sum_squares", CUDA_BLOCK, CUDA_BLOCK, 0, sum_squares_kernel, c->partial, real_of(x), (uint64_t)n);
	const double *partial = (const double *)c->results;
	if (!backend_failed(be) &&
	    cuda_check(be, cudaMemcpyAsync(c->results, c->partial, CUDA_BLOCK * sizeof *partial, cudaMemcpyDeviceToHost, c->stream),
		       "sum_squares") &&
	    cuda_check(be, cudaStreamSynchronize(c->stream), "sum_squares"))
		for (int i = 0; i < CUDA_BLOCK; i++)
			sum += partial[i];
	return sum;
}

static __global__ void adamw_kernel(float *w, float *m, float *v, const float *g, uint64_t n, float beta1, float beta2, float epsilon,
				    float decay, float grad_scale, float step_size, float correction2)
{
	for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x) {
		float gi = g[i] * grad_scale;
		float mi = m[i] = beta1 * m[i] + (1 - beta1) * gi;
		float vi = v[i] = beta2 * v[i] + (1 - beta2) * gi * gi;
		w[i] = w[i] * decay - step_size * mi / (sqrtf(vi) / correction2 + epsilon);
	}
}

void cuda_adamw(backend *be, struct real *w, struct real *m, struct real *v, const struct real *g, size_t n, const struct adamw *a)
{
	if (backend_failed(be) || !n)
		return;
	double correction1 = 1 - pow(a->beta1, (double)a->step), correction2 = sqrt(1 - pow(a->beta2, (double)a->step));
	cuda_launch(be, "adamw", blocks_of(n, CUDA_BLOCK), CUDA_BLOCK, 0, adamw_kernel, real_of(w), real_of(m), real_of(v), real_of(g), n,
		    (float)a->beta1, (float)a->beta2, (float)a->epsilon, (float)(1 - a->learning_rate * a->weight_decay),
		    (float)a->grad_scale, (float)(a->learning_rate / correction1), (float)correction2);
}

static __global__ void lion_kernel(float *w, float *m, const float *g, uint64_t n, float beta1, float beta2, float rate, float decay,
				   float grad_scale)
{
	for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x) {
		float gi = g[i] * grad_scale, direction = beta1 * m[i] + (1 - beta1) * gi;
		w[i] = w[i] * decay - (direction > 0 ? rate : direction < 0 ? -rate : 0);
		m[i] = beta2 * m[i] + (1 - beta2) * gi;
	}
}

void cuda_lion(backend *be, struct real *w, struct real *m, const struct real *g, size_t n, const struct lion *l)
{
	if (backend_failed(be) || !n)
		return;
	cuda_launch(be, "lion", blocks_of(n, CUDA_BLOCK), CUDA_BLOCK, 0, lion_kernel, real_of(w), real_of(m), real_of(g), (uint64_t)n,
		    (float)l->beta1, (float)l->beta2, (float)l->learning_rate, (float)(1 - l->learning_rate * l->weight_decay),
		    (float)l->grad_scale);
}

// One warp per group: its largest value, then every one to the nearest point of the grid.
static __global__ void fake_quantize_kernel(float *x, uint64_t n_groups, uint32_t group, float steps)
{
	uint64_t warp = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) / CUDA_WARP,
		n_warps = (uint64_t)gridDim.x * blockDim.x / CUDA_WARP;
	uint32_t lane = threadIdx.x % CUDA_WARP;
	for (uint64_t k = warp; k < n_groups; k += n_warps) {
		float *v = x + k * group, max = 0;
		for (uint32_t i = lane; i < group; i += CUDA_WARP)
			max = fmaxf(max, fabsf(v[i]));
		for (int offset = CUDA_WARP / 2; offset; offset /= 2)
			max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, offset));
		float scale = max / steps;
		for (uint32_t i = lane; i < group && scale > 0; i += CUDA_WARP)
			v[i] = scale * rintf(v[i] / scale);
	}
}

void cuda_fake_quantize(backend *be, struct real *x, uint32_t rows, uint32_t columns, uint32_t group, uint32_t bits)
{
	uint64_t n_groups = (uint64_t)rows * columns / group;
	if (backend_failed(be) || !n_groups)
		return;
	cuda_launch(be, "fake_quantize", blocks_of(n_groups * CUDA_WARP, CUDA_BLOCK), CUDA_BLOCK, 0, fake_quantize_kernel, real_of(x),
		    n_groups, group, (float)((1u << (bits - 1)) - 1));
}
