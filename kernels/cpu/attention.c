// SPDX-License-Identifier: Apache-2.0
// Attention, of a whole batch or from a cache, cut into units: forward, the heads of one kv head for 64 or 128 rows; backward, for a whole
// sequence (dk and dv, to which all its queries add, then have one owner). The work of a unit is in vector_attention.c.
#include <string.h>

#include "kernels/cpu/cpu.h"

#define ROWS 64
#define MANY_UNITS 8                  // a thread: where there are as many of twice the rows, keys are read half as often

static uint32_t rows_of(const struct cpu *cpu, uint32_t sequence)
{
	return cpu->starts[sequence + 1] - cpu->starts[sequence];
}

static uint32_t longest(const struct cpu *cpu)
{
	uint32_t n = 0;

	for (uint32_t s = 0; s < cpu->n_sequences; s++)
		n = rows_of(cpu, s) > n ? rows_of(cpu, s) : n;
	return n;
}

// Where the heads of one kv head of one sequence begin in arrays of (T, NH).
static size_t heads_at(const struct cpu *cpu, const struct attention_shape *s, uint32_t sequence, uint32_t kv)
{
	return (size_t)cpu->starts[sequence] * s->n_heads + (size_t)kv * (s->n_heads / s->n_kv_heads);
}

// Attention rounds its operands to bfloat16 where the model's products do not take them as they are. Of trainable matrices its backward
// takes float operands, so it does too.
static bool rounded(const struct cpu *cpu)
{
	return cpu->n_views == 0 && cpu->operand != OPERAND_F32;
}

// All rows of a sequence: first = 0, last = its length.
static struct attention_work work_of(const struct cpu *cpu, const float *qkv, const struct attention_shape *s, uint32_t sequence,
				     uint32_t kv)
{
	size_t D = s->head_size, W = (s->n_heads + 2 * (size_t)s->n_kv_heads) * D, group = s->n_heads / s->n_kv_heads;
	const float *row = qkv + cpu->starts[sequence] * W;

	return (struct attention_work){
		.q = row + kv * group * D,
		.q_stride = W,
		.k = row + (s->n_heads + kv) * D,
		.v = row + (s->n_heads + s->n_kv_heads + kv) * D,
		.stride = W,
		.n_group = (uint32_t)group,
		.head_size = s->head_size,
		.last = rows_of(cpu, sequence),
		.n_seen = s->bidirectional ? rows_of(cpu, sequence) : 0,
		.window = s->window,
		.scale = s->scale,
		.soft_cap = s->soft_cap,
		.rounded = rounded(cpu),
		.y_stride = s->n_heads * D,
		.lse_stride = s->n_heads,
	};
}

// The same with keys and values in a cache: first = the position of the batch's first row.
static struct attention_work work_cached(const struct cpu *cpu, const float *qkv, const float *cache, const struct attention_shape *s,
					 uint32_t sequence, uint32_t kv)
{
	struct attention_work a = work_of(cpu, qkv, s, sequence, kv);
	uint32_t length = cpu->slot_starts[sequence + 1] - cpu->slot_starts[sequence];

	a.slots = cpu->slots + cpu->slot_starts[sequence];
	a.stride = 2 * (size_t)s->n_kv_heads * s->head_size;
	a.k = cache + kv * s->head_size;
	a.v = a.k + s->n_kv_heads * s->head_size;
	a.first = length - rows_of(cpu, sequence);
	a.last = length;
	return a;
}

// Block b of a sequence's rows, n_rows each; false when it has fewer blocks.
static bool take_block(struct attention_work *a, uint32_t b, uint32_t n_rows)
{
	size_t skip = (size_t)b * n_rows;

	if (skip >= a->last - a->first)
		return false;
	a->first += (uint32_t)skip;
	a->last = a->last - a->first < n_rows ? a->last : a->first + n_rows;
	a->q += skip * a->q_stride;
	a->y += skip * a->y_stride;
	if (a->lse)
		a->lse += skip * a->lse_stride;
	return true;
}

// cache NULL: keys and values of the batch itself.
static void attend(struct backend *be, float *y, float *lse, const float *qkv, const float *cache, const struct attention_shape *shape)
{
	const struct cpu *cpu = cpu_of(be);
	uint32_t NKV = shape->n_kv_heads;
	bool many = (uint64_t)cpu->n_positions * NKV >= 2 * ROWS * MANY_UNITS * (uint64_t)cpu->n_threads;
	uint32_t n_rows = many ? 2 * ROWS : ROWS, n_blocks = (longest(cpu) + n_rows - 1) / n_rows;
	struct attention_work largest = {.n_group = shape->n_heads / NKV, .head_size = shape->head_size, .last = n_rows};

	if (!memory_own(be, cpu->vector->attention_scratch(&largest, false)))
		return;
	// Long units first: block n_blocks - 1 reads the most keys.
#pragma omp parallel for schedule(dynamic) collapse(3) num_threads(cpu->n_threads)
	for (uint32_t b = 0; b < n_blocks; b++) {
		for (uint32_t s = 0; s < cpu->n_sequences; s++) {
			for (uint32_t kv = 0; kv < NKV; kv++) {
				struct attention_work a = cache ? work_cached(cpu, qkv, cache, shape, s, kv)
					: work_of(cpu, qkv, shape, s, kv);
				a.y = y + heads_at(cpu, shape, s, kv) * a.head_size;
				a.lse = lse ? lse + heads_at(cpu, shape, s, kv) : NULL;
				a.scratch = cpu->own[omp_get_thread_num()];
				if (take_block(&a, n_blocks - 1 - b, n_rows))
					cpu->vector->attention(&a);
			}
		}
	}
}

void cpu_attention(struct backend *be, struct act *y, struct real *lse, const struct act *qkv, const struct attention_shape *shape)
{
	attend(be, cpu_act(y), lse ? cpu_real(lse) : NULL, cpu_act_in(qkv), NULL, shape);
}

void cpu_attention_cached(struct backend *be, struct act *y, const struct act *qkv, const struct act *cache,
			  const struct attention_shape *shape)
{
	if (!backend_failed(be))
		attend(be, cpu_act(y), NULL, cpu_act_in(qkv), cpu_act_in(cache), shape);
}

void cpu_cache_write(struct backend *be, struct act *cache, const struct act *qkv, const struct attention_shape *shape)
{
	const struct cpu *cpu = cpu_of(be);
	size_t D = shape->head_size, width = 2 * shape->n_kv_heads * D, W = shape->n_heads * D + width;

	for (uint32_t s = 0; s < cpu->n_sequences && !backend_failed(be); s++) {
		const uint32_t *slots = cpu->slots + cpu->slot_starts[s + 1] - rows_of(cpu, s);
		for (uint32_t r = 0; r < rows_of(cpu, s); r++)
			memcpy(cpu_act(cache) + slots[r] * width, cpu_act_in(qkv) + (cpu->starts[s] + r) * W + shape->n_heads * D,
			       width * sizeof(float));
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
			struct attention_work a = work_of(cpu, cpu_act_in(qkv), shape, s, kv),
				d = work_of(cpu, cpu_act(dqkv), shape, s, kv);
			size_t at = heads_at(cpu, shape, s, kv);
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
