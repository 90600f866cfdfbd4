// SPDX-License-Identifier: Apache-2.0
// The real teacher's row scalars, hidden states and q, k, v rows against transformers in float32, from the engine through the codec. Exit
// 77 when the model file is not there.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/golden/engine.h"
#include "tests/golden/signals_golden.h"

#define N_FEATURES 7                     // hidden states after three layers, final, q, k, v of the last block

static char teacher_path[4096];

// lse: times the temperature, as errors of logits are divided by it.
struct worst { double lse, entropy, max_prob, sum_squares, tail, feature[N_FEATURES]; };

// The last block's number is the last layer's, less one.
static void ask(struct query *q, const uint32_t *layers, uint32_t n_layers, uint32_t top_k)
{
	q->top_k = top_k;
	q->n_temperatures = SIGNAL_TEMPERATURES;
	memcpy(q->temperatures, signal_temperatures, sizeof signal_temperatures);
	q->entropy = q->max_prob = q->argmax = q->sum_squares = q->tail = true;
	for (uint32_t i = 0; i < n_layers; i++)
		q->features[q->n_features++] = (struct query_feature){QUERY_FEATURE_HIDDEN, (uint16_t)layers[i]};
	q->features[q->n_features++] = (struct query_feature){QUERY_FEATURE_FINAL, 0};
	for (uint8_t kind = QUERY_FEATURE_Q; kind <= QUERY_FEATURE_V; kind++)
		q->features[q->n_features++] = (struct query_feature){kind, (uint16_t)(layers[n_layers - 1] - 1)};
	assert_int_equal(q->n_features, N_FEATURES);
}

static void compare_row(const struct record_rows *r, const struct signal_row *want, uint32_t i, struct worst *w)
{
	for (uint32_t t = 0; t < SIGNAL_TEMPERATURES; t++)
		w->lse = fmax(w->lse, fabs((double)r->lse[i * SIGNAL_TEMPERATURES + t] - want->lse[t]) * (double)signal_temperatures[t]);
	w->entropy = fmax(w->entropy, fabs((double)r->entropy[i] - want->entropy));
	w->max_prob = fmax(w->max_prob, fabs((double)r->max_prob[i] - want->max_prob));
	w->sum_squares = fmax(w->sum_squares, fabs((double)r->sum_squares[i] - want->sum_squares));
	w->tail = fmax(w->tail, fabs((double)r->tail[i] - want->tail));
	assert_int_equal(r->argmax[i], want->top[0]);
	assert_int_equal(r->ids[i * r->query.top_k], want->top[0]);
}

static void compare_features(const struct record_rows *r, struct golden_file *g, uint32_t i, struct worst *w)
{
	for (uint32_t f = 0; f < N_FEATURES; f++) {
		uint32_t width = r->feature_widths[f];
		double *want = golden_f32s(g, width), *got = golden_array(width, sizeof *got);
		for (uint32_t j = 0; j < width; j++)
			got[j] = (double)r->features[f][(size_t)i * width + j];
		w->feature[f] = fmax(w->feature[f], relative_error(got, want, width));
		free(want);
		free(got);
	}
}

static struct worst compare(const char *numeric)
{
	struct golden_file g;
	struct engine e;
	struct query q;
	struct worst w = {0};
	golden_open(&g, "teacher_signals.bin", "KDGF");
	uint32_t n = reader_u32(&g.reader), *tokens = golden_u32s(&g, n), head[6];
	for (int i = 0; i < 6; i++)
		head[i] = reader_u32(&g.reader);    // top_k, rows, layers, C, q and kv widths
	uint32_t *layers = golden_u32s(&g, head[2]);
	engine_open(&e, teacher_path, "cpu", numeric);
	query_init(&q);
	ask(&q, layers, head[2], head[0]);
	struct record_rows *r = engine_ask_one(&e, &q, tokens, n);
	assert_true(r->feature_widths[0] == head[3] && r->feature_widths[4] == head[4] && r->feature_widths[6] == head[5]);
	for (uint32_t i = 0; i < head[1]; i++) {
		struct signal_row want;
		uint32_t position = reader_u32(&g.reader);
		assert_in_range(position, 0, n - 1);
		signal_row_read(&want, &g, head[0]);
		compare_row(r, &want, position, &w);
		compare_features(r, &g, position, &w);
		free(want.top);
	}
	printf("# %s, worst row: lse %.2e, entropy %.2e, max prob %.2e, sum of squares %.2e, tail %.2e; relative error of features",
	       numeric, w.lse, w.entropy, w.max_prob, w.sum_squares, w.tail);
	for (int f = 0; f < N_FEATURES; f++)
		printf(" %.1e", w.feature[f]);
	printf("\n");
	record_rows_free(r);
	query_done(&q);
	engine_close(&e);
	golden_close(&g);
	free(tokens);
	free(layers);
	return w;
}

static void f32_equals_transformers(void **state)
{
	(void)state;
	struct worst w = compare("f32");
	assert_true(w.lse <= 1e-4 && w.entropy <= 1e-4 && w.tail <= 1e-4);
	assert_true(w.max_prob <= 1e-5 && w.sum_squares <= 1e-5);
	for (int f = 0; f < N_FEATURES; f++)
		assert_true(w.feature[f] <= 1e-5);
}

static void the_fast_path_is_close(void **state)
{
	(void)state;
	struct worst w = compare("auto");
	assert_true(w.lse <= 0.2 && w.entropy <= 0.2 && w.tail <= 0.2);
	assert_true(w.max_prob <= 0.05 && w.sum_squares <= 0.05);
	for (int f = 0; f < N_FEATURES; f++)
		assert_true(w.feature[f] <= 2e-2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(f32_equals_transformers),
		cmocka_unit_test(the_fast_path_is_close),
	};
	if (!golden_teacher(teacher_path, sizeof teacher_path)) {
		fprintf(stderr, "skipped: no teacher at %s\n", teacher_path);
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
