// SPDX-License-Identifier: Apache-2.0
// Private to attention*.cu: where queries, keys and values lie, for a whole batch and for a cache alike.
//
// A block of threads takes the heads of one kv head for a tile of rows; a lane is one row and one of its heads: lane l is row l / group,
// head l % group of them, so that few rows of many heads fill a block too. Keys are walked in steps that begin at position 0 of the
// sequence, and what a lane computes depends on its own query and the keys up to its own position, in that order: a key it must not see
// adds an exact 0, and a step of only such keys rescales by an exact 1 (or is left out). So a row has the same bits in any batch, tile or pass.
#pragma once

#include "kernels/cuda/cuda.cuh"

template <typename A> struct attention_input {
	const A *q;                  // (T, W)
	const A *k, *v;              // row 0, kv head 0
	size_t q_stride, stride;     // of rows of q, and of k and v
	const uint32_t *slots;       // key j of a tile is in row slots[tile.keys + j]; NULL: in row tile.keys + j
	const cuda_tile *tiles;
	attention_shape shape;
};

template <typename A> static __device__ __forceinline__ size_t key_row(const attention_input<A> &in, const cuda_tile &at, uint32_t j)
{
	return in.slots ? in.slots[at.keys + j] : at.keys + j;
}

// How many keys, from position 0, the rows of a tile look at in all, and how many the row at `position` sees.
static __device__ __forceinline__ uint32_t keys_of_tile(const attention_shape &s, const cuda_tile &at)
{
	return s.bidirectional ? at.end - at.keys : at.position + at.n_rows;
}
static __device__ __forceinline__ uint32_t keys_of_row(const attention_shape &s, const cuda_tile &at, uint32_t position)
{
	return s.bidirectional ? at.end - at.keys : position + 1;
}

// The first key that the row at `position` sees.
static __device__ __forceinline__ uint32_t first_key_of_row(const attention_shape &s, uint32_t position)
{
	return s.window && position >= s.window ? position - s.window + 1 : 0;
}

// A scaled score under the cap, and the cap's slope where the capped score is c.
static __device__ __forceinline__ float cap_score(const attention_shape &s, float x)
{
	return s.soft_cap > 0 ? s.soft_cap * tanhf(x / s.soft_cap) : x;
}
static __device__ __forceinline__ float cap_slope(const attention_shape &s, float c)
{
	float t = s.soft_cap > 0 ? c / s.soft_cap : 0.0f;
	return 1.0f - t * t;
}

// Keys and values of the batch itself (cache NULL) or of a cache.
template <typename A> static inline attention_input<A> input_of(const cuda *c, const A *qkv, const A *cache, const attention_shape *s)
{
	size_t D = s->head_size, W = (s->n_heads + 2 * (size_t)s->n_kv_heads) * D;
	attention_input<A> in = {};
	in.q = qkv;
	in.q_stride = W;
	in.k = cache ? cache : qkv + s->n_heads * D;
	in.v = in.k + s->n_kv_heads * D;
	in.stride = cache ? 2 * s->n_kv_heads * D : W;
	in.slots = cache ? c->slots : NULL;
	in.shape = *s;
	return in;
}

// Tensor cores: bfloat16, head sizes that are multiples of 8 and at most 256, keys and values in the shared memory there is.
bool attention_tensor_fits(const cuda *c, const attention_shape *s);
void attention_tensor(backend *be, __nv_bfloat16 *y, float *lse, const attention_input<__nv_bfloat16> &in, bool cached);
