// SPDX-License-Identifier: Apache-2.0
// Rotary embedding of the first R dimensions of q and k heads in place, halves convention; the inverse is the backward pass.
#include "kernels/cuda/cuda.cuh"

// One block per row; a thread takes N neighbouring pairs of one head.
template <int N, typename A> static __global__ void rope_kernel(A *qkv, const float *cosine, const float *sine, const uint32_t *positions,
								uint32_t half, attention_shape s,
								float sign)
{
	uint32_t turned = s.n_heads + s.n_kv_heads;
	A *row = qkv + (size_t)blockIdx.x * (s.n_heads + 2 * s.n_kv_heads) * s.head_size;
	size_t table = (size_t)positions[blockIdx.x] * half;
	for (uint32_t i = threadIdx.x * N; i < turned * half; i += blockDim.x * N) {
		uint32_t head = i / half, j = i % half;
		A *x = row + (size_t)head * s.head_size + j;
		cuda_pack<float, N> co = load_pack<N>(cosine + table + j), si = load_pack<N>(sine + table + j);
		cuda_pack<A, N> low = load_pack<N>(x), high = load_pack<N>(x + half), new_low, new_high;
		for (int k = 0; k < N; k++) {
			float l = to_float(low.v[k]), h = to_float(high.v[k]);
			new_low.v[k] = from_float<A>(l * co.v[k] - h * sign * si.v[k]);
			new_high.v[k] = from_float<A>(h * co.v[k] + l * sign * si.v[k]);
		}
		store_pack(x, new_low);
		store_pack(x + half, new_high);
	}
}

void cuda_rope(backend *be, struct act *qkv, const struct real *cosine, const struct real *sine, uint32_t R,
	       const struct attention_shape *s, bool inverse)
{
	cuda *c = cuda_of(be);
	uint32_t half = R / 2;
	if (backend_failed(be) || !c->n_positions)
		return;
	with_act(c, [&](auto *type) {
		using A = ACT_TYPE(type);
		bool fit = s->head_size % 4 == 0 && packs_fit<4>((const A *)qkv, half) && packs_fit<4>(real_of(cosine), half) &&
			   packs_fit<4>(real_of(sine), half);
		with_packs<4>(fit, [&](auto n) {
			cuda_launch(be, "rope", c->n_positions, CUDA_BLOCK, 0, rope_kernel<decltype(n)::value, A>, (A *)qkv,
				    real_of(cosine), real_of(sine), c->positions, half, *s, inverse ? -1.0f : 1.0f);
		});
	});
}
