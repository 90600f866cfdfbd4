// SPDX-License-Identifier: Apache-2.0
#include "clients/kdctl/choice.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

struct ranked { double value; size_t item; };

static int by_value(const void *a, const void *b)
{
	const struct ranked *x = a, *y = b;
	if (x->value != y->value)
		return x->value > y->value ? -1 : 1;
	return x->item < y->item ? -1 : x->item > y->item;
}

// Those that are numbers above `floor`, largest first; the caller frees.
static struct ranked *ranked_new(const double *values, size_t n, double floor, size_t *ret_n)
{
	struct ranked *r = reallocarray(NULL, n ? n : 1, sizeof *r);
	*ret_n = 0;
	for (size_t i = 0; r && i < n; i++)
		if (values[i] > floor)         // false for NaN
			r[(*ret_n)++] = (struct ranked){values[i], i};
	if (r)
		qsort(r, *ret_n, sizeof *r, by_value);
	return r;
}

int64_t choice_largest(const double *values, size_t n, size_t count, bool *ret_chosen)
{
	size_t n_ranked;
	struct ranked *r = ranked_new(values, n, -INFINITY, &n_ranked);
	if (!r)
		return -ENOMEM;
	count = count < n_ranked ? count : n_ranked;
	for (size_t i = 0; i < n; i++)
		ret_chosen[i] = false;
	for (size_t i = 0; i < count; i++)
		ret_chosen[r[i].item] = true;
	free(r);
	return (int64_t)count;
}

// SplitMix64's output function: a bijection that passes for random on consecutive numbers.
static uint64_t scramble(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}

double choice_gumbel(uint64_t seed, uint64_t item)
{
	uint64_t bits = scramble(scramble(seed + 0x9e3779b97f4a7c15) + (item + 1) * 0x9e3779b97f4a7c15);
	double u = ((double)(bits >> 11) + 0.5) * 0x1p-53;      // never 0 nor 1
	return -log(-log(u));
}

int choice_queries(const double *gains, size_t n, size_t bad, double *ret_probabilities, double *ret_value)
{
	size_t n_ranked, best = 0;
	struct ranked *r = ranked_new(gains, n, 0, &n_ranked);
	double sum = 0, best_sum = 1;
	if (!r)
		return -ENOMEM;
	*ret_value = 0;
	for (size_t k = 1; k <= n_ranked; k++) {
		sum += 1 / r[k - 1].value;
		if (k > bad && (double)(k - bad) / sum > *ret_value) {
			*ret_value = (double)(k - bad) / sum;
			best = k;
			best_sum = sum;
		}
	}
	for (size_t i = 0; i < n; i++)
		ret_probabilities[i] = 0;
	for (size_t i = 0; i < best; i++)
		ret_probabilities[r[i].item] = 1 / r[i].value / best_sum;
	free(r);
	return 0;
}
