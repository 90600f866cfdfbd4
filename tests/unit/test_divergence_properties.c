// SPDX-License-Identifier: Apache-2.0
// Every token loss with every form: gradients against finite differences, and the properties that make a divergence of it.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "tests/unit/loss_example.h"

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

static double random_number(uint64_t *seed)
{
	*seed = *seed * 6364136223846793005u + 1442695040888963407u;
	return (double)(*seed >> 40) / (double)(1 << 24) - .5;
}

// A random row: its label outside the head, some ids asked for by the student, some drawn.
static struct example example_random(uint64_t *seed, double temperature)
{
	struct example e = {.V = 9, .n_top = 4, .n_own = 3, .n_drawn = 3, .temperature = temperature};
	for (uint32_t i = 0; i < e.V; i++) {
		e.zt[i] = 4 * random_number(seed);
		e.zs[i] = 4 * random_number(seed);
	}
	for (uint32_t i = 0; i < 3; i++) {
		e.own[i] = (2 * i + (uint32_t)(*seed >> 33) % 2) % e.V;
		e.drawn[i] = 3 * i + 1;
		e.weights[i] = .1 + .2 * (random_number(seed) + .5);
	}
	e.label = (uint32_t)(*seed >> 40) % e.V;
	return e;
}

struct loss { const char *what; divergence_fn *fn; double x[4]; bool label, is_f, constant_part, uniform; };
static const struct loss losses[] = {
	{"forward KL", divergence_forward_kl, {0}, false, true, false, true},
	{"soft cross-entropy", divergence_soft_cross_entropy, {0}, false, false, false, true},
	{"reverse KL", divergence_reverse_kl, {0}, false, true, false, false},
	{"half sum", divergence_half_sum, {.3}, false, true, false, false},
	{"Jeffreys", divergence_jeffreys, {0}, false, true, false, false},
	{"JSD .3", divergence_jsd, {.3, 0}, false, true, false, false},
	{"JSD .7, normalised", divergence_jsd, {.7, 1}, false, true, false, false},
	{"JSD 0, as at the end of a schedule", divergence_jsd, {0, 0}, false, true, false, false},
	{"JSD 1, as at the end of a schedule", divergence_jsd, {1, 0}, false, true, false, false},
	{"JSD 1, normalised", divergence_jsd, {1, 1}, false, true, false, false},
	{"skew forward", divergence_skew_forward, {.1}, false, true, false, false},
	{"skew forward 0", divergence_skew_forward, {0}, false, true, false, false},
	{"skew reverse 0", divergence_skew_reverse, {0, 0}, false, true, false, false},
	{"skew reverse", divergence_skew_reverse, {.1, 0}, false, true, false, false},
	{"skew reverse, mixture constant", divergence_skew_reverse, {.1, 1}, false, true, true, false},
	{"TVD", divergence_tvd, {0}, false, true, false, false},
	{"AB .2 .7", divergence_ab, {.2, .7}, false, false, false, false},
	{"AB -.5 1.5", divergence_ab, {-.5, 1.5}, false, false, false, false},
	{"AB 0 .7", divergence_ab, {0, .7}, false, false, false, false},
	{"AB .7 0", divergence_ab, {.7, 0}, false, false, false, false},
	{"AB .7 -.7", divergence_ab, {.7, -.7}, false, false, false, false},
	{"AB 0 0", divergence_ab, {0, 0}, false, false, false, false},
	{"adaptive KL", divergence_adaptive_kl, {.5}, false, false, true, false},
	{"DKD", divergence_dkd, {1, .5}, true, false, false, false},
	{"TAID", divergence_taid, {.4}, false, false, true, false},
	{"DAC-KL", divergence_dac_kl, {.6}, true, false, false, false},
	{"FIRST", divergence_first, {.3}, false, false, false, false},
	{"logit MSE", logit_mse, {LOGIT_RAW, .8, 0, 0}, false, false, false, false},
	{"logit MSE, centred", logit_mse, {LOGIT_CENTRED, 1, 1, 0}, false, false, false, false},
	{"log-prob MSE", logit_mse, {LOGIT_LOG_PROB, 1, 0, 0}, false, false, false, false},
	{"hinge", logit_hinge, {0}, false, false, false, false},
	{"hinge, margin", logit_hinge, {.2}, false, false, false, false},
	{"logistic", logit_logistic, {0}, false, false, false, false},
};
#define N_LOSSES (sizeof losses / sizeof *losses)

static bool needs_teacher_logits(divergence_fn *fn)
{
	return fn == logit_mse || fn == logit_hinge || fn == logit_logistic || fn == divergence_first || fn == divergence_dac_kl;
}

static bool form_fits(const struct loss *l, enum loss_form form)
{
	if (form == LOSS_FORM_UNIFORM)
		return l->uniform;
	return form == LOSS_FORM_GHOST || !needs_teacher_logits(l->fn);
}

// A loss of which a part is held constant by definition has no value whose difference is its gradient: that test is below.
static void check_difference(const struct example *e, const struct loss *l, const struct pair_view *view, const char *form)
{
	double gradient[EXAMPLE_V], sum = 0, size = 1, h = 1e-5;
	char what[96];
	snprintf(what, sizeof what, "%s, form %s, support %d, T %g", l->what, form, view->support, e->temperature);
	example_evaluate(e, l->fn, l->x, view, gradient);
	for (uint32_t j = 0; j < e->V; j++) {
		struct example up = *e, down = *e;
		up.zs[j] += h;
		down.zs[j] -= h;
		double above = example_evaluate(&up, l->fn, l->x, view, NULL), below = example_evaluate(&down, l->fn, l->x, view, NULL);
		double numeric = (above - below) / (2 * h);
		if (!l->constant_part)
			assert_near(gradient[j], numeric, 2e-7 * (1 + fabs(numeric)), what);
		sum += gradient[j];
		size += fabs(gradient[j]);
	}
	if (!(l->fn == logit_mse && (int)l->x[0] == LOGIT_RAW))
		assert_near(sum, 0, 1e-13 * size, what);
}

static const char *const form_names[] = {"ghost", "uniform", "teacher-renormalised", "renormalised", "truncated", "draws", "head-draws",
					 "label-tail"};

static void gradients_are_finite_differences_and_sum_to_zero(void **state)
{
	(void)state;
	uint64_t seed = 3;
	for (size_t i = 0; i < N_LOSSES; i++)
		for (int form = 0; form < LOSS_N_FORMS; form++)
			for (int n = 0; n < 12 && form_fits(&losses[i], (enum loss_form)form); n++) {
				bool drawn = form == LOSS_FORM_DRAWS || form == LOSS_FORM_HEAD_DRAWS;
				struct example e = example_random(&seed, drawn || n % 2 ? 1 : 1.75);
				struct pair_view view = {drawn ? LOSS_SUPPORT_TEACHER : (enum loss_support)(n % 3), (enum loss_form)form, 4,
							 3, losses[i].label, 0, false, false};
				check_difference(&e, &losses[i], &view, form_names[form]);
			}
}

// TAID's target and adaptive KL's weights, held by hand.
static void gradients_with_a_constant_part_are_differences_of_the_rest(void **state)
{
	(void)state;
	uint64_t seed = 8;
	for (int n = 0; n < 20; n++) {
		struct example e = example_random(&seed, 1);
		double gradient[EXAMPLE_V], forward[EXAMPLE_V], reverse[EXAMPLE_V], value, f, r;
		e.n_top = e.V;
		value = example_evaluate(&e, divergence_adaptive_kl, (double[]){.5}, &dense, gradient);
		f = example_evaluate(&e, divergence_forward_kl, NULL, &dense, forward);
		r = example_evaluate(&e, divergence_reverse_kl, NULL, &dense, reverse);
		double share = (value - r) / (f - r);
		assert_true(share > -1e-9 && share < 1 + 1e-9);
		for (uint32_t j = 0; j < e.V; j++)
			assert_near(gradient[j], share * forward[j] + (1 - share) * reverse[j], 1e-9, "adaptive KL");
		// what goes through the mixture is its gradient less
		double skewed[EXAMPLE_V], detached[EXAMPLE_V], inner[EXAMPLE_V], all = 0;
		example_evaluate(&e, divergence_skew_reverse, (double[]){.1, 0}, &dense, skewed);
		example_evaluate(&e, divergence_skew_reverse, (double[]){.1, 1}, &dense, detached);
		for (uint32_t j = 0; j < e.V; j++) {
			double p = exp(e.zt[j] - example_lse(e.zt, e.V, 1)), q = exp(e.zs[j] - example_lse(e.zs, e.V, 1));
			inner[j] = q * .1 * q / (.9 * p + .1 * q);
			all += inner[j];
		}
		for (uint32_t j = 0; j < e.V; j++)
			assert_near(detached[j] - skewed[j], inner[j] - exp(e.zs[j] - example_lse(e.zs, e.V, 1)) * all, 1e-12,
				"skew reverse");
		struct example target = e;     // forward KL to the interpolated row has TAID's value and gradient
		for (uint32_t j = 0; j < e.V; j++)
			target.zt[j] = .6 * (e.zs[j] - example_lse(e.zs, e.V, 1)) + .4 * (e.zt[j] - example_lse(e.zt, e.V, 1));
		value = example_evaluate(&e, divergence_taid, (double[]){.4}, &dense, gradient);
		assert_near(example_evaluate(&target, divergence_forward_kl, NULL, &dense, forward), value, 1e-12, "TAID");
		for (uint32_t j = 0; j < e.V; j++)
			assert_near(gradient[j], forward[j], 1e-12, "TAID");
	}
}

static bool is_bucket_form(const struct loss *l)
{
	return (l->is_f || l->fn == divergence_ab || l->fn == divergence_adaptive_kl || l->fn == divergence_dkd ||
		l->fn == divergence_taid || l->fn == divergence_dac_kl);
}

static void a_student_equal_to_its_teacher_costs_nothing(void **state)
{
	(void)state;
	uint64_t seed = 11;
	for (size_t i = 0; i < N_LOSSES; i++)
		for (uint32_t k = 1; k <= 9 && is_bucket_form(&losses[i]); k++) {
			struct example e = example_random(&seed, k % 2 ? 1 : 3);
			struct pair_view view = dense;
			double gradient[EXAMPLE_V];
			memcpy(e.zs, e.zt, sizeof e.zs);
			e.n_top = k;
			view.label = losses[i].label;
			assert_near(example_evaluate(&e, losses[i].fn, losses[i].x, &view, gradient), 0, 1e-12, losses[i].what);
			for (uint32_t j = 0; j < e.V; j++)
				assert_near(gradient[j], 0, 1e-12, losses[i].what);
		}
}

static void a_bucket_never_falls_when_the_support_grows_and_ends_at_the_dense_value(void **state)
{
	(void)state;
	uint64_t seed = 17;
	for (size_t i = 0; i < N_LOSSES; i++)
		for (int n = 0; n < 20 && losses[i].is_f; n++) {
			struct example e = example_random(&seed, 1);
			double last = -1e-12, value = 0, whole[EXAMPLE_V], all_but_one[EXAMPLE_V];
			for (e.n_top = 1; e.n_top <= e.V; e.n_top++) {
				value = example_evaluate(&e, losses[i].fn, losses[i].x, &dense, e.n_top == e.V ? whole : all_but_one);
				assert_true(value >= last - 1e-12);
				last = value;
			}
			assert_near(value, last, 1e-15, losses[i].what);
			// a tail of one id is that id: nothing is lost
			for (uint32_t j = 0; j < e.V; j++)
				assert_near(all_but_one[j], whole[j], 1e-9, losses[i].what);
		}
}

static void shifting_either_row_changes_nothing_but_a_raw_mse(void **state)
{
	(void)state;
	uint64_t seed = 23;
	for (size_t i = 0; i < N_LOSSES; i++) {
		struct example e = example_random(&seed, 2), moved = e;
		struct pair_view view = {LOSS_SUPPORT_BOTH, LOSS_FORM_GHOST, 4, 3, losses[i].label, 0, false, false};
		double a[EXAMPLE_V], b[EXAMPLE_V];
		for (uint32_t j = 0; j < e.V; j++) {
			moved.zs[j] += 40;
			moved.zt[j] -= 17;
		}
		double value = example_evaluate(&e, losses[i].fn, losses[i].x, &view, a);
		double other = example_evaluate(&moved, losses[i].fn, losses[i].x, &view, b);
		bool raw = losses[i].fn == logit_mse && (int)losses[i].x[0] == LOGIT_RAW;
		assert_true(raw == (fabs(value - other) > 1e-9));
		for (uint32_t j = 0; j < e.V && !raw; j++)
			assert_near(a[j], b[j], 1e-9, losses[i].what);
	}
}

static void assert_finite(const struct example *e, const struct loss *l, enum loss_form form)
{
	struct pair_view view = {LOSS_SUPPORT_TEACHER, form, 3, 2, l->label, 0, false, false};
	double gradient[EXAMPLE_V], value = example_evaluate(e, l->fn, l->x, &view, gradient);
	if (!isfinite(value))
		fail_msg("%s, form %s: %g", l->what, form_names[form], value);
	for (uint32_t j = 0; j < e->V; j++)
		if (!isfinite(gradient[j]))
			fail_msg("%s, form %s: a gradient of %g", l->what, form_names[form], gradient[j]);
}

// Rounded values can make the head's mass a little more than 1; a student may leave its tail nothing at all; at a low temperature,
// nothing to any id that the teacher names, or nothing to all but one of those.
static void masses_at_the_edge_stay_finite(void **state)
{
	(void)state;
	static const double students[3][EXAMPLE_V] = {{-60, 0, -70, -300, -600, -600, -600, -600, -600},
						      {-900, -950, -1000, 0, -600, -600, -900, -600, -600},
						      {0, -900, -950, -1000, -900, -900, -900, -900, -900}};
	for (size_t i = 0; i < N_LOSSES; i++)
		for (int form = 0; form < LOSS_N_FORMS; form++)
			for (uint32_t k = 0; k < 6 && form_fits(&losses[i], (enum loss_form)form); k++) {
				struct example e = {.V = 9, .n_top = 3, .n_own = 2, .own = {7, 8}, .n_drawn = 1, .drawn = {5},
						    .weights = {.3}, .temperature = 1, .label = k < 3 ? 6 : 0,
						    .zt = {0, -1, -2, -800, -900, -900, -900, -900, -900}};
				memcpy(e.zs, students[k % 3], sizeof e.zs);
				assert_finite(&e, &losses[i], (enum loss_form)form);
			}
}

static void the_mean_of_drawn_gradients_is_the_dense_one(void **state)
{
	(void)state;
	enum { N_RUNS = 100000, N = 10 };
	struct example e = example_five(1, 0);
	struct pair_view view = view_of(LOSS_FORM_DRAWS);
	double sum[V5] = {0}, squares[V5] = {0}, lse_t = example_lse(example_zt, 5, 1), lse_s = example_lse(example_zs, 5, 1);
	uint64_t seed = 41;
	for (int run = 0; run < N_RUNS; run++) {
		uint32_t counts[V5] = {0};
		double gradient[V5];
		for (int i = 0; i < N; i++) {
			double u = random_number(&seed) + .5, below = 0;
			uint32_t j = 0;
			while (j < V5 - 1 && (below += exp(example_zt[j] - lse_t)) <= u)
				j++;
			counts[j]++;
		}
		e.n_drawn = 0;
		for (uint32_t j = 0; j < V5; j++)
			if (counts[j]) {
				e.drawn[e.n_drawn] = j;
				e.weights[e.n_drawn++] = counts[j] / (double)N;
			}
		example_evaluate(&e, divergence_forward_kl, NULL, &view, gradient);
		for (uint32_t j = 0; j < V5; j++) {
			sum[j] += gradient[j];
			squares[j] += gradient[j] * gradient[j];
		}
	}
	for (uint32_t j = 0; j < V5; j++) {
		double mean = sum[j] / N_RUNS, error = sqrt((squares[j] / N_RUNS - mean * mean) / N_RUNS);
		assert_near(mean, exp(example_zs[j] - lse_s) - exp(example_zt[j] - lse_t), 4 * error, "mean");
		if (j == 0)                    // p (1 - p) / N
			assert_near(squares[j] / N_RUNS - mean * mean, 0.024353, 0.0005, "variance");
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(gradients_are_finite_differences_and_sum_to_zero),
		cmocka_unit_test(gradients_with_a_constant_part_are_differences_of_the_rest),
		cmocka_unit_test(a_student_equal_to_its_teacher_costs_nothing),
		cmocka_unit_test(a_bucket_never_falls_when_the_support_grows_and_ends_at_the_dense_value),
		cmocka_unit_test(shifting_either_row_changes_nothing_but_a_raw_mse),
		cmocka_unit_test(masses_at_the_edge_stay_finite),
		cmocka_unit_test(the_mean_of_drawn_gradients_is_the_dense_one),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
