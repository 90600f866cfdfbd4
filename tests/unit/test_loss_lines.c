// SPDX-License-Identifier: Apache-2.0
// Losses as a run names them, from the line to the gradient: the running example's values and gradients in double precision and through the
// float kernels of each device.
//
// Where else the definitions are shown. The same example below the line, and more corners (limits, normalised JSD, ranking, FIRST,
// DAC-KL): test_divergence. Every line against finite differences: test_loss_differences. Bounds, self-distillation, shifts, constant parts
// (TAID's target, adaptive KL's weights): test_divergence_properties. Schedules, TAID's update: test_objective. k1 as advantage and its
// expectation: test_policy_gradient (k2 and k3 are no losses here: rows are exact). ULD, GOLD, shared boundaries: test_ranks. Large rows:
// test_loss_kernels. Hidden rows, relations, margins: test_feature. Means of 1e5 draws, batches and seeds, on devices:
// tests/golden/test_draws. Tiles of a row merged to one lse: tests/ops. Choice of data: test_select.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "kernels/backend.h"
#include "tests/unit/loss_scene.h"

#define V SCENE_V
#define TOLERANCE 2e-6

static void assert_near(double actual, double expected, double tolerance, const char *what)
{
	if (!(fabs(actual - expected) <= tolerance))
		fail_msg("%s: %.9g is not %.9g", what, actual, expected);
}

struct known {
	const char *line;
	uint32_t n_top, top[5], n_drawn;
	double weights[4];             // of the ids 0, 1, 2, 3 (of 2 and 3 alone where there are two)
	double value, gradient[5];     // NAN: not given
};
#define ALL 5, {0, 1, 2, 3, 4}, 0, {0}
#define TWO 2, {0, 1}, 0, {0}
#define THREE 3, {0, 1, 3}, 0, {0}
#define NONE {NAN}
#define FORWARD {-0.144758, 0.109223, -0.032300, 0.083576, -0.015742}

static const struct known table[] = {
	{"cross-entropy", ALL, 1.130881, {0.435665, 0.322749 - 1, 0.097210, 0.131220, 0.013156}},
	{"forward-kl", ALL, 0.089926, FORWARD},
	{"forward-kl temperature=2", ALL, 0.134004, {-0.118116, 0.094724, -0.055794, 0.137845, -0.058660}},
	{"forward-kl temperature=2 t2-scale=off", ALL, 0.033501, {-0.029529, 0.023681, -0.0139485, 0.03446125, -0.014665}},
	{"reverse-kl", ALL, 0.103049, {-0.169880, 0.100074, -0.037905, 0.119419, -0.011708}},
	{"reverse-kl temperature=2", ALL, 0.140832, NONE},
	{"half-sum", ALL, 0.096488, {-0.157319, 0.1046485, -0.0351025, 0.1014975, -0.013725}},
	{"jsd beta=0.1", ALL, 0.008152, {-0.013147, 0.009756, -0.002933, 0.007673, -0.001348}},
	{"jsd", ALL, 0.023591, {-0.038287, 0.026353, -0.008543, 0.023707, -0.003230}},
	{"jsd beta=0.9", ALL, 0.009070, {-0.014881, 0.009143, -0.003320, 0.010124, -0.001067}},
	{"skew-forward-kl", ALL, 0.073942, {-0.119442, 0.087155, -0.026651, 0.070507, -0.011568}},
	{"skew-reverse-kl", ALL, 0.079936, {-0.130582, 0.083369, -0.029137, 0.086087, -0.009737}},
	{"skew-reverse-kl detach-mix=on", ALL, 0.079936, {-0.148807, 0.091433, -0.033203, 0.101244, -0.010667}},
	{"tvd", ALL, 0.192799, {-0.197778, 0.176231, -0.044130, 0.071650, -0.005972}},
	{"alpha-beta", ALL, 0.120331, {-0.182228, 0.111853, -0.045708, 0.134652, -0.018570}},
	{"alpha-beta alpha=0.7 beta=0.2", ALL, 0.112132, NONE},
	{"alpha-beta alpha=0.5 beta=0.5", ALL, 0.095403, NONE},
	{"logit-mse of=raw", ALL, 0.436000, {-.2, .08, -.2, .32, -.4}},
	{"logit-mse", ALL, 0.396000, {-.12, .16, -.12, .4, -.32}},
	{"logit-mse of=log-prob", ALL, 0.396172, NONE},
	{"taid t=0.4", ALL, 0.016928, {-0.064590, 0.042656, -0.014412, 0.041641, -0.005295}},
	{"taid t=0.4", TWO, 0.007538, {-0.058450, 0.046095, 0.097210 * .051145, 0.131220 * .051145, 0.013156 * .051145}},
	{"adaptive-kl", ALL, 0.098123,
	 {.375411 * -0.144758 + .624589 * -0.169880, .375411 * 0.109223 + .624589 * 0.100074, .375411 * -0.032300 + .624589 * -0.037905,
	  .375411 * 0.083576 + .624589 * 0.119419, .375411 * -0.015742 + .624589 * -0.011708}},
	{"forward-kl", TWO, 0.045520, {-0.144758, 0.109223, 0.014298, 0.019301, 0.001935}},
	{"reverse-kl", TWO, 0.046784, {-0.145367, 0.118233, 0.010918, 0.014738, 0.001478}},
	{"forward-kl", THREE, 0.087277, NONE}, {"reverse-kl", THREE, 0.101407, NONE}, {"jsd", THREE, 0.023086, NONE},
	{"skew-forward-kl", THREE, 0.072042, NONE}, {"skew-reverse-kl", THREE, 0.078500, NONE}, {"tvd", THREE, 0.192799, NONE},
	{"forward-kl temperature=2", TWO, 0.037748, NONE},
	{"forward-kl form=truncated", TWO, 0.078302, {-0.234527, 0.042720, 0.077180, 0.104182, 0.010445}},
	{"forward-kl form=teacher-renormalised", TWO, 0.329360, {-0.295393, 0.053807, 0.097210, 0.131220, 0.013156}},
	{"forward-kl form=renormalised", TWO, 0.052835, {-0.156616, 0.156616, 0, 0, 0}},
	{"forward-kl form=uniform", TWO, 0.123490, {-0.144758, 0.109223, 0.097210 - .0686837, 0.131220 - .0686837, 0.013156 - .0686837}},
	{"forward-kl form=draws", 0, {0}, 4, {.6, .2, .1, .1}, 0.071981, {-0.164335, 0.122749, -0.002790, 0.031220, 0.013156}},
	{"soft-cross-entropy form=head-draws", 2, {0, 1}, 2, {0.206051 * 3 / 4, 0.206051 / 4}, 1.188562,
	 {-0.144758, 0.109223, -0.057329, 0.079707, 0.013156}},
	{"dkd alpha=1 beta=0", ALL, 0.029381, NONE}, {"dkd alpha=0 beta=1", ALL, 0.076983, NONE},
	{"dkd alpha=1 beta=0.786474", ALL, 0.089926, FORWARD},
};

static struct scene scene_of(const struct known *k)
{
	struct scene s = {.n_ids = 5, .n_top = k->n_top, .n_drawn = k->n_drawn, .label = 1};
	memcpy(s.zt, example_zt, sizeof example_zt);
	memcpy(s.zs, example_zs, sizeof example_zs);
	memcpy(s.top, k->top, sizeof k->top);
	memcpy(s.weights, k->weights, sizeof k->weights);
	for (uint32_t i = 0; i < k->n_drawn; i++)
		s.drawn[i] = k->n_drawn == 2 ? 2 + i : i;
	return s;
}

static void known_compare(const struct known *k, double value, const double *gradient)
{
	assert_near(value, k->value, TOLERANCE, k->line);
	for (int j = 0; j < 5 && !isnan(k->gradient[0]); j++)
		assert_near(gradient[j], k->gradient[j], TOLERANCE, k->line);
}

static void lines_have_the_values_and_gradients_worked_out(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
		struct scene s = scene_of(&table[i]);
		struct error err = {0};
		struct objective *o;
		double gradient[V];
		if (scene_objective(table[i].line, 5, &o, &err))
			fail_msg("%s", err.message);
		known_compare(&table[i], scene_evaluate(o, &s, gradient).total, gradient);
		objective_free(o);
	}
}

static void float_kernels_have_them_too(void **state)
{
	(void)state;
	static const char *const devices[] = {"ref", "cpu"};
	for (int d = 0; d < 2; d++) {
		struct backend_options options = {.n_threads = 1, .max_rows = 1};
		struct backend *be;
		assert_int_equal(backend_open(devices[d], &options, &be, NULL), 0);
		for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
			struct scene s = scene_of(&table[i]);
			struct error err = {0};
			struct objective *o;
			double gradient[V];
			if (scene_objective(table[i].line, 5, &o, &err))
				fail_msg("%s", err.message);
			known_compare(&table[i], scene_evaluate_on(be, o, &s, gradient), gradient);
			objective_free(o);
		}
		backend_close(be);
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(lines_have_the_values_and_gradients_worked_out),
		cmocka_unit_test(float_kernels_have_them_too),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
