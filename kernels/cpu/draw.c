// SPDX-License-Identifier: Apache-2.0
// What lies outside a row's top-k, and random draws. Both work on a copy of the row in which the top-k is -infinity, so that the tail's
// numbers come from the tail alone: no difference of sums, however small the tail.
//
// A draw finds its block of SWEEP_BLOCK ids by sums of blocks, then its id within. Sums of floats within a block, of doubles over
// blocks: cumulative probabilities are good to 1e-6.
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

static const float *without_top(const struct sweep_row *row, const float *z, uint32_t V, float *copy)
{
	memcpy(copy, z, V * sizeof *z);
	for (uint32_t i = 0; i < row->top_k; i++)
		copy[row->ids[i]] = -INFINITY;
	return copy;
}

static uint32_t last_above_zero(const float *t, uint32_t begin, uint32_t end)
{
	while (end > begin + 1 && !(t[end - 1] > 0))
		end--;
	return end - 1;
}

// t: the proposal up to its sum, (V), some of it above 0; sums: of its blocks.
static void draw(struct sweep_row *row, const float *t, const double *sums, double total, uint32_t V)
{
	uint32_t last_block = last_above_zero(t, 0, V) / SWEEP_BLOCK, block = 0, id = 0, last = 0;
	double before = 0, below = 0;    // sums of what lies before the block, before the id
	bool entered = false;

	for (uint32_t i = 0; i < row->n_draws; i++) {
		double target = row->uniforms[i] * total;
		for (; block < last_block && before + sums[block] <= target; block++, entered = false)
			before += sums[block];
		if (!entered) {
			uint32_t end = V - block * SWEEP_BLOCK < SWEEP_BLOCK ? V : (block + 1) * SWEEP_BLOCK;
			id = block * SWEEP_BLOCK;
			last = last_above_zero(t, id, end);
			below = before;
			entered = true;
		}
		for (; id < last && below + (double)t[id] <= target; id++)
			below += (double)t[id];
		row->drawn[i] = id;
	}
}

static void draw_nothing(struct sweep_row *row)
{
	row->draw_lse = -INFINITY;
	for (uint32_t i = 0; i < row->n_draws; i++) {
		row->drawn[i] = UINT32_MAX;
		row->drawn_logits[i] = 0;
	}
}

void sweep_draw(const struct cpu_vector *vector, struct sweep_row *row, const float *z, uint32_t V, float *maxima,
		const struct sweep_scratch *scratch)
{
	const float *from = z;
	float max = (float)row->max_logit;
	double total = 0;

	if (row->want_tail || row->draw_tail) {
		from = without_top(row, z, V, scratch->copy);
		vector->block_maxima(from, V, maxima, &max);    // its verdict is about the -infinity just put there
	}
	if (row->want_tail)
		row->tail_lse = max == -INFINITY ? max : (double)max + log(vector->exp_sum(from, V, max, 1, NULL));
	if (!row->n_draws)
		return;
	if (!row->draw_tail) {
		from = z;
		max = (float)row->max_logit;
	}
	if (max == -INFINITY) {
		draw_nothing(row);
		return;
	}
	vector->exp_blocks(scratch->proposal, from, V, max, (float)row->draw_tau, scratch->sums);
	for (uint32_t b = 0; b <= (V - 1) / SWEEP_BLOCK; b++)
		total += scratch->sums[b];
	row->draw_lse = row->draw_tau * (double)max + log(total);
	draw(row, scratch->proposal, scratch->sums, total, V);
	for (uint32_t i = 0; i < row->n_draws; i++)
		row->drawn_logits[i] = (double)z[row->drawn[i]];
}
