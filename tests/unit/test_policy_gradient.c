// SPDX-License-Identifier: Apache-2.0
// The reverse KL from drawn tokens alone: returns by hand, expectation of the gradient over one row and over whole answers (all of them are
// enumerated), what clipping holds still, and which sequences a loss is about.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/loss/objective.h"
#include "daemon/loss/policy_gradient.h"
#include "daemon/model/philox.h"
#include "daemon/model/weights.h"
#include "daemon/worker/passage.h"
#include "daemon/worker/student.h"
#include "kernels/backend.h"
#include "tests/unit/loss_example.h"

static void assert_near(double actual, double expected, double tolerance)
{
	if (!(fabs(actual - expected) <= tolerance))
		fail_msg("%.9g is not %.9g", actual, expected);
}

static struct objective *objective_of(const char *first, const char *second, uint32_t vocab_size)
{
	struct objective *o;
	struct error err = {0};
	assert_int_equal(objective_new(&o), 0);
	if (objective_add(o, first, "run.conf:1", &err) || (second && objective_add(o, second, "run.conf:2", &err)))
		fail_msg("%s", err.message);
	assert_int_equal(objective_begin(o, 10, vocab_size), 0);
	return o;
}

static void returns_are_those_worked_out_by_hand(void **state)
{
	(void)state;
	static const double log_p[3] = {-.5, -1.2, -2}, log_q[3] = {-.7, -.9, -1};
	static const struct { double gamma, current, normalise, expected[3], scale, limit; } cases[] = {
		{0, 1, 0, {.2, -.3, -1}, 1, 0}, {1, 1, 0, {-1.1, -1.3, -1}, 1, 0},
		{1, 0, 1, {-.65, -1, 0}, 1, 0},                            // the long part of MiniLLM, without its scale
		{.95, 1, 1, {-.658333 / 2, -1.25 / 2, -2. / 2}, 1, 0},       // as its program has it, whose rewards are doubled
		{.5, 0, 0, {-.8, -1, 0}, 1, 0},
		{.95, 1, 1, {-.658333, -1.25, -2}, .5, 100},           // with its scale, whose limit none of them meets
		{.95, 1, 0, {-1.975, -2.5, -2}, .5, 0},
		{1, 1, 0, {-.6, -1, -.5}, .5, .5},                     // rewards .4, -.6, -2 cut off
		{1, 0, 1, {-.5, -.5, 0}, .5, .5},
	};
	double rewards[3];
	for (int i = 0; i < 3; i++)
		rewards[i] = log_p[i] - log_q[i];
	for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
		for (uint32_t i = 0; i < 3; i++) {
			struct loss_position x = {.n_rewards = 3 - i, .rewards = rewards + i};
			double parameters[POLICY_N] = {
				cases[c].gamma, cases[c].current, cases[c].normalise, 0, cases[c].scale, cases[c].limit};
			assert_near(policy_return(&x, parameters), cases[c].expected[i], 2e-6);
		}
}

// Value and gradient on the five logits of the running example when `label` was drawn with its own chance.
static double evaluate(struct objective *o, uint32_t label, double *gradient)
{
	static const uint32_t ids[5] = {0, 1, 2, 3, 4};
	float temperatures[OBJECTIVE_MAX_SOFTMAX];
	double lse[OBJECTIVE_MAX_SOFTMAX], scales[OBJECTIVE_MAX_SOFTMAX], corrections[5] = {0};
	double lse_t = example_lse(example_zt, 5, 1), lse_s = example_lse(example_zs, 5, 1);
	double log_q = example_zs[label] - lse_s, reward = example_zt[label] - lse_t - log_q;
	struct loss_position x = {.vocab_size = 5, .n = 5, .ids = ids, .student = example_zs, .teacher = example_zt, .label = label,
				  .student_lse_1 = lse_s, .n_rewards = 1, .rewards = &reward, .drawn_logprob = log_q};
	struct gradient g = {0, temperatures, lse, scales, corrections};
	struct softmax_grad_row row;
	struct objective_sums sums = {0};
	objective_position(o, &x, &sums, &g);
	gradient_finish(&g, &x, &row);
	for (uint32_t j = 0; j < 5; j++) {
		gradient[j] = corrections[j];
		for (uint32_t i = 0; i < row.n_terms; i++)
			gradient[j] += row.scales[i] * exp(example_zs[j] - row.lse[i]);
	}
	return sums.total;
}

static const double rkl_gradient[5] = {-0.169880, 0.100074, -0.037905, 0.119419, -0.011708};

static void its_expectation_is_the_reverse_kl_of_the_row(void **state)
{
	(void)state;
	struct objective *o = objective_of("policy-gradient", NULL, 5);
	double value = 0, mean[5] = {0}, g[5], lse = example_lse(example_zs, 5, 1);
	for (uint32_t y = 0; y < 5; y++) {
		double q = exp(example_zs[y] - lse);
		value += q * evaluate(o, y, g);
		for (int j = 0; j < 5; j++)
			mean[j] += q * g[j];
	}
	assert_near(value, 0.103049, 2e-6);
	for (int j = 0; j < 5; j++)
		assert_near(mean[j], rkl_gradient[j], 2e-6);
	objective_free(o);
}

static void the_mean_over_draws_comes_to_it(void **state)
{
	(void)state;
	enum { N = 100000 };
	struct objective *o = objective_of("policy-gradient weight=2", NULL, 5);
	double each[5][5], sum[5] = {0}, squares[5] = {0}, lse = example_lse(example_zs, 5, 1);
	for (uint32_t y = 0; y < 5; y++)
		evaluate(o, y, each[y]);
	for (uint32_t n = 0; n < N; n++) {
		uint32_t words[4], y = 0;
		philox((const uint32_t[]){1, 2}, (const uint32_t[]){n, 0, 0, 0}, words);
		double u = philox_uniform(words[0], words[1]);
		for (double below = exp(example_zs[0] - lse); y < 4 && u >= below; below += exp(example_zs[y] - lse))
			y++;
		for (int j = 0; j < 5; j++) {
			sum[j] += each[y][j];
			squares[j] += each[y][j] * each[y][j];
		}
	}
	for (int j = 0; j < 5; j++) {
		double mean = sum[j] / N, error = sqrt((squares[j] / N - mean * mean) / N);
		assert_true(fabs(mean - 2 * rkl_gradient[j]) < 4 * error);
		assert_true(error < 0.01);
	}
	objective_free(o);
}

static void clipping_holds_still_what_went_far_enough(void **state)
{
	(void)state;
	static const double parameters[] = {0, 1, 0, .2, 1, 0}, plain[] = {0, 1, 0, 0, 1, 0};
	const double student[1] = {-1};
	static const struct { double log_ratio, reward, value; bool still; } cases[] = {
		{.1, -1, 1.105171, false}, {.5, 1, -1.2, true}, {.5, -1, 1.648721, false}, {-.5, 1, -.606531, false}, {-.5, -1, .8, true},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		double factor;
		struct loss_position x = {.student = student, .n_rewards = 1, .rewards = &cases[i].reward,
					  .drawn_logprob = -1 - cases[i].log_ratio};
		assert_near(policy_gradient(&x, parameters, &factor), cases[i].value, 2e-6);
		assert_near(factor, cases[i].still ? 0 : cases[i].value, 2e-6);
		assert_near(policy_gradient(&x, plain, &factor), -exp(cases[i].log_ratio) * cases[i].reward, 1e-12);
	}
}

static void a_loss_learns_from_the_text_it_is_about(void **state)
{
	(void)state;
	double g[5];
	struct objective *o = objective_of("cross-entropy on=text", "cross-entropy on=rollouts name=own weight=3", 5);
	double value = evaluate(o, 1, g);
	assert_near(value, 3 * 1.130881, 6e-6);                        // drawn: the second alone
	struct loss_position x = {
		.vocab_size = 5, .n = 5, .student = example_zs, .label = 1, .student_lse_1 = example_lse(example_zs, 5, 1)};
	struct objective_sums sums = {0};
	objective_position(o, &x, &sums, NULL);
	assert_near(sums.total, 1.130881, 2e-6);
	assert_true(sums.counts[0] == 1 && sums.counts[1] == 0);
	uint32_t term;
	assert_true(objective_wants_rollouts(o, &term));
	assert_int_equal(term, 1);
	struct error err = {0};
	assert_int_not_equal(objective_add(o, "policy-gradient on=text", "run.conf:3", &err), 0);
	assert_non_null(strstr(err.message, "run.conf:3: loss policy-gradient: on: it learns from what the student writes"));
	objective_free(o);
}

// ---- whole answers: V^2 of two tokens after a prompt of one

#define V 5
#define PROMPT 3

static const struct architecture architecture = {
	.name = "llama", .n_layers = 1, .width = 8, .ffn_width = 12, .n_heads = 2, .n_kv_heads = 1, .head_size = 4, .vocab_size = V,
	.context_length = 16, .norm_epsilon = 1e-5f, .rope_theta = 10000, .tied_head = true, .bos_id = -1, .eos_id = -1,
};

static double teacher_logit(uint32_t previous, uint32_t id)
{
	return example_zt[(id + 2 * previous) % V];
}

// What the teacher says of prompt, a, b: all V logits of both rows.
static struct record_rows *rows_new(const uint32_t *tokens)
{
	struct content_id teacher = {{1}};
	struct record_rows *r = NULL;
	struct query q;
	struct query_limits limits = {.max_tokens = 3, .max_top_k = V, .vocab_size = V};
	struct sequence s = {(uint32_t *)(uintptr_t)tokens, 3};
	query_init(&q);
	q.own = true;
	q.top_k = V;
	q.last = -2;
	assert_int_equal(query_check(&q, &s, &limits, NULL, NULL), 0);
	assert_int_equal(record_rows_new(&teacher, V, &s, &q, &r, NULL), 0);
	for (uint32_t row = 0; row < 2; row++) {
		double sum = 0;
		for (uint32_t j = 0; j < V; j++) {
			r->ids[row * V + j] = j;
			r->logits[row * V + j] = (float)teacher_logit(tokens[row], j);
			sum += exp((double)r->logits[row * V + j]);
		}
		r->lse[row] = (float)log(sum);
		r->own_logit[row] = r->logits[row * V + tokens[row + 1]];
	}
	return r;
}

static struct student *student_new(struct objective *o)
{
	struct student *s = NULL;
	struct error err = {0};
	struct student_options options = {.device = "ref", .n_threads = 1, .sequence_length = 3, .micro_batch = 1, .top_k = V, .seed = 5,
					  .objective = o};
	if (student_open(&options, &architecture, NULL, &s, &err))
		fail_msg("%s", err.message);
	struct weights *w = student_weights(s);
	for (size_t i = 0; i < w->parameters->n_values; i++) {         // a start with opinions
		double value;
		struct real *at = w->backend->ops->real_at(w->parameters->value, i);
		w->backend->ops->real_read(w->backend, &value, at, 1);
		w->backend->ops->real_write(w->backend, at, &(float){(float)(value * 8)}, 1);
	}
	weights_refresh(w);
	return s;
}

// ln q of both tokens of each answer, and KL(q; p) over answers.
static double answers_weigh(struct student *hard, double log_q[V * V][2])
{
	double kl = 0;
	for (uint32_t y = 0; y < V * V; y++) {
		uint32_t tokens[3] = {PROMPT, y / V, y % V};
		double total[3] = {0};
		struct record_rows *r = rows_new(tokens);
		for (uint32_t first = 1; first < 3; first++) {         // of both labels, then of the second alone
			struct passage p = {.first = first};
			struct student_sums sums = {0};
			student_passages(hard, &p);
			assert_int_equal(student_train(hard, (const struct record_rows *const[]){r}, 1, &sums, NULL), 0);
			total[first] = -sums.objective.total;
		}
		log_q[y][0] = total[1] - total[2];
		log_q[y][1] = total[2];
		for (uint32_t i = 0; i < 2; i++)
			kl += exp(total[1]) * (log_q[y][i] - ((double)r->own_logit[i] - (double)r->lse[i]));
		record_rows_free(r);
	}
	return kl;
}

// The expectation of the gradient: each answer's, times its chance.
static double *gradient_expect(struct student *s, double log_q[V * V][2])
{
	struct weights *w = student_weights(s);
	size_t n = w->parameters->n_values;
	double *sum = calloc(n, sizeof *sum), *one = calloc(n, sizeof *one);
	w->backend->ops->real_zero(w->backend, w->parameters->gradient, n);
	for (uint32_t y = 0; y < V * V; y++) {
		uint32_t tokens[3] = {PROMPT, y / V, y % V};
		struct record_rows *r = rows_new(tokens);
		struct passage p = {.first = 1, .author = PASSAGE_STUDENT, .logprobs = log_q[y], .drawn = log_q[y]};
		struct student_sums sums = {0};
		student_passages(s, &p);
		assert_int_equal(student_train(s, (const struct record_rows *const[]){r}, 1, &sums, NULL), 0);
		w->backend->ops->real_read(w->backend, one, w->parameters->gradient, n);
		w->backend->ops->real_zero(w->backend, w->parameters->gradient, n);
		for (size_t i = 0; i < n; i++)
			sum[i] += exp(log_q[y][0] + log_q[y][1]) * one[i];
		record_rows_free(r);
	}
	free(one);
	return sum;
}

// Against differences of the KL itself, over all answers.
static void expectation_check(const char *first, const char *second)
{
	struct objective *soft = objective_of(first, second, V), *hard = objective_of("cross-entropy", NULL, V);
	struct student *s = student_new(soft), *judge = student_new(hard);
	struct weights *w = student_weights(judge);
	double log_q[V * V][2], largest = 0;
	answers_weigh(judge, log_q);
	double *g = gradient_expect(s, log_q);
	for (size_t i = 0; i < w->parameters->n_values; i += 23) {
		struct real *at = w->backend->ops->real_at(w->parameters->value, i);
		double value, kl[2], moved_log_q[V * V][2];
		w->backend->ops->real_read(w->backend, &value, at, 1);
		float moved[2] = {(float)(value + 2e-4), (float)(value - 2e-4)};
		for (int k = 0; k < 2; k++) {
			w->backend->ops->real_write(w->backend, at, &moved[k], 1);
			weights_refresh(w);
			kl[k] = answers_weigh(judge, moved_log_q);
		}
		w->backend->ops->real_write(w->backend, at, &(float){(float)value}, 1);
		double expected = (kl[0] - kl[1]) / ((double)moved[0] - (double)moved[1]);
		assert_near(g[i], expected, 2e-4 * (1 + fabs(expected)));
		largest = fmax(largest, fabs(expected));
	}
	assert_true(largest > 1e-2);
	free(g);
	student_close(s), student_close(judge);
	objective_free(soft), objective_free(hard);
}

static void of_whole_answers_it_is_the_gradient_of_their_kl(void **state)
{
	(void)state;
	expectation_check("policy-gradient gamma=1", NULL);
}

static void the_exact_row_and_what_comes_after_it_are_the_same(void **state)
{
	(void)state;
	expectation_check("reverse-kl top-k=5", "policy-gradient gamma=1 current=off");
}

// Tokens that the teacher drew in the student's place with chance .2: what methods make of the weights q / ((1 - al) q + al p).
static void weights_of_mixed_tokens_are_those_worked_out_by_hand(void **state)
{
	(void)state;
	static const double log_p[3] = {-.5, -1.2, -2}, weights[3] = {0.957597, 1.054670, 1.144720};
	double log_q[3] = {-.7, -.9, -1};
	struct passage p = {.first = 4, .drawn = log_q, .mixed = .2};
	for (uint32_t i = 0; i < 3; i++)
		assert_near(exp(log_q[i] - passage_chance(&p, 4 + i, log_p[i])), weights[i], 2e-6);
	p.mixed = 0;
	assert_true(passage_chance(&p, 5, -3) == -.9);
	p.mixed = .5;
	assert_near(passage_chance(&p, 4, -1000), -.7 + log(.5), 1e-12);
	assert_near(passage_chance(&p, 4, -0.), log(.5 + .5 * exp(-.7)), 1e-12);
	// One of them with the log ratio .1 on, in the clipped surrogate: advantage of the middle token, whitened by hand.
	double chance = passage_chance(&(struct passage){.first = 4, .drawn = log_q, .mixed = .2}, 4, log_p[0]), factor;
	static const double plain[POLICY_N] = {0, 1, 0, .2, 1, 0};
	const double student[1] = {-.7 + .1}, reward[1] = {1.173845};
	struct loss_position x = {.student = student, .n_rewards = 1, .rewards = reward, .drawn_logprob = chance};
	assert_near(policy_gradient(&x, plain, &factor), -1.058308 * 1.173845, 2e-5);
	assert_near(policy_gradient(&x, plain, &factor), -1.242290, 2e-5);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(returns_are_those_worked_out_by_hand),
		cmocka_unit_test(weights_of_mixed_tokens_are_those_worked_out_by_hand),
		cmocka_unit_test(its_expectation_is_the_reverse_kl_of_the_row),
		cmocka_unit_test(the_mean_over_draws_comes_to_it),
		cmocka_unit_test(clipping_holds_still_what_went_far_enough),
		cmocka_unit_test(a_loss_learns_from_the_text_it_is_about),
		cmocka_unit_test(of_whole_answers_it_is_the_gradient_of_their_kl),
		cmocka_unit_test(the_exact_row_and_what_comes_after_it_are_the_same),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
