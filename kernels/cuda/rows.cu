// SPDX-License-Identifier: Apache-2.0
// Rows by index: picked before the head, put back on the way of the gradients; and columns by index.
#include "kernels/cuda/cuda.cuh"

// One block per listed row; `put` writes there, else reads from there.
template <int N, typename A> static __global__ void rows_kernel(A *y, const A *x, const uint32_t *rows, uint32_t C, bool put)
{
	size_t listed = (size_t)rows[blockIdx.x] * C, here = (size_t)blockIdx.x * C;
	for (uint32_t i = threadIdx.x * N; i < C; i += blockDim.x * N)
		store_pack(y + (put ? listed : here) + i, load_pack<N>(x + (put ? here : listed) + i));
}

static void move_rows(backend *be, const char *what, struct act *y, const struct act *x, const uint32_t *rows, uint32_t n, uint32_t C,
		      bool put)
{
	cuda *c = cuda_of(be);
	assert(n <= c->max_rows);
	if (!n || backend_failed(be) || !cuda_send(be, c->row_list, rows, (size_t)n * sizeof *rows, "sending a list of rows"))
		return;
	with_act(c, [&](auto *type) {
		using A = ACT_TYPE(type);
		constexpr int MOST = 16 / sizeof(A);
		with_packs<MOST>(packs_fit<MOST>((const A *)y, C) && packs_fit<MOST>((const A *)x, C), [&](auto width) {
			cuda_launch(be, what, n, CUDA_BLOCK, 0, rows_kernel<decltype(width)::value, A>, (A *)y, (const A *)x,
				c->row_list, C, put);
		});
	});
}

void cuda_pick_rows(backend *be, struct act *y, const struct act *x, const uint32_t *rows, uint32_t n, uint32_t C)
{
	move_rows(be, "pick_rows", y, x, rows, n, C, false);
}

void cuda_put_rows(backend *be, struct act *dx, const struct act *dy, const uint32_t *rows, uint32_t n, uint32_t T, uint32_t C)
{
	cuda *c = cuda_of(be);
	if (backend_failed(be) || !T)
		return;
	cuda_check(be, cudaMemsetAsync(dx, 0, (size_t)T * C * (c->bf16 ? 2 : 4), c->stream), "zeroing rows");
	move_rows(be, "put_rows", dx, dy, rows, n, C, true);
}

static __global__ void add_kernel(float *x, const float *y, const uint32_t *rows, const float *scales, uint32_t C)
{
	size_t to = (size_t)rows[blockIdx.x] * C, from = (size_t)blockIdx.x * C;
	float scale = scales[blockIdx.x];
	for (uint32_t i = threadIdx.x; i < C; i += blockDim.x)
		x[to + i] += scale * y[from + i];
}

void cuda_add_rows(backend *be, struct real *x, const struct real *y, const uint32_t *rows, const float *scales, uint32_t n, uint32_t C)
{
	cuda *c = cuda_of(be);
	assert(n <= c->max_rows);
	if (!n || backend_failed(be))
		return;
	uint32_t most = CUDA_SCRATCH_BYTES / sizeof *scales;
	for (uint32_t first = 0; first < n; first += most) {
		uint32_t some = n - first < most ? n - first : most;
		if (!cuda_send(be, c->row_list, rows + first, (size_t)some * sizeof *rows, "sending a list of rows") ||
		    !cuda_send(be, c->scratch, scales + first, (size_t)some * sizeof *scales, "sending scales of rows"))
			return;
		cuda_launch(be, "add_rows", some, CUDA_BLOCK, 0, add_kernel, real_of(x), real_of(y) + (size_t)first * C,
			    (const uint32_t *)c->row_list, (const float *)c->scratch, C);
	}
}

static __global__ void columns_kernel(float *y, const float *x, const uint32_t *ids, uint32_t n_ids, uint32_t V)
{
	for (uint32_t j = threadIdx.x; j < n_ids; j += blockDim.x)
		y[(size_t)blockIdx.x * n_ids + j] = x[(size_t)blockIdx.x * V + ids[j]];
}

// The list goes through the scratch buffer, whole where it fits; V is below 2^24, so it does.
void cuda_pick_columns(backend *be, struct real *y, const struct real *x, const uint32_t *ids, uint32_t n, uint32_t n_ids, uint32_t V)
{
	cuda *c = cuda_of(be);
	if (!n || !n_ids || backend_failed(be))
		return;
	if (n_ids > CUDA_SCRATCH_BYTES / sizeof *ids) {
		backend_fail(be, "a list of %u columns does not fit the scratch buffer", n_ids);
		return;
	}
	if (cuda_send(be, c->scratch, ids, (size_t)n_ids * sizeof *ids, "sending a list of columns"))
		cuda_launch(be, "pick_columns", n, CUDA_BLOCK, 0, columns_kernel, real_of(y), real_of(x),
			(const uint32_t *)c->scratch, n_ids, V);
}
