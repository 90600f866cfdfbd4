// SPDX-License-Identifier: Apache-2.0
// Gradients of attention over packed sequences, without a [T x T] matrix: probabilities are computed again from lse. Each thread owns
// one query row, then one key row, and walks the other side tile by tile through shared memory; every sum runs in position order.
#include "kernels/cuda/attention.cuh"

#define ROWS 64     // rows a block owns, one per thread

// n rows of D values from `from` (row stride `stride`) into shared memory as floats; columns D..D_MAX are zero.
template <int D_MAX, typename A> static __device__ void load_rows(float (*to)[D_MAX], const A *from, size_t stride, uint32_t n, uint32_t D)
{
	for (uint32_t i = threadIdx.x; i < n * D_MAX; i += blockDim.x)
		to[i / D_MAX][i % D_MAX] = i % D_MAX < D ? to_float(from[i / D_MAX * stride + i % D_MAX]) : 0.0f;
}

template <int D_MAX, typename A> static __device__ void load_row(float *to, const A *from, uint32_t D)
{
#pragma unroll
	for (int d = 0; d < D_MAX; d++)
		to[d] = d < (int)D ? to_float(from[d]) : 0.0f;
}

template <int D_MAX> static __device__ float dot(const float *a, const float *b)
{
	float sum = 0;
#pragma unroll
	for (int d = 0; d < D_MAX; d++)
		sum += a[d] * b[d];
	return sum;
}

template <int D_MAX> static __device__ void add_scaled(float *to, float scale, const float *from)
{
#pragma unroll
	for (int d = 0; d < D_MAX; d++)
		to[d] += scale * from[d];
}

template <int D_MAX, typename A> static __device__ void store_row(A *to, const float *from, float scale, uint32_t D)
{
#pragma unroll
	for (int d = 0; d < D_MAX; d++)
		if (d < (int)D)
			to[d] = from_float<A>(from[d] * scale);
}

template <typename A> struct backward_input {
	A *dqkv;                     // (T, W)
	const A *dy, *qkv, *y;       // (T, NH D), (T, W), (T, NH D)
	const float *lse;            // (T, NH)
	const cuda_tile *tiles;
	attention_shape shape;
};

// dq = sum over keys of ds k, ds = p (dy.v - delta) scale, delta = dy.y
template <int D_MAX, int TILE, typename A> static __global__ void query_kernel(backward_input<A> in)
{
	__shared__ float keys[TILE][D_MAX], values[TILE][D_MAX];
	const attention_shape s = in.shape;
	cuda_tile at = in.tiles[blockIdx.x];
	uint32_t D = s.head_size, head = blockIdx.y, kv = head / (s.n_heads / s.n_kv_heads), row = at.position + threadIdx.x;
	size_t W = (size_t)(s.n_heads + 2 * s.n_kv_heads) * D;
	bool mine = threadIdx.x < at.n_rows;
	size_t here = at.row + (mine ? threadIdx.x : 0), out = (here * s.n_heads + head) * D;
	float q[D_MAX], g[D_MAX], dq[D_MAX];
	load_row<D_MAX>(dq, in.y + out, D);
	load_row<D_MAX>(g, in.dy + out, D);
	float delta = dot<D_MAX>(g, dq), normal = in.lse[here * s.n_heads + head];
	load_row<D_MAX>(q, in.qkv + here * W + head * D, D);
	for (int d = 0; d < D_MAX; d++)
		dq[d] = 0;
	uint32_t end = keys_of_tile(s, at), seen = keys_of_row(s, at, row), from = first_key_of_row(s, row);
	for (uint32_t first = first_key_of_row(s, at.position) / TILE * TILE; first < end; first += TILE) {
		uint32_t n = min((uint32_t)TILE, end - first);
		const A *k = in.qkv + (size_t)(at.keys + first) * W + (size_t)(s.n_heads + kv) * D;
		__syncthreads();
		load_rows<D_MAX>(keys, k, W, n, D);
		load_rows<D_MAX>(values, k + (size_t)s.n_kv_heads * D, W, n, D);
		__syncthreads();
		for (uint32_t j = from > first ? from - first : 0; mine && j < n && first + j < seen; j++) {
			float score = cap_score(s, s.scale * dot<D_MAX>(q, keys[j])), p = expf(score - normal);
			add_scaled<D_MAX>(dq, p * cap_slope(s, score) * (dot<D_MAX>(g, values[j]) - delta), keys[j]);
		}
	}
	if (mine)
		store_row<D_MAX>(in.dqkv + here * W + head * D, dq, s.scale, D);
}

// Queries first..first+n-1 of a sequence (counted from its start) for one head: their rows, gradients, delta and lse.
template <int D_MAX, int TILE> struct query_tile { float q[TILE][D_MAX], dy[TILE][D_MAX], delta[TILE], lse[TILE]; };

template <int D_MAX, int TILE, typename A> static __device__ void query_tile_load(query_tile<D_MAX, TILE> *t, const backward_input<A> &in,
										  uint32_t head,
										  size_t query, uint32_t n)
{
	uint32_t NH = in.shape.n_heads, D = in.shape.head_size;
	size_t W = (size_t)(NH + 2 * in.shape.n_kv_heads) * D, out = (query * NH + head) * D;
	__syncthreads();
	load_rows<D_MAX>(t->q, in.qkv + query * W + head * D, W, n, D);
	load_rows<D_MAX>(t->dy, in.dy + out, (size_t)NH * D, n, D);
	__syncthreads();
	if (threadIdx.x < n) {
		float delta = 0;
		for (uint32_t d = 0; d < D; d++)
			delta += t->dy[threadIdx.x][d] * to_float(in.y[out + (size_t)threadIdx.x * NH * D + d]);
		t->delta[threadIdx.x] = delta;
		t->lse[threadIdx.x] = in.lse[(query + threadIdx.x) * NH + head];
	}
	__syncthreads();
}

// Gradients of the key and value rows: each thread owns a key and walks the later queries of every head of its group.
template <int D_MAX, int TILE, typename A> static __global__ void key_kernel(backward_input<A> in)
{
	__shared__ query_tile<D_MAX, TILE> t;
	const attention_shape s = in.shape;
	cuda_tile at = in.tiles[blockIdx.x];
	uint32_t D = s.head_size, kv = blockIdx.y, group = s.n_heads / s.n_kv_heads, row = at.position + threadIdx.x,
		length = at.end - at.keys;
	size_t W = (size_t)(s.n_heads + 2 * s.n_kv_heads) * D;
	bool mine = threadIdx.x < at.n_rows;
	size_t here = at.row + (mine ? threadIdx.x : 0), k_at = here * W + (size_t)(s.n_heads + kv) * D,
		v_at = k_at + (size_t)s.n_kv_heads * D;
	float k[D_MAX], v[D_MAX], dk[D_MAX], dv[D_MAX];
	load_row<D_MAX>(k, in.qkv + k_at, D);
	load_row<D_MAX>(v, in.qkv + v_at, D);
	for (int d = 0; d < D_MAX; d++)
		dk[d] = dv[d] = 0;
	// Beyond `end` no query sees a key of this tile.
	uint32_t end = s.window && length - at.position - at.n_rows > s.window ? at.position + at.n_rows + s.window : length;
	for (uint32_t head = kv * group; head < (kv + 1) * group; head++) {
		for (uint32_t first = s.bidirectional ? 0 : at.position / TILE * TILE; first < end; first += TILE) {
			uint32_t n = min((uint32_t)TILE, length - first);
			query_tile_load(&t, in, head, (size_t)at.keys + first, n);
			for (uint32_t i = 0; mine && i < n; i++) {
				if ((first + i < row && !s.bidirectional) || first_key_of_row(s, first + i) > row)
					continue;
				float score = cap_score(s, s.scale * dot<D_MAX>(t.q[i], k)), p = expf(score - t.lse[i]);
				add_scaled<D_MAX>(dv, p, t.dy[i]);
				add_scaled<D_MAX>(dk, p * cap_slope(s, score) * (dot<D_MAX>(t.dy[i], v) - t.delta[i]), t.q[i]);
			}
		}
	}
	if (!mine)
		return;
	store_row<D_MAX>(in.dqkv + k_at, dk, s.scale, D);
	store_row<D_MAX>(in.dqkv + v_at, dv, 1.0f, D);
}

template <int D_MAX, int TILE, typename A> static void launch(backend *be, const backward_input<A> &in, uint32_t n_tiles)
{
	cuda_launch(be, "attention_backward", dim3(n_tiles, in.shape.n_heads), ROWS, 0, query_kernel<D_MAX, TILE, A>, in);
	cuda_launch(be, "attention_backward", dim3(n_tiles, in.shape.n_kv_heads), ROWS, 0, key_kernel<D_MAX, TILE, A>, in);
}

void cuda_attention_backward(backend *be, struct act *dqkv, const struct act *dy, const struct act *qkv, const struct act *y,
			     const struct real *lse,
			     const struct attention_shape *s)
{
	cuda *c = cuda_of(be);
	if (backend_failed(be) || !c->n_positions)
		return;
	assert(s->head_size <= CUDA_MAX_HEAD_SIZE);
	const cuda_tiles *tiles = cuda_tiles_of(be, 1, ROWS, false);
	if (!tiles)
		return;
	with_act(c, [&](auto *type) {
		using A = ACT_TYPE(type);
		backward_input<A> in = {(A *)dqkv, (const A *)dy, (const A *)qkv, (const A *)y, real_of(lse), tiles->device, *s};
		if (s->head_size <= 32)
			launch<32, 32>(be, in, tiles->n);
		else if (s->head_size <= 64)
			launch<64, 32>(be, in, tiles->n);
		else if (s->head_size <= 128)
			launch<128, 32>(be, in, tiles->n);
		else
			launch<256, 16>(be, in, tiles->n);
	});
}
