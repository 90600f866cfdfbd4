// SPDX-License-Identifier: Apache-2.0
// Rows by index: picked before the head, put back on the way of the gradients.
#include "kernels/cuda/cuda.cuh"

#include <string.h>

// The list goes through pinned staging, which the last layout or list must have left.
static bool send_list(backend *be, const uint32_t *rows, uint32_t n)
{
	cuda *c = cuda_of(be);
	if (backend_failed(be) || !cuda_check(be, cudaEventSynchronize(c->staged), "waiting for the last list"))
		return false;
	memcpy(c->staging, rows, (size_t)n * sizeof *rows);
	return cuda_check(be, cudaMemcpyAsync(c->row_list, c->staging, (size_t)n * sizeof *rows, cudaMemcpyHostToDevice, c->stream), "sending a list of rows") &&
	       cuda_check(be, cudaEventRecord(c->staged, c->stream), "sending a list of rows");
}

template <typename A> static __global__ void pick_kernel(A *y, const A *x, const uint32_t *rows, uint32_t C)
{
	for (uint32_t i = threadIdx.x; i < C; i += blockDim.x)
		y[(size_t)blockIdx.x * C + i] = x[(size_t)rows[blockIdx.x] * C + i];
}

void cuda_pick_rows(backend *be, struct act *y, const struct act *x, const uint32_t *rows, uint32_t n, uint32_t C)
{
	cuda *c = cuda_of(be);
	if (!n || !send_list(be, rows, n))
		return;
	with_act(c, [&](auto *type) {
		using A = ACT_TYPE(type);
		pick_kernel<A><<<n, CUDA_BLOCK, 0, c->stream>>>((A *)y, (const A *)x, c->row_list, C);
	});
	CUDA_LAUNCHED(be, "pick_rows");
}

template <typename A> static __global__ void put_kernel(A *dx, const A *dy, const uint32_t *rows, uint32_t C)
{
	for (uint32_t i = threadIdx.x; i < C; i += blockDim.x)
		dx[(size_t)rows[blockIdx.x] * C + i] = dy[(size_t)blockIdx.x * C + i];
}

void cuda_put_rows(backend *be, struct act *dx, const struct act *dy, const uint32_t *rows, uint32_t n, uint32_t T, uint32_t C)
{
	cuda *c = cuda_of(be);
	if (backend_failed(be) || !T)
		return;
	cuda_check(be, cudaMemsetAsync(dx, 0, (size_t)T * C * (c->bf16 ? 2 : 4), c->stream), "zeroing rows");
	if (!n || !send_list(be, rows, n))
		return;
	with_act(c, [&](auto *type) {
		using A = ACT_TYPE(type);
		put_kernel<A><<<n, CUDA_BLOCK, 0, c->stream>>>((A *)dx, (const A *)dy, c->row_list, C);
	});
	CUDA_LAUNCHED(be, "put_rows");
}
