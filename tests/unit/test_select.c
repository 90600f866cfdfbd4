// SPDX-License-Identifier: Apache-2.0
// Values from the methods' definitions (arXiv 2210.01213, 2407.16154, 2302.03169).
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "clients/kdctl/choice.h"
#include "clients/kdctl/ngrams.h"
#include "common/domain.h"

#define N(list) (sizeof(list) / sizeof *(list))

static void assert_close(const double *got, const double *want, size_t n)
{
	for (size_t i = 0; i < n; i++)
		assert_float_equal(got[i], want[i], 1e-6);
}

static void the_largest_are_chosen_and_ties_go_to_the_earlier(void **state)
{
	(void)state;
	double values[] = {.5, .05, .1, .8, NAN, .5};
	bool chosen[6];
	assert_int_equal(choice_largest(values, 6, 2, chosen), 2);
	assert_true(chosen[0] && chosen[3] && !chosen[1] && !chosen[2] && !chosen[4] && !chosen[5]);
	assert_int_equal(choice_largest(values, 6, 9, chosen), 5);
	assert_false(chosen[4]);
	assert_int_equal(choice_largest(values, 0, 1, chosen), 0);
}

static void queries_keep_to_the_best_worst_case(void **state)
{
	(void)state;
	double g[] = {.2, .9, .1, .8, .5}, p[5], value;
	assert_int_equal(choice_queries(g, 5, 0, p, &value), 0);
	assert_close(p, (double[]){0, 1, 0, 0, 0}, 5);
	assert_float_equal(value, .9, 1e-12);
	assert_int_equal(choice_queries(g, 5, 1, p, &value), 0);
	assert_close(p, (double[]){0, .254777, 0, .286624, .458599}, 5);
	assert_float_equal(value, .458599, 1e-6);
	assert_int_equal(choice_queries(g, 5, 2, p, &value), 0);
	assert_close(p, (double[]){0, .254777, 0, .286624, .458599}, 5);
	assert_float_equal(value, .229299, 1e-6);
}

static void without_gain_there_is_no_query(void **state)
{
	(void)state;
	double g[] = {0, NAN, .5}, p[3], value;
	assert_int_equal(choice_queries(g, 3, 0, p, &value), 0);
	assert_close(p, (double[]){0, 0, 1}, 3);
	assert_int_equal(choice_queries(g, 3, 1, p, &value), 0);
	assert_close(p, (double[]){0, 0, 0}, 3);
	assert_float_equal(value, 0, 0);
}

static void domains_follow_the_ratio_of_perplexities(void **state)
{
	(void)state;
	double student[] = {9, 12, 20}, teacher[] = {6, 10, 8}, r[3], next[3], later[] = {8, 11.5, 14};
	domain_shares(student, teacher, NULL, 3, .5, r);
	assert_close(r, (double[]){.224260, .166136, .609603}, 3);
	domain_shares(later, teacher, r, 3, .5, next);
	assert_close(next, (double[]){.253774, .220388, .525839}, 3);
}

static void an_untrained_student_does_not_take_it_all(void **state)
{
	(void)state;
	double student[] = {50000, 40000}, teacher[] = {10, 10}, r[2];
	domain_shares(student, teacher, NULL, 2, .5, r);
	assert_close(r, (double[]){.5, .5}, 2);
}

// Mean of Gumbel(0, 1) is Euler's constant, its variance pi^2 / 6.
static void noise_is_gumbel_and_depends_on_seed_and_item_alone(void **state)
{
	(void)state;
	double sum = 0, squares = 0;
	for (uint64_t i = 0; i < 100000; i++) {
		double v = choice_gumbel(7, i);
		assert_true(isfinite(v));
		sum += v;
		squares += v * v;
	}
	double mean = sum / 1e5, variance = squares / 1e5 - mean * mean;
	assert_float_equal(mean, .577216, 4 * 1.2825 / sqrt(1e5));
	assert_float_equal(variance, 1.644934, .04);
	assert_true(choice_gumbel(7, 3) == choice_gumbel(7, 3));
	assert_true(choice_gumbel(7, 3) != choice_gumbel(8, 3));
}

// Weights 1, 2, 3: a sample of one is in that proportion.
static void the_largest_with_noise_are_a_sample(void **state)
{
	(void)state;
	double counts[3] = {0};
	for (uint64_t seed = 0; seed < 30000; seed++) {
		double v[3];
		bool chosen[3];
		for (uint64_t i = 0; i < 3; i++)
			v[i] = log((double)i + 1) + choice_gumbel(seed, i);
		assert_int_equal(choice_largest(v, 3, 1, chosen), 1);
		for (int i = 0; i < 3; i++)
			counts[i] += chosen[i];
	}
	for (int i = 0; i < 3; i++)
		assert_float_equal(counts[i] / 30000, (i + 1) / 6., 4 * sqrt(.25 / 30000));
}

// Buckets by Python: int(hashlib.sha256(b"the cat").hexdigest(), 16) % 10000
static void words_and_pairs_are_counted_in_their_buckets(void **state)
{
	(void)state;
	struct ngrams *g = calloc(1, sizeof *g);
	const char *text = "The cat_1, \xc3\x89T\xc3\x89!?";
	uint64_t total = 0;
	assert_non_null(g);
	assert_int_equal(ngrams_add(g, text, strlen(text)), 0);
	assert_int_equal(g->n_words, 5);
	static const uint32_t buckets[] = {8288, 3673, 4887, 2588, 180, 9091, 4779, 4886, 1281};
	for (size_t i = 0; i < N(buckets); i++)
		assert_true(g->counts[buckets[i]] > 0);
	for (uint32_t b = 0; b < NGRAMS_BUCKETS; b++)
		total += g->counts[b];
	assert_int_equal(total, 9);
	free(g);
}

static void any_bytes_are_a_text(void **state)
{
	(void)state;
	struct ngrams *g = calloc(1, sizeof *g);
	char bytes[512];
	assert_non_null(g);
	for (int i = 0; i < 512; i++)
		bytes[i] = (char)(i * 37 + i / 256);
	assert_int_equal(ngrams_add(g, bytes, sizeof bytes), 0);
	assert_int_equal(ngrams_add(g, "", 0), 0);
	assert_true(g->n_words > 0);
	free(g);
}

static void a_weight_is_counts_times_log_ratios(void **state)
{
	(void)state;
	double *ratios = calloc(NGRAMS_BUCKETS, sizeof *ratios);
	uint64_t *target = calloc(NGRAMS_BUCKETS, sizeof *target), *raw = calloc(NGRAMS_BUCKETS, sizeof *raw);
	struct ngrams *g = calloc(1, sizeof *g);
	assert_true(ratios && target && raw && g);
	g->counts[5] = 3;
	g->counts[9] = 1;
	ratios[5] = log(2);
	ratios[9] = log(.5);
	assert_float_equal(ngrams_log_weight(g, ratios), 1.386294, 1e-6);
	target[5] = 3, target[9] = 1;
	raw[5] = 1, raw[9] = 3;
	ngrams_log_ratios(target, raw, ratios);
	assert_float_equal(ratios[5], log(3), 1e-6);
	assert_float_equal(ratios[9], -log(3), 1e-6);
	assert_float_equal(ratios[6], 0, 0);
	free(ratios), free(target), free(raw), free(g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_largest_are_chosen_and_ties_go_to_the_earlier),
		cmocka_unit_test(queries_keep_to_the_best_worst_case),
		cmocka_unit_test(without_gain_there_is_no_query),
		cmocka_unit_test(domains_follow_the_ratio_of_perplexities),
		cmocka_unit_test(an_untrained_student_does_not_take_it_all),
		cmocka_unit_test(noise_is_gumbel_and_depends_on_seed_and_item_alone),
		cmocka_unit_test(the_largest_with_noise_are_a_sample),
		cmocka_unit_test(words_and_pairs_are_counted_in_their_buckets),
		cmocka_unit_test(any_bytes_are_a_text),
		cmocka_unit_test(a_weight_is_counts_times_log_ratios),
	};
	return ngrams_init() ? 77 : cmocka_run_group_tests(tests, NULL, NULL);
}
