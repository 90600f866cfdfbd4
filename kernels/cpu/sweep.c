// SPDX-License-Identifier: Apache-2.0
// What is read from a row of logits.
//
// Top-k costs little more than one pass: the k-th largest maximum of blocks of 64 is a bound below which no logit of the top-k lies
// (k blocks hold one each that reaches it), so only blocks whose maximum reaches it are read again. Selection runs on integer keys
// that order like (logit descending, id ascending).
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

// Larger key = larger logit, then lower id. Adding 0 makes -0 equal to 0.
static uint64_t key_of(float logit, uint32_t id)
{
	uint32_t bits;

	logit += 0.0f;
	memcpy(&bits, &logit, sizeof bits);
	bits ^= bits >> 31 ? UINT32_MAX : UINT32_C(1) << 31;
	return (uint64_t)bits << 32 | (UINT32_MAX - id);
}

static void heap_sink(uint64_t *heap, size_t n, size_t i, uint64_t key)
{
	for (size_t child; (child = 2 * i + 1) < n; i = child) {
		if (child + 1 < n && heap[child + 1] < heap[child])
			child++;
		if (heap[child] >= key)
			break;
		heap[i] = heap[child];
	}
	heap[i] = key;
}

static void heap_make(uint64_t *heap, size_t n)
{
	for (size_t i = n / 2; i-- > 0;)
		heap_sink(heap, n, i, heap[i]);
}

// The k largest of n keys move to the front; the smallest of them is keys[0].
static void keys_select(uint64_t *keys, size_t n, size_t k)
{
	heap_make(keys, k);
	for (size_t i = k; i < n; i++)
		if (keys[i] > keys[0])
			heap_sink(keys, k, 0, keys[i]);
}

// A heap becomes a descending list.
static void keys_sort(uint64_t *heap, size_t k)
{
	for (size_t n = k; n > 1; n--) {
		uint64_t least = heap[0];
		heap_sink(heap, n - 1, 0, heap[n - 1]);
		heap[n - 1] = least;
	}
}

// Keys of the logits of a block that are at least bound.
static size_t block_keys(const struct cpu_vector *vector, const float *z, uint32_t V, uint32_t block, float bound, uint64_t *keys)
{
	uint32_t begin = block * SWEEP_BLOCK, places[SWEEP_BLOCK];
	size_t n = vector->find(z + begin, V - begin < SWEEP_BLOCK ? V - begin : SWEEP_BLOCK, bound, places);

	for (size_t i = 0; i < n; i++)
		keys[i] = key_of(z[begin + places[i]], begin + places[i]);
	return n;
}

// keys: room for V.
static void top_k(const struct cpu_vector *vector, struct sweep_row *row, const float *z, uint32_t V, const float *maxima, uint64_t *keys)
{
	uint32_t n_blocks = (V - 1) / SWEEP_BLOCK + 1, k = row->top_k, places[SWEEP_BLOCK];
	float bound = k <= n_blocks ? vector->bound_of_largest(maxima, n_blocks, k) : -INFINITY;
	size_t n = 0;

	for (uint32_t b = 0; b < n_blocks; b += SWEEP_BLOCK) {
		size_t n_found = vector->find(maxima + b, n_blocks - b < SWEEP_BLOCK ? n_blocks - b : SWEEP_BLOCK, bound, places);
		for (size_t i = 0; i < n_found; i++)
			n += block_keys(vector, z, V, b + places[i], bound, keys + n);
	}
	keys_select(keys, n, k);
	keys_sort(keys, k);
	for (uint32_t i = 0; i < k; i++) {
		row->ids[i] = UINT32_MAX - (uint32_t)keys[i];
		row->logits[i] = (double)z[row->ids[i]];
	}
}

// Eight sums, so that one addition need not wait for the one before.
static double mean(const float *z, uint32_t V)
{
	double sums[8] = {0};

	for (uint32_t j = 0; j < V; j++)
		sums[j % 8] += (double)z[j];
	return (((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]))) / V;
}

// own: (V + 64) keys, then the maxima, then sums of blocks. The keys' place serves the draws once the top-k is found.
static size_t own_floats(uint32_t V)
{
	size_t n_blocks = V / SWEEP_BLOCK + 1;
	return 2 * ((size_t)V + 64) + (n_blocks + 1) / 2 * 2 + 2 * n_blocks;    // sums are doubles: at an even place
}

static void sweep_one(const struct cpu_vector *vector, struct sweep_row *row, const float *z, uint32_t V, float *own)
{
	uint64_t *keys = (uint64_t *)own;
	float max, *maxima = own + 2 * ((size_t)V + 64);
	double sum = 0, weighted = 0;
	bool unit = false;

	row->not_finite = !vector->block_maxima(z, V, maxima, &max);
	if (row->not_finite)
		return;
	row->max_logit = (double)max;
	for (uint32_t i = 0; i < row->n_temperatures; i++) {
		float temperature = row->temperatures[i];
		bool with_entropy = row->want_entropy && temperature == 1 && !unit;
		double s = vector->exp_sum(z, V, max, temperature, with_entropy ? &weighted : NULL);
		row->lse[i] = (double)max / (double)temperature + log(s);
		if (with_entropy) {
			unit = true;
			sum = s;
		}
	}
	if (row->want_entropy) {
		if (!unit)
			sum = vector->exp_sum(z, V, max, 1, &weighted);
		row->entropy = log(sum) - weighted / sum;
	}
	if (row->want_mean)
		row->mean = mean(z, V);
	if (row->top_k)
		top_k(vector, row, z, V, maxima, keys);
	for (uint32_t i = 0; i < row->n_gather; i++)
		row->gathered[i] = (double)z[row->gather[i]];
	if (row->want_tail || row->n_draws) {
		size_t n_maxima = V / SWEEP_BLOCK + 1;
		struct sweep_scratch scratch = {own, own + V + 64, (double *)(maxima + (n_maxima + 1) / 2 * 2)};
		sweep_draw(vector, row, z, V, maxima, &scratch);
	}
}

void cpu_sweep(struct backend *be, const struct real *logits, uint32_t n, uint32_t V, struct sweep_row *rows)
{
	const struct cpu *cpu = cpu_of(be);

	if (!memory_own(be, own_floats(V)))
		return;
#pragma omp parallel for schedule(dynamic) num_threads(cpu->n_threads)
	for (uint32_t i = 0; i < n; i++)
		sweep_one(cpu->vector, &rows[i], cpu_real_in(logits) + (size_t)i * V, V, cpu->own[omp_get_thread_num()]);
}
