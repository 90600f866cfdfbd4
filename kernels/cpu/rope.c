// SPDX-License-Identifier: Apache-2.0
// Rotary position embedding on the query and key heads of a fused row; pairs are (x[i], x[i + R/2]), and what follows the first R
// dimensions of a head stays. A rotation's backward is its inverse.
#include "kernels/cpu/cpu.h"

void cpu_rope(struct backend *be, struct act *qkv, const struct real *cosine, const struct real *sine, uint32_t R,
	      const struct attention_shape *shape, bool inverse)
{
	const struct cpu *cpu = cpu_of(be);
	size_t D = shape->head_size, NH = shape->n_heads, NKV = shape->n_kv_heads, W = (NH + 2 * NKV) * D, half = R / 2;

#pragma omp parallel for schedule(static) num_threads(cpu->n_threads)
	for (uint32_t t = 0; t < cpu->n_positions; t++) {
		const float *c = cpu_real_in(cosine) + cpu->positions[t] * half, *s = cpu_real_in(sine) + cpu->positions[t] * half;
		for (size_t h = 0; h < NH + NKV; h++)
			cpu->vector->rotate(cpu_act(qkv) + t * W + h * D, c, s, inverse ? -1 : 1, half);
	}
}
