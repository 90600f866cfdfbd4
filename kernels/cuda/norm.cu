// SPDX-License-Identifier: Apache-2.0
// RMSNorm over model rows, and over the q and k heads (Qwen3), with gradients. One block per row; gain gradients sum over rows in order.
#include "kernels/cuda/cuda.cuh"

template <typename A> static __global__ void rmsnorm_kernel(A *y, const float *x, const float *gain, float epsilon, uint32_t C)
{
	__shared__ float shared[CUDA_BLOCK / CUDA_WARP + 1];
	x += (size_t)blockIdx.x * C;
	y += (size_t)blockIdx.x * C;
	float sum = 0;
	for (uint32_t i = threadIdx.x; i < C; i += blockDim.x)
		sum += x[i] * x[i];
	float scale = 1.0f / sqrtf(block_sum(sum, shared) / C + epsilon);
	for (uint32_t i = threadIdx.x; i < C; i += blockDim.x)
		y[i] = from_float<A>(x[i] * scale * gain[i]);
}

void cuda_rmsnorm(backend *be, struct act *y, const struct real *x, const struct real *gain, float epsilon, uint32_t rows, uint32_t C)
{
	cuda *c = cuda_of(be);
	if (backend_failed(be) || !rows)
		return;
	with_act(c, [&](auto *type) {
		using A = ACT_TYPE(type);
		rmsnorm_kernel<A><<<rows, CUDA_BLOCK, 0, c->stream>>>((A *)y, real_of(x), real_of(gain), epsilon, C);
	});
	CUDA_LAUNCHED(be, "rmsnorm");
}

// dx += s (g dy - x s^2/C sum(g dy x)) with s = 1/sqrt(mean x^2 + epsilon)
template <typename A> static __global__ void rmsnorm_backward_kernel(float *dx, const A *dy, const float *x, const float *gain, float epsilon, uint32_t C)
{
	__shared__ float shared[CUDA_BLOCK / CUDA_WARP + 1];
	size_t at = (size_t)blockIdx.x * C;
	float squares = 0, dot = 0;
	for (uint32_t i = threadIdx.x; i < C; i += blockDim.x) {
		squares += x[at + i] * x[at + i];
		dot += gain[i] * to_float(dy[at + i]) * x[at + i];
	}
	float s = 1.0f / sqrtf(block_sum(squares, shared) / C + epsilon);
	float pull = block_sum(dot, shared) * s * s / C;
	for (uint32_t i = threadIdx.x; i < C; i += blockDim.x)
		dx[at + i] += s * (gain[i] * to_float(dy[at + i]) - x[at + i] * pull);
}

// One thread per column: rows are walked in order and read coalesced across the block. scale is recomputed per row.
template <typename A> static __global__ void gain_backward_kernel(float *dgain, const A *dy, const float *x, const float *scales, uint32_t rows, uint32_t C)
{
	uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
	if (i >= C)
		return;
	float sum = 0;
	for (uint32_t t = 0; t < rows; t++)
		sum += to_float(dy[(size_t)t * C + i]) * x[(size_t)t * C + i] * scales[t];
	dgain[i] += sum;
}

static __global__ void scales_kernel(float *scales, const float *x, float epsilon, uint32_t C)
{
	__shared__ float shared[CUDA_BLOCK / CUDA_WARP + 1];
	float sum = 0;
	for (uint32_t i = threadIdx.x; i < C; i += blockDim.x)
		sum += x[(size_t)blockIdx.x * C + i] * x[(size_t)blockIdx.x * C + i];
	sum = block_sum(sum, shared);
	if (threadIdx.x == 0)
		scales[blockIdx.x] = 1.0f / sqrtf(sum / C + epsilon);
}

void cuda_rmsnorm_backward(backend *be, struct real *dx, struct real *dgain, const struct act *dy, const struct real *x, const struct real *gain,
			   float epsilon, uint32_t rows, uint32_t C)
{
	cuda *c = cuda_of(be);
	if (backend_failed(be) || !rows)
		return;
	float *scales = (float *)c->scratch;    // (rows) fits: max_rows is far below CUDA_SCRATCH_BYTES / 4
	with_act(c, [&](auto *type) {
		using A = ACT_TYPE(type);
		scales_kernel<<<rows, CUDA_BLOCK, 0, c->stream>>>(scales, real_of(x), epsilon, C);
		gain_backward_kernel<A><<<(C + CUDA_BLOCK - 1) / CUDA_BLOCK, CUDA_BLOCK, 0, c->stream>>>(real_of(dgain), (const A *)dy, real_of(x), scales, rows, C);
		rmsnorm_backward_kernel<A><<<rows, CUDA_BLOCK, 0, c->stream>>>(real_of(dx), (const A *)dy, real_of(x), real_of(gain), epsilon, C);
	});
	CUDA_LAUNCHED(be, "rmsnorm_backward");
}

// One warp per (position, head); v heads are copied.
template <typename A> static __global__ void head_norm_kernel(A *y, const A *x, const float *q_gain, const float *k_gain, attention_shape s, float epsilon,
							      uint32_t n)
{
	uint32_t heads = s.n_heads + 2 * s.n_kv_heads, i = blockIdx.x * (blockDim.x / CUDA_WARP) + threadIdx.x / CUDA_WARP, lane = threadIdx.x % CUDA_WARP;
	if (i >= n)
		return;
	uint32_t head = i % heads;
	const float *gain = head < s.n_heads ? q_gain : k_gain;
	size_t at = (size_t)i * s.head_size;
	float sum = 0;
	for (uint32_t j = lane; j < s.head_size; j += CUDA_WARP)
		sum += to_float(x[at + j]) * to_float(x[at + j]);
	for (int o = CUDA_WARP / 2; o; o >>= 1)
		sum += __shfl_xor_sync(0xffffffffu, sum, o);
	float scale = 1.0f / sqrtf(sum / s.head_size + epsilon);
	bool value = head >= s.n_heads + s.n_kv_heads;
	for (uint32_t j = lane; j < s.head_size; j += CUDA_WARP)
		y[at + j] = value ? x[at + j] : from_float<A>(to_float(x[at + j]) * scale * gain[j]);
}

void cuda_head_norm(backend *be, struct act *y, const struct act *x, const struct real *q_gain, const struct real *k_gain,
		    const struct attention_shape *s, float epsilon)
{
	cuda *c = cuda_of(be);
	uint32_t n = c->n_positions * (s->n_heads + 2 * s->n_kv_heads), per_block = CUDA_BLOCK / CUDA_WARP;
	if (backend_failed(be) || !n)
		return;
	with_act(c, [&](auto *type) {
		using A = ACT_TYPE(type);
		head_norm_kernel<A><<<(n + per_block - 1) / per_block, CUDA_BLOCK, 0, c->stream>>>((A *)y, (const A *)x, real_of(q_gain), real_of(k_gain), *s,
												    epsilon, n);
	});
	CUDA_LAUNCHED(be, "head_norm");
}

template <typename A> static __global__ void head_norm_backward_kernel(A *dx, const A *dy, const A *x, const float *q_gain, const float *k_gain,
								       attention_shape s, float epsilon, uint32_t n)
{
	uint32_t heads = s.n_heads + 2 * s.n_kv_heads, i = blockIdx.x * (blockDim.x / CUDA_WARP) + threadIdx.x / CUDA_WARP, lane = threadIdx.x % CUDA_WARP;
	if (i >= n)
		return;
	uint32_t head = i % heads;
	size_t at = (size_t)i * s.head_size;
	const float *gain = head < s.n_heads ? q_gain : k_gain;
	bool value = head >= s.n_heads + s.n_kv_heads;
	float squares = 0, dot = 0;
	for (uint32_t j = lane; j < s.head_size && !value; j += CUDA_WARP) {
		float xj = to_float(x[at + j]);
		squares += xj * xj;
		dot += gain[j] * to_float(dy[at + j]) * xj;
	}
	for (int o = CUDA_WARP / 2; o; o >>= 1) {
		squares += __shfl_xor_sync(0xffffffffu, squares, o);
		dot += __shfl_xor_sync(0xffffffffu, dot, o);
	}
	float scale = 1.0f / sqrtf(squares / s.head_size + epsilon), pull = dot * scale * scale / s.head_size;
	for (uint32_t j = lane; j < s.head_size; j += CUDA_WARP)
		dx[at + j] = value ? dy[at + j] : from_float<A>(scale * (gain[j] * to_float(dy[at + j]) - to_float(x[at + j]) * pull));
}

// One block per head column j of D, for q (blockIdx.y = 0) or k (1): positions and heads in a fixed order. Runs before dx overwrites dy.
template <typename A> static __global__ void head_gain_kernel(float *dq_gain, float *dk_gain, const A *dy, const A *x, attention_shape s, float epsilon, uint32_t T)
{
	__shared__ float shared[CUDA_BLOCK / CUDA_WARP + 1];
	uint32_t heads = s.n_heads + 2 * s.n_kv_heads, j = blockIdx.x, first = blockIdx.y ? s.n_heads : 0, count = blockIdx.y ? s.n_kv_heads : s.n_heads;
	float sum = 0;
	for (uint32_t i = threadIdx.x; i < T * count; i += blockDim.x) {
		size_t at = ((size_t)(i / count) * heads + first + i % count) * s.head_size;
		float squares = 0;
		for (uint32_t d = 0; d < s.head_size; d++)
			squares += to_float(x[at + d]) * to_float(x[at + d]);
		sum += to_float(dy[at + j]) * to_float(x[at + j]) / sqrtf(squares / s.head_size + epsilon);
	}
	sum = block_sum(sum, shared);
	if (threadIdx.x == 0)
		(blockIdx.y ? dk_gain : dq_gain)[j] += sum;
}

void cuda_head_norm_backward(backend *be, struct act *dx, struct real *dq_gain, struct real *dk_gain, const struct act *dy, const struct act *x,
			     const struct real *q_gain, const struct real *k_gain, const struct attention_shape *s, float epsilon)
{
	cuda *c = cuda_of(be);
	uint32_t n = c->n_positions * (s->n_heads + 2 * s->n_kv_heads), per_block = CUDA_BLOCK / CUDA_WARP;
	if (backend_failed(be) || !n)
		return;
	with_act(c, [&](auto *type) {
		using A = ACT_TYPE(type);
		head_gain_kernel<A><<<dim3(s->head_size, 2), CUDA_BLOCK, 0, c->stream>>>(real_of(dq_gain), real_of(dk_gain), (const A *)dy, (const A *)x, *s, epsilon,
											  c->n_positions);
		head_norm_backward_kernel<A><<<(n + per_block - 1) / per_block, CUDA_BLOCK, 0, c->stream>>>(
			(A *)dx, (const A *)dy, (const A *)x, real_of(q_gain), real_of(k_gain), *s, epsilon, n);
	});
	CUDA_LAUNCHED(be, "head_norm_backward");
}
