// SPDX-License-Identifier: Apache-2.0
// What weights will take, before they are made.
#include <stdlib.h>

#include "daemon/model/weights_internal.h"

// Elements, of matrices as weights.c stacks them: q, k and v; gate and up.
static uint64_t largest_matrix(const struct architecture *a, const struct parameter *list, size_t n)
{
	uint64_t qkv = ((uint64_t)a->n_heads + 2 * (uint64_t)a->n_kv_heads) * a->head_size * a->width;
	uint64_t gate_up = (architecture_gated(a) ? 2 : 0) * (uint64_t)a->ffn_width * a->width, largest = qkv > gate_up ? qkv : gate_up;
	for (size_t i = 0; i < n; i++)
		largest = parameter_is_matrix(&list[i]) && list[i].n > largest ? list[i].n : largest;
	return largest;
}

// Every parameter as if it had an array of its own: fused ones need less.
int weights_need(const struct architecture *a, uint32_t max_positions, uint32_t n_arrays, struct backend_need *need, struct error *err)
{
	struct backend_count *count = &need->parts[n_arrays ? BACKEND_PART_TRAINING : BACKEND_PART_WEIGHTS];
	struct parameter *list;
	size_t n;
	int r = parameters_list(a, &list, &n, err);
	if (r < 0)
		return r;
	for (size_t i = 0; i < n; i++) {
		bool matrix = parameter_is_matrix(&list[i]);
		if (matrix && list[i].dims[1] > need->widest)
			need->widest = (uint32_t)list[i].dims[1];
		count->n_real += n_arrays ? n_arrays * list[i].n : matrix ? 0 : list[i].n;
		count->n_weight += !n_arrays && matrix ? list[i].n : 0;
		count->n_block += !n_arrays && list[i].block ? list[i].n : 0;
		count->fp8_bytes += !n_arrays && list[i].block ? backend_fp8_bytes(list[i].dims[0], list[i].dims[1]) : 0;
		count->n_view += n_arrays && matrix ? list[i].n : 0;
	}
	uint64_t largest = n_arrays ? 0 : largest_matrix(a, list, n);
	need->n_largest = largest > need->n_largest ? largest : need->n_largest;
	need->vocab_size = a->vocab_size > need->vocab_size ? a->vocab_size : need->vocab_size;
	uint64_t table = a->learned_positions ? 0 : 2 * (uint64_t)max_positions * (architecture_rope_size(a) / 2);
	count->n_real += a->rope_theta_sliding > 0 ? 2 * table : table;
	count->n_arrays += n + (a->rope_theta_sliding > 0 ? 4 : 2) + n_arrays;
	free(list);
	return 0;
}

void weights_need_beside(const struct parameters_beside *beside, uint32_t n_arrays, struct backend_need *need)
{
	struct backend_count *count = &need->parts[BACKEND_PART_TRAINING];
	for (uint32_t i = 0; i < beside->n; i++) {
		uint64_t rows = beside->list[i].rows, columns = beside->list[i].columns;
		count->n_real += n_arrays * rows * (columns ? columns : 1);
		count->n_view += rows * columns;
		count->n_arrays += columns != 0;
	}
}

uint64_t weights_stored_bytes(const struct tensor_source *source, const struct parameter *list, size_t n)
{
	uint64_t bytes = 0;
	for (size_t i = 0; i < n; i++) {
		struct tensor t;
		if (!parameter_is_matrix(&list[i]))
			continue;
		if (!source->describe || source->describe(source->file, list[i].name, &t, NULL) < 0)
			return 0;
		bytes += list[i].dims[0] * dtype_row_bytes(t.dtype, list[i].dims[1]);
	}
	return bytes;
}
