// SPDX-License-Identifier: Apache-2.0
// The CPU backend: opening, the layout of a batch, and the table of operations.
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "kernels/backend_list.h"
#include "kernels/cpu/product.h"

#define INT8_ELEMENT_BYTES 2         // 1 and a share of a scale
#define HEAD_ROWS 256                // a tile of logits that stays in the outer cache

static void cpu_close(struct backend *be)
{
	struct cpu *cpu = cpu_of(be);

	if (!cpu)
		return;
	products_close(cpu->products);
	for (int i = 0; cpu->own && i < cpu->n_threads; i++)
		free(cpu->own[i]);
	free(cpu->own);
	free(cpu->shared);
	free(cpu->window);
	free(cpu->tokens);
	free(cpu->positions);
	free(cpu->starts);
	free(cpu->slot_starts);
	free(cpu->slots);
	free(cpu);
	be->device = NULL;
}

// Where the processor multiplies bfloat16, that is 2 (and on AMX more) times as fast. Elsewhere it must be asked for, and is computed as
// float with operands rounded: the same numbers up to the order of sums, at the speed of float.
static enum operand operand_of(enum backend_numeric numeric, const struct cpu_vector *vector)
{
	bool fast = products_have_bf16() && vector->set == VECTOR_AVX512;

	if (numeric == BACKEND_NUMERIC_INT8)
		return OPERAND_INT8;
	if (numeric == BACKEND_NUMERIC_F32 || (numeric == BACKEND_NUMERIC_AUTO && !fast))
		return OPERAND_F32;
	return fast ? OPERAND_BF16 : OPERAND_ROUNDED;
}

static const char *numeric_name(enum operand operand, bool exact)
{
	switch (operand) {
	case OPERAND_INT8:
		return "int8";
	case OPERAND_BF16:
	case OPERAND_ROUNDED:
		return "bf16";
	default:
		return exact ? "f32" : "f32-fast";
	}
}

static enum products_route route_of(const struct cpu_vector *vector)
{
	if (vector->bf16_unit && !products_have_amx())
		return PRODUCTS_PANELS;
	return vector->set == VECTOR_AVX2 ? PRODUCTS_CONVOLUTION : PRODUCTS_MATMUL;
}

// Where loaded matrices will lie.
static int make_room(struct backend *be, const struct backend_options *options, struct error *err)
{
	struct cpu *cpu = cpu_of(be);
	struct backend_options o = *options;
	struct room_plan plan = {.room = UINT64_MAX};

	if (cpu->operand == OPERAND_INT8) {      // they are packed otherwise (int8.h), in memory alone
		o.shelf = NULL;
		o.need.parts[BACKEND_PART_WEIGHTS].stored_bytes = 0;
	}
	cpu->shelf = o.shelf;
	be->element_bytes = cpu->operand == OPERAND_BF16 ? sizeof(uint16_t) : cpu->operand == OPERAND_INT8 ? INT8_ELEMENT_BYTES : sizeof(float);
	int r = options->host_bytes ? room_plan(&o, be->element_bytes, HEAD_ROWS, cpu->n_threads, &plan, err) : 0;
	if (r < 0)
		return r;
	be->room = plan.room;
	be->stores = plan.window_bytes > 0;
	cpu->window_bytes = plan.window_bytes;
	if (be->stores && !(cpu->window = (char *)memory_floats(plan.window_bytes / sizeof(float))))
		return error_set(err, ERROR_MEMORY, "memory", "no memory for a window of %zu bytes", plan.window_bytes);
	return 0;
}

static int cpu_open(struct backend *be, const struct backend_options *options, struct error *err)
{
	const struct cpu_vector *vector = vector_find();
	if (options->numeric == BACKEND_NUMERIC_FP8)
		return error_set(err, ERROR_UNSUPPORTED, "numeric", "device cpu has no products of fp8: cuda has, on "
				 "GPUs of compute capability 8.9 and above");
	if (!vector)
		return error_set(err, ERROR_UNSUPPORTED, "KDSERVED_CPU",
				 "this processor has no \"%s\" (baseline, avx2, avx2vnni, avx512, avx512vnni, avx512bf16)", getenv("KDSERVED_CPU"));
	struct cpu *cpu = be->device = calloc(1, sizeof *cpu);
	if (!cpu)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for backend cpu");
	size_t n = (size_t)options->max_rows + 1;
	cpu->n_threads = options->n_threads ? (int)options->n_threads : omp_get_num_procs();
	cpu->max_rows = options->max_rows;
	cpu->vector = vector;
	cpu->operand = operand_of(options->numeric, vector);
	cpu->view_operand = options->numeric == BACKEND_NUMERIC_BF16 ? cpu->operand : OPERAND_F32;
	cpu->own = calloc((size_t)cpu->n_threads, sizeof *cpu->own);
	cpu->tokens = calloc(n, sizeof *cpu->tokens);
	cpu->positions = calloc(n, sizeof *cpu->positions);
	cpu->starts = calloc(n, sizeof *cpu->starts);
	cpu->slot_starts = calloc(n, sizeof *cpu->slot_starts);
	int r = 0;
	if (!cpu->own || !cpu->tokens || !cpu->positions || !cpu->starts || !cpu->slot_starts)
		r = error_set(err, ERROR_MEMORY, NULL, "no memory for a batch of %u positions", options->max_rows);
	else
		r = products_open(cpu->n_threads, route_of(vector), options->numeric == BACKEND_NUMERIC_F32, &cpu->products, err);
	if (r < 0) {
		cpu_close(be);
		return r;
	}
	be->numeric = numeric_name(cpu->operand, options->numeric == BACKEND_NUMERIC_F32);
	be->view_numeric = numeric_name(cpu->view_operand, options->numeric == BACKEND_NUMERIC_F32);
	snprintf(cpu->description, sizeof cpu->description, "%d threads, %s%s", cpu->n_threads, vector->name,
		 cpu->operand == OPERAND_ROUNDED ? ", bf16 at the speed of f32" : "");
	be->description = cpu->description;
	be->reads_rows = true;
	r = make_room(be, options, err);
	if (r < 0)
		cpu_close(be);
	return r;
}

static int cpu_check_shape(struct backend *be, const struct attention_shape *shape, struct error *err)
{
	(void)be;
	(void)shape;
	(void)err;
	return 0;        // any
}

static void cpu_sync(struct backend *be)
{
	(void)be;    // every operation is complete when it returns
}

// A layout's slots, copied.
static void keep_slots(struct backend *be, const struct layout *layout)
{
	struct cpu *cpu = cpu_of(be);
	size_t n = layout->slot_starts[layout->n_sequences];
	if (n > cpu->slots_capacity) {
		uint32_t *slots = realloc(cpu->slots, n * sizeof *slots);
		if (!slots) {
			backend_fail(be, "no memory for a list of %zu cache slots", n);
			return;
		}
		cpu->slots = slots;
		cpu->slots_capacity = n;
	}
	memcpy(cpu->slot_starts, layout->slot_starts, ((size_t)layout->n_sequences + 1) * sizeof *cpu->slot_starts);
	memcpy(cpu->slots, layout->slots, n * sizeof *cpu->slots);
}

static void cpu_begin(struct backend *be, const struct layout *layout)
{
	struct cpu *cpu = cpu_of(be);

	assert(layout->n_positions <= cpu->max_rows && layout->n_sequences <= cpu->max_rows);
	cpu->n_positions = layout->n_positions;
	cpu->n_sequences = layout->n_sequences;
	memcpy(cpu->tokens, layout->tokens, layout->n_positions * sizeof *cpu->tokens);
	memcpy(cpu->positions, layout->positions, layout->n_positions * sizeof *cpu->positions);
	memcpy(cpu->starts, layout->starts, ((size_t)layout->n_sequences + 1) * sizeof *cpu->starts);
	if (layout->slots)
		keep_slots(be, layout);
}

const struct backend_ops backend_cpu_ops = {
	.name = "cpu",
	.head_rows = HEAD_ROWS,
	.open = cpu_open,
	.close = cpu_close,
	.sync = cpu_sync,
	.mark = cpu_sync,
	.wait = cpu_sync,
	.check_shape = cpu_check_shape,
	.real_new = cpu_real_new,
	.real_free = cpu_real_free,
	.real_at = cpu_real_at,
	.act_new = cpu_act_new,
	.act_free = cpu_act_free,
	.act_at = cpu_act_at,
	.real_write = cpu_real_write,
	.real_read = cpu_real_read,
	.act_write = cpu_act_write,
	.act_read = cpu_act_read,
	.real_zero = cpu_real_zero,
	.real_copy = cpu_real_copy,
	.weight_load = cpu_weight_load,
	.weight_load_apart = cpu_weight_load_apart,
	.weight_view = cpu_weight_view,
	.weight_refresh = cpu_weight_refresh,
	.weight_free = cpu_weight_free,
	.begin = cpu_begin,
	.embed = cpu_embed,
	.embed_add = cpu_embed_add,
	.rmsnorm = cpu_rmsnorm,
	.layernorm = cpu_layernorm,
	.linear = cpu_linear,
	.linear_real = cpu_linear_real,
	.head_norm = cpu_head_norm,
	.rope = cpu_rope,
	.attention = cpu_attention,
	.cache_write = cpu_cache_write,
	.attention_cached = cpu_attention_cached,
	.swiglu = cpu_swiglu,
	.geglu = cpu_geglu,
	.add_rows = cpu_add_rows,
	.soft_cap = cpu_soft_cap,
	.gelu = cpu_gelu,
	.widen = cpu_widen,
	.narrow = cpu_narrow,
	.pick_rows = cpu_pick_rows,
	.pick_columns = cpu_pick_columns,
	.mix = cpu_mix,
	.mix_log = cpu_mix_log,
	.sweep = cpu_sweep,
	.sweep_start = cpu_sweep,      // and done
	.sweep_finish = cpu_sync,
	.embed_backward = cpu_embed_backward,
	.embed_add_backward = cpu_embed_add_backward,
	.rmsnorm_backward = cpu_rmsnorm_backward,
	.layernorm_backward = cpu_layernorm_backward,
	.linear_backward = cpu_linear_backward,
	.linear_real_backward = cpu_linear_real_backward,
	.head_norm_backward = cpu_head_norm_backward,
	.attention_backward = cpu_attention_backward,
	.swiglu_backward = cpu_swiglu_backward,
	.gelu_backward = cpu_gelu_backward,
	.put_rows = cpu_put_rows,
	.softmax_grad = cpu_softmax_grad,
	.sum_squares = cpu_sum_squares,
	.adamw = cpu_adamw,
	.lion = cpu_lion,
	.fake_quantize = cpu_fake_quantize,
};
