// SPDX-License-Identifier: Apache-2.0
// Every signal read from the vocabulary, from the engine through the codec, against transformers in float64.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/golden/engine.h"
#include "tests/golden/signals_golden.h"

static const char *const models[] = {"llama", "qwen2", "qwen3"};
#define N_MODELS (sizeof models / sizeof *models)
#define MAX_SEQUENCES SIGNAL_MAX_SEQUENCES

// A model, its golden values, and a question about all its sequences in one request.
struct scene {
	struct engine engine;
	struct signals golden;
	struct query query;
	struct record_rows *rows[MAX_SEQUENCES];
};

static void scene_open(struct scene *s, const char *model, const char *device)
{
	char name[256], path[4096];
	snprintf(name, sizeof name, "models/%s", model);
	golden_path(path, sizeof path, name);
	*s = (struct scene){0};
	engine_open(&s->engine, path, device, "f32");
	signals_open(&s->golden, model);
	query_init(&s->query);
}

static void scene_forget(struct scene *s)
{
	for (int i = 0; i < MAX_SEQUENCES; i++)
		s->rows[i] = record_rows_free(s->rows[i]);
}

static void scene_ask(struct scene *s)
{
	struct sequence sequences[MAX_SEQUENCES];
	scene_forget(s);
	for (uint32_t i = 0; i < s->golden.n_sequences; i++)
		sequences[i] = s->golden.sequences[i].sequence;
	engine_ask(&s->engine, &s->query, sequences, s->golden.n_sequences, s->rows);
}

static void scene_close(struct scene *s)
{
	scene_forget(s);
	query_done(&s->query);
	signals_close(&s->golden);
	engine_close(&s->engine);
}

static void near(const char *what, uint32_t row, double got, double want, double bound)
{
	if (!(fabs(got - want) <= bound))
		fail_msg("%s of row %u: %.9g, transformers %.9g", what, row, got, want);
}

static void ask_for_everything(struct query *q)
{
	q->top_k = 16;
	q->n_temperatures = SIGNAL_TEMPERATURES;
	memcpy(q->temperatures, signal_temperatures, sizeof signal_temperatures);
	q->dense = q->own = q->entropy = q->max_prob = q->argmax = q->sum_squares = q->tail = true;
}

// Probabilities at every temperature, from logits and lse alone.
static void compare_probabilities(const struct record_rows *r, const struct signal_sequence *want, uint32_t i, uint32_t V)
{
	for (int t = 0; t < SIGNAL_TEMPERATURES; t++) {
		double T = (double)signal_temperatures[t], lse = (double)r->lse[i * SIGNAL_TEMPERATURES + (uint32_t)t];
		near("lse", i, lse, want->rows[i].lse[t], 1e-4);
		for (uint32_t j = 0; j < V; j++)
			near("probability", i, exp((double)r->dense[(size_t)i * V + j] / T - lse),
			     exp(want->logits[(size_t)i * V + j] / T - want->rows[i].lse[t]), 1e-5);
	}
}

static void compare_row(const struct record_rows *r, const struct signal_sequence *want, uint32_t i, uint32_t V, uint32_t top_k)
{
	const struct signal_row *w = &want->rows[i];
	const float *dense = r->dense + (size_t)i * V;
	const uint32_t *ids = r->ids + (size_t)i * top_k;
	assert_int_equal(r->status[i], ROW_OK);
	compare_probabilities(r, want, i, V);
	near("entropy", i, (double)r->entropy[i], w->entropy, 1e-4);
	near("max prob", i, (double)r->max_prob[i], w->max_prob, 1e-5);
	near("sum of squares", i, (double)r->sum_squares[i], w->sum_squares, 1e-5 * w->sum_squares);
	near("tail", i, (double)r->tail[i], w->tail, 1e-4);
	assert_int_equal(r->argmax[i], w->top[0]);
	assert_memory_equal(ids, w->top, top_k * sizeof *ids);
	for (uint32_t j = 0; j < top_k; j++)
		assert_true(r->logits[(size_t)i * top_k + j] == dense[ids[j]]);
	assert_true(r->max_logit[i] == dense[ids[0]]);
	if (i + 1 == r->n_rows) {
		assert_true(isnan(r->own_logit[i]) && isnan(w->own));
	} else {
		assert_true(r->own_logit[i] == dense[r->sequence.tokens[i + 1]]);
		near("own", i, (double)r->own_logit[i] - (double)r->lse[i * SIGNAL_TEMPERATURES + 1], w->own, 1e-4);
	}
}

static void check_everything(const char *model, const char *device)
{
	struct scene s;
	scene_open(&s, model, device);
	ask_for_everything(&s.query);
	scene_ask(&s);
	for (uint32_t n = 0; n < s.golden.n_sequences; n++) {
		const struct signal_sequence *want = &s.golden.sequences[n];
		size_t size = (size_t)want->sequence.n_tokens * s.golden.V;
		double *dense = golden_array(size, sizeof *dense);
		assert_int_equal(s.rows[n]->n_rows, want->sequence.n_tokens);
		for (uint32_t i = 0; i < want->sequence.n_tokens; i++)
			compare_row(s.rows[n], want, i, s.golden.V, s.golden.top_k);
		for (size_t i = 0; i < size; i++)
			dense[i] = (double)s.rows[n]->dense[i];
		assert_true(relative_error(dense, want->logits, size) <= 1e-5);
		free(dense);
	}
	scene_close(&s);
}

static void every_signal_equals_transformers(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_MODELS; i++) {
		check_everything(models[i], "cpu");
		check_everything(models[i], "ref");
	}
}

// Row i asks for its own top ids, last first, the first of them twice; row 1 for nothing.
static void ask_gather_of_top(struct query *q, const struct record_rows *top)
{
	uint32_t n = top->n_rows, k = top->query.top_k, at = 0;
	q->gather = (struct id_lists){n, golden_array(n + 1, sizeof(uint32_t)), golden_array((size_t)n * (k + 1), sizeof(uint32_t))};
	for (uint32_t i = 0; i < n; i++) {
		uint32_t length = n > 1 && i == 1 ? 0 : k - i % 5;
		for (uint32_t j = length; j-- > 0;)
			q->gather.ids[at++] = top->ids[(size_t)i * k + j];
		if (length)
			q->gather.ids[at++] = top->ids[(size_t)i * k];
		q->gather.offsets[i + 1] = at;
	}
}

static void gather_of_the_top_ids_is_the_top(void **state)
{
	(void)state;
	struct scene s;
	scene_open(&s, "llama", "cpu");
	s.query.top_k = 16;
	scene_ask(&s);
	for (uint32_t n = 0; n < s.golden.n_sequences; n++) {
		const struct sequence *tokens = &s.golden.sequences[n].sequence;
		const struct record_rows *top = s.rows[n];
		struct query q;
		query_init(&q);
		q.own = n % 2;                                            // the own token shares the gathering
		ask_gather_of_top(&q, top);
		struct record_rows *r = engine_ask_one(&s.engine, &q, tokens->tokens, tokens->n_tokens);
		for (uint32_t i = 0; i < r->n_rows; i++) {
			uint32_t length;
			const uint32_t *ids = record_gather_ids(r, i, &length);
			assert_true(length || i == 1);
			for (uint32_t j = 0; j < length; j++) {
				uint32_t place = j + 1 == length ? 0 : length - 2 - j;
				assert_int_equal(ids[j], top->ids[i * 16 + place]);
				assert_memory_equal(r->gathered + record_gather_at(r, i) + j, top->logits + i * 16 + place, sizeof(float));
			}
		}
		record_rows_free(r);
		query_done(&q);
	}
	scene_close(&s);
}

static void top_of_the_whole_vocabulary_is_the_dense_row(void **state)
{
	(void)state;
	struct scene s;
	scene_open(&s, "qwen2", "cpu");
	uint32_t V = s.golden.V;
	s.query.top_k = V;
	s.query.dense = s.query.tail = true;
	scene_ask(&s);
	const struct record_rows *r = s.rows[3];
	for (uint32_t i = 0; i < r->n_rows; i++) {
		bool *seen = golden_array(V, sizeof *seen);
		for (uint32_t j = 0; j < V; j++) {
			uint32_t id = r->ids[(size_t)i * V + j];
			assert_true(id < V && !seen[id]);
			seen[id] = true;
			assert_memory_equal(&r->logits[(size_t)i * V + j], &r->dense[(size_t)i * V + id], sizeof(float));
		}
		assert_true(r->tail[i] == -INFINITY);                   // nothing is outside
		free(seen);
	}
	scene_close(&s);
}

// The fewest ids that reach the mass, and what is outside them; draws of the tail never hit the head.
static void compare_cut(const struct record_rows *r, const struct signal_sequence *want, uint32_t i, uint32_t V)
{
	const struct signal_row *w = &want->rows[i];
	uint32_t k = r->query.top_k, n = r->n_top[i], drawn = 0;
	double sum = 0, before = 0;
	for (uint32_t j = 0; j < n; j++) {
		before = sum;
		sum += exp(want->logits[(size_t)i * V + w->top[j]] - w->lse[1]);
		assert_int_equal(r->ids[(size_t)i * k + j], w->top[j]);
	}
	for (uint32_t j = n; j < k; j++) {
		assert_int_equal(r->ids[(size_t)i * k + j], RECORD_NO_ID);
		assert_true(r->logits[(size_t)i * k + j] == 0);
	}
	assert_true(before < (double)r->query.top_mass + 1e-5);
	assert_true(n == k || sum > (double)r->query.top_mass - 1e-5);
	near("tail of a cut row", i, (double)r->tail[i], log1p(-sum), 1e-4 / (1 - sum));
	for (uint32_t d = r->draw_starts[i]; d < r->draw_starts[i + 1]; d++) {
		drawn += r->draw_counts[d];
		for (uint32_t j = 0; j < n; j++)
			assert_int_not_equal(r->draw_ids[d], w->top[j]);
	}
	assert_int_equal(drawn, r->query.draws.n);
}

static void top_mass_cuts_where_probability_reaches_it(void **state)
{
	(void)state;
	static const float masses[] = {1e-6f, 0.5f, 0.9f, 1};
	struct scene s;
	bool shortened = false;
	scene_open(&s, "qwen3", "cpu");
	for (int m = 0; m < 4; m++) {
		s.query.top_k = 16;
		s.query.top_mass = masses[m];
		s.query.draws = (struct query_draws){.n = 40, .tau = 1, .seed = 5, .tail = true};
		scene_ask(&s);
		for (uint32_t n = 0; n < s.golden.n_sequences; n++)
			for (uint32_t i = 0; i < s.rows[n]->n_rows; i++) {
				compare_cut(s.rows[n], &s.golden.sequences[n], i, s.golden.V);
				assert_true(m > 0 || s.rows[n]->n_top[i] == 1);
				assert_true(m < 3 || s.rows[n]->n_top[i] == 16);
				shortened |= s.rows[n]->n_top[i] > 1 && s.rows[n]->n_top[i] < 16;
			}
	}
	assert_true(shortened);
	scene_close(&s);
}

static void compare_kept(const struct record_rows *r, const struct signals *g, const struct signal_sequence *want, uint32_t i)
{
	double sum = 0;
	near("lse over kept ids", i, (double)r->lse[i], want->rows[i].keep_lse, 1e-4);
	for (uint32_t j = 0; j < g->n_keep; j++) {
		double p = exp((double)r->dense[(size_t)i * g->n_keep + j] - (double)r->lse[i]);
		near("softmax over kept ids", i, p, exp(want->logits[(size_t)i * g->V + g->keep[j]] - want->rows[i].keep_lse), 1e-5);
		sum += p;
	}
	near("sum of probabilities", i, sum, 1, 1e-5);
	for (uint32_t j = 0; j < 4; j++) {
		uint32_t id = r->ids[i * 4 + j], place = 0;
		while (place < g->n_keep && g->keep[place] != id)
			place++;
		assert_true(place < g->n_keep);
		assert_true(r->logits[i * 4 + j] == r->dense[(size_t)i * g->n_keep + place]);
		assert_true(!j || r->logits[i * 4 + j] <= r->logits[i * 4 + j - 1]);
	}
	assert_int_equal(r->argmax[i], r->ids[i * 4]);
	assert_true(r->gathered[2 * i] == r->dense[(size_t)i * g->n_keep + 3]);
	assert_true(r->gathered[2 * i + 1] == r->dense[(size_t)i * g->n_keep]);
	for (uint32_t d = r->draw_starts[i]; d < r->draw_starts[i + 1]; d++)
		assert_true(r->draw_ids[d] % 3 == 1 || r->draw_ids[d] == 90);    // as make_golden.py chose them
	uint32_t next = i + 1 < r->n_rows ? r->sequence.tokens[i + 1] : 0;
	assert_int_equal(isnan(r->own_logit[i]), !(next % 3 == 1 || next == 90));
}

static void kept_ids_are_a_vocabulary_of_their_own(void **state)
{
	(void)state;
	struct scene s;
	scene_open(&s, "llama", "cpu");
	const struct signals *g = &s.golden;
	s.query.top_k = 4;
	s.query.dense = s.query.own = s.query.argmax = true;
	s.query.draws = (struct query_draws){.n = 20, .tau = 1, .seed = 5};
	s.query.n_keep = g->n_keep;
	s.query.keep = golden_array(g->n_keep, sizeof(uint32_t));
	for (uint32_t j = 0; j < g->n_keep; j++)
		s.query.keep[j] = g->keep[g->n_keep - 1 - j];        // the caller's order does not matter
	s.query.gather = (struct id_lists){1, golden_array(2, sizeof(uint32_t)), golden_array(2, sizeof(uint32_t))};
	s.query.gather.offsets[1] = 2;
	s.query.gather.ids[0] = g->keep[3];
	s.query.gather.ids[1] = g->keep[0];
	scene_ask(&s);
	for (uint32_t n = 0; n < g->n_sequences; n++)
		for (uint32_t i = 0; i < s.rows[n]->n_rows; i++)
			compare_kept(s.rows[n], g, &g->sequences[n], i);
	scene_close(&s);
}

// Rows 5 and 6 alone, and spans that reach far beyond them.
static void spans_are_sums_of_own_log_probabilities(void **state)
{
	(void)state;
	struct scene s;
	scene_open(&s, "llama", "cpu");
	const struct signal_sequence *want = &s.golden.sequences[3];
	uint32_t n = want->sequence.n_tokens;
	const struct query_span spans[] = {{1, n}, {1, 2}, {n - 1, n}, {4, 9}, {4, 9}, {12, n - 2}};
	for (int alone = 0; alone < 2; alone++) {
		struct query q;
		query_init(&q);
		q.n_spans = 6;
		q.spans = golden_array(6, sizeof *q.spans);
		memcpy(q.spans, spans, sizeof spans);
		q.own = !alone;
		q.first = 5;
		q.last = 6;
		struct record_rows *r = engine_ask_one(&s.engine, &q, want->sequence.tokens, n);
		for (int i = 0; i < 6; i++) {
			double sum = 0;
			for (uint32_t t = spans[i].begin; t < spans[i].end; t++)
				sum += want->rows[t - 1].own;
			near("span", (uint32_t)i, (double)r->span_sums[i], sum, 1e-4);
		}
		assert_int_equal(r->status == NULL, alone);
		for (uint32_t i = 0; i < 2 && !alone; i++)
			near("own", i + 5, (double)r->own_logit[i] - (double)r->lse[i], want->rows[i + 5].own, 1e-4);
		record_rows_free(r);
		query_done(&q);
	}
	scene_close(&s);
}

static void a_span_over_a_token_that_is_not_kept_has_no_sum(void **state)
{
	(void)state;
	struct scene s;
	scene_open(&s, "llama", "cpu");
	static const uint32_t tokens[] = {7, 1, 4, 5, 10};           // 5 is not kept
	const struct query_span spans[] = {{1, 3}, {2, 5}};
	struct query q;
	query_init(&q);
	q.n_spans = 2;
	q.spans = golden_array(2, sizeof *q.spans);
	memcpy(q.spans, spans, sizeof spans);
	q.n_keep = s.golden.n_keep;
	q.keep = golden_array(q.n_keep, sizeof *q.keep);
	memcpy(q.keep, s.golden.keep, q.n_keep * sizeof *q.keep);
	struct record_rows *r = engine_ask_one(&s.engine, &q, tokens, 5);
	assert_true(isfinite(r->span_sums[0]) && r->span_sums[0] < 0);
	assert_true(isnan(r->span_sums[1]));
	record_rows_free(r);
	query_done(&q);
	scene_close(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_signal_equals_transformers),
		cmocka_unit_test(gather_of_the_top_ids_is_the_top),
		cmocka_unit_test(top_of_the_whole_vocabulary_is_the_dense_row),
		cmocka_unit_test(top_mass_cuts_where_probability_reaches_it),
		cmocka_unit_test(kept_ids_are_a_vocabulary_of_their_own),
		cmocka_unit_test(spans_are_sums_of_own_log_probabilities),
		cmocka_unit_test(a_span_over_a_token_that_is_not_kept_has_no_sum),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
