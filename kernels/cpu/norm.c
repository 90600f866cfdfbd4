// SPDX-License-Identifier: Apache-2.0
// Root-mean-square norm of whole rows, and of single query and key heads.
//
// Gradients of gains sum over rows. For whole rows each thread owns columns; heads are too narrow for that, so there each block of
// rows makes a partial sum and the partial sums add in order.
#include <string.h>

#include "kernels/cpu/cpu.h"

#define COLUMNS 64
#define BLOCK_ROWS 64

void cpu_rmsnorm(struct backend *be, struct act *y, const struct real *x, const struct real *gain, float epsilon, uint32_t rows, uint32_t C)
{
	const struct cpu *cpu = cpu_of(be);

#pragma omp parallel for schedule(static) num_threads(cpu->n_threads)
	for (size_t r = 0; r < rows; r++)
		cpu->vector->rmsnorm(cpu_act(y) + r * C, cpu_real_in(x) + r * C, cpu_real_in(gain), epsilon, C);
}

void cpu_rmsnorm_backward(struct backend *be, struct real *dx, struct real *dgain, const struct act *dy, const struct real *x,
			  const struct real *gain, float epsilon, uint32_t rows, uint32_t C)
{
	const struct cpu *cpu = cpu_of(be);
	float *inverse = memory_shared(be, rows);

	if (!inverse)
		return;
#pragma omp parallel num_threads(cpu->n_threads)
	{
#pragma omp for schedule(static)
		for (size_t r = 0; r < rows; r++)
			inverse[r] = cpu->vector->rmsnorm_backward(cpu_real(dx) + r * C, true, NULL, cpu_act_in(dy) + r * C,
								   cpu_real_in(x) + r * C, cpu_real_in(gain), epsilon, C);
#pragma omp for schedule(static)
		for (size_t c = 0; c < C; c += COLUMNS)
			for (size_t r = 0; r < rows; r++)
				cpu->vector->gain_backward(cpu_real(dgain) + c, cpu_act_in(dy) + r * C + c, cpu_real_in(x) + r * C + c,
							   inverse[r], C - c < COLUMNS ? C - c : COLUMNS);
	}
}

void cpu_head_norm(struct backend *be, struct act *y, const struct act *x, const struct real *q_gain, const struct real *k_gain,
		   const struct attention_shape *shape, float epsilon)
{
	const struct cpu *cpu = cpu_of(be);
	size_t D = shape->head_size, NH = shape->n_heads, NKV = shape->n_kv_heads, W = (NH + 2 * NKV) * D;

#pragma omp parallel for schedule(static) num_threads(cpu->n_threads)
	for (uint32_t t = 0; t < cpu->n_positions; t++) {
		float *to = cpu_act(y) + t * W;
		const float *from = cpu_act_in(x) + t * W;
		for (size_t h = 0; h < NH + NKV; h++)
			cpu->vector->rmsnorm(to + h * D, from + h * D, cpu_real_in(h < NH ? q_gain : k_gain), epsilon, D);
		memmove(to + (NH + NKV) * D, from + (NH + NKV) * D, NKV * D * sizeof *to);
	}
}

// Rows first..end-1; dgain: (2, D), of queries then of keys.
static void head_norm_backward_rows(const struct cpu *cpu, float *dx, float *dgain, const float *dy, const float *x, const float *q_gain,
				    const float *k_gain, const struct attention_shape *shape, float epsilon, size_t first, size_t end)
{
	size_t D = shape->head_size, NH = shape->n_heads, NKV = shape->n_kv_heads, W = (NH + 2 * NKV) * D;

	memset(dgain, 0, 2 * D * sizeof *dgain);
	for (size_t t = first; t < end; t++) {
		for (size_t h = 0; h < NH + NKV; h++) {
			size_t i = t * W + h * D;
			cpu->vector->rmsnorm_backward(dx + i, false, h < NH ? dgain : dgain + D, dy + i, x + i, h < NH ? q_gain : k_gain,
						      epsilon, D);
		}
		memmove(dx + t * W + (NH + NKV) * D, dy + t * W + (NH + NKV) * D, NKV * D * sizeof *dx);
	}
}

void cpu_head_norm_backward(struct backend *be, struct act *dx, struct real *dq_gain, struct real *dk_gain, const struct act *dy,
			    const struct act *x, const struct real *q_gain, const struct real *k_gain,
			    const struct attention_shape *shape, float epsilon)
{
	const struct cpu *cpu = cpu_of(be);
	size_t D = shape->head_size, T = cpu->n_positions, n_blocks = (T + BLOCK_ROWS - 1) / BLOCK_ROWS;
	float *partial = memory_shared(be, n_blocks * 2 * D);

	if (!partial)
		return;
#pragma omp parallel for schedule(static) num_threads(cpu->n_threads)
	for (size_t b = 0; b < n_blocks; b++)
		head_norm_backward_rows(cpu, cpu_act(dx), partial + b * 2 * D, cpu_act_in(dy), cpu_act_in(x), cpu_real_in(q_gain),
					cpu_real_in(k_gain), shape, epsilon, b * BLOCK_ROWS,
					T < (b + 1) * BLOCK_ROWS ? T : (b + 1) * BLOCK_ROWS);
	for (size_t b = 0; b < n_blocks; b++) {
		cpu->vector->add(cpu_real(dq_gain), partial + b * 2 * D, D);
		cpu->vector->add(cpu_real(dk_gain), partial + b * 2 * D + D, D);
	}
}
