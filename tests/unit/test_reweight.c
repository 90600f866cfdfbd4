// SPDX-License-Identifier: Apache-2.0
// Sequences weighed by their losses: weights worked out by hand; the step of a student against those of its sequences one by one.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "common/query.h"
#include "common/record.h"
#include "daemon/loss/reweight.h"
#include "daemon/model/weights.h"
#include "daemon/worker/student.h"
#include "kernels/backend.h"

#define N 3
#define V 11
#define L 12
#define K 4

static void assert_near(double actual, double expected, double tolerance)
{
	if (!(fabs(actual - expected) <= tolerance))
		fail_msg("%.9g is not %.9g", actual, expected);
}

static double batch_loss(enum reweight_kind kind, const double *losses, uint32_t n, double *weights)
{
	const struct reweight w = {kind, 1, 1};
	double sum = 0, all = 0;
	reweight_weigh(&w, losses, n, weights);
	for (uint32_t i = 0; i < n; i++) {
		sum += weights[i] > 0 ? weights[i] * losses[i] : 0;
		all += weights[i];
	}
	assert_near(all, 1, 1e-12);
	return sum;
}

static void weights_are_those_worked_out_by_hand(void **state)
{
	(void)state;
	static const double losses[] = {2, 3, 5, 2.5}, linear[] = {.141610, .275819, .384937, .197633};
	double w[4];
	assert_near(batch_loss(REWEIGHT_QUADRATIC, losses, 4, w), 3.020816, 2e-6);
	assert_near(batch_loss(REWEIGHT_EXTREMES, losses, 4, w), 3.198683, 2e-6);
	assert_near(batch_loss(REWEIGHT_LINEAR_UPPER, losses, 4, w), 3.529447, 2e-6);
	for (int i = 0; i < 4; i++)
		assert_near(w[i], linear[i], 2e-6);
	const struct reweight spread = {REWEIGHT_LINEAR_UPPER, 2, 2};  // h, s and r twice as large: the same
	reweight_weigh(&spread, losses, 4, w);
	for (int i = 0; i < 4; i++)
		assert_near(w[i], linear[i], 2e-6);
}

static void equal_losses_weigh_alike_and_unknown_ones_nothing(void **state)
{
	(void)state;
	double equal[] = {3, 3, 3}, some[] = {NAN, 2, 3, NAN, 5, 2.5}, none[] = {NAN, NAN}, w[6];
	batch_loss(REWEIGHT_EXTREMES, equal, 3, w);
	for (int i = 0; i < 3; i++)
		assert_near(w[i], 1 / 3., 1e-12);
	assert_near(batch_loss(REWEIGHT_LINEAR_UPPER, some, 6, w), 3.529447, 2e-6);
	assert_true(w[0] == 0 && w[3] == 0);
	reweight_weigh(&(const struct reweight){REWEIGHT_QUADRATIC, 1, 1}, none, 2, w);
	assert_true(w[0] == 0 && w[1] == 0);
	reweight_weigh(&(const struct reweight){REWEIGHT_LINEAR_UPPER, 1000, .01}, some, 6, w);        // ends of what a run may set
	assert_true(w[1] == 0 && w[2] == 0 && w[4] == 1 && w[5] == 0);
	reweight_weigh(&(const struct reweight){REWEIGHT_QUADRATIC, 1, 1}, some, 6, some);     // in their own place
	assert_true(some[0] == 0 && some[1] > 0);
}

static uint32_t pseudo_random(uint32_t *state)
{
	*state = *state * 1664525u + 1013904223u;
	return *state >> 16;
}

// A teacher's word on a sequence of n tokens; its rows descend from one id on.
static struct record_rows *rows_of(uint32_t seed, uint32_t n)
{
	uint32_t tokens[L];
	struct content_id teacher = {{1}};
	struct query_limits limits = {.max_tokens = L, .max_top_k = V, .vocab_size = V};
	struct sequence s = {tokens, n};
	struct record_rows *r = NULL;
	struct query q;
	for (uint32_t i = 0; i < n; i++)
		tokens[i] = pseudo_random(&seed) % V;
	query_init(&q);
	q.top_k = K;
	q.n_temperatures = 1;
	q.temperatures[0] = 1;
	q.last = -2;
	assert_int_equal(query_check(&q, &s, &limits, NULL, NULL), 0);
	assert_int_equal(record_rows_new(&teacher, V, &s, &q, &r, NULL), 0);
	for (uint32_t row = 0; row < r->n_rows; row++) {
		uint32_t first = pseudo_random(&seed) % V;
		double sum = 0;
		for (uint32_t i = 0; i < V; i++) {
			sum += exp(2 - .7 * i);
			if (i >= K)
				continue;
			r->ids[row * K + i] = (first + 3 * i) % V;
			r->logits[row * K + i] = (float)(2 - .7 * i);
		}
		r->lse[row] = (float)log(sum);
	}
	return r;
}

static const struct architecture architecture = {
	.name = "llama", .n_layers = 1, .width = 8, .ffn_width = 12, .n_heads = 2, .n_kv_heads = 1, .head_size = 4, .vocab_size = V,
	.context_length = L, .norm_epsilon = 1e-5f, .rope_theta = 10000, .tied_head = true, .bos_id = -1, .eos_id = -1,
};

static double *train(struct student *student, struct record_rows *const *rows, uint32_t n, struct student_sums *sums, size_t *ret_n)
{
	struct weights *w = student_weights(student);
	struct error err = {0};
	double *g = malloc(w->parameters->n_values * sizeof *g);
	assert_non_null(g);
	*sums = (struct student_sums){0};
	if (student_train(student, (const struct record_rows *const *)rows, n, sums, &err))
		fail_msg("%s", err.message);
	w->backend->ops->real_read(w->backend, g, w->parameters->gradient, w->parameters->n_values);
	w->backend->ops->real_zero(w->backend, w->parameters->gradient, w->parameters->n_values);
	*ret_n = w->parameters->n_values;
	return g;
}

static void a_step_is_the_weighted_sum_of_its_sequences_means(void **state)
{
	(void)state;
	static const uint32_t lengths[N] = {5, 12, 8};
	static const struct reweight w = {REWEIGHT_LINEAR_UPPER, 1, .5};
	struct record_rows *rows[N];
	struct student_sums sums, alone[N];
	struct student *student;
	struct objective *o;
	struct error err = {0};
	double losses[N], weights[N], total = 0, plain = 0, *g, *parts[N];
	size_t n = 0;
	assert_int_equal(objective_new(&o), 0);
	assert_int_equal(objective_add(o, "forward-kl top-k=4 temperature=1", "run.conf:1", &err), 0);
	assert_int_equal(objective_add(o, "cross-entropy weight=0.5 smoothing=0.1", "run.conf:2", &err), 0);
	assert_int_equal(objective_begin(o, 10, V), 0);
	struct student_options options = {.device = "ref", .n_threads = 1, .sequence_length = L, .micro_batch = N, .top_k = K, .seed = 5,
					  .objective = o};
	if (student_open(&options, &architecture, NULL, &student, &err))
		fail_msg("%s", err.message);
	objective_step(o, 0);
	for (uint32_t i = 0; i < N; i++) {
		rows[i] = rows_of(7 * i + 1, lengths[i]);
		parts[i] = train(student, &rows[i], 1, &alone[i], &n);
		assert_int_equal(alone[i].n_positions, lengths[i] - 1);
		losses[i] = alone[i].objective.total / (double)alone[i].n_positions;
		plain += alone[i].objective.total;
	}
	reweight_weigh(&w, losses, N, weights);
	student_reweight(student, &w);
	g = train(student, rows, N, &sums, &n);
	assert_int_equal(sums.n_positions, 22);
	for (uint32_t i = 0; i < N; i++)
		total += 22 * weights[i] * losses[i];
	assert_near(sums.objective.total, total, 1e-9);
	assert_true(fabs(total - plain) > 1e-4 * plain);
	assert_near(sums.objective.values[0] + .5 * sums.objective.values[1], plain, 1e-9);
	for (size_t k = 0; k < n; k++) {
		double want = 0;
		for (uint32_t i = 0; i < N; i++)
			want += weights[i] * 22 / (lengths[i] - 1) * parts[i][k];
		assert_near(g[k], want, 1e-9);
	}
	free(g);
	student_reweight(student, NULL);
	g = train(student, rows, N, &sums, &n);
	assert_near(sums.objective.total, plain, 1e-9);
	free(g);
	for (uint32_t i = 0; i < N; i++) {
		record_rows_free(rows[i]);
		free(parts[i]);
	}
	student_close(student);
	objective_free(o);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(weights_are_those_worked_out_by_hand),
		cmocka_unit_test(equal_losses_weigh_alike_and_unknown_ones_nothing),
		cmocka_unit_test(a_step_is_the_weighted_sum_of_its_sequences_means),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
