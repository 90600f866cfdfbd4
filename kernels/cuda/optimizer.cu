// SPDX-License-Identifier: Apache-2.0
// AdamW as PyTorch defines it, and the gradient's sum of squares in a fixed order.
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
