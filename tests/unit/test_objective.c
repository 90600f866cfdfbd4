// SPDX-License-Identifier: Apache-2.0
// Lines of a run's objective: what they mean, what they ask of the teacher, how schedules and weights act, and every refusal.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "common/query.h"
#include "daemon/loss/method.h"
#include "daemon/loss/objective.h"
#include "daemon/loss/schedule.h"
#include "kernels/backend.h"
#include "tests/unit/loss_example.h"

static void assert_near(double actual, double expected, double tolerance)
{
	if (!(fabs(actual - expected) <= tolerance))
		fail_msg("%.9g is not %.9g", actual, expected);
}

static struct objective *objective_of(const char *const *lines, uint64_t n_steps, uint32_t vocab_size)
{
	struct objective *o;
	struct error err = {0};
	assert_int_equal(objective_new(&o), 0);
	for (; *lines; lines++)
		if (objective_add(o, *lines, "run.conf:7", &err))
			fail_msg("%s", err.message);
	if (objective_check(o, &err))
		fail_msg("%s", err.message);
	assert_int_equal(objective_begin(o, n_steps, vocab_size), 0);
	return o;
}

#define LINES(...) (const char *const[]){__VA_ARGS__, NULL}

// The running example as a position: every id known, at the temperatures of the objective's step.
struct position_example {
	uint32_t ids[5];
	double temperatures[OBJECTIVE_MAX_TERMS], teacher_lse[OBJECTIVE_MAX_TERMS], student_lse[OBJECTIVE_MAX_TERMS];
	struct loss_position x;
};

static void position_make(struct position_example *e, struct objective *o, uint32_t n_top, uint32_t label)
{
	float temperatures[OBJECTIVE_MAX_TERMS];
	uint32_t n = objective_temperatures(o, temperatures);
	for (uint32_t i = 0; i < n; i++) {
		e->temperatures[i] = (double)temperatures[i];
		e->teacher_lse[i] = example_lse(example_zt, 5, e->temperatures[i]);
		e->student_lse[i] = example_lse(example_zs, 5, e->temperatures[i]);
	}
	for (uint32_t i = 0; i < 5; i++)
		e->ids[i] = i;
	e->x = (struct loss_position){.vocab_size = 5, .n = 5, .ids = e->ids, .student = example_zs, .teacher = example_zt, .n_top = n_top,
				      .label = label, .n_temperatures = n, .temperatures = e->temperatures, .teacher_lse = e->teacher_lse,
				      .student_lse = e->student_lse, .student_lse_1 = example_lse(example_zs, 5, 1), .tail = NAN,
				      .entropy = 1.157591, .student_mean = .2};
}

static struct objective_sums evaluate(struct objective *o, uint32_t n_top, uint32_t label, double *gradient)
{
	struct position_example e;
	struct objective_sums sums = {0};
	float temperatures[OBJECTIVE_MAX_SOFTMAX];
	double lse[OBJECTIVE_MAX_SOFTMAX], scales[OBJECTIVE_MAX_SOFTMAX], corrections[5] = {0};
	struct gradient g = {0, temperatures, lse, scales, corrections};
	struct softmax_grad_row row;
	position_make(&e, o, n_top, label);
	objective_position(o, &e.x, &sums, &g);
	gradient_finish(&g, &e.x, &row);
	for (uint32_t j = 0; j < 5 && gradient; j++) {
		gradient[j] = corrections[j];
		for (uint32_t i = 0; i < row.n_terms; i++)
			gradient[j] += row.scales[i] * exp(example_zs[j] / (double)row.temperatures[i] - row.lse[i]);
	}
	return sums;
}

static void hard_cross_entropy_and_smoothing(void **state)
{
	(void)state;
	double gradient[5], lse = example_lse(example_zs, 5, 1);
	struct objective *o = objective_of(LINES("cross-entropy"), 10, 5);
	assert_near(evaluate(o, 5, 1, gradient).total, 1.130881, 2e-6);
	for (int j = 0; j < 5; j++)
		assert_near(gradient[j], exp(example_zs[j] - lse) - (j == 1), 1e-12);
	assert_false(objective_asks_teacher(o));
	assert_false(objective_wants_mean(o));
	objective_free(o);
	o = objective_of(LINES("cross-entropy smoothing=0.1"), 10, 5);
	double value = 0;
	for (int j = 0; j < 5; j++)
		value -= (.9 * (j == 1) + .02) * (example_zs[j] - lse);
	assert_near(evaluate(o, 5, 1, gradient).total, value, 1e-12);
	for (int j = 0; j < 5; j++)
		assert_near(gradient[j], exp(example_zs[j] - lse) - .9 * (j == 1) - .02, 1e-12);
	assert_true(objective_wants_mean(o));
	objective_free(o);
}

static void losses_add_up_with_their_weights(void **state)
{
	(void)state;
	struct objective *o = objective_of(LINES("cross-entropy weight=0.5", "forward-kl weight=0.5 top-k=5"), 10, 5);
	double gradient[5], lse = example_lse(example_zs, 5, 1), lse_t = example_lse(example_zt, 5, 1);
	struct objective_sums sums = evaluate(o, 5, 1, gradient);
	assert_near(sums.total, 0.610404, 2e-6);
	assert_near(sums.values[0], 1.130881, 2e-6);
	assert_near(sums.values[1], 0.089926, 2e-6);
	for (int j = 0; j < 5; j++)
		assert_near(gradient[j], exp(example_zs[j] - lse) - .5 * (j == 1) - .5 * exp(example_zt[j] - lse_t), 1e-12);
	objective_free(o);
	o = objective_of(LINES("forward-kl temperature=2 top-k=2", "forward-kl temperature=2 t2-scale=off top-k=2 name=plain"), 10, 5);
	sums = evaluate(o, 2, 1, NULL);
	assert_near(sums.values[0], 0.037748, 2e-6);
	assert_near(sums.values[1], 0.037748 / 4, 2e-6);
	assert_string_equal(objective_name(o, 0), "forward-kl");
	assert_string_equal(objective_name(o, 1), "plain");
	objective_free(o);
	o = objective_of(LINES("jsd", "jsd beta=0.1", "soft-cross-entropy top-k=5"), 10, 5);
	assert_string_equal(objective_name(o, 1), "jsd-2");
	sums = evaluate(o, 5, 1, NULL);
	assert_near(sums.values[2] - sums.entropies[2], 0.089926, 2e-6);       // the KL is known where the entropy is
	assert_true(isnan(sums.entropies[0]));
	objective_free(o);
	// of a sparse row as well, whose bucket has less entropy than the ids in it, and at any temperature
	o = objective_of(LINES("soft-cross-entropy top-k=2", "soft-cross-entropy top-k=2 temperature=2",
			       "soft-cross-entropy top-k=2 form=uniform"), 10, 5);
	sums = evaluate(o, 2, 1, NULL);
	assert_near(sums.values[0] - sums.entropies[0], 0.045520, 2e-6);
	assert_near(sums.values[1] - sums.entropies[1], 0.037748, 2e-6);
	assert_near(sums.values[2] - sums.entropies[2], 0.123490, 2e-6);
	objective_free(o);
}

static void only_what_is_needed_is_asked_of_the_teacher(void **state)
{
	(void)state;
	static const struct { const char *lines[4]; uint32_t top_k, own_k, n_draws, n_temperatures; bool own, entropy, tail,
		draws_tail; } cases[] = {
		{{"forward-kl"}, 64, 0, 0, 1, false, false, false, false},
		{{"cross-entropy"}, 0, 0, 0, 1, false, false, false, false},
		{{"forward-kl top-k=10 temperature=2", "tvd top-k=30 temperature=2"}, 30, 0, 0, 2, false, false, false, false},
		{{"forward-kl top-k=100000"}, 1000, 0, 0, 1, false, false, false, false},
		{{"reverse-kl support=student:20"}, 0, 20, 0, 1, false, false, false, false},
		{{"reverse-kl support=both:20 top-k=8", "cross-entropy"}, 8, 20, 0, 1, false, false, false, false},
		{{"dkd"}, 64, 0, 0, 1, true, false, false, false},
		{{"soft-cross-entropy tail=on"}, 64, 0, 0, 1, false, false, true, false},
		{{"soft-cross-entropy form=draws"}, 0, 0, 50, 1, false, true, false, false},
		{{"soft-cross-entropy temperature=2"}, 64, 0, 0, 2, false, false, false, false},
		{{"forward-kl form=draws draws=12 tau=0.8"}, 0, 0, 12, 1, false, true, false, false},
		{{"forward-kl form=head-draws top-k=4", "jsd top-k=4"}, 4, 0, 50, 1, false, true, true, true},
		{{"first"}, 5, 0, 0, 1, false, false, false, false},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct objective *o = objective_of(cases[i].lines, 10, 1000);
		struct query q;
		query_init(&q);
		objective_query(o, 0, 0, 99, 1000, &q);
		assert_int_equal(q.top_k, cases[i].top_k);
		assert_int_equal(objective_any_own_k(o), cases[i].own_k);
		assert_int_equal(q.draws.n, cases[i].n_draws);
		assert_int_equal(q.draws.seed, cases[i].n_draws ? 99 : 0);
		assert_int_equal(q.n_temperatures, cases[i].n_temperatures);
		assert_true(q.own == cases[i].own && q.entropy == cases[i].entropy && q.tail == cases[i].tail);
		assert_true(q.draws.tail == cases[i].draws_tail);
		uint32_t width = cases[i].top_k + cases[i].own_k + cases[i].n_draws + 1;
		assert_int_equal(objective_width(o, 1000), width < 1000 ? width : 1000);
		objective_free(o);
	}
}

static void a_schedule_is_read_and_followed(void **state)
{
	(void)state;
	static const struct { const char *text; uint64_t step; double value; } cases[] = {
		{"0.5", 7, .5}, {"-1e-3", 0, -1e-3}, {"linear:1:0", 0, 1}, {"linear:1:0", 25, .75}, {"linear:1:0", 100, 0},
		{"linear:1:0", 101, 0}, {"linear:1:3:10-20", 9, 1}, {"linear:1:3:10-20", 10, 1}, {"linear:1:3:10-20", 15, 2},
		{"linear:1:3:10-20", 20, 3}, {"linear:0:1:50-", 75, .5}, {"linear:0:1:150-", 120, 0}, {"cosine:1:0:0-100", 50, .5},
		{"cosine:1:0:0-100", 25, .853553390593}, {"cosine:1:0", 100, 0}, {"piecewise:0=1,100=0.5,200=0", 0, 1},
		{"piecewise:0=1,100=0.5,200=0", 50, .75}, {"piecewise:0=1,100=0.5,200=0", 150, .25},
		{"piecewise:0=1,100=0.5,200=0", 500, 0}, {"piecewise:10=2", 99, 2}, {"piecewise:10=2,11=4", 10, 2},
		{"piecewise:10=2,11=4", 11, 4},
	};
	static const char *const bad[] = {
		"", "x", "1x", "nan", "inf", "0x10", "1e999", "linear", "linear:", "linear:1", "linear:1:", "linear:1:2:", "linear:1:2:3",
		"linear:1:2:5-5", "linear:1:2:9-5", "linear:1:2:-5", "linear:1:2:1-2x", "linear:1:2:99999999999999999999-", "cosine:a:b",
		"piecewise:", "piecewise:1", "piecewise:1=", "piecewise:1=2,", "piecewise:2=1,1=0", "piecewise:1=1,1=0", "piecewise:-1=1",
		"piecewise:0=1,2=1,3=1,4=1,5=1,6=1,7=1,8=1,9=1,10=1,11=1,12=1,13=1,14=1,15=1,16=1,17=1", "step:1:2",
	};
	struct schedule s;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		assert_int_equal(schedule_parse(cases[i].text, &s), 0);
		assert_near(schedule_at(&s, cases[i].step, 100), cases[i].value, 1e-12);
	}
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		if (schedule_parse(bad[i], &s) == 0)
			fail_msg("%s was taken", bad[i]);
}

static void weights_and_temperatures_change_over_the_run(void **state)
{
	(void)state;
	struct objective *o = objective_of(LINES("forward-kl weight=linear:1:0:0-10 temperature=piecewise:0=1,4=2 top-k=2"), 20, 5);
	struct query q;
	assert_near(evaluate(o, 2, 1, NULL).total, 0.045520, 2e-6);
	objective_step(o, 5);
	assert_near(evaluate(o, 2, 1, NULL).total, 0.037748 / 2, 2e-6);
	query_init(&q);
	objective_query(o, 0, 4, 0, 5, &q);
	assert_int_equal(q.n_temperatures, 2);
	assert_true(q.temperatures[0] == 1 && q.temperatures[1] == 2);
	objective_step(o, 10);
	assert_near(evaluate(o, 2, 1, NULL).total, 0, 0);
	objective_free(o);
}

static void taid_follows_the_loss_and_remembers(void **state)
{
	(void)state;
	double kept[4];
	struct objective *o = objective_of(LINES("taid t=linear:0.4:1:0-1000000000 top-k=5"), 10, 5), *other;
	assert_near(evaluate(o, 5, 1, NULL).total, 0.016928, 2e-6);
	assert_near(evaluate(o, 5, 1, NULL).followed[0], 1.254415, 2e-6);
	assert_int_equal(objective_n_state(o), 4);
	objective_end_step(o, &(struct objective_sums){.followed = {20}, .counts = {10}});         // means: 2.0, then 1.9
	objective_state(o, kept);
	assert_near(kept[0], .4, 1e-12);
	objective_end_step(o, &(struct objective_sums){.followed = {19}, .counts = {10}});
	objective_state(o, kept);
	assert_near(kept[0], 0.400150037, 1e-9);
	assert_near(kept[1], .0005, 1e-12);
	other = objective_of(LINES("taid t=linear:0.4:1:0-1000000000 top-k=5"), 10, 5);
	objective_restore(other, kept);
	double again[4];
	objective_state(other, again);
	assert_memory_equal(kept, again, sizeof kept);
	objective_end_step(o, &(struct objective_sums){.followed = {18}, .counts = {10}});
	objective_end_step(other, &(struct objective_sums){.followed = {18}, .counts = {10}});
	objective_state(o, kept);
	objective_state(other, again);
	assert_memory_equal(kept, again, sizeof kept);
	objective_free(o);
	objective_free(other);
	o = objective_of(LINES("taid t=piecewise:0=0.4,1=0.406 top-k=5"), 10, 5);      // the schedule is the least
	objective_step(o, 1);
	objective_state(o, kept);
	assert_near(kept[0], .406, 1e-12);
	objective_end_step(o, &(struct objective_sums){.followed = {2}, .counts = {1}});
	objective_end_step(o, &(struct objective_sums){.followed = {1}, .counts = {1}});           // and its end is the most
	objective_state(o, kept);
	assert_near(kept[0], .406, 1e-12);
	objective_free(o);
}

static void every_fault_is_named_with_line_loss_and_key(void **state)
{
	(void)state;
	static const struct { const char *line, *says; } cases[] = {
		{"", "there is no \"\""},
		{"fkl", "there is no \"fkl\"; did you mean \"forward-kl\"?"},
		{"reverse", "did you mean \"reverse-kl\"?"},
		{"forward-kl 1", "loss forward-kl: 1: key=value is expected"},
		{"forward-kl beta=1", "loss forward-kl: beta: this loss has no such parameter"},
		{"cross-entropy temperature=2", "loss cross-entropy: temperature: this loss has no such parameter"},
		{"logit-mse form=ghost", "loss logit-mse: form: this loss has no such parameter"},
		{"forward-kl weight=-1", "weight=-1: from 0 to 1000000 is expected"},
		{"forward-kl weight=linear:0:2e6", "weight=linear:0:2e6: from 0 to 1000000 is expected"},
		{"forward-kl weight=x", "weight=x: a number is expected, or linear:"},
		{"forward-kl weight=1 weight=2", "weight: is set twice"},
		{"forward-kl temperature=0", "temperature=0: from 0.05 to 100 is expected"},
		{"forward-kl top-k=0", "top-k=0: from 1 to 16777216 is expected"},
		{"forward-kl top-k=1.5", "top-k=1.5: a whole number is expected"},
		{"forward-kl top-k=linear:1:2", "top-k=linear:1:2: a whole number is expected"},
		{"forward-kl t2-scale=maybe", "t2-scale=maybe: on or off is expected"},
		{"forward-kl form=bucket", "form=bucket: one of ghost|uniform"},
		{"forward-kl support=student", "support=student: teacher, student:K or both:K is expected"},
		{"forward-kl support=student:0", "support=0: from 1 to 65536 is expected"},
		{"forward-kl support=student:x", "support=x: a whole number is expected"},
		{"forward-kl name=a/b", "name=a/b: a-z, 0-9"},
		{"forward-kl draws=5", "draws: is for form=draws and form=head-draws"},
		{"forward-kl form=draws temperature=2", "form: draws are at temperature 1"},
		{"forward-kl form=draws support=both:4", "form: draws come from the teacher"},
		{"reverse-kl form=uniform", "form: a uniform tail is for forward-kl"},
		{"jsd beta=1", "beta: is 0 everywhere at this end"},
		{"jsd beta=1.5", "beta=1.5: from 0 to 1 is expected"},
		{"dac-kl quantile=0", "quantile: more than 0 is expected"},
		{"top-n-ranking", "support: both:K is expected"},
		{"taid rate=linear:0:1", "rate=linear:0:1: a number is expected"},
		{"logit-mse of=other", "of=other: one of raw|centred|log-prob"},
		{"skew-reverse-kl alpha=1", "alpha=1: from 0 to 0.999"},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct objective *o;
		struct error err = {0};
		assert_int_equal(objective_new(&o), 0);
		assert_int_equal(objective_add(o, cases[i].line, "run.conf:12", &err), -22);
		if (strncmp(err.message, "run.conf:12: loss", 17) != 0 || !strstr(err.message, cases[i].says))
			fail_msg("%s: %s", cases[i].line, err.message);
		assert_string_equal(err.field, "loss");
		assert_int_equal(objective_n_terms(o), 0);
		objective_free(o);
	}
}

static void lines_that_do_not_go_together_are_refused(void **state)
{
	(void)state;
	static const struct { const char *lines[3], *says; } cases[] = {
		{{"forward-kl weight=0", "cross-entropy weight=0"}, "every weight is 0"},
		{{"forward-kl form=draws", "soft-cross-entropy form=draws draws=9"}, "a question draws once"},
		{{"forward-kl form=draws", "soft-cross-entropy form=head-draws"}, "a question draws once"},
	};
	struct error err = {0};
	struct objective *o;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		assert_int_equal(objective_new(&o), 0);
		for (int k = 0; cases[i].lines[k]; k++)
			assert_int_equal(objective_add(o, cases[i].lines[k], "x", NULL), 0);
		assert_int_equal(objective_check(o, &err), -22);
		assert_non_null(strstr(err.message, cases[i].says));
		objective_free(o);
	}
	assert_int_equal(objective_new(&o), 0);
	assert_int_equal(objective_check(o, &err), -22);       // no line at all
	for (int i = 0; i < OBJECTIVE_MAX_TERMS; i++)
		assert_int_equal(objective_add(o, "tvd", "x", NULL), 0);
	assert_int_equal(objective_add(o, "tvd", "x", &err), -7);
	objective_free(o);
	assert_int_equal(objective_new(&o), 0);
	assert_int_equal(objective_add(o, "tvd name=a", "x", NULL), 0);
	assert_int_equal(objective_add(o, "jsd name=a", "x", &err), -22);
	assert_non_null(strstr(err.message, "another loss has this name"));
	char *long_line = calloc(3000, 1);
	memset(long_line, 'a', 2999);
	assert_int_equal(objective_add(o, long_line, "x", &err), -22);
	free(long_line);
	objective_free(o);
}

static void a_form_that_biases_a_loss_says_so(void **state)
{
	(void)state;
	static const struct { const char *line, *says; } cases[] = {
		{"forward-kl", NULL}, {"forward-kl form=draws", NULL}, {"forward-kl form=head-draws", NULL}, {"cross-entropy", NULL},
		{"jsd", NULL}, {"tvd", NULL}, {"reverse-kl", "hidden in the bucket"}, {"reverse-kl support=both:8", NULL},
		{"reverse-kl support=student:8", NULL}, {"jsd form=draws", "not linear"}, {"forward-kl form=truncated", "no divergence"},
		{"forward-kl form=teacher-renormalised", "overconfident"}, {"forward-kl form=renormalised", "ratios"},
		{"forward-kl form=uniform", "flattens"}, {"forward-kl form=label-tail", "label"}, {"taid", "no bound"},
		{"first", "left alone"}, {"reverse-kl top-k=1000", NULL}, {"logit-mse top-k=2000", NULL},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct objective *o = objective_of(LINES(cases[i].line), 10, 1000);
		const char *bias = objective_bias(o, 0, 1000);
		char words[256];
		if (!cases[i].says != !bias || (bias && !strstr(bias, cases[i].says)))
			fail_msg("%s: %s", cases[i].line, bias ? bias : "nothing");
		objective_describe(o, 0, words, sizeof words);
		assert_true(strlen(words) > 10);
		objective_free(o);
	}
}

// Every row of the table can be named alone, with its defaults, and evaluated.
static void every_loss_of_the_table_works_with_its_defaults(void **state)
{
	(void)state;
	size_t n;
	const struct method *table = method_table(&n);
	for (size_t i = 0; i < n; i++) {
		char line[128];
		double gradient[5];
		snprintf(line, sizeof line, "%s%s", table[i].name, table[i].flags & METHOD_OWN_IDS ? " support=both:4" : "");
		struct objective *o = objective_of(LINES(line), 100, 5);
		struct objective_sums sums = evaluate(o, 2, 1, gradient);
		assert_true(isfinite(sums.total) && sums.total >= 0);
		for (int j = 0; j < 5; j++)
			assert_true(isfinite(gradient[j]));
		objective_free(o);
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(hard_cross_entropy_and_smoothing),
		cmocka_unit_test(losses_add_up_with_their_weights),
		cmocka_unit_test(only_what_is_needed_is_asked_of_the_teacher),
		cmocka_unit_test(a_schedule_is_read_and_followed),
		cmocka_unit_test(weights_and_temperatures_change_over_the_run),
		cmocka_unit_test(taid_follows_the_loss_and_remembers),
		cmocka_unit_test(every_fault_is_named_with_line_loss_and_key),
		cmocka_unit_test(lines_that_do_not_go_together_are_refused),
		cmocka_unit_test(a_form_that_biases_a_loss_says_so),
		cmocka_unit_test(every_loss_of_the_table_works_with_its_defaults),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
