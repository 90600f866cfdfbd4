// SPDX-License-Identifier: Apache-2.0
// Rotary position embedding on the query and key heads of a fused row; pairs are (x[i], x[i + R/2]), and what follows the first R
// dimensions of a head stays. A rotation's backward is its inverse.
#include "kernels/ref/ref.h"

static void rotate(double *x, const double *cosine, const double *sine, size_t half, double sign)
{
	for (size_t i = 0; i < half; i++) {
		double a = x[i], b = x[i + half], s = sign * sine[i];
		x[i] = a * cosine[i] - b * s;
		x[i + half] = b * cosine[i] + a * s;
	}
}

void ref_rope(struct backend *be, struct act *qkv, const struct real *cosine, const struct real *sine, uint32_t R,
	      const struct attention_shape *shape, bool inverse)
{
	const struct ref *ref = ref_of(be);
	size_t D = shape->head_size, NH = shape->n_heads, NKV = shape->n_kv_heads, W = (NH + 2 * NKV) * D, half = R / 2;
	for (uint32_t t = 0; t < ref->n_positions; t++) {
		const double *c = ref_real_in(cosine) + ref->positions[t] * half, *s = ref_real_in(sine) + ref->positions[t] * half;
		for (size_t h = 0; h < NH + NKV; h++)
			rotate(ref_act(qkv) + t * W + h * D, c, s, half, inverse ? -1 : 1);
	}
}
