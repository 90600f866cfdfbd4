// SPDX-License-Identifier: Apache-2.0
// RMSNorm over the q and k heads (Qwen3), with gradients. One warp per (position, head); v heads are copied.
#include "kernels/cuda/columns.cuh"

#define WARPS (CUDA_BLOCK / CUDA_WARP)

static __device__ float warp_sum(float v)
{
	for (int o = CUDA_WARP / 2; o; o >>= 1)
		v += __shfl_xor_sync(0xffffffffu, v, o);
	return v;
}

template <typename A> static __global__ void head_norm_kernel(A *y, const A *x, const float *q_gain, const float *k_gain, attention_shape s,
							      float epsilon,
							      uint64_t n)
{
	uint64_t i = (uint64_t)blockIdx.x * WARPS + threadIdx.x / CUDA_WARP;
	uint32_t heads = s.n_heads + 2 * s.n_kv_heads, lane = threadIdx.x % CUDA_WARP, head = (uint32_t)(i % heads);
	if (i >= n)
		return;
	const float *gain = head < s.n_heads ? q_gain : k_gain;
	size_t at = i * s.head_size;
	float sum = 0;
	for (uint32_t j = lane; j < s.head_size; j += CUDA_WARP)
		sum += to_float(x[at + j]) * to_float(x[at + j]);
	float scale = 1.0f / sqrtf(warp_sum(sum) / s.head_size + epsilon);
	bool value = head >= s.n_heads + s.n_kv_heads;
	for (uint32_t j = lane; j < s.head_size; j += CUDA_WARP)
		y[at + j] = value ? x[at + j] : from_float<A>(to_float(x[at + j]) * scale * gain[j]);
}

void cuda_head_norm(backend *be, struct act *y, const struct act *x, const struct real *q_gain, const struct real *k_gain,
		    const struct attention_shape *s, float epsilon)
{
	cuda *c = cuda_of(be);
	uint64_t n = (uint64_t)c->n_positions * (s->n_heads + 2 * s->n_kv_heads);
	if (backend_failed(be) || !n)
		return;
	with_act(c, [&](auto *type) {
		using A = ACT_TYPE(type);
		cuda_launch(be, "head_norm", (uint32_t)((n + WARPS - 1) / WARPS), CUDA_BLOCK, 0, head_norm_kernel<A>, (A *)y, (const A *)x,
			    real_of(q_gain),
			    real_of(k_gain), *s, epsilon, n);
	});
}

// Each element of dx is written by the thread that read its dy: they may be one array.
template <typename A> static __global__ void backward_kernel(A *dx, const A *dy, const A *x, const float *q_gain, const float *k_gain,
							     attention_shape s, float epsilon, uint64_t n)
{
	uint64_t i = (uint64_t)blockIdx.x * WARPS + threadIdx.x / CUDA_WARP;
	uint32_t heads = s.n_heads + 2 * s.n_kv_heads, lane = threadIdx.x % CUDA_WARP, head = (uint32_t)(i % heads);
	if (i >= n)
		return;
	size_t at = i * s.head_size;
	const float *gain = head < s.n_heads ? q_gain : k_gain;
	bool value = head >= s.n_heads + s.n_kv_heads;
	float squares = 0, dot = 0;
	for (uint32_t j = lane; j < s.head_size && !value; j += CUDA_WARP) {
		float xj = to_float(x[at + j]);
		squares += xj * xj;
		dot += gain[j] * to_float(dy[at + j]) * xj;
	}
	float scale = 1.0f / sqrtf(warp_sum(squares) / s.head_size + epsilon), pull = warp_sum(dot) * scale * scale / s.head_size;
	for (uint32_t j = lane; j < s.head_size; j += CUDA_WARP)
		dx[at + j] = value ? dy[at + j] : from_float<A>(scale * (gain[j] * to_float(dy[at + j]) - to_float(x[at + j]) * pull));
}

// 1/rms of each normed head, (positions, NH + NKV).
template <typename A> static __global__ void scales_kernel(float *scales, const A *x, attention_shape s, float epsilon, uint64_t n)
{
	uint64_t i = (uint64_t)blockIdx.x * WARPS + threadIdx.x / CUDA_WARP;
	uint32_t normed = s.n_heads + s.n_kv_heads, lane = threadIdx.x % CUDA_WARP;
	if (i >= n)
		return;
	size_t at = (i / normed * (s.n_heads + 2 * s.n_kv_heads) + i % normed) * s.head_size;
	float sum = 0;
	for (uint32_t j = lane; j < s.head_size; j += CUDA_WARP)
		sum += to_float(x[at + j]) * to_float(x[at + j]);
	sum = warp_sum(sum);
	if (lane == 0)
		scales[i] = 1.0f / sqrtf(sum / s.head_size + epsilon);
}

// A row of the sum is one (position, head): all positions' q heads, or all their k heads.
template <typename A> struct gain_term {
	const A *dy, *x;
	const float *scales;
	uint32_t first, count, normed, heads, D;
	__device__ float operator()(uint32_t r, uint32_t i) const
	{
		size_t t = r / count, head = first + r % count, at = (t * heads + head) * D + i;
		return to_float(dy[at]) * to_float(x[at]) * scales[t * normed + head];
	}
};

// Gradients of both gains over n positions, whose scales fit the scratch buffer beside the partial sums.
template <typename A> static void gains_add(backend *be, float *dq_gain, float *dk_gain, const A *dy, const A *x, const attention_shape *s,
					    float epsilon,
					    uint32_t n)
{
	uint32_t normed = s->n_heads + s->n_kv_heads, D = s->head_size;
	uint64_t n_heads = (uint64_t)n * normed;
	float *scales = (float *)cuda_of(be)->scratch;
	cuda_launch(be, "head_norm_backward", (uint32_t)((n_heads + WARPS - 1) / WARPS), CUDA_BLOCK, 0, scales_kernel<A>, scales, x, *s,
		    epsilon, n_heads);
	gain_term<A> term = {dy, x, scales, 0, s->n_heads, normed, normed + s->n_kv_heads, D};
	columns_add(be, "head_norm_backward", dq_gain, n * s->n_heads, D, n_heads * sizeof(float), term);
	term.first = s->n_heads;
	term.count = s->n_kv_heads;
	columns_add(be, "head_norm_backward", dk_gain, n * s->n_kv_heads, D, n_heads * sizeof(float), term);
}

void cuda_head_norm_backward(backend *be, struct act *dx, struct real *dq_gain, struct real *dk_gain, const struct act *dy,
			     const struct act *x,
			     const struct real *q_gain, const struct real *k_gain, const struct attention_shape *s, float epsilon)
{
	cuda *c = cuda_of(be);
	uint32_t T = c->n_positions, heads = s->n_heads + 2 * s->n_kv_heads;
	uint32_t chunk = plan_chunk_rows(CUDA_SCRATCH_BYTES / 2, (s->n_heads + s->n_kv_heads) * sizeof(float), T);
	uint64_t n = (uint64_t)T * heads;
	if (backend_failed(be) || !n)
		return;
	with_act(c, [&](auto *type) {
		using A = ACT_TYPE(type);
		for (uint32_t first = 0; first < T; first += chunk) {     // before dx overwrites dy
			size_t at = (size_t)first * heads * s->head_size;
			gains_add(be, real_of(dq_gain), real_of(dk_gain), (const A *)dy + at, (const A *)x + at, s, epsilon,
				min(chunk, T - first));
		}
		cuda_launch(be, "head_norm_backward", (uint32_t)((n + WARPS - 1) / WARPS), CUDA_BLOCK, 0, backward_kernel<A>, (A *)dx,
			    (const A *)dy, (const A *)x, real_of(q_gain), real_of(k_gain), *s, epsilon, n);
	});
}
