// SPDX-License-Identifier: Apache-2.0
// Causal attention over packed sequences and its gradients, without a [T x T] matrix: each thread owns one query row (or one key row on
// the way back) and walks the other side tile by tile through shared memory. Tiles are aligned to the sequence's own start, and
// every sum runs in position order, so a row's bits do not depend on its neighbours. The simplest form that is correct; tensor
// cores come with measurements.
#include "kernels/cuda/cuda.cuh"

#define ROWS 64     // rows a block owns, one per thread
#define TILE 32     // rows of the other side in shared memory at a time

struct tile {
	uint32_t start, length;    // the sequence: first row in the batch, rows
	uint32_t first;            // this block's first row within the sequence; >= length: nothing to do
};

// The i-th tile of ROWS rows, counting through the sequences in order.
static __device__ tile tile_find(const uint32_t *starts, uint32_t n_sequences, uint32_t i)
{
	for (uint32_t s = 0; s < n_sequences; s++) {
		uint32_t length = starts[s + 1] - starts[s], tiles = (length + ROWS - 1) / ROWS;
		if (i < tiles)
			return tile{starts[s], length, i * ROWS};
		i -= tiles;
	}
	return tile{0, 0, 0};
}

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

template <int D_MAX, typename A> static __global__ void attention_kernel(A *y, float *lse, const A *qkv, const uint32_t *starts, uint32_t n_sequences, attention_shape s)
{
	__shared__ float keys[TILE][D_MAX], values[TILE][D_MAX];
	tile at = tile_find(starts, n_sequences, blockIdx.x);
	uint32_t D = s.head_size, head = blockIdx.y, kv = head / (s.n_heads / s.n_kv_heads), row = at.first + threadIdx.x;
	size_t W = (size_t)(s.n_heads + 2 * s.n_kv_heads) * D, here = at.start + row;
	bool mine = row < at.length;
	float q[D_MAX], sum[D_MAX], max = -INFINITY, total = 0;
	load_row<D_MAX>(q, qkv + (mine ? here : 0) * W + head * D, D);
	for (int d = 0; d < D_MAX; d++)
		sum[d] = 0;
	uint32_t end = min(at.first + ROWS, at.length);    // no row of this block looks further
	for (uint32_t first = 0; first < end; first += TILE) {
		uint32_t n = min((uint32_t)TILE, end - first);
		const A *k = qkv + (size_t)(at.start + first) * W + (size_t)(s.n_heads + kv) * D;
		__syncthreads();
		load_rows<D_MAX>(keys, k, W, n, D);
		load_rows<D_MAX>(values, k + (size_t)s.n_kv_heads * D, W, n, D);
		__syncthreads();
		for (uint32_t j = 0; mine && j < n && first + j <= row; j++) {
			float score = s.scale * dot<D_MAX>(q, keys[j]);
			if (score > max) {
				float shrink = expf(max - score);
				total *= shrink;
				for (int d = 0; d < D_MAX; d++)
					sum[d] *= shrink;
				max = score;
			}
			float p = expf(score - max);
			total += p;
			add_scaled<D_MAX>(sum, p, values[j]);
		}
	}
	if (!mine)
		return;
	store_row<D_MAX>(y + (here * s.n_heads + head) * D, sum, 1.0f / total, D);
	if (lse)
		lse[here * s.n_heads + head] = max + logf(total);
}

// Gradient of the query rows: dq = sum over keys of ds k, ds = p (dy.v - delta) scale, delta = dy.y
template <int D_MAX, typename A> static __global__ void query_backward_kernel(A *dqkv, const A *dy, const A *qkv, const A *y, const float *lse, const uint32_t *starts,
									      uint32_t n_sequences, attention_shape s)
{
	__shared__ float keys[TILE][D_MAX], values[TILE][D_MAX];
	tile at = tile_find(starts, n_sequences, blockIdx.x);
	uint32_t D = s.head_size, head = blockIdx.y, kv = head / (s.n_heads / s.n_kv_heads), row = at.first + threadIdx.x;
	size_t W = (size_t)(s.n_heads + 2 * s.n_kv_heads) * D;
	bool mine = row < at.length;
	size_t here = mine ? at.start + row : 0, out = (here * s.n_heads + head) * D;
	float q[D_MAX], g[D_MAX], dq[D_MAX];
	load_row<D_MAX>(dq, y + out, D);
	load_row<D_MAX>(g, dy + out, D);
	float delta = dot<D_MAX>(g, dq), normal = mine ? lse[here * s.n_heads + head] : 0;
	load_row<D_MAX>(q, qkv + here * W + head * D, D);
	for (int d = 0; d < D_MAX; d++)
		dq[d] = 0;
	uint32_t end = min(at.first + ROWS, at.length);
	for (uint32_t first = 0; first < end; first += TILE) {
		uint32_t n = min((uint32_t)TILE, end - first);
		const A *k = qkv + (size_t)(at.start + first) * W + (size_t)(s.n_heads + kv) * D;
		__syncthreads();
		load_rows<D_MAX>(keys, k, W, n, D);
		load_rows<D_MAX>(values, k + (size_t)s.n_kv_heads * D, W, n, D);
		__syncthreads();
		for (uint32_t j = 0; mine && j < n && first + j <= row; j++) {
			float p = expf(s.scale * dot<D_MAX>(q, keys[j]) - normal);
			add_scaled<D_MAX>(dq, p * (dot<D_MAX>(g, values[j]) - delta), keys[j]);
		}
	}
	if (mine)
		store_row<D_MAX>(dqkv + here * W + head * D, dq, s.scale, D);
}

// Gradients of the key and value rows: each thread owns a key and walks the later queries of every head of its group.
template <int D_MAX, typename A> static __global__ void key_backward_kernel(A *dqkv, const A *dy, const A *qkv, const A *y, const float *lse, const uint32_t *starts,
									    uint32_t n_sequences, attention_shape s)
{
	__shared__ float queries[TILE][D_MAX], gradients[TILE][D_MAX], deltas[TILE], normals[TILE];
	tile at = tile_find(starts, n_sequences, blockIdx.x);
	uint32_t D = s.head_size, kv = blockIdx.y, group = s.n_heads / s.n_kv_heads, row = at.first + threadIdx.x;
	size_t W = (size_t)(s.n_heads + 2 * s.n_kv_heads) * D;
	bool mine = row < at.length;
	size_t here = mine ? at.start + row : 0, k_at = here * W + (size_t)(s.n_heads + kv) * D, v_at = k_at + (size_t)s.n_kv_heads * D;
	float k[D_MAX], v[D_MAX], dk[D_MAX], dv[D_MAX];
	load_row<D_MAX>(k, qkv + k_at, D);
	load_row<D_MAX>(v, qkv + v_at, D);
	for (int d = 0; d < D_MAX; d++)
		dk[d] = dv[d] = 0;
	for (uint32_t head = kv * group; head < (kv + 1) * group; head++) {
		for (uint32_t first = at.first / TILE * TILE; first < at.length; first += TILE) {
			uint32_t n = min((uint32_t)TILE, at.length - first);
			size_t query = at.start + first, out = (query * s.n_heads + head) * D;
			__syncthreads();
			load_rows<D_MAX>(queries, qkv + query * W + head * D, W, n, D);
			load_rows<D_MAX>(gradients, dy + out, (size_t)s.n_heads * D, n, D);
			__syncthreads();
			if (threadIdx.x < n) {
				float delta = 0;
				for (uint32_t d = 0; d < D; d++)
					delta += gradients[threadIdx.x][d] * to_float(y[out + (size_t)threadIdx.x * s.n_heads * D + d]);
				deltas[threadIdx.x] = delta;
				normals[threadIdx.x] = lse[(query + threadIdx.x) * s.n_heads + head];
			}
			__syncthreads();
			for (uint32_t i = 0; mine && i < n; i++) {
				if (first + i < row)
					continue;
				float p = expf(s.scale * dot<D_MAX>(queries[i], k) - normals[i]);
				add_scaled<D_MAX>(dv, p, gradients[i]);
				add_scaled<D_MAX>(dk, p * (dot<D_MAX>(gradients[i], v) - deltas[i]), queries[i]);
			}
		}
	}
	if (!mine)
		return;
	store_row<D_MAX>(dqkv + k_at, dk, s.scale, D);
	store_row<D_MAX>(dqkv + v_at, dv, 1.0f, D);
}

// Picks the compiled head size that holds D; f is called with an integral constant.
template <typename F> static void with_head_size(backend *be, uint32_t D, F f)
{
	if (D <= 32)
		f(std::integral_constant<int, 32>());
	else if (D <= 64)
		f(std::integral_constant<int, 64>());
	else if (D <= 128)
		f(std::integral_constant<int, 128>());
	else
		backend_fail(be, "attention heads of %u values: the CUDA backend takes up to 128", D);
}

// Upper bound of the tiles of a packed batch: every sequence may end in a part tile.
static uint32_t tiles_of(const cuda *c) { return c->n_positions / ROWS + c->n_sequences; }

void cuda_attention(backend *be, struct act *y, struct real *lse, const struct act *qkv, const struct attention_shape *s)
{
	cuda *c = cuda_of(be);
	if (backend_failed(be) || !c->n_positions)
		return;
	dim3 grid(tiles_of(c), s->n_heads);
	with_act(c, [&](auto *type) {
		using A = ACT_TYPE(type);
		with_head_size(be, s->head_size, [&](auto size) {
			attention_kernel<decltype(size)::value, A><<<grid, ROWS, 0, c->stream>>>((A *)y, real_of(lse), (const A *)qkv, c->starts, c->n_sequences, *s);
		});
	});
	CUDA_LAUNCHED(be, "attention");
}

void cuda_attention_backward(backend *be, struct act *dqkv, const struct act *dy, const struct act *qkv, const struct act *y, const struct real *lse,
			     const struct attention_shape *s)
{
	cuda *c = cuda_of(be);
	if (backend_failed(be) || !c->n_positions)
		return;
	dim3 by_query(tiles_of(c), s->n_heads), by_key(tiles_of(c), s->n_kv_heads);
	with_act(c, [&](auto *type) {
		using A = ACT_TYPE(type);
		with_head_size(be, s->head_size, [&](auto size) {
			constexpr int D_MAX = decltype(size)::value;
			query_backward_kernel<D_MAX, A><<<by_query, ROWS, 0, c->stream>>>((A *)dqkv, (const A *)dy, (const A *)qkv, (const A *)y, real_of(lse), c->starts,
											   c->n_sequences, *s);
			key_backward_kernel<D_MAX, A><<<by_key, ROWS, 0, c->stream>>>((A *)dqkv, (const A *)dy, (const A *)qkv, (const A *)y, real_of(lse), c->starts,
										       c->n_sequences, *s);
		});
	});
	CUDA_LAUNCHED(be, "attention_backward");
}
