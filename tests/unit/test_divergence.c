// SPDX-License-Identifier: Apache-2.0
// Every token loss against values worked out by hand in double precision: the running example of five logits.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "tests/unit/loss_example.h"

#define TOLERANCE 2e-6
#define V5 5u

static const struct pair_view dense = {LOSS_SUPPORT_TEACHER, LOSS_FORM_GHOST, UINT32_MAX, UINT32_MAX, false, 0, false, false};

static struct pair_view view_of(enum loss_form form)
{
	struct pair_view v = dense;
	v.form = form;
	return v;
}

static void assert_near(double actual, double expected, double tolerance, const char *what)
{
	if (!(fabs(actual - expected) <= tolerance))
		fail_msg("%s: %.9g is not %.9g", what, actual, expected);
}

// value: of the loss, times T^2 where `square`. No gradient given: gradient[0] is NAN.
struct known {
	const char *what;
	divergence_fn *fn;
	double x[4];
	double temperature;
	uint32_t n, ids[5];            // S
	enum loss_form form;
	bool label;
	double value, gradient[5];
};

#define NONE {NAN}
#define ALL 5, {0, 1, 2, 3, 4}, LOSS_FORM_GHOST
#define HEAD 2, {0, 1}
#define THREE 3, {0, 1, 3}, LOSS_FORM_GHOST

static const struct known table[] = {
	{"soft cross-entropy", divergence_soft_cross_entropy, {0}, 1, ALL, false, 1.247518,
		{-0.144758, 0.109223, -0.032300, 0.083576, -0.015742}},
	{"forward KL", divergence_forward_kl, {0}, 1, ALL, false, 0.089926, {-0.144758, 0.109223, -0.032300, 0.083576, -0.015742}},
	{"forward KL, T 2", divergence_forward_kl, {0}, 2, ALL, false, 0.134004, {-0.118116, 0.094724, -0.055794, 0.137845, -0.058660}},
	{"forward KL, T 4", divergence_forward_kl, {0}, 4, ALL, false, 0.164051, NONE},
	{"reverse KL", divergence_reverse_kl, {0}, 1, ALL, false, 0.103049, {-0.169880, 0.100074, -0.037905, 0.119419, -0.011708}},
	{"reverse KL, T 2", divergence_reverse_kl, {0}, 2, ALL, false, 0.140832, NONE},
	{"reverse KL, T 4", divergence_reverse_kl, {0}, 4, ALL, false, 0.167538, NONE},
	{"half sum", divergence_half_sum, {.5}, 1, ALL, false, 0.096488, {-0.157319, 0.1046485, -0.0351025, 0.1014975, -0.013725}},
	{"nine tenths reverse", divergence_half_sum, {.9}, 1, ALL, false, 0.101737, NONE},
	{"Jeffreys", divergence_jeffreys, {0}, 1, ALL, false, 0.192976, NONE},
	{"JSD .1", divergence_jsd, {.1, 0}, 1, ALL, false, 0.008152, {-0.013147, 0.009756, -0.002933, 0.007673, -0.001348}},
	{"JSD .5", divergence_jsd, {.5, 0}, 1, ALL, false, 0.023591, {-0.038287, 0.026353, -0.008543, 0.023707, -0.003230}},
	{"JSD .9", divergence_jsd, {.9, 0}, 1, ALL, false, 0.009070, {-0.014881, 0.009143, -0.003320, 0.010124, -0.001067}},
	{"JSD 0, normalised", divergence_jsd, {0, 1}, 1, ALL, false, 0.089926, {-0.144758, 0.109223, -0.032300, 0.083576, -0.015742}},
	{"JSD 1, normalised", divergence_jsd, {1, 1}, 1, ALL, false, 0.103049, {-0.169880, 0.100074, -0.037905, 0.119419, -0.011708}},
	{"JSD .001, normalised", divergence_jsd, {.001, 1}, 1, ALL, false, 0.089842 / .999, NONE},
	{"JSD .999, normalised", divergence_jsd, {.999, 1}, 1, ALL, false, 0.102922 / .999, NONE},
	{"skew forward .1", divergence_skew_forward, {.1}, 1, ALL, false, 0.073942, {-0.119442, 0.087155, -0.026651, 0.070507, -0.011568}},
	{"skew forward 0", divergence_skew_forward, {0}, 1, ALL, false, 0.089926, {-0.144758, 0.109223, -0.032300, 0.083576, -0.015742}},
	{"skew reverse .1", divergence_skew_reverse, {.1, 0}, 1, ALL, false, 0.079936,
		{-0.130582, 0.083369, -0.029137, 0.086087, -0.009737}},
	{"skew reverse .1, detached", divergence_skew_reverse, {.1, 1}, 1, ALL, false, 0.079936,
	 {-0.148807, 0.091433, -0.033203, 0.101244, -0.010667}},
	{"skew reverse 0", divergence_skew_reverse, {0, 0}, 1, ALL, false, 0.103049, {-0.169880, 0.100074, -0.037905, 0.119419, -0.011708}},
	{"TVD", divergence_tvd, {0}, 1, ALL, false, 0.192799, {-0.197778, 0.176231, -0.044130, 0.071650, -0.005972}},
	{"AB .2 .7", divergence_ab, {.2, .7}, 1, ALL, false, 0.120331, {-0.182228, 0.111853, -0.045708, 0.134652, -0.018570}},
	{"AB .7 .2", divergence_ab, {.7, .2}, 1, ALL, false, 0.112132, NONE},
	{"AB .5 .5", divergence_ab, {.5, .5}, 1, ALL, false, 0.095403, NONE},
	{"AB 1 0", divergence_ab, {1, 0}, 1, ALL, false, 0.089926, {-0.144758, 0.109223, -0.032300, 0.083576, -0.015742}},
	{"AB 0 1", divergence_ab, {0, 1}, 1, ALL, false, 0.103049, {-0.169880, 0.100074, -0.037905, 0.119419, -0.011708}},
	{"logit MSE", logit_mse, {LOGIT_RAW, 1, 0, 0}, 1, ALL, false, 0.436, {-.2, .08, -.2, .32, -.4}},
	{"logit MSE, centred", logit_mse, {LOGIT_CENTRED, 1, 0, 0}, 1, ALL, false, 0.396, {-.12, .16, -.12, .4, -.32}},
	{"log-prob MSE", logit_mse, {LOGIT_LOG_PROB, 1, 0, 0}, 1, ALL, false, 0.396172, NONE},
	{"logit MSE, summed", logit_mse, {LOGIT_RAW, 1, 1, 0}, 1, ALL, false, 2.18, {-1, .4, -1, 1.6, -2}},
	{"logit MSE, two ids", logit_mse, {LOGIT_RAW, 1, 0, 0}, 1, HEAD, LOSS_FORM_GHOST, false, 0.145, {-.5, .2, 0, 0, 0}},
	{"TAID .4", divergence_taid, {.4}, 1, ALL, false, 0.016928, {-0.064590, 0.042656, -0.014412, 0.041641, -0.005295}},
	{"TAID 1", divergence_taid, {1}, 1, ALL, false, 0.089926, {-0.144758, 0.109223, -0.032300, 0.083576, -0.015742}},
	// q - target on S, and outside q_j (1 - .229230 / .241586)
	{"TAID .4, bucket", divergence_taid, {.4}, 1, HEAD, LOSS_FORM_GHOST, false, 0.007538,
	 {0.435665 - 0.494115, 0.322749 - 0.276654, 0.097210 * .051145, 0.131220 * .051145, 0.013156 * .051145}},
	{"TAID 1, bucket", divergence_taid, {1}, 1, HEAD, LOSS_FORM_GHOST, false, 0.045520,
		{-0.144758, 0.109223, 0.014298, 0.019301, 0.001935}},
	{"adaptive KL", divergence_adaptive_kl, {.5}, 1, ALL, false, 0.098123,
	 {.375411 * -0.144758 + .624589 * -0.169880, .375411 * 0.109223 + .624589 * 0.100074, .375411 * -0.032300 + .624589 * -0.037905,
	  .375411 * 0.083576 + .624589 * 0.119419, .375411 * -0.015742 + .624589 * -0.011708}},
	{"DKD, label alone", divergence_dkd, {1, 0}, 1, ALL, true, 0.029381, NONE},
	{"DKD, others alone", divergence_dkd, {0, 1}, 1, ALL, true, 0.076983, NONE},
	{"DKD as forward KL", divergence_dkd, {1, 1 - 0.213526}, 1, ALL, true, 0.089926,
		{-0.144758, 0.109223, -0.032300, 0.083576, -0.015742}},
	{"bucket forward KL", divergence_forward_kl, {0}, 1, HEAD, LOSS_FORM_GHOST, false, 0.045520,
	 {-0.144758, 0.109223, 0.014298, 0.019301, 0.001935}},
	{"bucket reverse KL", divergence_reverse_kl, {0}, 1, HEAD, LOSS_FORM_GHOST, false, 0.046784,
	 {-0.145367, 0.118233, 0.010918, 0.014738, 0.001478}},
	{"bucket JSD", divergence_jsd, {.5, 0}, 1, HEAD, LOSS_FORM_GHOST, false, 0.011480, NONE},
	{"bucket TVD", divergence_tvd, {0}, 1, HEAD, LOSS_FORM_GHOST, false, 0.144758, NONE},
	{"bucket skew forward", divergence_skew_forward, {.1}, 1, HEAD, LOSS_FORM_GHOST, false, 0.036952, NONE},
	{"bucket skew reverse", divergence_skew_reverse, {.1, 0}, 1, HEAD, LOSS_FORM_GHOST, false, 0.037556, NONE},
	{"three ids: forward KL", divergence_forward_kl, {0}, 1, THREE, false, 0.087277, NONE},
	{"three ids: reverse KL", divergence_reverse_kl, {0}, 1, THREE, false, 0.101407, NONE},
	{"three ids: JSD", divergence_jsd, {.5, 0}, 1, THREE, false, 0.023086, NONE},
	{"three ids: skew forward", divergence_skew_forward, {.1}, 1, THREE, false, 0.072042, NONE},
	{"three ids: skew reverse", divergence_skew_reverse, {.1, 0}, 1, THREE, false, 0.078500, NONE},
	{"three ids: TVD", divergence_tvd, {0}, 1, THREE, false, 0.192799, NONE},
	{"bucket forward KL, T 2", divergence_forward_kl, {0}, 2, HEAD, LOSS_FORM_GHOST, false, 0.037748, NONE},
	{"truncated", divergence_forward_kl, {0}, 1, HEAD, LOSS_FORM_TRUNCATED, false, 0.078302,
	 {-0.234527, 0.042720, 0.077180, 0.104182, 0.010445}},
	{"teacher renormalised", divergence_forward_kl, {0}, 1, HEAD, LOSS_FORM_TEACHER_RENORMALISED, false, 0.329360,
	 {-0.295393, 0.053807, 0.097210, 0.131220, 0.013156}},
	{"both renormalised", divergence_forward_kl, {0}, 1, HEAD, LOSS_FORM_RENORMALISED, false, 0.052835, {-0.156616, 0.156616, 0, 0, 0}},
	{"uniform tail", divergence_forward_kl, {0}, 1, HEAD, LOSS_FORM_UNIFORM, false, 0.123490,
	 {-0.144758, 0.109223, 0.097210 - .0686837, 0.131220 - .0686837, 0.013156 - .0686837}},
	{"uniform tail, cross-entropy", divergence_soft_cross_entropy, {0}, 1, HEAD, LOSS_FORM_UNIFORM, false, 1.320778, NONE},
	{"hinge, teacher's gap", logit_hinge, {0}, 1, 3, {0, 1, 2}, LOSS_FORM_GHOST, false, 0.122146, NONE},
	{"logistic", logit_logistic, {0}, 1, 3, {0, 1, 2}, LOSS_FORM_GHOST, false, 0.339684, NONE},
};

static struct example example_of(const struct known *k)
{
	struct example e = example_five(k->temperature, k->n);
	memcpy(e.top, k->ids, sizeof k->ids);
	e.n_given = k->n;
	return e;
}

static void values_and_gradients_worked_out_by_hand(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
		const struct known *k = &table[i];
		struct example e = example_of(k);
		struct pair_view view = view_of(k->form);
		double gradient[V5], T2 = k->temperature * k->temperature;
		view.label = k->label;
		assert_near(T2 * example_evaluate(&e, k->fn, k->x, &view, gradient), k->value, TOLERANCE, k->what);
		for (uint32_t j = 0; j < V5 && !isnan(k->gradient[0]); j++)
			assert_near(T2 * gradient[j], k->gradient[j], TOLERANCE, k->what);
	}
}

static void the_tail_can_go_to_the_label(void **state)
{
	(void)state;
	struct example e = example_five(1, 2);
	struct pair_view view = view_of(LOSS_FORM_LABEL_TAIL);
	double gradient[V5], target[V5] = {0.580423, 0.213526, 0.206051, 0, 0}, q[V5] = {0.435665, 0.322749, 0.097210, 0.131220, 0.013156};
	e.label = 2;
	assert_near(example_evaluate(&e, divergence_soft_cross_entropy, NULL, &view, gradient), 1.204016, TOLERANCE, "value");
	for (uint32_t j = 0; j < V5; j++)
		assert_near(gradient[j], q[j] - target[j], TOLERANCE, "gradient");
	e.label = 1;                   // one of the head's own
	example_evaluate(&e, divergence_soft_cross_entropy, NULL, &view, gradient);
	assert_near(gradient[1], 0.322749 - 0.213526 - 0.206051, TOLERANCE, "gradient");
}

static void drawn_ids_stand_for_the_row(void **state)
{
	(void)state;
	struct example e = example_five(1, 0);
	struct pair_view view = view_of(LOSS_FORM_DRAWS);
	double gradient[V5], want[V5] = {-0.164335, 0.122749, -0.002790, 0.031220, 0.013156};
	e.n_drawn = 4;
	memcpy(e.drawn, (uint32_t[]){0, 1, 2, 3}, 4 * sizeof *e.drawn);
	memcpy(e.weights, (double[]){.6, .2, .1, .1}, 4 * sizeof *e.weights);
	assert_near(example_evaluate(&e, divergence_forward_kl, NULL, &view, gradient), 0.071981, TOLERANCE, "value");
	for (uint32_t j = 0; j < V5; j++)
		assert_near(gradient[j], want[j], TOLERANCE, "gradient");
	assert_near(example_evaluate(&e, divergence_soft_cross_entropy, NULL, &view, NULL), 1.160881, TOLERANCE, "cross-entropy");
}

static void an_exact_head_and_draws_from_the_tail(void **state)
{
	(void)state;
	struct example e = example_five(1, 2);
	struct pair_view view = view_of(LOSS_FORM_HEAD_DRAWS);
	double gradient[V5], want[V5] = {-0.144758, 0.109223, -0.057329, 0.079707, 0.013156};
	e.n_drawn = 2;
	memcpy(e.drawn, (uint32_t[]){2, 3}, 2 * sizeof *e.drawn);
	memcpy(e.weights, (double[]){0.206051 * 3 / 4, 0.206051 / 4}, 2 * sizeof *e.weights);
	assert_near(example_evaluate(&e, divergence_soft_cross_entropy, NULL, &view, gradient), 1.188562, TOLERANCE, "value");
	for (uint32_t j = 0; j < V5; j++)
		assert_near(gradient[j], want[j], TOLERANCE, "gradient");
}

static void kept_quantile_and_label(void **state)
{
	(void)state;
	struct example e = example_five(1, 5);
	struct pair_view view = dense;
	e.label = 4;
	view.label = true;
	assert_near(example_evaluate(&e, divergence_dac_kl, (double[]){.9}, &view, NULL), 0.053260, TOLERANCE, "value");
	e.n_top = 3;                   // the same ids are known without the others
	assert_near(example_evaluate(&e, divergence_dac_kl, (double[]){.9}, &view, NULL), 0.053260, TOLERANCE, "value");
}

// Targets of FIRST from five probabilities: read off the gradient, which is q - target.
static void probabilities_recalibrated_over_five(void **state)
{
	(void)state;
	static const double p[6] = {.70, .12, .06, .04, .02, .06};
	static const struct { double c, want[5]; } cases[] = {
		{.1, {0.992888, 0.003006, 0.001650, 0.001351, 0.001106}}, {.3, {0.676788, 0.097908, 0.080160, 0.074990, 0.070154}},
		{.5, {0.472742, 0.148198, 0.131440, 0.126286, 0.121334}}, {1, {0.321475, 0.179993, 0.169511, 0.166155, 0.162865}},
	};
	struct example e = {.V = 6, .n_top = 5, .n_given = 5, .top = {0, 1, 2, 3, 4}, .temperature = 1};
	for (int i = 0; i < 6; i++) {
		e.zt[i] = log(p[i]);
		e.zs[i] = sin(i);
	}
	double lse = example_lse(e.zs, 5, 1), gradient[6];
	for (size_t c = 0; c < 4; c++) {
		example_evaluate(&e, divergence_first, &cases[c].c, &dense, gradient);
		for (int i = 0; i < 5; i++)
			assert_near(exp(e.zs[i] - lse) - gradient[i], cases[c].want[i], TOLERANCE, "target");
		assert_near(gradient[5], 0, 1e-15, "outside");
	}
}

static void ids_above_the_teachers_own_are_pushed_below(void **state)
{
	(void)state;
	struct example e = {.V = 5, .n_top = 2, .n_given = 2, .top = {0, 1}, .n_own = 3, .own = {3, 0, 1}, .temperature = 1,
			    .zt = {2, 1, 0, 0, 0}, .zs = {1.5, 1.2, 0, 1.6, -2}};
	struct pair_view view = {LOSS_SUPPORT_BOTH, LOSS_FORM_GHOST, 2, 3, false, 0, false, false};
	double gradient[V5];
	assert_near(example_evaluate(&e, logit_top_n, NULL, &view, gradient), .4, TOLERANCE, "value");
	assert_near(gradient[1], -1, 1e-15, "least of the teacher's");
	assert_near(gradient[3], 1, 1e-15, "the one above");
}

static void the_teachers_word_on_its_tail_is_taken(void **state)
{
	(void)state;
	struct example e = example_five(1, 2);
	double plain = example_evaluate(&e, divergence_reverse_kl, NULL, &dense, NULL);
	e.tail = true;
	assert_near(example_evaluate(&e, divergence_reverse_kl, NULL, &dense, NULL), plain, 1e-12, "value");
	e.zt[0] = 30;                  // 1 - sum(head) is nothing but rounding here; the word is e^-29
	assert_true(isfinite(example_evaluate(&e, divergence_reverse_kl, NULL, &dense, NULL)));
}

static void shards_merge_to_the_whole(void **state)
{
	(void)state;
	double a = example_lse(example_zt, 2, 1), b = example_lse(example_zt + 2, 3, 1);
	assert_near(a, 2.313262, TOLERANCE, "first shard");
	assert_near(b, 0.964369, TOLERANCE, "second shard");
	assert_near(log(exp(a) + exp(b)), 2.543998, TOLERANCE, "both");
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(values_and_gradients_worked_out_by_hand),
		cmocka_unit_test(the_tail_can_go_to_the_label),
		cmocka_unit_test(drawn_ids_stand_for_the_row),
		cmocka_unit_test(an_exact_head_and_draws_from_the_tail),
		cmocka_unit_test(kept_quantile_and_label),
		cmocka_unit_test(probabilities_recalibrated_over_five),
		cmocka_unit_test(ids_above_the_teachers_own_are_pushed_below),
		cmocka_unit_test(the_teachers_word_on_its_tail_is_taken),
		cmocka_unit_test(shards_merge_to_the_whole),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
