// SPDX-License-Identifier: Apache-2.0
// The router's choice by hand; and which architectures are refused as students.
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/model/experts.h"

static void the_likeliest_are_chosen_and_share_by_probability(void **state)
{
	(void)state;
	const double scores[] = {log(1), log(4), log(3), log(2)};      // probabilities 0.1, 0.4, 0.3, 0.2
	uint32_t experts[2];
	double shares[2];
	experts_choose(scores, 4, 2, false, experts, shares);
	assert_true(experts[0] == 1 && experts[1] == 2);
	assert_true(fabs(shares[0] - 0.4) < 1e-15 && fabs(shares[1] - 0.3) < 1e-15);
	experts_choose(scores, 4, 2, true, experts, shares);
	assert_true(fabs(shares[0] - 4.0 / 7) < 1e-15 && fabs(shares[1] - 3.0 / 7) < 1e-15);
}

static void ties_go_to_the_lower_number_and_large_scores_do_not_overflow(void **state)
{
	(void)state;
	const double scores[] = {7, 1e4, 1e4, 1e4};
	uint32_t experts[3];
	double shares[3];
	experts_choose(scores, 4, 2, true, experts, shares);
	assert_true(experts[0] == 1 && experts[1] == 2 && shares[0] == 0.5 && shares[1] == 0.5);
	experts_choose(scores, 4, 3, false, experts, shares);
	assert_true(experts[2] == 3 && fabs(shares[2] - 1.0 / 3) < 1e-15);
}

// What is not a number must not become one, and every number of the list is an expert, taken once.
static void scores_that_are_no_numbers_make_every_share_none(void **state)
{
	(void)state;
	const double scores[] = {NAN, 2, NAN, 1};
	uint32_t experts[4];
	double shares[4];
	bool seen[4] = {false};
	experts_choose(scores, 4, 4, true, experts, shares);
	for (int i = 0; i < 4; i++) {
		assert_true(experts[i] < 4 && !seen[experts[i]] && isnan(shares[i]));
		seen[experts[i]] = true;
	}
}

static void gemma_and_mixtures_are_no_students(void **state)
{
	(void)state;
	struct architecture gemma = {.name = "gemma3", .gemma = true}, mixture = {.name = "mixtral", .n_experts = 4};
	const struct architecture *cases[] = {&gemma, &mixture};
	for (int i = 0; i < 2; i++) {
		struct error err = {0};
		struct weights *w = NULL;
		assert_int_equal(weights_new_trainable(NULL, cases[i], 1, 8, &w, &err), -EOPNOTSUPP);
		assert_non_null(strstr(err.message, cases[i]->name));
		assert_null(w);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_likeliest_are_chosen_and_share_by_probability),
		cmocka_unit_test(ties_go_to_the_lower_number_and_large_scores_do_not_overflow),
		cmocka_unit_test(scores_that_are_no_numbers_make_every_share_none),
		cmocka_unit_test(gemma_and_mixtures_are_no_students),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
