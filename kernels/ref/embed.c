// SPDX-License-Identifier: Apache-2.0
// Embedding: row of the matrix for each token; rows of a table added by position.
#include <assert.h>
#include <string.h>

#include "kernels/ref/ref.h"

void ref_embed(struct backend *be, struct real *x, const struct weight *w)
{
	const struct ref *ref = ref_of(be);
	size_t C = w->n_columns;
	assert(!w->fp8);
	for (uint32_t t = 0; t < ref->n_positions; t++)
		memcpy(ref_real(x) + t * C, w->values + ref->tokens[t] * C, C * sizeof(double));
}

void ref_embed_backward(struct backend *be, struct real *dw, const struct real *dx, uint32_t C)
{
	const struct ref *ref = ref_of(be);
	for (uint32_t t = 0; t < ref->n_positions; t++) {
		double *row = ref_real(dw) + (size_t)ref->tokens[t] * C;
		const double *d = ref_real_in(dx) + (size_t)t * C;
		for (uint32_t c = 0; c < C; c++)
			row[c] += d[c];
	}
}

static size_t table_row(const struct ref *ref, uint32_t t, bool by_position)
{
	return by_position ? ref->positions[t] : 0;
}

void ref_embed_add(struct backend *be, struct real *x, const struct real *table, bool by_position, uint32_t C)
{
	const struct ref *ref = ref_of(be);
	for (uint32_t t = 0; t < ref->n_positions; t++)
		for (size_t c = 0; c < C; c++)
			ref_real(x)[(size_t)t * C + c] += ref_real_in(table)[table_row(ref, t, by_position) * C + c];
}

void ref_embed_add_backward(struct backend *be, struct real *dtable, const struct real *dx, bool by_position, uint32_t C)
{
	const struct ref *ref = ref_of(be);
	for (uint32_t t = 0; t < ref->n_positions; t++)
		for (size_t c = 0; c < C; c++)
			ref_real(dtable)[table_row(ref, t, by_position) * C + c] += ref_real_in(dx)[(size_t)t * C + c];
}
