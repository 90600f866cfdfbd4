// SPDX-License-Identifier: Apache-2.0
// What is read from a row of logits: log-sum-exp at each temperature, entropy, top-k, values at chosen ids.
#include <math.h>
#include <string.h>

#include "kernels/ref/ref.h"

// Sorted insertion; a later id never passes an equal earlier one, so ties go to the lower id.
static void top_k(struct sweep_row *row, const double *z, uint32_t V)
{
	uint32_t n = 0;
	for (uint32_t j = 0; j < V; j++) {
		if (n == row->top_k && !(z[j] > row->logits[n - 1]))
			continue;
		uint32_t low = 0, high = n;    // first place whose logit is smaller than z[j]
		while (low < high) {
			uint32_t middle = low + (high - low) / 2;
			if (row->logits[middle] < z[j])
				high = middle;
			else
				low = middle + 1;
		}
		if (n < row->top_k)
			n++;
		memmove(row->logits + low + 1, row->logits + low, (n - low - 1) * sizeof *row->logits);
		memmove(row->ids + low + 1, row->ids + low, (n - low - 1) * sizeof *row->ids);
		row->logits[low] = z[j];
		row->ids[low] = j;
	}
}

static double lse(const double *z, uint32_t V, double max, double temperature)
{
	double sum = 0;
	for (uint32_t j = 0; j < V; j++)
		sum += exp((z[j] - max) / temperature);
	return max / temperature + log(sum);
}

// - sum p log p with log p = z - max - log(sum)
static double entropy(const double *z, uint32_t V, double max)
{
	double sum = 0, weighted = 0;
	for (uint32_t j = 0; j < V; j++) {
		double e = exp(z[j] - max);
		sum += e;
		weighted += e * (z[j] - max);
	}
	return log(sum) - weighted / sum;
}

static void sweep_one(struct sweep_row *row, const double *z, uint32_t V)
{
	double max = -INFINITY;
	row->not_finite = false;
	for (uint32_t j = 0; j < V; j++) {
		if (!isfinite(z[j])) {
			row->not_finite = true;
			return;
		}
		max = fmax(max, z[j]);
	}
	row->max_logit = max;
	for (uint32_t i = 0; i < row->n_temperatures; i++)
		row->lse[i] = lse(z, V, max, row->temperatures[i]);
	if (row->want_entropy)
		row->entropy = entropy(z, V, max);
	if (row->top_k)
		top_k(row, z, V);
	for (uint32_t i = 0; i < row->n_gather; i++)
		row->gathered[i] = z[row->gather[i]];
}

void ref_sweep(struct backend *be, const struct real *logits, uint32_t n, uint32_t V, struct sweep_row *rows)
{
#pragma omp parallel for schedule(dynamic) num_threads(ref_of(be)->n_threads)
	for (uint32_t i = 0; i < n; i++)
		sweep_one(&rows[i], ref_real_in(logits) + (size_t)i * V, V);
}
