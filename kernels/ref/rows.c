// SPDX-License-Identifier: Apache-2.0
// Picking rows of an array, and the way back; adding to rows; picking columns.
#include <string.h>

#include "kernels/ref/ref.h"

void ref_pick_rows(struct backend *be, struct act *y, const struct act *x, const uint32_t *rows, uint32_t n, uint32_t C)
{
	(void)be;
	for (size_t i = 0; i < n; i++)
		memcpy(ref_act(y) + i * C, ref_act_in(x) + (size_t)rows[i] * C, C * sizeof(double));
}

void ref_put_rows(struct backend *be, struct act *dx, const struct act *dy, const uint32_t *rows, uint32_t n, uint32_t T, uint32_t C)
{
	(void)be;
	memset(dx, 0, (size_t)T * C * sizeof(double));
	for (size_t i = 0; i < n; i++)
		memcpy(ref_act(dx) + (size_t)rows[i] * C, ref_act_in(dy) + i * C, C * sizeof(double));
}

void ref_add_rows(struct backend *be, struct real *x, const struct real *y, const uint32_t *rows, const float *scales, uint32_t n,
		  uint32_t C)
{
	(void)be;
	for (size_t i = 0; i < n; i++)
		for (size_t c = 0; c < C; c++)
			ref_real(x)[rows[i] * (size_t)C + c] += (double)scales[i] * ref_real_in(y)[i * C + c];
}

void ref_pick_columns(struct backend *be, struct real *y, const struct real *x, const uint32_t *ids, uint32_t n, uint32_t n_ids, uint32_t V)
{
	(void)be;
	for (size_t i = 0; i < n; i++)
		for (size_t j = 0; j < n_ids; j++)
			ref_real(y)[i * n_ids + j] = ref_real_in(x)[i * V + ids[j]];
}
