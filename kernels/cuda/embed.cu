// SPDX-License-Identifier: Apache-2.0
// Token rows in, gradients back. The backward pass has no atomics: the first position of a token sums all its positions in order.
#include "kernels/cuda/cuda.cuh"

template <typename A> static __global__ void embed_kernel(float *x, const A *w, const uint32_t *tokens, uint32_t C)
{
	const A *row = w + (size_t)tokens[blockIdx.x] * C;
	for (uint32_t i = threadIdx.x; i < C; i += blockDim.x)
		x[(size_t)blockIdx.x * C + i] = to_float(row[i]);
}

void cuda_embed(backend *be, struct real *x, const struct weight *w)
{
	cuda *c = cuda_of(be);
	if (backend_failed(be) || !c->n_positions)
		return;
	if (w->view)
		embed_kernel<float><<<c->n_positions, CUDA_BLOCK, 0, c->stream>>>(real_of(x), w->view, c->tokens, w->n_columns);
	else
		with_act(c, [&](auto *type) {
			using A = ACT_TYPE(type);
			embed_kernel<A><<<c->n_positions, CUDA_BLOCK, 0, c->stream>>>(real_of(x), (const A *)w->data, c->tokens, w->n_columns);
		});
	CUDA_LAUNCHED(be, "embed");
}

static __global__ void embed_backward_kernel(float *dw, const float *dx, const uint32_t *tokens, uint32_t T, uint32_t C)
{
	__shared__ bool repeated;
	uint32_t t = blockIdx.x, token = tokens[t];
	if (threadIdx.x == 0)
		repeated = false;
	__syncthreads();
	for (uint32_t i = threadIdx.x; i < t; i += blockDim.x)
		if (tokens[i] == token)
			repeated = true;
	__syncthreads();
	if (repeated)
		return;
	for (uint32_t i = t; i < T; i++) {
		if (tokens[i] != token)
			continue;
		for (uint32_t j = threadIdx.x; j < C; j += blockDim.x)
			dw[(size_t)token * C + j] += dx[(size_t)i * C + j];
	}
}

void cuda_embed_backward(backend *be, struct real *dw, const struct real *dx, uint32_t C)
{
	cuda *c = cuda_of(be);
	if (backend_failed(be) || !c->n_positions)
		return;
	embed_backward_kernel<<<c->n_positions, CUDA_BLOCK, 0, c->stream>>>(real_of(dw), real_of(dx), c->tokens, c->n_positions, C);
	CUDA_LAUNCHED(be, "embed_backward");
}
