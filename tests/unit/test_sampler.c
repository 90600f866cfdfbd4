// SPDX-License-Identifier: Apache-2.0
// The sampler against distributions worked out by hand: every id's share of the unit interval, exactly, and counts of seeded draws.
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/model/sampler.h"

enum { V = 7 };
static const double logits[V] = {0.5, 2, 1, -1, 2, 0, -3};      // 1 and 4 are tied

static struct sampler_options options(float temperature, uint32_t top_k, float top_p, float min_p, float typical_p)
{
	return (struct sampler_options){temperature, top_k, top_p, min_p, typical_p};
}

// Each id's probability, as the sampler has it: how much of a fine grid of uniforms falls to it. (Exact to a cell on either side.)
static void shares(const double *x, uint32_t n, const struct sampler_options *o, double *ret)
{
	enum { CELLS = 20000 };
	struct sampler *s = NULL;
	memset(ret, 0, n * sizeof *ret);
	assert_int_equal(sampler_new(n, &s, NULL), 0);
	for (int i = 0; i < CELLS; i++) {
		double logprob;
		uint32_t id = sampler_choose(s, o, x, (i + 0.5) / CELLS, &logprob);
		assert_true(id < n);
		ret[id] += 1.0 / CELLS;
	}
	// What it says of the chosen is that probability.
	for (int i = 0; i < CELLS; i += 97) {
		double logprob;
		uint32_t id = sampler_choose(s, o, x, (i + 0.5) / CELLS, &logprob);
		assert_true(fabs(exp(logprob) - ret[id]) < 1.5 / CELLS);
	}
	sampler_free(s);
}

// The distribution at a temperature over the ids whose bit is set, renormalised.
static void assert_shares(const struct sampler_options *o, double temperature, uint32_t kept)
{
	double got[V], sum = 0;
	shares(logits, V, o, got);
	for (uint32_t i = 0; i < V; i++)
		sum += kept >> i & 1 ? exp(logits[i] / temperature) : 0;
	for (uint32_t i = 0; i < V; i++) {
		double want = kept >> i & 1 ? exp(logits[i] / temperature) / sum : 0;
		if (fabs(got[i] - want) > 1e-4)
			fail_msg("id %u: %g, expected %g", i, got[i], want);
	}
}

#define ALL 0x7fu
#define IDS(...) ids((const int[]){__VA_ARGS__, -1})

static uint32_t ids(const int *list)
{
	uint32_t bits = 0;
	for (; *list >= 0; list++)
		bits |= 1u << *list;
	return bits;
}

static void a_temperature_alone_keeps_every_id(void **state)
{
	(void)state;
	for (int i = 0; i < 4; i++) {
		float t = (const float[]){1, 0.5f, 2, 15}[i];
		struct sampler_options o = options(t, 0, 1, 0, 1);
		assert_shares(&o, (double)t, ALL);
	}
}

static void temperature_zero_takes_the_largest_and_the_lower_id(void **state)
{
	struct sampler *s = NULL;
	struct sampler_options o = options(0, 5, 0.1f, 0.5f, 0.2f);
	double logprob = 1;
	(void)state;
	assert_int_equal(sampler_new(V, &s, NULL), 0);
	assert_int_equal(sampler_choose(s, &o, logits, 0.999999, &logprob), 1);
	assert_true(logprob == 0);
	sampler_free(s);
}

static void top_k_keeps_k_and_of_equals_the_lower_ids(void **state)
{
	(void)state;
	struct sampler_options o = options(1, 1, 1, 0, 1);
	assert_shares(&o, 1, IDS(1));
	o.top_k = 2;
	assert_shares(&o, 1, IDS(1, 4));
	o.top_k = 4;
	o.temperature = 0.7f;
	assert_shares(&o, (double)0.7f, IDS(0, 1, 2, 4));
	o.top_k = V;
	assert_shares(&o, (double)0.7f, ALL);
	o.top_k = 1000;
	assert_shares(&o, (double)0.7f, ALL);
}

// p at T = 1: ids 1 and 4 have 0.3615 each, 2 has 0.1330, 0 0.0807, 5 0.0489, 3 0.0180, 6 0.0024.
static void top_p_keeps_the_fewest_that_reach_it(void **state)
{
	(void)state;
	struct sampler_options o = options(1, 0, 0.3f, 0, 1);
	assert_shares(&o, 1, IDS(1));
	o.top_p = 0.37f;
	assert_shares(&o, 1, IDS(1, 4));
	o.top_p = 0.73f;
	assert_shares(&o, 1, IDS(1, 4, 2));
	o.top_p = 0.95f;
	assert_shares(&o, 1, IDS(1, 4, 2, 0, 5));
	o.top_p = 1e-6f;
	assert_shares(&o, 1, IDS(1));
}

static void min_p_is_a_share_of_the_largest(void **state)
{
	(void)state;
	struct sampler_options o = options(1, 0, 1, 0.36f, 1);        // e^-1 = 0.3679
	assert_shares(&o, 1, IDS(1, 4, 2));
	o.min_p = 0.37f;
	assert_shares(&o, 1, IDS(1, 4));
	o.min_p = 1;
	assert_shares(&o, 1, IDS(1, 4));
	o.min_p = 0.36f;
	o.temperature = 2;                                            // e^-0.5, e^-0.75, e^-1
	assert_shares(&o, 2, IDS(0, 1, 2, 4, 5));
}

// Entropy 1.4307; |-ln p - entropy| of ids 1 and 4: 0.4132, 2: 0.5868, 0: 1.0868, 5: 1.5868, 3: 2.5868, 6: 4.5868.
static void typical_keeps_what_surprises_least(void **state)
{
	(void)state;
	struct sampler_options o = options(1, 0, 1, 0, 0.2f);
	assert_shares(&o, 1, IDS(1));
	o.typical_p = 0.5f;
	assert_shares(&o, 1, IDS(1, 4));
	o.typical_p = 0.8f;
	assert_shares(&o, 1, IDS(1, 2, 4));
	// A distribution whose largest is less typical than the rest: p 0.4 and six of 0.1, entropy 1.748.
	double x[V] = {log(0.4), log(0.1), log(0.1), log(0.1), log(0.1), log(0.1), log(0.1)}, got[V];
	o.typical_p = 0.25f;
	shares(x, V, &o, got);
	assert_true(got[0] == 0 && fabs(got[1] - 1 / 3.0) < 1e-4 && fabs(got[3] - 1 / 3.0) < 1e-4 && got[4] == 0);
}

// Each acts on what the one before left, renormalised: top_k 3 leaves 0.4223, 0.4223, 0.1554; top_p 0.5 of that needs two.
static void filters_follow_one_another(void **state)
{
	(void)state;
	struct sampler_options o = options(1, 3, 0.5f, 0, 1);
	assert_shares(&o, 1, IDS(1, 4));
	o = options(1, 3, 0.41f, 0, 1);        // 0.3615 of the whole would need two
	assert_shares(&o, 1, IDS(1));
	o = options(1, 5, 1, 0.1f, 1);
	assert_shares(&o, 1, IDS(0, 1, 2, 4, 5));
	o = options(2, 5, 0.99f, 0.5f, 0.999f);
	assert_shares(&o, 2, IDS(1, 2, 4));
}

static void one_id_is_always_left(void **state)
{
	double x[V] = {-INFINITY, -800, 3, -900, -INFINITY, -700, -650}, got[V];
	(void)state;
	struct sampler_options o = options(1e-4f, 0, 1e-6f, 1, 1e-6f);
	shares(x, V, &o, got);
	assert_true(fabs(got[2] - 1) < 1e-9);
	o = options(1, 0, 1, 0, 1);        // all the others' probabilities are 0 in double precision
	shares(x, V, &o, got);
	assert_true(fabs(got[2] - 1) < 1e-9);
	struct sampler *s = NULL;
	double one = -5, logprob;
	assert_int_equal(sampler_new(1, &s, NULL), 0);
	assert_int_equal(sampler_choose(s, &o, &one, 1 - 0x1p-53, &logprob), 0);
	assert_true(logprob == 0);
	sampler_free(s);
}

// A heap of many: the fewest that reach the mass are the largest, whatever the order they lie in.
static void large_rows_are_cut_where_a_sort_would_cut_them(void **state)
{
	enum { N = 5000 };
	double *x = calloc(N, sizeof *x), *got = calloc(N, sizeof *got), sum = 0, reached = 0, largest = 0;
	(void)state;
	assert_true(x && got);
	for (uint32_t i = 0; i < N; i++) {
		x[i] = 6 * sin(i * 12.9898) + 3 * sin(i * 78.233);
		sum += exp(x[i]);
	}
	struct sampler_options o = options(1, 0, 0.6f, 0, 1);
	shares(x, N, &o, got);
	for (uint32_t i = 0; i < N; i++) {
		double p = exp(x[i]) / sum;
		reached += got[i] > 0 ? p : 0;
		largest = got[i] > 0 ? largest : fmax(largest, p);
	}
	for (uint32_t i = 0; i < N; i++)
		assert_true(got[i] == 0 || exp(x[i]) / sum >= largest - 1e-15);
	assert_true(reached >= 0.6 && reached - largest < 0.6 + 1e-3);
	free(x);
	free(got);
}

// Counts of seeded draws against the exact distribution: Pearson's statistic with 6 degrees of freedom is above 22.5 once in 1000.
static void seeded_draws_have_the_distribution(void **state)
{
	enum { DRAWS = 40000 };
	struct sampler *s = NULL;
	struct sampler_options o = options(1.5f, 0, 1, 0, 1);
	double sum = 0, statistic = 0, logprob;
	uint32_t counts[V] = {0};
	(void)state;
	assert_int_equal(sampler_new(V, &s, NULL), 0);
	for (uint32_t i = 0; i < DRAWS; i++)
		counts[sampler_choose(s, &o, logits, sampler_uniform(11, i / 200, i % 200), &logprob)]++;
	for (int i = 0; i < V; i++)
		sum += exp(logits[i] / 1.5);
	for (int i = 0; i < V; i++) {
		double want = DRAWS * exp(logits[i] / 1.5) / sum;
		statistic += (counts[i] - want) * (counts[i] - want) / want;
	}
	assert_true(statistic < 22.5);
	sampler_free(s);
}

static void uniforms_depend_on_seed_sample_and_position_alone(void **state)
{
	(void)state;
	double u = sampler_uniform(1, 2, 3);
	assert_true(u >= 0 && u < 1 && u == sampler_uniform(1, 2, 3));
	assert_true(u != sampler_uniform(1, 2, 4) && u != sampler_uniform(1, 3, 3) && u != sampler_uniform(2, 2, 3));
	assert_true(sampler_uniform(1, 3, 2) != u && sampler_uniform(1ull << 32, 2, 3) != sampler_uniform(0, 2, 3));
}

static void options_out_of_range_are_refused_by_name(void **state)
{
	static const struct { struct sampler_options o; const char *field; } cases[] = {
		{{-1, 0, 1, 0, 1}, "temperature"}, {{9.9e-5f, 0, 1, 0, 1}, "temperature"}, {{10001, 0, 1, 0, 1}, "temperature"},
		{{NAN, 0, 1, 0, 1}, "temperature"}, {{1, 0, 0, 0, 1}, "top_p"}, {{1, 0, 1.001f, 0, 1}, "top_p"},
		{{1, 0, NAN, 0, 1}, "top_p"}, {{1, 0, 1, -0.1f, 1}, "min_p"}, {{1, 0, 1, 1.1f, 1}, "min_p"}, {{1, 0, 1, 0, 0}, "typical_p"},
		{{1, 0, 1, 0, 2}, "typical_p"},
	};
	struct sampler_options good = options(0, UINT32_MAX, 1, 1, 1);
	struct error err = {0};
	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		assert_int_equal(sampler_options_check(&cases[i].o, &err), -EINVAL);
		assert_string_equal(err.field, cases[i].field);
	}
	assert_int_equal(sampler_options_check(&good, &err), 0);
	good = options(1e-4f, 0, 1e-30f, 0, 1e-30f);
	assert_int_equal(sampler_options_check(&good, &err), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_temperature_alone_keeps_every_id),
		cmocka_unit_test(temperature_zero_takes_the_largest_and_the_lower_id),
		cmocka_unit_test(top_k_keeps_k_and_of_equals_the_lower_ids),
		cmocka_unit_test(top_p_keeps_the_fewest_that_reach_it),
		cmocka_unit_test(min_p_is_a_share_of_the_largest),
		cmocka_unit_test(typical_keeps_what_surprises_least),
		cmocka_unit_test(filters_follow_one_another),
		cmocka_unit_test(one_id_is_always_left),
		cmocka_unit_test(large_rows_are_cut_where_a_sort_would_cut_them),
		cmocka_unit_test(seeded_draws_have_the_distribution),
		cmocka_unit_test(uniforms_depend_on_seed_sample_and_position_alone),
		cmocka_unit_test(options_out_of_range_are_refused_by_name),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
