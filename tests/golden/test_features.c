// SPDX-License-Identifier: Apache-2.0
// Hidden states and q, k, v rows from the engine through the codec, against what transformers' modules put out; and rows that are no
// numbers.
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/golden/engine.h"
#include "tests/golden/signals_golden.h"

static void model_path(char to[4096], const char *model)
{
	char name[256];
	snprintf(name, sizeof name, "models/%s", model);
	golden_path(to, 4096, name);
}

// All there are, in no order.
static void ask_all_features(struct query *q, const struct signals *g)
{
	q->features[q->n_features++] = (struct query_feature){QUERY_FEATURE_FINAL, 0};
	for (uint32_t i = g->n_layers + 1; i-- > 0;)
		q->features[q->n_features++] = (struct query_feature){QUERY_FEATURE_HIDDEN, (uint16_t)i};
	for (uint16_t i = 0; i < g->n_layers; i++)
		for (uint8_t kind = QUERY_FEATURE_Q; kind <= QUERY_FEATURE_V; kind++)
			q->features[q->n_features++] = (struct query_feature){kind, i};
}

static const double *golden_feature(const struct signals *g, const struct signal_sequence *s, struct query_feature f, uint32_t *ret_width)
{
	switch ((enum query_feature_kind)f.kind) {
	case QUERY_FEATURE_HIDDEN:
		*ret_width = g->width;
		return s->hidden[f.layer];
	case QUERY_FEATURE_FINAL:
		*ret_width = g->width;
		return s->final;
	case QUERY_FEATURE_Q:
		*ret_width = g->q_width;
		return s->q[f.layer];
	case QUERY_FEATURE_K:
		*ret_width = g->kv_width;
		return s->k[f.layer];
	case QUERY_FEATURE_V:
		*ret_width = g->kv_width;
		return s->v[f.layer];
	}
	fail();
	return NULL;
}

// Row i of the answer as transformers has it, in ret (width).
static void pooled(const double *all, uint32_t width, const struct query *q, uint32_t i, double *ret)
{
	uint32_t first = (uint32_t)q->first, n = query_rows(q);
	memset(ret, 0, width * sizeof *ret);
	for (uint32_t j = 0; j < width; j++) {
		if (q->pooling == QUERY_POOLING_NONE)
			ret[j] = all[(size_t)(first + i) * width + j];
		else if (q->pooling == QUERY_POOLING_LAST)
			ret[j] = all[(size_t)q->last * width + j];
		for (uint32_t t = 0; t < n && q->pooling == QUERY_POOLING_MEAN; t++)
			ret[j] += all[(size_t)(first + t) * width + j] / n;
	}
}

static void compare_features(const struct record_rows *r, const struct signals *g, const struct signal_sequence *s, double bound)
{
	const struct query *q = &r->query;
	for (uint32_t f = 0; f < q->n_features; f++) {
		uint32_t width = 0;
		const double *all = golden_feature(g, s, q->features[f], &width);
		assert_int_equal(r->feature_widths[f], width);
		for (uint32_t i = 0; i < (q->pooling ? 1 : r->n_rows); i++) {
			double want[512], got[512];
			pooled(all, width, q, i, want);
			for (uint32_t j = 0; j < width; j++)
				got[j] = (double)r->features[f][(size_t)i * width + j];
			double error = relative_error(got, want, width);
			if (!(error <= bound))
				fail_msg("kind %d of layer %d, row %u: relative error %.3g", q->features[f].kind,
					q->features[f].layer, i, error);
		}
	}
}

static void check_model(const char *model, const char *device, enum query_pooling pooling, enum query_feature_values values, double bound)
{
	char path[4096];
	struct engine e;
	struct signals g;
	struct sequence sequences[SIGNAL_MAX_SEQUENCES];
	struct record_rows *rows[SIGNAL_MAX_SEQUENCES];
	struct query q;
	model_path(path, model);
	engine_open(&e, path, device, "f32");
	signals_open(&g, model);
	query_init(&q);
	ask_all_features(&q, &g);
	q.pooling = pooling;
	q.feature_values = values;
	q.first = pooling ? -1 : 0;                                  // the shortest sequence has one token
	for (uint32_t i = 0; i < g.n_sequences; i++)
		sequences[i] = g.sequences[i].sequence;
	engine_ask(&e, &q, sequences, g.n_sequences, rows);
	for (uint32_t i = 0; i < g.n_sequences; i++) {
		compare_features(rows[i], &g, &g.sequences[i], bound);
		record_rows_free(rows[i]);
	}
	q.first = 3;                                                 // a middle piece of the longest
	q.last = -4;
	rows[0] = engine_ask_one(&e, &q, sequences[3].tokens, sequences[3].n_tokens);
	compare_features(rows[0], &g, &g.sequences[3], bound);
	record_rows_free(rows[0]);
	query_done(&q);
	signals_close(&g);
	engine_close(&e);
}

static void features_equal_transformers(void **state)
{
	(void)state;
	static const char *const names[] = {"llama", "qwen2", "qwen3"};
	for (int i = 0; i < 3; i++) {
		check_model(names[i], "cpu", QUERY_POOLING_NONE, QUERY_FEATURE_F32, 1e-5);
		check_model(names[i], "ref", QUERY_POOLING_NONE, QUERY_FEATURE_F32, 1e-6);
		check_model(names[i], "cpu", QUERY_POOLING_MEAN, QUERY_FEATURE_F32, 1e-5);
		check_model(names[i], "cpu", QUERY_POOLING_LAST, QUERY_FEATURE_F32, 1e-5);
	}
}

static void halves_round_features_and_nothing_else(void **state)
{
	(void)state;
	check_model("llama", "cpu", QUERY_POOLING_NONE, QUERY_FEATURE_F16, 0x1p-11);
	check_model("llama", "cpu", QUERY_POOLING_NONE, QUERY_FEATURE_BF16, 0x1p-8);
	check_model("llama", "cpu", QUERY_POOLING_MEAN, QUERY_FEATURE_BF16, 0x1p-8);
}

// Features beside signals of the vocabulary, for some sequences of a batch only: two requests of one pass do not disturb each other.
static void features_leave_other_answers_alone(void **state)
{
	(void)state;
	char path[4096];
	struct engine e;
	struct signals g;
	struct query plain, both;
	model_path(path, "qwen3");
	engine_open(&e, path, "cpu", "f32");
	signals_open(&g, "qwen3");
	query_init(&plain);
	query_init(&both);
	plain.top_k = both.top_k = 5;
	ask_all_features(&both, &g);
	const struct sequence *s = &g.sequences[3].sequence;
	struct record_rows *without = engine_ask_one(&e, &plain, s->tokens, s->n_tokens),
		*with = engine_ask_one(&e, &both, s->tokens, s->n_tokens);
	assert_memory_equal(with->ids, without->ids, (size_t)s->n_tokens * 5 * sizeof(uint32_t));
	assert_memory_equal(with->logits, without->logits, (size_t)s->n_tokens * 5 * sizeof(float));
	compare_features(with, &g, &g.sequences[3], 1e-5);
	record_rows_free(without);
	record_rows_free(with);
	query_done(&plain);
	query_done(&both);
	signals_close(&g);
	engine_close(&e);
}

// Sequences with a common beginning compute it once: their rows do not lie one after the other then.
static void shared_prefixes_change_no_feature(void **state)
{
	(void)state;
	static const struct engine_sizes sizes = {
		.n_threads = 2, .batch_tokens = 256, .generate_batch = 64, .cache_tokens = 1024, .max_generating = 4};
	static const enum query_pooling poolings[] = {QUERY_POOLING_NONE, QUERY_POOLING_MEAN, QUERY_POOLING_LAST};
	enum { N = 3, LENGTH = 60 };
	uint32_t tokens[N][LENGTH];
	struct sequence sequences[N];
	struct engine e;
	struct signals g;
	char path[4096];
	for (uint32_t i = 0; i < N; i++) {
		for (uint32_t t = 0; t < LENGTH; t++)
			tokens[i][t] = (t * 7 + (t >= 45 ? 11 * i : 0)) % 96;
		sequences[i] = (struct sequence){tokens[i], LENGTH - i};
	}
	model_path(path, "qwen3");
	engine_open_sizes(&e, path, "cpu", "f32", &sizes);
	signals_open(&g, "qwen3");
	for (int p = 0; p < 3; p++) {
		struct record_rows *together[N];
		struct teacher_stats before, after;
		struct query q;
		query_init(&q);
		ask_all_features(&q, &g);
		q.first = 40;
		q.pooling = poolings[p];
		teacher_stats(e.teacher, &before);
		engine_ask(&e, &q, sequences, N, together);
		teacher_stats(e.teacher, &after);
		assert_true(after.n_shared > before.n_shared);
		for (uint32_t i = 0; i < N; i++) {
			struct record_rows *alone = engine_ask_one(&e, &q, sequences[i].tokens, sequences[i].n_tokens);
			for (uint32_t f = 0; f < q.n_features; f++)
				assert_memory_equal(together[i]->features[f], alone->features[f],
						    (p ? 1 : alone->n_rows) * (size_t)alone->feature_widths[f] * sizeof(float));
			record_rows_free(alone);
			record_rows_free(together[i]);
		}
		query_done(&q);
	}
	signals_close(&g);
	engine_close(&e);
}

static void copy_file(const char *from, const char *to, size_t nan_at)
{
	FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
	const uint8_t nan[] = {0, 0, 0xc0, 0x7f};
	assert_true(in && out);
	for (int c; (c = getc(in)) != EOF;)
		putc(c, out);
	if (nan_at) {
		assert_int_equal(fseek(out, (long)nan_at, SEEK_SET), 0);
		assert_int_equal(fwrite(nan, 1, 4, out), 4);
	}
	fclose(in);
	assert_int_equal(fclose(out), 0);
}

// Where the embedding row of a token begins in models/llama/model.safetensors (F32).
static size_t embedding_at(const char *path, uint32_t token, uint32_t width)
{
	char header[8192] = {0};
	uint8_t size[8];
	unsigned long long begin = 0;
	FILE *f = fopen(path, "rb");
	assert_non_null(f);
	assert_int_equal(fread(size, 1, 8, f), 8);
	size_t n = size[0] | (size_t)size[1] << 8;
	assert_true(n < sizeof header && fread(header, 1, n, f) == n);
	fclose(f);
	char *tensor = strstr(header, "model.embed_tokens.weight"), *offsets = tensor ? strstr(tensor, "data_offsets\":[") : NULL;
	assert_non_null(offsets);
	assert_int_equal(sscanf(offsets, "data_offsets\":[%llu", &begin), 1);
	return 8 + n + (size_t)begin + (size_t)token * width * 4;
}

// A copy of the model whose embedding of token 40 is not a number.
struct broken { char directory[64]; char files[3][128]; };

static void broken_make(struct broken *b)
{
	static const char *const names[] = {"config.json", "tokenizer.json", "model.safetensors"};
	char path[4096];
	strcpy(b->directory, "/tmp/kdserved-golden-XXXXXX");
	assert_non_null(mkdtemp(b->directory));
	for (int i = 0; i < 3; i++) {
		char name[256];
		snprintf(name, sizeof name, "models/llama/%s", names[i]);
		golden_path(path, sizeof path, name);
		snprintf(b->files[i], sizeof b->files[i], "%s/%s", b->directory, names[i]);
		copy_file(path, b->files[i], i == 2 ? embedding_at(path, 40, 32) : 0);
	}
}

static void broken_remove(struct broken *b)
{
	for (int i = 0; i < 3; i++)
		unlink(b->files[i]);
	rmdir(b->directory);
}

// Token 40 stands at position 3: rows from 3 on have no numbers. Those before do not read it; but a fast attention may multiply what it
// masks by 0, which makes no number of NaN, and say so of them too.
static void compare_broken(const struct record_rows *r, bool exact)
{
	const struct query *q = &r->query;
	for (uint32_t i = 0; i < 6; i++) {
		bool ok = r->status[i] == ROW_OK;
		assert_true(ok ? i < 3 : i >= 3 || !exact);
		assert_int_equal(r->draw_starts[i + 1] > r->draw_starts[i], ok);
		assert_int_equal(r->max_logit[i] != 0, ok);
		for (uint32_t f = 0; f < q->n_features; f++)
			for (uint32_t j = 0; j < r->feature_widths[f]; j++)
				assert_int_equal(r->features[f][i * r->feature_widths[f] + j] != 0, ok);
	}
	assert_true(isnan(r->span_sums[1]) && isnan(r->span_sums[2]));
	assert_true(!exact || isfinite(r->span_sums[0]));
}

static void rows_that_are_not_finite_have_a_status_and_no_numbers(void **state)
{
	(void)state;
	static const uint32_t tokens[] = {5, 6, 7, 40, 8, 9};
	const struct query_span spans[] = {{1, 4}, {1, 5}, {4, 6}};
	struct broken b;
	struct engine e;
	struct query q;
	broken_make(&b);
	query_init(&q);
	q.top_k = 3;
	q.dense = q.own = q.entropy = q.tail = q.sum_squares = true;
	q.top_mass = 0.5f;
	q.draws = (struct query_draws){.n = 5, .tau = 0.8f, .seed = 1};
	q.n_spans = 3;
	q.spans = golden_array(3, sizeof *q.spans);
	memcpy(q.spans, spans, sizeof spans);
	q.features[q.n_features++] = (struct query_feature){QUERY_FEATURE_HIDDEN, 1};
	q.features[q.n_features++] = (struct query_feature){QUERY_FEATURE_V, 1};
	for (int exact = 0; exact < 2; exact++) {
		engine_open(&e, b.directory, exact ? "ref" : "cpu", "f32");
		struct record_rows *r = engine_ask_one(&e, &q, tokens, 6);
		compare_broken(r, exact);
		record_rows_free(r);
		engine_close(&e);
	}
	query_done(&q);
	broken_remove(&b);
}

static void pooled_features_over_such_rows_are_not_numbers(void **state)
{
	(void)state;
	static const uint32_t tokens[] = {5, 6, 7, 40, 8, 9};
	struct broken b;
	struct engine e;
	broken_make(&b);
	engine_open(&e, b.directory, "ref", "f32");
	for (int32_t last = 2; last < 6; last += 3) {
		struct query q;
		query_init(&q);
		q.last = last;
		q.pooling = QUERY_POOLING_MEAN;
		q.features[q.n_features++] = (struct query_feature){QUERY_FEATURE_FINAL, 0};
		struct record_rows *r = engine_ask_one(&e, &q, tokens, 6);
		assert_null(r->status);
		for (uint32_t j = 0; j < 32; j++)
			assert_int_equal(isnan(r->features[0][j]), last > 2);
		record_rows_free(r);
		query_done(&q);
	}
	engine_close(&e);
	broken_remove(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(features_equal_transformers),
		cmocka_unit_test(halves_round_features_and_nothing_else),
		cmocka_unit_test(features_leave_other_answers_alone),
		cmocka_unit_test(shared_prefixes_change_no_feature),
		cmocka_unit_test(rows_that_are_not_finite_have_a_status_and_no_numbers),
		cmocka_unit_test(pooled_features_over_such_rows_are_not_numbers),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
