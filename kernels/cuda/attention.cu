// SPDX-License-Identifier: Apache-2.0
// Attention over packed sequences or from a cache, without a [T x T] matrix: the tensor-core form where it fits (attention_tensor.cu); here
// the plain one, in float, for float32 acts and head sizes that are not whole vectors: a thread is a lane, keys pass through shared memory.
#include "kernels/cuda/attention.cuh"

#define LANES CUDA_MAX_GROUP

// n keys or values of one kv head into shared memory as floats; columns D..D_MAX are zero.
template <int D_MAX, typename A> static __device__ void load_keys(float (*to)[D_MAX], const A *from, const attention_input<A> &in,
								  const cuda_tile &at,
								  uint32_t first, uint32_t n)
{
	for (uint32_t i = threadIdx.x; i < n * D_MAX; i += blockDim.x) {
		uint32_t j = i / D_MAX, d = i % D_MAX, D = in.shape.head_size;
		to[j][d] = d < D ? to_float(from[key_row(in, at, first + j) * in.stride + blockIdx.y * (size_t)D + d]) : 0.0f;
	}
}

template <int D_MAX> struct running { float q[D_MAX], sum[D_MAX], max, total; };

template <int D_MAX> static __device__ void running_take(running<D_MAX> *r, const float *key, const float *value, const attention_shape &s)
{
	float score = 0;
#pragma unroll
	for (int d = 0; d < D_MAX; d++)
		score += r->q[d] * key[d];
	score = cap_score(s, score * s.scale);
	if (score > r->max) {
		float shrink = expf(r->max - score);
		r->total *= shrink;
#pragma unroll
		for (int d = 0; d < D_MAX; d++)
			r->sum[d] *= shrink;
		r->max = score;
	}
	float p = expf(score - r->max);
	r->total += p;
#pragma unroll
	for (int d = 0; d < D_MAX; d++)
		r->sum[d] += p * value[d];
}

template <int D_MAX, int TILE, typename A> static __global__ void attention_kernel(A *y, float *lse, attention_input<A> in)
{
	__shared__ float keys[TILE][D_MAX], values[TILE][D_MAX];
	cuda_tile at = in.tiles[blockIdx.x];
	uint32_t D = in.shape.head_size, group = in.shape.n_heads / in.shape.n_kv_heads, row = threadIdx.x / group;
	bool mine = row < at.n_rows;
	size_t head = blockIdx.y * group + threadIdx.x % group, to = (at.row + (mine ? row : 0)) * (size_t)in.shape.n_heads + head;
	running<D_MAX> r;
	r.max = -INFINITY;
	r.total = 0;
#pragma unroll
	for (int d = 0; d < D_MAX; d++) {
		r.q[d] = mine && d < (int)D ? to_float(in.q[(at.row + row) * in.q_stride + head * D + d]) : 0.0f;
		r.sum[d] = 0;
	}
	uint32_t end = keys_of_tile(in.shape, at), seen = keys_of_row(in.shape, at, at.position + row);
	uint32_t from = first_key_of_row(in.shape, at.position + row);
	for (uint32_t first = first_key_of_row(in.shape, at.position) / TILE * TILE; first < end; first += TILE) {
		uint32_t n = min((uint32_t)TILE, end - first);
		__syncthreads();
		load_keys<D_MAX>(keys, in.k, in, at, first, n);
		load_keys<D_MAX>(values, in.v, in, at, first, n);
		__syncthreads();
		for (uint32_t j = from > first ? from - first : 0; mine && j < n && first + j < seen; j++)
			running_take(&r, keys[j], values[j], in.shape);
	}
	if (!mine)
		return;
#pragma unroll
	for (int d = 0; d < D_MAX; d++)
		if (d < (int)D)
			y[to * D + d] = from_float<A>(r.sum[d] / r.total);
	if (lse)
		lse[to] = r.max + logf(r.total);
}

template <typename A> static void attend_plain(backend *be, A *y, float *lse, attention_input<A> in, bool cached)
{
	uint32_t D = in.shape.head_size, group = in.shape.n_heads / in.shape.n_kv_heads;
	assert(D <= CUDA_MAX_HEAD_SIZE && group <= CUDA_MAX_GROUP);
	const cuda_tiles *tiles = cuda_tiles_of(be, 0, LANES / group, cached);
	if (!tiles)
		return;
	in.tiles = tiles->device;
	dim3 grid(tiles->n, in.shape.n_kv_heads);
	if (D <= 32)
		cuda_launch(be, "attention", grid, LANES, 0, attention_kernel<32, 32, A>, y, lse, in);
	else if (D <= 64)
		cuda_launch(be, "attention", grid, LANES, 0, attention_kernel<64, 32, A>, y, lse, in);
	else if (D <= 128)
		cuda_launch(be, "attention", grid, LANES, 0, attention_kernel<128, 32, A>, y, lse, in);
	else
		cuda_launch(be, "attention", grid, LANES, 0, attention_kernel<256, 16, A>, y, lse, in);
}

// cache NULL: keys and values of the batch itself.
static void attend(backend *be, struct act *y, float *lse, const struct act *qkv, const struct act *cache, const attention_shape *s)
{
	cuda *c = cuda_of(be);
	if (backend_failed(be) || !c->n_positions)
		return;
	if (attention_tensor_fits(c, s)) {
		attention_tensor(be, (__nv_bfloat16 *)y, lse, input_of(c, (const __nv_bfloat16 *)qkv, (const __nv_bfloat16 *)cache, s), cache != NULL);
		return;
	}
	with_act(c, [&](auto *type) {
		using A = ACT_TYPE(type);
		attend_plain(be, (A *)y, lse, input_of(c, (const A *)qkv, (const A *)cache, s), cache != NULL);
	});
}

void cuda_attention(backend *be, struct act *y, struct real *lse, const struct act *qkv, const struct attention_shape *s)
{
	attend(be, y, real_of(lse), qkv, NULL, s);
}

void cuda_attention_cached(backend *be, struct act *y, const struct act *qkv, const struct act *cache, const struct attention_shape *s)
{
	attend(be, y, NULL, qkv, cache, s);
}

// One block per tile of rows: k and v of a row lie together, in the batch and in the cache.
template <typename A> static __global__ void cache_kernel(A *cache, attention_input<A> in)
{
	cuda_tile at = in.tiles[blockIdx.x];
	size_t width = 2 * (size_t)in.shape.n_kv_heads * in.shape.head_size;
	for (uint32_t r = 0; r < at.n_rows; r++) {
		const A *from = in.q + (at.row + r) * in.q_stride + (size_t)in.shape.n_heads * in.shape.head_size;
		A *to = cache + key_row(in, at, at.position + r) * width;
		for (uint32_t i = threadIdx.x; i < width; i += blockDim.x)
			to[i] = from[i];
	}
}

void cuda_cache_write(backend *be, struct act *cache, const struct act *qkv, const struct attention_shape *s)
{
	cuda *c = cuda_of(be);
	uint32_t group = s->n_heads / s->n_kv_heads, lanes = attention_tensor_fits(c, s) ? 128 : LANES;
	if (backend_failed(be) || !c->n_positions)
		return;
	const cuda_tiles *tiles = cuda_tiles_of(be, 0, group < lanes ? lanes / group : 1, true);    // those attention_cached will want
	if (!tiles)
		return;
	with_act(c, [&](auto *type) {
		using A = ACT_TYPE(type);
		attention_input<A> in = input_of(c, (const A *)qkv, (const A *)cache, s);
		in.tiles = tiles->device;
		cuda_launch(be, "cache_write", tiles->n, CUDA_BLOCK, 0, cache_kernel<A>, (A *)cache, in);
	});
}
