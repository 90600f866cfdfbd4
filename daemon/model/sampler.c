// SPDX-License-Identifier: Apache-2.0
#include "daemon/model/sampler.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "common/error.h"
#include "daemon/model/philox.h"

struct candidate { double key, p; uint32_t id; };      // key: what the list is ordered by; p: probability among those left

struct sampler {
	uint32_t vocab_size;
	struct candidate *list;      // (vocab_size)
};

void sampler_options_init(struct sampler_options *o)
{
	*o = (struct sampler_options){.temperature = 1, .top_p = 1, .typical_p = 1};
}

int sampler_options_check(const struct sampler_options *o, struct error *err)
{
	if (o->temperature != 0 && !(o->temperature >= SAMPLER_MIN_TEMPERATURE && o->temperature <= SAMPLER_MAX_TEMPERATURE))
		return error_set(err, ERROR_INVALID, "temperature", "%g is neither 0 nor between %g and %g", (double)o->temperature,
				 (double)SAMPLER_MIN_TEMPERATURE, (double)SAMPLER_MAX_TEMPERATURE);
	if (!(o->top_p > 0 && o->top_p <= 1))
		return error_set(err, ERROR_INVALID, "top_p", "%g is not above 0 and at most 1", (double)o->top_p);
	if (!(o->min_p >= 0 && o->min_p <= 1))
		return error_set(err, ERROR_INVALID, "min_p", "%g is not between 0 and 1", (double)o->min_p);
	if (!(o->typical_p > 0 && o->typical_p <= 1))
		return error_set(err, ERROR_INVALID, "typical_p", "%g is not above 0 and at most 1", (double)o->typical_p);
	return 0;
}

int sampler_new(uint32_t vocab_size, struct sampler **ret_sampler, struct error *err)
{
	struct sampler *s = calloc(1, sizeof *s);
	if (s) {
		s->vocab_size = vocab_size;
		s->list = calloc(vocab_size, sizeof *s->list);
	}
	if (!s || !s->list) {
		sampler_free(s);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for sampling from %u ids", vocab_size);
	}
	*ret_sampler = s;
	return 0;
}

struct sampler *sampler_free(struct sampler *s)
{
	if (s)
		free(s->list);
	free(s);
	return NULL;
}

// ---- order: larger keys first, ties to the lower id

static bool before(const struct candidate *a, const struct candidate *b)
{
	return a->key > b->key || (a->key == b->key && a->id < b->id);
}

static void swap(struct candidate *a, struct candidate *b)
{
	struct candidate t = *a;
	*a = *b;
	*b = t;
}

// In the heap list[0..n-1], whose first is before all others, lets candidate i sink to its place.
static void sink(struct candidate *list, size_t i, size_t n)
{
	for (size_t child; (child = 2 * i + 1) < n; i = child) {
		if (child + 1 < n && before(&list[child + 1], &list[child]))
			child++;
		if (!before(&list[child], &list[i]))
			return;
		swap(&list[i], &list[child]);
	}
}

// Moves the first `count` to the beginning of the list, in order, or fewer where their p sum to `mass`; returns how many. They are taken
// off a heap: few are needed as a rule, and then that is far cheaper than sorting.
static size_t take_first(struct candidate *list, size_t n, size_t count, double mass)
{
	size_t taken = 0;
	double sum = 0;
	for (size_t i = n / 2; i-- > 0;)
		sink(list, i, n);
	while (taken < n && taken < count && (!taken || sum < mass)) {
		sum += list[0].p;
		taken++;
		swap(&list[0], &list[n - taken]);      // behind the heap, the first of them last
		sink(list, 0, n - taken);
	}
	for (size_t i = 0; i < n / 2 && i < taken; i++)
		swap(&list[i], &list[n - 1 - i]);
	return taken;
}

// ---- filters: each returns how many are left, at the beginning of the list; p is normalised over them

static size_t normalise(struct candidate *list, size_t n)
{
	double sum = 0;
	for (size_t i = 0; i < n; i++)
		sum += list[i].p;
	for (size_t i = 0; i < n; i++)
		list[i].p /= sum;
	return n;
}

static size_t keep_likely(struct candidate *list, size_t n, double min_p)
{
	double max = 0;
	size_t kept = 0;
	for (size_t i = 0; i < n; i++)
		max = fmax(max, list[i].p);
	for (size_t i = 0; i < n; i++)
		if (list[i].p >= min_p * max)
			list[kept++] = list[i];
	return normalise(list, kept);
}

static size_t keep_typical(struct candidate *list, size_t n, double mass)
{
	double entropy = 0;
	for (size_t i = 0; i < n; i++)
		entropy -= list[i].p > 0 ? list[i].p * log(list[i].p) : 0;
	for (size_t i = 0; i < n; i++)
		list[i].key = list[i].p > 0 ? -fabs(log(list[i].p) + entropy) : -INFINITY;
	return normalise(list, take_first(list, n, n, mass));
}

static size_t filter(struct candidate *list, size_t n, const struct sampler_options *o)
{
	if (o->top_k && o->top_k < n)
		n = normalise(list, take_first(list, n, o->top_k, INFINITY));
	if (o->top_p < 1)
		n = normalise(list, take_first(list, n, n, o->top_p));
	if (o->min_p > 0)
		n = keep_likely(list, n, o->min_p);
	if (o->typical_p < 1)
		n = keep_typical(list, n, o->typical_p);
	return n;
}

static uint32_t largest(const double *logits, uint32_t n)
{
	uint32_t best = 0;
	for (uint32_t i = 1; i < n; i++)
		if (logits[i] > logits[best])
			best = i;
	return best;
}

uint32_t sampler_choose(struct sampler *s, const struct sampler_options *o, const double *logits, double uniform, double *ret_logprob)
{
	struct candidate *list = s->list;
	uint32_t best = largest(logits, s->vocab_size);
	*ret_logprob = 0;
	if (o->temperature == 0)
		return best;
	for (uint32_t i = 0; i < s->vocab_size; i++)
		list[i] = (struct candidate){logits[i], exp((logits[i] - logits[best]) / o->temperature), i};
	size_t n = filter(list, normalise(list, s->vocab_size), o), chosen = 0;
	double sum = 0;
	// Where rounding leaves the sum below the uniform number, the last that has any probability is it.
	for (size_t i = 0; i < n && sum <= uniform; i++) {
		sum += list[i].p;
		if (list[i].p > 0)
			chosen = i;
	}
	*ret_logprob = log(list[chosen].p);
	return list[chosen].id;
}

double sampler_uniform(uint64_t seed, uint32_t sample, uint32_t position)
{
	const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
	uint32_t words[4];
	philox(key, (const uint32_t[]){position, sample, 0, 0}, words);
	return philox_uniform(words[0], words[1]);
}
