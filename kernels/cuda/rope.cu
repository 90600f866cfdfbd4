// SPDX-License-Identifier: Apache-2.0
// Rotary embedding of the q and k heads in place, halves convention; the inverse is the backward pass.
#include "kernels/cuda/cuda.cuh"

template <typename A> static __global__ void rope_kernel(A *qkv, const float *cosine, const float *sine, const uint32_t *positions, attention_shape s, float sign)
{
	uint32_t t = blockIdx.x, half = s.head_size / 2, turned = s.n_heads + s.n_kv_heads, W = (s.n_heads + 2 * s.n_kv_heads) * s.head_size;
	A *row = qkv + (size_t)t * W;
	for (uint32_t i = threadIdx.x; i < turned * half; i += blockDim.x) {
		uint32_t head = i / half, j = i % half;
		A *x = row + head * s.head_size + j;
		float co = cosine[(size_t)positions[t] * half + j], si = sign * sine[(size_t)positions[t] * half + j];
		float low = to_float(x[0]), high = to_float(x[half]);
		x[0] = from_float<A>(low * co - high * si);
		x[half] = from_float<A>(high * co + low * si);
	}
}

void cuda_rope(backend *be, struct act *qkv, const struct real *cosine, const struct real *sine, const struct attention_shape *s, bool inverse)
{
	cuda *c = cuda_of(be);
	if (backend_failed(be) || !c->n_positions)
		return;
	with_act(c, [&](auto *type) {
		using A = ACT_TYPE(type);
		rope_kernel<A><<<c->n_positions, CUDA_BLOCK, 0, c->stream>>>((A *)qkv, real_of(cosine), real_of(sine), c->positions, *s, inverse ? -1.0f : 1.0f);
	});
	CUDA_LAUNCHED(be, "rope");
}
