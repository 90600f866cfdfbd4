// SPDX-License-Identifier: Apache-2.0
// What is read from a row of logits: log-sum-exp at each temperature, entropy, top-k, values at chosen ids, what lies outside the top-k,
// random draws.
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

static double mean(const double *z, uint32_t V)
{
	double sum = 0;
	for (uint32_t j = 0; j < V; j++)
		sum += z[j];
	return sum / V;
}

// Not among the row's top-k (which has been found): they are ordered, so the last of them decides.
static bool is_outside(const struct sweep_row *row, const double *z, uint32_t j)
{
	if (!row->top_k)
		return true;
	double last = row->logits[row->top_k - 1];
	return z[j] < last || (z[j] == last && j > row->ids[row->top_k - 1]);
}

static double tail_lse(const struct sweep_row *row, const double *z, uint32_t V)
{
	double max = -INFINITY, sum = 0;
	for (uint32_t j = 0; j < V; j++)
		if (is_outside(row, z, j))
			max = fmax(max, z[j]);
	if (max == -INFINITY)
		return max;
	for (uint32_t j = 0; j < V; j++)
		if (is_outside(row, z, j))
			sum += exp(z[j] - max);
	return max + log(sum);
}

// The proposal, up to its sum: e^(tau (z - max)), max the largest it can draw.
static double proposal(const struct sweep_row *row, const double *z, uint32_t j, double max)
{
	return row->draw_tail && !is_outside(row, z, j) ? 0 : exp(row->draw_tau * (z[j] - max));
}

// Sums run upwards over ids, so that a draw does not depend on the others.
static void draw(struct sweep_row *row, const double *z, uint32_t V)
{
	double max = -INFINITY, sum = 0, below = 0;
	uint32_t n = 0, last = UINT32_MAX;
	for (uint32_t j = 0; j < V; j++)
		if (!row->draw_tail || is_outside(row, z, j))
			max = fmax(max, z[j]);
	for (uint32_t j = 0; j < V && max > -INFINITY; j++)
		sum += proposal(row, z, j, max);
	row->draw_lse = row->draw_tau * max + log(sum);
	for (uint32_t j = 0; j < V && sum > 0; j++) {
		double t = proposal(row, z, j, max);
		below += t;
		if (t > 0)
			last = j;
		for (; n < row->n_draws && below > row->uniforms[n] * sum; n++)
			row->drawn[n] = j;
	}
	for (; n < row->n_draws; n++)    // a uniform so near 1 that its product with the sum rounds to the sum; or nothing to draw
		row->drawn[n] = last;
	for (n = 0; n < row->n_draws; n++)
		row->drawn_logits[n] = last == UINT32_MAX ? 0 : z[row->drawn[n]];
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
	if (row->want_mean)
		row->mean = mean(z, V);
	if (row->top_k)
		top_k(row, z, V);
	for (uint32_t i = 0; i < row->n_gather; i++)
		row->gathered[i] = z[row->gather[i]];
	if (row->want_tail)
		row->tail_lse = tail_lse(row, z, V);
	if (row->n_draws)
		draw(row, z, V);
}

void ref_sweep(struct backend *be, const struct real *logits, uint32_t n, uint32_t V, struct sweep_row *rows)
{
#pragma omp parallel for schedule(dynamic) num_threads(ref_of(be)->n_threads)
	for (uint32_t i = 0; i < n; i++)
		sweep_one(&rows[i], ref_real_in(logits) + (size_t)i * V, V);
}
