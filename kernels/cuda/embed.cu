// SPDX-License-Identifier: Apache-2.0
// Token rows in, gradients back. The backward pass has no atomics: the first position of a token sums all its positions in order.
#include "kernels/cuda/columns.cuh"

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
		cuda_launch(be, "embed", c->n_positions, CUDA_BLOCK, 0, embed_kernel<decltype(n)::value, A>, x, w,
			(const uint32_t *)c->tokens, C);
	});
}

void cuda_embed(backend *be, struct real *x, const struct weight *w)
{
	cuda *c = cuda_of(be);
	assert(!w->scales);
	if (backend_failed(be) || !c->n_positions)
		return;
	if (w->stored)
		cuda_stored_embed(be, real_of(x), w);
	else if (w->view)
		embed_rows(be, real_of(x), w->view, w->n_columns);
	else
		with_act(c, [&](auto *type) { embed_rows(be, real_of(x), (const ACT_TYPE(type) *)w->data, w->n_columns); });
}

// Row index[t] of dw gets the sum of its positions' gradients.
static __global__ void embed_backward_kernel(float *dw, const float *dx, const uint32_t *index, uint32_t T, uint32_t C)
{
	uint32_t t = blockIdx.x, row = index[t];
	int repeated = 0;
	for (uint32_t i = threadIdx.x; i < t && !repeated; i += blockDim.x)
		repeated = index[i] == row;
	if (__syncthreads_or(repeated))
		return;
	for (uint32_t i = t; i < T; i++) {
		if (index[i] != row)
			continue;
		for (uint32_t j = threadIdx.x; j < C; j += blockDim.x)
			dw[(size_t)row * C + j] += dx[(size_t)i * C + j];
	}
}

void cuda_embed_backward(backend *be, struct real *dw, const struct real *dx, uint32_t C)
{
	cuda *c = cuda_of(be);
	if (backend_failed(be) || !c->n_positions)
		return;
	cuda_launch(be, "embed_backward", c->n_positions, CUDA_BLOCK, 0, embed_backward_kernel, real_of(dw), real_of(dx),
		    (const uint32_t *)c->tokens,
		    c->n_positions, C);
}

static __global__ void embed_add_kernel(float *x, const float *table, const uint32_t *positions, uint32_t C)
{
	const float *row = table + (positions ? (size_t)positions[blockIdx.x] * C : 0);
	for (uint32_t i = threadIdx.x; i < C; i += blockDim.x)
		x[(size_t)blockIdx.x * C + i] += row[i];
}

void cuda_embed_add(backend *be, struct real *x, const struct real *table, bool by_position, uint32_t C)
{
	cuda *c = cuda_of(be);
	if (backend_failed(be) || !c->n_positions)
		return;
	cuda_launch(be, "embed_add", c->n_positions, CUDA_BLOCK, 0, embed_add_kernel, real_of(x), real_of(table),
		    (const uint32_t *)(by_position ? c->positions : NULL), C);
}

struct row_term {
	const float *dx;
	uint32_t C;
	__device__ float operator()(uint32_t t, uint32_t i) const { return dx[(size_t)t * C + i]; }
};

void cuda_embed_add_backward(backend *be, struct real *dtable, const struct real *dx, bool by_position, uint32_t C)
{
	cuda *c = cuda_of(be);
	if (backend_failed(be) || !c->n_positions)
		return;
	if (by_position)
		cuda_launch(be, "embed_add_backward", c->n_positions, CUDA_BLOCK, 0, embed_backward_kernel, real_of(dtable), real_of(dx),
			    (const uint32_t *)c->positions, c->n_positions, C);
	else
		columns_add(be, "embed_add_backward", real_of(dtable), c->n_positions, C, 0, row_term{real_of(dx), C});
}
