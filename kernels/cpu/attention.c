// SPDX-License-Identifier: Apache-2.0
// Attention cut into units: forward, the heads of one kv head for 64 queries; backward, for a whole sequence (dk and dv, to which all
// its queries add, then have one owner). The work of a unit is in vector_attention.c.
#include "kernels/cpu/cpu.h"

#define QUERIES 64

static struct attention_work work_of(const struct cpu *cpu, const float *qkv, const struct attention_shape *s, uint32_t sequence, uint32_t kv)
{
	size_t D = s->head_size, W = (s->n_heads + 2 * (size_t)s->n_kv_heads) * D, group = s->n_heads / s->n_kv_heads;
	size_t start = cpu->starts[sequence];
	const float *row = qkv + start * W;

	return (struct attention_work){
		.q = row + kv * group * D,
		.k = row + (s->n_heads + kv) * D,
		.v = row + (s->n_heads + s->n_kv_heads + kv) * D,
		.stride = W,
		.n_group = (uint32_t)group,
		.head_size = s->head_size,
		.last = cpu->starts[sequence + 1] - cpu->starts[sequence],
		.scale = s->scale,
		.y_stride = s->n_heads * D,
		.lse_stride = s->n_heads,
	};
}

// Where the heads of one kv head of one sequence lie in arrays of (T, NH * D).
static size_t rows_of(const struct cpu *cpu, const struct attention_shape *s, uint32_t sequence, uint32_t kv)
{
	return (size_t)cpu->starts[sequence] * s->n_heads + (size_t)kv * (s->n_heads / s->n_kv_heads);
}

static uint32_t longest(const struct cpu *cpu)
{
	uint32_t n = 0;

	for (uint32_t s = 0; s < cpu->n_sequences; s++)
		n = cpu->starts[s + 1] - cpu->starts[s] > n ? cpu->starts[s + 1] - cpu->starts[s] : n;
	return n;
}

void cpu_attention(struct backend *be, struct act *y, struct real *lse, const struct act *qkv, const struct attention_shape *shape)
{
	const struct cpu *cpu = cpu_of(be);
	uint32_t n_blocks = (longest(cpu) + QUERIES - 1) / QUERIES, NKV = shape->n_kv_heads;
	struct attention_work largest = {.n_group = shape->n_heads / NKV, .head_size = shape->head_size, .last = QUERIES};

	if (!memory_own(be, cpu->vector->attention_scratch(&largest, false)))
		return;
	// Long units first: block n_blocks - 1 reads the most keys.
#pragma omp parallel for schedule(dynamic) collapse(3) num_threads(cpu->n_threads)
	for (uint32_t b = 0; b < n_blocks; b++) {
		for (uint32_t s = 0; s < cpu->n_sequences; s++) {
			for (uint32_t kv = 0; kv < NKV; kv++) {
				struct attention_work a = work_of(cpu, cpu_act_in(qkv), shape, s, kv);
				a.first = (n_blocks - 1 - b) * QUERIES;
				if (a.first >= a.last)
					continue;
				a.last = a.last - a.first < QUERIES ? a.last : a.first + QUERIES;
				a.y = cpu_act(y) + rows_of(cpu, shape, s, kv) * a.head_size;
				a.lse = lse ? cpu_real(lse) + rows_of(cpu, shape, s, kv) : NULL;
				a.scratch = cpu->own[omp_get_thread_num()];
				cpu->vector->attention(&a);
			}
		}
	}
}

void cpu_attention_backward(struct backend *be, struct act *dqkv, const struct act *dy, const struct act *qkv, const struct act *y,
			    const struct real *lse, const struct attention_shape *shape)
{
	const struct cpu *cpu = cpu_of(be);
	uint32_t NKV = shape->n_kv_heads;
	struct attention_work largest = {.n_group = shape->n_heads / NKV, .head_size = shape->head_size, .last = longest(cpu)};

	if (!memory_own(be, cpu->vector->attention_scratch(&largest, true)))
		return;
#pragma omp parallel for schedule(dynamic) collapse(2) num_threads(cpu->n_threads)
	for (uint32_t s = 0; s < cpu->n_sequences; s++) {
		for (uint32_t kv = 0; kv < NKV; kv++) {
			struct attention_work a = work_of(cpu, cpu_act_in(qkv), shape, s, kv), d = work_of(cpu, cpu_act(dqkv), shape, s, kv);
			size_t at = rows_of(cpu, shape, s, kv);
			a.y = cpu_act((struct act *)(uintptr_t)y) + at * a.head_size;
			a.lse = cpu_real((struct real *)(uintptr_t)lse) + at;
			a.dy = cpu_act_in(dy) + at * a.head_size;
			a.dq = (float *)(uintptr_t)d.q;
			a.dk = (float *)(uintptr_t)d.k;
			a.dv = (float *)(uintptr_t)d.v;
			a.scratch = cpu->own[omp_get_thread_num()];
			cpu->vector->attention_backward(&a);
		}
	}
}
