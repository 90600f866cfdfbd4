// SPDX-License-Identifier: Apache-2.0
// Gradient of a loss on a row of logits, in the one shape every token loss has: weighted softmax rows plus a few corrections.
#include <math.h>

#include "kernels/ref/ref.h"

static void softmax_grad_one(double *z, uint32_t V, const struct softmax_grad_row *row)
{
	for (uint32_t j = 0; j < V; j++) {
		double d = 0;
		for (uint32_t i = 0; i < row->n_terms; i++)
			d += row->scales[i] * exp(z[j] / row->temperatures[i] - row->lse[i]);
		z[j] = d;
	}
	for (uint32_t i = 0; i < row->n_corrections; i++)
		z[row->ids[i]] += row->corrections[i];
}

void ref_softmax_grad(struct backend *be, struct real *logits, uint32_t n, uint32_t V, const struct softmax_grad_row *rows)
{
#pragma omp parallel for schedule(static) num_threads(ref_of(be)->n_threads)
	for (uint32_t i = 0; i < n; i++)
		softmax_grad_one(ref_real(logits) + (size_t)i * V, V, &rows[i]);
}

void ref_soft_cap(struct backend *be, struct real *x, float cap, size_t n)
{
	(void)be;
	for (size_t i = 0; i < n; i++)
		ref_real(x)[i] = (double)cap * tanh(ref_real(x)[i] / (double)cap);
}
