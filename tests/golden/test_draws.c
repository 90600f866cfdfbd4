// SPDX-License-Identifier: Apache-2.0
// Random-sampling distillation (draws): the running example of the method, exactly; the mean of many gradients; and the engine's draws,
// which must be the same however the batch is split.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/sequence.h"
#include "daemon/teacher/draw.h"
#include "tests/golden/engine.h"
#include "tests/golden/signals_golden.h"

// The running example: teacher and student logits, and softmaxes of both.
#define N_IDS 5
static const float teacher_logits[N_IDS] = {2, 1, 0.5f, -0.5f, -1};
static const double student_logits[N_IDS] = {1.5, 1.2, 0, 0.3, -2};
static const double q_minus_p[N_IDS] = {-0.144758, 0.109223, -0.032300, 0.083576, -0.015742};
static const float one = 1;

#define N_DRAWS 10
#define N_GRADIENTS 100000
#define AT_ONCE 1000

struct example {
	struct backend *be;
	struct real *logits;                   // (AT_ONCE, N_IDS)
	struct sweep_row rows[AT_ONCE];
	double lse[AT_ONCE], top[AT_ONCE][N_IDS], uniforms[AT_ONCE][N_DRAWS], drawn_logits[AT_ONCE][N_DRAWS];
	uint32_t top_ids[AT_ONCE][N_IDS], drawn[AT_ONCE][N_DRAWS];
};

static struct example *example_open(const char *device)
{
	struct error *err = NULL;
	struct backend_options options = {.n_threads = 2, .max_rows = AT_ONCE};
	struct example *x = golden_array(1, sizeof *x);
	float *values = golden_array(AT_ONCE * N_IDS, sizeof *values);
	assert_int_equal(backend_open(device, &options, &x->be, err), 0);
	for (int i = 0; i < AT_ONCE * N_IDS; i++)
		values[i] = teacher_logits[i % N_IDS];
	x->logits = x->be->ops->real_new(x->be, AT_ONCE * N_IDS, err);
	assert_non_null(x->logits);
	x->be->ops->real_write(x->be, x->logits, values, AT_ONCE * N_IDS);
	free(values);
	return x;
}

static void example_close(struct example *x)
{
	x->be->ops->real_free(x->be, x->logits);
	backend_close(x->be);
	free(x);
}

// Draws of positions position.. position + AT_ONCE - 1.
static void example_draw(struct example *x, uint32_t position, double tau, uint32_t head)
{
	static const struct content_id sequence = {{0xe5}};
	struct draw_key key = draw_key(11, &sequence);
	for (uint32_t i = 0; i < AT_ONCE; i++) {
		draw_uniforms(&key, position + i, N_DRAWS, x->uniforms[i]);
		x->rows[i] = (struct sweep_row){.top_k = head, .n_temperatures = 1, .temperatures = &one, .want_tail = true,
			.n_draws = N_DRAWS, .draw_tail = head > 0, .draw_tau = tau, .uniforms = x->uniforms[i], .lse = &x->lse[i],
			.ids = x->top_ids[i], .logits = x->top[i], .drawn = x->drawn[i], .drawn_logits = x->drawn_logits[i]};
	}
	x->be->ops->sweep(x->be, x->logits, AT_ONCE, N_IDS, x->rows);
}

// Importance weights of one row: what stands for p. Head ids exactly, drawn ids by their counts.
static void weights_of(const struct example *x, uint32_t i, double tau, uint32_t head, double w[N_IDS])
{
	memset(w, 0, N_IDS * sizeof *w);
	for (uint32_t j = 0; j < head; j++)
		w[x->top_ids[i][j]] = exp(x->top[i][j] - x->lse[i]);
	for (uint32_t d = 0; d < N_DRAWS; d++) {
		double z = x->drawn_logits[i][d], ratio = exp((z - x->lse[i]) - (tau * z - x->rows[i].draw_lse));
		w[x->drawn[i][d]] += ratio / N_DRAWS;
	}
}

// The mean of q W - w over many rows lies within 4 standard errors of q - p, id by id.
static void check_mean_gradient(const char *device, double tau, uint32_t head)
{
	struct example *x = example_open(device);
	double sum[N_IDS] = {0}, squares[N_IDS] = {0}, total = 0, q[N_IDS];
	for (int j = 0; j < N_IDS; j++)
		total += exp(student_logits[j]);
	for (int j = 0; j < N_IDS; j++)
		q[j] = exp(student_logits[j]) / total;
	for (uint32_t done = 0; done < N_GRADIENTS; done += AT_ONCE) {
		example_draw(x, done, tau, head);
		for (uint32_t i = 0; i < AT_ONCE; i++) {
			double w[N_IDS], W = 0;
			weights_of(x, i, tau, head, w);
			for (int j = 0; j < N_IDS; j++)
				W += w[j];
			for (int j = 0; j < N_IDS; j++) {
				double gradient = q[j] * W - w[j];
				sum[j] += gradient;
				squares[j] += gradient * gradient;
			}
		}
	}
	for (int j = 0; j < N_IDS; j++) {
		double mean = sum[j] / N_GRADIENTS, error = sqrt((squares[j] / N_GRADIENTS - mean * mean) / N_GRADIENTS);
		printf("# %s, tau %g, head %u, id %d: %.6f, exact %.6f, standard error %.6f\n", device, tau, head, j, mean,
			q_minus_p[j], error);
		// the exact numbers have six digits; head ids have no variance
		assert_true(fabs(mean - q_minus_p[j]) <= 4 * error + 2e-6);
	}
	example_close(x);
}

static void gradients_average_to_q_minus_p(void **state)
{
	(void)state;
	static const char *const devices[] = {"cpu", "ref"};
	for (int i = 0; i < 2; i++) {
		check_mean_gradient(devices[i], 1, 0);
		check_mean_gradient(devices[i], 0.8, 0);
		check_mean_gradient(devices[i], 1, 2);
		check_mean_gradient(devices[i], 0.8, 2);
	}
}

// Variance of a weight at tau 1 is p (1 - p) / N; distinct ids of 10 draws average 3.299863; tau 0.8 has the ratios of the example.
static void moments_are_those_of_the_example(void **state)
{
	(void)state;
	static const double ratios[N_IDS] = {1.147250, 0.939289, 0.849904, 0.695842, 0.629624};
	struct example *x = example_open("cpu");
	double sum = 0, squares = 0, distinct = 0;
	for (uint32_t done = 0; done < N_GRADIENTS; done += AT_ONCE) {
		example_draw(x, done, 1, 0);
		for (uint32_t i = 0; i < AT_ONCE; i++) {
			double w[N_IDS];
			weights_of(x, i, 1, 0, w);
			sum += w[0];
			squares += w[0] * w[0];
			for (int j = 0; j < N_IDS; j++)
				distinct += w[j] > 0;
		}
	}
	double mean = sum / N_GRADIENTS;
	assert_true(fabs(squares / N_GRADIENTS - mean * mean - 0.024353) < 0.0005);
	assert_true(fabs(distinct / N_GRADIENTS - 3.299863) < 0.01);
	example_draw(x, 0, 0.8, 0);
	for (uint32_t i = 0; i < AT_ONCE; i++)
		for (int d = 0; d < N_DRAWS; d++) {
			double z = x->drawn_logits[i][d], ratio = exp((z - x->lse[i]) - (0.8 * z - x->rows[i].draw_lse));
			assert_true(fabs(ratio - ratios[x->drawn[i][d]]) < 2e-6);
		}
	example_close(x);
}

static struct engine engine;
static struct signals golden;

static void assert_same_draws(const struct record_rows *a, const struct record_rows *b)
{
	uint32_t n = a->draw_starts[a->n_rows];
	assert_memory_equal(a->draw_starts, b->draw_starts, (a->n_rows + 1) * sizeof(uint32_t));
	assert_memory_equal(a->draw_ids, b->draw_ids, n * sizeof(uint32_t));
	assert_memory_equal(a->draw_counts, b->draw_counts, n * sizeof(uint32_t));
	assert_true(!a->draw_log_ratios == !b->draw_log_ratios);
	if (a->draw_log_ratios)
		assert_memory_equal(a->draw_log_ratios, b->draw_log_ratios, n * sizeof(float));
}

static void counts_do_not_depend_on_the_batch(void **state)
{
	(void)state;
	static const float taus[] = {1, 0.8f};
	for (int t = 0; t < 4; t++) {
		struct sequence sequences[SIGNAL_MAX_SEQUENCES];
		struct record_rows *company[SIGNAL_MAX_SEQUENCES];
		struct query q;
		query_init(&q);
		q.top_k = t / 2 ? 3 : 0;
		q.draws = (struct query_draws){.n = 50, .tau = taus[t % 2], .seed = 99, .tail = t / 2};
		for (uint32_t i = 0; i < golden.n_sequences; i++)
			sequences[i] = golden.sequences[golden.n_sequences - 1 - i].sequence;
		engine_ask(&engine, &q, sequences, golden.n_sequences, company);
		for (uint32_t i = 0; i < golden.n_sequences; i++) {
			struct record_rows *alone = engine_ask_one(&engine, &q, sequences[i].tokens, sequences[i].n_tokens);
			assert_same_draws(alone, company[i]);
			record_rows_free(alone);
			record_rows_free(company[i]);
		}
		q.draws.seed = 100;
		struct record_rows *other = engine_ask_one(&engine, &q, sequences[0].tokens, sequences[0].n_tokens);
		q.draws.seed = 99;
		struct record_rows *same = engine_ask_one(&engine, &q, sequences[0].tokens, sequences[0].n_tokens);
		assert_memory_not_equal(other->draw_counts, same->draw_counts, 20 * sizeof(uint32_t));
		record_rows_free(other);
		record_rows_free(same);
		query_done(&q);
	}
}

// A question about fewer rows draws the same at those rows.
static void counts_do_not_depend_on_the_rows_asked(void **state)
{
	(void)state;
	struct query q;
	query_init(&q);
	q.draws = (struct query_draws){.n = 50, .tau = 1, .seed = 99};
	const struct sequence *s = &golden.sequences[3].sequence;
	struct record_rows *all = engine_ask_one(&engine, &q, s->tokens, s->n_tokens);
	q.first = q.last = 7;
	struct record_rows *row = engine_ask_one(&engine, &q, s->tokens, s->n_tokens);
	uint32_t at = all->draw_starts[7], n = all->draw_starts[8] - at;
	assert_int_equal(row->draw_starts[1], n);
	assert_memory_equal(row->draw_ids, all->draw_ids + at, n * sizeof(uint32_t));
	assert_memory_equal(row->draw_counts, all->draw_counts + at, n * sizeof(uint32_t));
	record_rows_free(all);
	record_rows_free(row);
	query_done(&q);
}

// Weights of 60000 draws of a row against its probabilities in transformers: 4.5 standard errors (there are 96 ids) and three counts, for
// ids that are hardly ever drawn are not normally distributed.
static void compare_weights(const struct record_rows *r, const struct signal_sequence *want, uint32_t i, uint32_t row)
{
	const double *z = want->logits + (size_t)row * golden.V;
	const struct query_draws *draws = &r->query.draws;
	double n = draws->n, tau = (double)draws->tau, sum = 0;
	double *w = golden_array(golden.V, sizeof *w);
	bool *head = golden_array(golden.V, sizeof *head);
	for (uint32_t k = 0; k < r->query.top_k && draws->tail; k++)
		head[r->ids[i * r->query.top_k + k]] = true;
	for (uint32_t j = 0; j < golden.V; j++)
		sum += head[j] ? 0 : exp(tau * z[j]);
	for (uint32_t d = r->draw_starts[i]; d < r->draw_starts[i + 1]; d++) {
		double log_ratio = r->draw_log_ratios ? (double)r->draw_log_ratios[d] : draws->tail ? (double)r->tail[i] : 0;
		w[r->draw_ids[d]] = r->draw_counts[d] / n * exp(log_ratio);
	}
	for (uint32_t j = 0; j < golden.V; j++) {
		double p = exp(z[j] - want->rows[row].lse[1]), ratio = p / (exp(tau * z[j]) / sum);
		if (head[j] ? w[j] != 0 : !(fabs(w[j] - p) <= 4.5 * sqrt(p * ratio / n) + 3 * ratio / n))
			fail_msg("row %u, id %u: weight %.6f, probability %.6f", row, j, w[j], p);
	}
	free(w);
	free(head);
}

static void weights_of_many_draws_are_the_probabilities(void **state)
{
	(void)state;
	static const float taus[] = {1, 0.8f, 1.5f};
	for (int t = 0; t < 6; t++) {
		struct query q;
		query_init(&q);
		q.top_k = 4;
		q.draws = (struct query_draws){.n = 60000, .tau = taus[t % 3], .seed = 3, .tail = t / 3};
		q.first = 5;
		q.last = 8;
		const struct signal_sequence *want = &golden.sequences[3];
		struct record_rows *r = engine_ask_one(&engine, &q, want->sequence.tokens, want->sequence.n_tokens);
		for (uint32_t i = 0; i < r->n_rows; i++)
			compare_weights(r, want, i, i + 5);
		record_rows_free(r);
		query_done(&q);
	}
}

static void nothing_outside_the_top_means_no_draws(void **state)
{
	(void)state;
	struct query q;
	query_init(&q);
	q.top_k = golden.V;
	q.draws = (struct query_draws){.n = 8, .tau = 0.5f, .seed = 3, .tail = true};
	const struct sequence *s = &golden.sequences[2].sequence;
	struct record_rows *r = engine_ask_one(&engine, &q, s->tokens, s->n_tokens);
	for (uint32_t i = 0; i < r->n_rows; i++) {
		assert_int_equal(r->status[i], ROW_OK);
		assert_int_equal(r->draw_starts[i + 1], 0);
		assert_true(r->tail[i] == -INFINITY);
	}
	record_rows_free(r);
	query_done(&q);
}

static int open_engine(void **state)
{
	char path[4096];
	(void)state;
	golden_path(path, sizeof path, "models/llama");
	engine_open(&engine, path, "cpu", "f32");
	signals_open(&golden, "llama");
	return 0;
}

static int close_engine(void **state)
{
	(void)state;
	signals_close(&golden);
	engine_close(&engine);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(gradients_average_to_q_minus_p),
		cmocka_unit_test(moments_are_those_of_the_example),
		cmocka_unit_test(counts_do_not_depend_on_the_batch),
		cmocka_unit_test(counts_do_not_depend_on_the_rows_asked),
		cmocka_unit_test(weights_of_many_draws_are_the_probabilities),
		cmocka_unit_test(nothing_outside_the_top_means_no_draws),
	};
	return cmocka_run_group_tests(tests, open_engine, close_engine);
}
