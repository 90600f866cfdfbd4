// SPDX-License-Identifier: Apache-2.0
// The reference backend: opening, the layout of a batch, and the table of operations.
#include "kernels/ref/ref.h"

#include <assert.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "kernels/backend_list.h"

static void ref_close(struct backend *be)
{
	struct ref *ref = ref_of(be);
	if (!ref)
		return;
	free(ref->tokens);
	free(ref->positions);
	free(ref->starts);
	free(ref->slot_starts);
	free(ref->slots);
	free(ref);
	be->device = NULL;
}

static int ref_open(struct backend *be, const struct backend_options *options, struct error *err)
{
	if (options->host_bytes)
		return error_set(err, ERROR_UNSUPPORTED, "memory", "device ref keeps everything in memory: it takes no limit");
	struct ref *ref = be->device = calloc(1, sizeof *ref);
	if (!ref)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for backend ref");
	ref->n_threads = options->n_threads ? (int)options->n_threads : omp_get_num_procs();
	ref->max_rows = options->max_rows;
	size_t n = (size_t)options->max_rows + 1;
	ref->tokens = calloc(n, sizeof *ref->tokens);
	ref->positions = calloc(n, sizeof *ref->positions);
	ref->starts = calloc(n, sizeof *ref->starts);
	ref->slot_starts = calloc(n, sizeof *ref->slot_starts);
	if (!ref->tokens || !ref->positions || !ref->starts || !ref->slot_starts) {
		ref_close(be);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a batch of %u positions", options->max_rows);
	}
	snprintf(ref->description, sizeof ref->description, "%d threads, reference", ref->n_threads);
	ref->int8 = options->numeric == BACKEND_NUMERIC_INT8;
	ref->fp8 = options->numeric == BACKEND_NUMERIC_FP8;
	be->numeric = ref->int8 ? "int8-f64" : ref->fp8 ? "fp8-f64" : "f64";
	be->view_numeric = "f64";
	be->description = ref->description;
	return 0;
}

static int ref_check_shape(struct backend *be, const struct attention_shape *shape, struct error *err)
{
	(void)be;
	(void)shape;
	(void)err;
	return 0;        // any
}

static void ref_sync(struct backend *be)
{
	(void)be;    // every operation is complete when it returns
}

// A layout's slots, copied.
static void keep_slots(struct backend *be, const struct layout *layout)
{
	struct ref *ref = ref_of(be);
	size_t n = layout->slot_starts[layout->n_sequences];
	if (n > ref->slots_capacity) {
		uint32_t *slots = realloc(ref->slots, n * sizeof *slots);
		if (!slots) {
			backend_fail(be, "no memory for a list of %zu cache slots", n);
			return;
		}
		ref->slots = slots;
		ref->slots_capacity = n;
	}
	memcpy(ref->slot_starts, layout->slot_starts, ((size_t)layout->n_sequences + 1) * sizeof *ref->slot_starts);
	memcpy(ref->slots, layout->slots, n * sizeof *ref->slots);
}

static void ref_begin(struct backend *be, const struct layout *layout)
{
	struct ref *ref = ref_of(be);
	assert(layout->n_positions <= ref->max_rows && layout->n_sequences <= ref->max_rows);
	ref->n_positions = layout->n_positions;
	ref->n_sequences = layout->n_sequences;
	memcpy(ref->tokens, layout->tokens, layout->n_positions * sizeof *ref->tokens);
	memcpy(ref->positions, layout->positions, layout->n_positions * sizeof *ref->positions);
	memcpy(ref->starts, layout->starts, ((size_t)layout->n_sequences + 1) * sizeof *ref->starts);
	if (layout->slots)
		keep_slots(be, layout);
}

const struct backend_ops backend_ref_ops = {
	.name = "ref",
	.head_rows = 64,
	.open = ref_open,
	.close = ref_close,
	.sync = ref_sync,
	.mark = ref_sync,
	.wait = ref_sync,
	.check_shape = ref_check_shape,
	.real_new = ref_real_new,
	.real_free = ref_real_free,
	.real_at = ref_real_at,
	.act_new = ref_act_new,
	.act_free = ref_act_free,
	.act_at = ref_act_at,
	.real_write = ref_real_write,
	.real_read = ref_real_read,
	.act_write = ref_act_write,
	.act_read = ref_act_read,
	.real_zero = ref_real_zero,
	.real_copy = ref_real_copy,
	.weight_load = ref_weight_load,
	.weight_load_apart = ref_weight_load,
	.weight_view = ref_weight_view,
	.weight_refresh = ref_weight_refresh,
	.weight_free = ref_weight_free,
	.begin = ref_begin,
	.embed = ref_embed,
	.embed_add = ref_embed_add,
	.rmsnorm = ref_rmsnorm,
	.layernorm = ref_layernorm,
	.linear = ref_linear,
	.linear_real = ref_linear_real,
	.head_norm = ref_head_norm,
	.rope = ref_rope,
	.attention = ref_attention,
	.cache_write = ref_cache_write,
	.attention_cached = ref_attention_cached,
	.swiglu = ref_swiglu,
	.geglu = ref_geglu,
	.add_rows = ref_add_rows,
	.soft_cap = ref_soft_cap,
	.gelu = ref_gelu,
	.widen = ref_widen,
	.narrow = ref_narrow,
	.pick_rows = ref_pick_rows,
	.pick_columns = ref_pick_columns,
	.mix = ref_mix,
	.mix_log = ref_mix_log,
	.sweep = ref_sweep,
	.sweep_start = ref_sweep,      // and done
	.sweep_finish = ref_sync,
	.embed_backward = ref_embed_backward,
	.embed_add_backward = ref_embed_add_backward,
	.rmsnorm_backward = ref_rmsnorm_backward,
	.layernorm_backward = ref_layernorm_backward,
	.linear_backward = ref_linear_backward,
	.linear_real_backward = ref_linear_real_backward,
	.head_norm_backward = ref_head_norm_backward,
	.attention_backward = ref_attention_backward,
	.swiglu_backward = ref_swiglu_backward,
	.gelu_backward = ref_gelu_backward,
	.put_rows = ref_put_rows,
	.softmax_grad = ref_softmax_grad,
	.sum_squares = ref_sum_squares,
	.adamw = ref_adamw,
	.lion = ref_lion,
	.fake_quantize = ref_fake_quantize,
};
