// SPDX-License-Identifier: Apache-2.0
// The guard over evaluations: the line and the distances from it against numpy's polyfit, counts in a row, and the rule of capacity.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "daemon/worker/guard.h"

static const struct guard_options options = {.fit_steps = 60, .checks = 3};

static void assert_near(double actual, double expected, double tolerance)
{
	if (!(fabs(actual - expected) <= tolerance))
		fail_msg("%.12g is not %.12g", actual, expected);
}

// ln KL = 1.244342 - 0.535179 ln step with a deviation of 0.023360: a, c = polyfit(log(step), log(kl), 1), sqrt(sum(r^2) / (6 - 2)).
static void a_curve_that_is_left_is_told_once(void **state)
{
	(void)state;
	static const struct { uint64_t step; double kl, residual; enum guard_verdict verdict; } seen[] = {
		{0, 2.5, NAN, GUARD_FINE}, {10, 1, NAN, GUARD_FINE}, {20, .72, NAN, GUARD_FINE}, {30, .55, NAN, GUARD_FINE},
		{40, .49, NAN, GUARD_FINE}, {50, .42, NAN, GUARD_FINE}, {60, .39, NAN, GUARD_FINE}, {70, .36, 0.33018260, GUARD_FINE},
		{80, .40, 7.89974755, GUARD_FINE}, {90, .42, 12.68682016, GUARD_FINE}, {100, .43, 16.10796061, GUARD_OFF_CURVE},
		{100, .43, 16.10796061, GUARD_FINE}, {110, .30, 2.88035048, GUARD_FINE}, {100, .43, 16.10796061, GUARD_FINE},
		{100, .43, 16.10796061, GUARD_FINE}, {100, .43, 16.10796061, GUARD_OFF_CURVE},
	};
	struct guard_state s = {0};
	for (size_t i = 0; i < sizeof seen / sizeof *seen; i++) {
		double residual = 0;
		assert_int_equal(guard_look(&options, &s, seen[i].step, &(struct guard_point){seen[i].kl, 3, 2}, &residual),
			seen[i].verdict);
		if (isnan(seen[i].residual))
			assert_true(isnan(residual));
		else
			assert_near(residual, seen[i].residual, 1e-6);
	}
	assert_true(s.alarms == 2);
}

static void a_line_through_all_points_still_lets_the_run_breathe(void **state)
{
	(void)state;
	struct guard_state s = {0};
	double residual;
	for (uint64_t step = 10; step <= 60; step += 10)
		guard_look(&options, &s, step, &(struct guard_point){5 / (double)step, 3, 2}, &residual);
	guard_look(&options, &s, 100, &(struct guard_point){5. / 100 * exp(.02), 3, 2}, &residual);
	assert_near(residual, 2, 1e-6);                // in units of the least deviation
}

static void too_few_points_make_no_line(void **state)
{
	(void)state;
	struct guard_state s = {0};
	double residual;
	for (uint64_t step = 20; step <= 60; step += 20)
		guard_look(&options, &s, step, &(struct guard_point){1, 3, 2}, &residual);
	for (uint64_t step = 80; step < 200; step += 20) {
		assert_int_equal(guard_look(&options, &s, step, &(struct guard_point){100, 3, 2}, &residual), GUARD_FINE);
		assert_true(isnan(residual));
	}
}

static void nearer_the_teacher_and_farther_from_the_text_is_told(void **state)
{
	(void)state;
	static const struct { double kl, ce; enum guard_verdict verdict; } seen[] = {
		{1, 3, GUARD_FINE}, {.9, 3.1, GUARD_FINE}, {.8, 3.2, GUARD_FINE}, {.7, 3.15, GUARD_FINE}, {.6, 3.2, GUARD_FINE},
		{.5, 3.3, GUARD_FINE},
		{.55, 3.4, GUARD_FINE},                        // farther from both is another matter
		{.5, 3.5, GUARD_FINE}, {.4, 3.6, GUARD_FINE}, {.3, 3.7, GUARD_APART}, {.2, 3.8, GUARD_FINE},
	};
	static const double teachers[] = {2.9, NAN, 5};
	for (int k = 0; k < 3; k++) {
		struct guard_state s = {0};
		double residual;
		for (size_t i = 0; i < sizeof seen / sizeof *seen; i++)
			assert_int_equal(guard_look(&(struct guard_options){.fit_steps = 0, .checks = 3}, &s, i,
					    &(struct guard_point){seen[i].kl, seen[i].ce, teachers[k]}, &residual),
					 k == 2 ? GUARD_FINE : seen[i].verdict);     // a teacher that is worse at it than the student
		assert_true(s.alarms == (k < 2));
	}
}

static void the_rule_of_capacity_is_that_of_the_paper(void **state)
{
	(void)state;
	assert_near(guard_best_teacher(3000e6), 7482.502e6, 1);
	assert_near(guard_best_teacher(100e6), 238.302e6, 1);
	assert_near(guard_best_teacher(2e6), 5e6, 1e-6);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_curve_that_is_left_is_told_once),
		cmocka_unit_test(a_line_through_all_points_still_lets_the_run_breathe),
		cmocka_unit_test(too_few_points_make_no_line),
		cmocka_unit_test(nearer_the_teacher_and_farther_from_the_text_is_told),
		cmocka_unit_test(the_rule_of_capacity_is_that_of_the_paper),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
