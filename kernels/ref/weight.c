// SPDX-License-Identifier: Apache-2.0
// Matrices: immutable ones are dequantised once, trainable ones are a view of the caller's array (so refresh has nothing to do).
#include <stdlib.h>

#include "common/error.h"
#include "kernels/ref/ref.h"

static void part_to_double(const struct tensor *part, double *to, float *row)
{
	size_t row_bytes = dtype_row_bytes(part->dtype, part->dims[1]);
	const char *blocks = part->data;
	for (uint64_t n = 0; n < part->dims[0]; n++, blocks += row_bytes, to += part->dims[1]) {
		dtype_to_float(part->dtype, blocks, row, part->dims[1]);
		for (uint64_t k = 0; k < part->dims[1]; k++)
			to[k] = row[k];
	}
}

struct weight *ref_weight_load(struct backend *be, enum weight_kind kind, const struct tensor *parts, uint32_t n_parts, struct error *err)
{
	uint32_t n_rows = 0, n_columns = 0;
	if (tensor_stack_shape(parts, n_parts, &n_rows, &n_columns, err) < 0)
		return NULL;
	struct weight *w = calloc(1, sizeof *w);
	be->n_allocations++;
	float *row = calloc(n_columns, sizeof *row);
	double *values = calloc(n_rows, n_columns * sizeof *values);
	bool int8 = ref_of(be)->int8, fp8 = ref_of(be)->fp8 && kind == WEIGHT_BLOCK, ok = w && row && values;
	if (ok && int8) {
		w->integers = calloc(n_rows, n_columns);
		w->scales = calloc(n_rows, ((n_columns - 1) / INT8_GROUP + 1) * sizeof *w->scales);
		ok = w->integers && w->scales;
	}
	if (ok && fp8)
		ok = (w->scales = calloc(n_rows, sizeof *w->scales));
	if (!ok) {
		error_set(err, ERROR_MEMORY, NULL, "no memory for a matrix of %u x %u doubles", n_rows, n_columns);
		ref_weight_free(be, w);
		w = NULL;
		goto out;
	}
	w->n_rows = n_rows, w->n_columns = n_columns;
	w->values = w->owned = values;
	values = NULL;
	double *to = w->owned;
	for (uint32_t i = 0; i < n_parts; to += parts[i].dims[0] * n_columns, i++)
		part_to_double(&parts[i], to, row);
	if (w->integers)
		ref_weight_quantize(w);
	if (fp8)
		ref_weight_to_fp8(w);
out:
	free(values);
	free(row);
	return w;
}

struct weight *ref_weight_view(struct backend *be, struct real *array, uint32_t n_rows, uint32_t n_columns, struct error *err)
{
	struct weight *w = calloc(1, sizeof *w);
	be->n_allocations++;
	if (!w) {
		error_set(err, ERROR_MEMORY, NULL, "no memory for a matrix view");
		return NULL;
	}
	*w = (struct weight){.n_rows = n_rows, .n_columns = n_columns, .values = ref_real(array)};
	return w;
}

void ref_weight_refresh(struct backend *be, struct weight *w)
{
	(void)be;
	(void)w;
}

void ref_weight_free(struct backend *be, struct weight *w)
{
	(void)be;
	if (!w)
		return;
	free(w->owned);
	free(w->integers);
	free(w->scales);
	free(w);
}
