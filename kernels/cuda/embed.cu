// SPDX-License-Identifier: Apache-2.0
// Token rows in, gradients back. The backward pass has no atomics: the first position of a token sums all its positions in order.
#include "kernels/cuda/cuda.cuh"

template <int N, typename A> static __global__ void embed_kernel(float *x, const A *w, const uint32_t *tokens, uint32_t C)
{
	const A *row = w + (size_t)tokens[blockIdx.x] * C;
	for (uint32_t i = threadIdx.x * N; i < C; i += blockDim.x * N) {
		cuda_pack<A, N> v = load_pack<N>(row + i);
		cuda_pack<float, N> out;
		for (int j = 0; j < N; j++)
			out.v[j] = to_float(v.v[j]);
		store_pack(x + (size_t)blockIdx.x * C + i, out);
	}
}

template <typename A> static void embed_rows(backend *be, float *x, const A *w, uint32_t C)
{
	cuda *c = cuda_of(be);
	with_packs<4>(packs_fit<4>(x, C) && packs_fit<4>(w, C), [&](auto n) {
		cuda_launch(be, "embed", c->n_positions, CUDA_BLOCK, 0, embed_kernel<decltype(n)::value, A>, x, w, (const uint32_t *)c->tokens, C);
	});
}

void cuda_embed(backend *be, struct real *x, const struct weight *w)
{
	cuda *c = cuda_of(be);
	if (backend_failed(be) || !c->n_positions)
		return;
	if (w->view)
		embed_rows(be, real_of(x), w->view, w->n_columns);
	else
		with_act(c, [&](auto *type) { embed_rows(be, real_of(x), (const ACT_TYPE(type) *)w->data, w->n_columns); });
}

static __global__ void embed_backward_kernel(float *dw, const float *dx, const uint32_t *tokens, uint32_t T, uint32_t C)
{
	uint32_t t = blockIdx.x, token = tokens[t];
	int repeated = 0;
	for (uint32_t i = threadIdx.x; i < t && !repeated; i += blockDim.x)
		repeated = tokens[i] == token;
	if (__syncthreads_or(repeated))
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
	cuda_launch(be, "embed_backward", c->n_positions, CUDA_BLOCK, 0, embed_backward_kernel, real_of(dw), real_of(dx), (const uint32_t *)c->tokens,
		    c->n_positions, C);
}
