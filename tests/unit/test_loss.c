// SPDX-License-Identifier: Apache-2.0
// The running example of five logits worked out by hand in double precision, and finite differences.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "daemon/worker/loss.h"
#include "kernels/backend.h"

#define V 5

static const double zt[V] = {2, 1, .5, -.5, -1};
static const double zs[V] = {1.5, 1.2, 0, .3, -2};

static double lse(const double *z, double t)
{
	double sum = 0;
	for (int i = 0; i < V; i++)
		sum += exp(z[i] / t);
	return log(sum);
}

// Evaluates one position over support ids[0..k) and, when asked, spreads the gradient over the V logits.
static struct loss_value evaluate(const struct loss_options *o, const double *student, const uint32_t *ids, uint32_t k, uint32_t label,
				 double *grad)
{
	float teacher_logits[V];
	double student_logits[V], corrections[V + 1];
	uint32_t correction_ids[V + 1];
	for (uint32_t i = 0; i < k; i++) {
		teacher_logits[i] = (float)zt[ids[i]];
		student_logits[i] = student[ids[i]];
	}
	struct loss_teacher t = {k, ids, teacher_logits, lse(zt, o->temperature)};
	struct loss_student s = {student_logits, lse(student, o->temperature), lse(student, 1), student[label]};
	struct loss_storage storage = {.ids = correction_ids, .corrections = corrections};
	struct softmax_grad_row row;
	struct loss_value v = loss_position(o, &t, &s, label, &storage, grad ? &row : NULL);
	for (int j = 0; grad && j < V; j++) {
		grad[j] = 0;
		for (uint32_t n = 0; n < row.n_terms; n++)
			grad[j] += row.scales[n] * exp(student[j] / (double)row.temperatures[n] - row.lse[n]);
	}
	for (uint32_t i = 0; grad && i < row.n_corrections; i++)
		grad[row.ids[i]] += row.corrections[i];
	return v;
}

static void assert_near(double actual, double expected, double tolerance)
{
	if (!(fabs(actual - expected) <= tolerance))
		fail_msg("%.9g is not %.9g", actual, expected);
}

static void assert_gradient(const double *actual, const double *expected)
{
	for (int i = 0; i < V; i++)
		assert_near(actual[i], expected[i], 2e-6);
}

static const struct loss_options kd_only = {.kd_weight = 1, .temperature = 1, .t2_scale = true, .vocab_size = V};

static void forward_kl_of_two_ids_and_bucket(void **state)
{
	(void)state;
	double grad[V];
	struct loss_value v = evaluate(&kd_only, zs, (uint32_t[]){0, 1}, 2, 1, grad);
	assert_near(v.kd, 0.045520, 2e-6);
	assert_near(v.total, 0.045520, 2e-6);
	assert_gradient(grad, (double[]){-0.144758, 0.109223, 0.014298, 0.019301, 0.001935});
}

static void forward_kl_of_three_ids_and_bucket(void **state)
{
	(void)state;
	assert_near(evaluate(&kd_only, zs, (uint32_t[]){0, 1, 3}, 3, 1, NULL).kd, 0.087277, 2e-6);
}

static void whole_vocabulary_is_the_dense_kl(void **state)
{
	(void)state;
	double grad[V];
	struct loss_options o = kd_only;
	assert_near(evaluate(&o, zs, (uint32_t[]){0, 1, 2, 3, 4}, V, 1, grad).kd, 0.089926, 2e-6);
	assert_gradient(grad, (double[]){-0.144758, 0.109223, -0.032300, 0.083576, -0.015742});
	o.temperature = 2;
	assert_near(evaluate(&o, zs, (uint32_t[]){0, 1, 2, 3, 4}, V, 1, grad).kd, 0.134004, 2e-6);
	assert_gradient(grad, (double[]){-0.118116, 0.094724, -0.055794, 0.137845, -0.058660});
}

static void bucket_at_temperature_two(void **state)
{
	(void)state;
	struct loss_options o = kd_only;
	o.temperature = 2;
	assert_near(evaluate(&o, zs, (uint32_t[]){0, 1}, 2, 1, NULL).kd, 0.037748, 2e-6);
	o.t2_scale = false;
	assert_near(evaluate(&o, zs, (uint32_t[]){0, 1}, 2, 1, NULL).kd, 0.037748 / 4, 2e-6);
}

static void hard_cross_entropy(void **state)
{
	(void)state;
	double grad[V], q[V];
	struct loss_options o = {.ce_weight = 1, .temperature = 1, .vocab_size = V};
	struct loss_value v = evaluate(&o, zs, NULL, 0, 1, grad);
	assert_near(v.ce, 1.130881, 2e-6);
	assert_near(v.total, 1.130881, 2e-6);
	for (int i = 0; i < V; i++)
		q[i] = exp(zs[i] - lse(zs, 1)) - (i == 1);
	assert_gradient(grad, q);
}

static void half_and_half_mix(void **state)
{
	(void)state;
	struct loss_options o = {.kd_weight = .5, .ce_weight = .5, .temperature = 1, .vocab_size = V};
	assert_near(evaluate(&o, zs, (uint32_t[]){0, 1, 2, 3, 4}, V, 1, NULL).total, 0.610404, 2e-6);
}

static void gradients_are_the_finite_differences_and_sum_to_zero(void **state)
{
	(void)state;
	static const struct { double kd, ce, t; bool t2; uint32_t k, label; } cases[] = {
		{1, 0, 1, true, 2, 1}, {1, 0, 2, true, 2, 1}, {1, 0, 2, false, 3, 1}, {.7, .3, 1, true, 2, 1}, {.7, .3, 1, true, 2, 4},
		{.5, .5, 3, true, 1, 0}, {.5, .5, 3, true, 1, 2}, {.2, 1, .5, false, 4, 3}, {1, 1, 1.5, true, V, 2}, {0, 1, 2, true, 2, 2},
	};
	static const uint32_t ids[V] = {0, 1, 3, 2, 4};
	for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
		struct loss_options o = {cases[c].kd, cases[c].ce, cases[c].t, cases[c].t2, V};
		double grad[V], sum = 0;
		evaluate(&o, zs, ids, cases[c].k, cases[c].label, grad);
		for (int j = 0; j < V; j++) {
			double up[V], down[V], h = 1e-5;
			memcpy(up, zs, sizeof up);
			memcpy(down, zs, sizeof down);
			up[j] += h;
			down[j] -= h;
			double numeric = (evaluate(&o, up, ids, cases[c].k, cases[c].label, NULL).total -
					  evaluate(&o, down, ids, cases[c].k, cases[c].label, NULL).total) / (2 * h);
			assert_near(grad[j], numeric, 1e-8);
			sum += grad[j];
		}
		assert_near(sum, 0, 1e-12);
	}
}

static void a_student_equal_to_its_teacher_costs_nothing(void **state)
{
	(void)state;
	double grad[V];
	struct loss_value v = evaluate(&kd_only, zt, (uint32_t[]){0, 1}, 2, 1, grad);
	assert_near(v.kd, 0, 1e-12);
	assert_gradient(grad, (double[V]){0});
}

static void bucket_never_falls_when_the_support_grows(void **state)
{
	(void)state;
	static const uint32_t ids[V] = {0, 1, 2, 3, 4};
	double last = 0;
	for (uint32_t k = 1; k <= V; k++) {
		double kd = evaluate(&kd_only, zs, ids, k, 1, NULL).kd;
		assert_true(kd >= last - 1e-12);
		last = kd;
	}
}

static void shifting_either_row_changes_nothing(void **state)
{
	(void)state;
	double shifted[V], grad[V], shifted_grad[V];
	for (int i = 0; i < V; i++)
		shifted[i] = zs[i] + 40;
	struct loss_options o = {.kd_weight = 1, .ce_weight = 1, .temperature = 2, .t2_scale = true, .vocab_size = V};
	double a = evaluate(&o, zs, (uint32_t[]){0, 1}, 2, 3, grad).total;
	double b = evaluate(&o, shifted, (uint32_t[]){0, 1}, 2, 3, shifted_grad).total;
	assert_near(a, b, 1e-10);
	assert_gradient(shifted_grad, grad);
}

// Rounded values can make the head's mass a little more than 1; a student may leave its tail nothing at all.
static void masses_at_the_edge_stay_finite(void **state)
{
	(void)state;
	double corrections[3];
	uint32_t correction_ids[3];
	struct softmax_grad_row row;
	struct loss_storage storage = {.ids = correction_ids, .corrections = corrections};
	struct loss_student s = {(double[]){0, -1}, log(1 + exp(-1)), log(1 + exp(-1)), 0};
	struct loss_teacher over = {2, (uint32_t[]){0, 1}, (float[]){0, -1}, log(1 + exp(-1)) - 1e-3};
	struct loss_value v = loss_position(&kd_only, &over, &s, 0, &storage, &row);
	assert_true(isfinite(v.kd) && fabs(v.kd) < 3e-3);
	assert_near(row.scales[0], exp(1e-3), 1e-9);
	struct loss_teacher with_tail = {2, (uint32_t[]){0, 1}, (float[]){0, -1}, log(1 + exp(-1)) + .1};
	v = loss_position(&kd_only, &with_tail, &s, 0, &storage, &row);
	assert_true(isfinite(v.kd) && v.kd > 0);
	assert_true(isfinite(row.scales[0]) && isfinite(corrections[0]) && isfinite(corrections[1]));
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(forward_kl_of_two_ids_and_bucket),
		cmocka_unit_test(forward_kl_of_three_ids_and_bucket),
		cmocka_unit_test(whole_vocabulary_is_the_dense_kl),
		cmocka_unit_test(bucket_at_temperature_two),
		cmocka_unit_test(hard_cross_entropy),
		cmocka_unit_test(half_and_half_mix),
		cmocka_unit_test(gradients_are_the_finite_differences_and_sum_to_zero),
		cmocka_unit_test(a_student_equal_to_its_teacher_costs_nothing),
		cmocka_unit_test(bucket_never_falls_when_the_support_grows),
		cmocka_unit_test(shifting_either_row_changes_nothing),
		cmocka_unit_test(masses_at_the_edge_stay_finite),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
