// SPDX-License-Identifier: Apache-2.0
// The rows of a sequence have the same bits alone and in company, and for any number of threads: on the backend BACKEND, through one
// layer of a transformer, the head and the sweep, and through the way back.
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
#include "tests/ops/harness.h"

#define V 101
#define C 48
#define F 88
#define NH 3
#define NKV 1
#define D 16
#define W ((NH + 2 * NKV) * D)
#define TOP_K 20

static const uint32_t starts[] = {0, 1, 18, 82, 123, 128};    // lengths 1, 17, 64, 41, 5
#define N_SEQUENCES 5
#define ALL 128
static const struct attention_shape shape = {NH, NKV, D, 0.25f};

// Everything a row of the batch gives, in the order of rows.
struct results {
	double logits[ALL * V], dqkv[ALL * W], dx[ALL * C];
	double lse[ALL], entropy[ALL], top_logits[ALL * TOP_K];
	uint32_t top_ids[ALL * TOP_K];
	double dw[W * C], dbias[W], dgain[C], dembedding[V * C];    // sums over the batch: comparable for the same batch only
};

static void *allocate(size_t n)
{
	void *x = calloc(1, n);
	assert_non_null(x);
	return x;
}

struct model {
	struct backend *be;
	struct weight *embedding, *qkv, *out, *gate_up, *down;
	struct real *qkv_array, *gain, *head_gain, *bias, *cosine, *sine;
	struct real *x, *x2, *lse, *logits, *dx, *dqkv_array, *dbias, *dgain, *dembedding, *dhead_gain;
	struct act *h, *plain, *qkv_rows, *heads, *gate_up_rows, *ffn, *picked, *dh, *dqkv, *dheads;
};

static struct weight *matrix(struct backend *be, uint64_t *random, uint32_t N, uint32_t K)
{
	float *values = allocate((size_t)N * K * sizeof *values);
	random_fill(random, values, (size_t)N * K, 0.15f);
	struct tensor part = {DTYPE_F32, 2, {N, K}, values, (size_t)N * K * 4};
	struct weight *w = be->ops->weight_load(be, &part, 1, NULL);
	assert_non_null(w);
	free(values);
	return w;
}

static struct real *vector(struct backend *be, uint64_t *random, size_t n)
{
	float *values = allocate(n * sizeof *values);
	random_fill(random, values, n, 0.7f);
	struct real *x = be->ops->real_new(be, n, NULL);
	assert_non_null(x);
	be->ops->real_write(be, x, values, n);
	free(values);
	return x;
}

static void model_init(struct model *m, enum backend_numeric numeric, uint32_t n_threads)
{
	struct backend_options options = {.n_threads = n_threads, .numeric = numeric, .max_rows = ALL};
	struct error err = {0};
	uint64_t random = 42;
	if (backend_open(BACKEND, &options, &m->be, &err) < 0)
		fail_msg("%s", err.message);
	struct backend *be = m->be;
	const struct backend_ops *ops = be->ops;
	m->embedding = matrix(be, &random, V, C);
	m->out = matrix(be, &random, C, NH * D);
	m->gate_up = matrix(be, &random, 2 * F, C);
	m->down = matrix(be, &random, C, F);
	m->qkv_array = vector(be, &random, W * C);
	m->qkv = ops->weight_view(be, m->qkv_array, W, C, NULL);
	assert_non_null(m->qkv);
	ops->weight_refresh(be, m->qkv);
	struct real **reals[] = {&m->gain, &m->head_gain, &m->bias, &m->cosine, &m->sine, &m->x, &m->x2, &m->lse, &m->logits, &m->dx,
				 &m->dqkv_array, &m->dbias, &m->dgain, &m->dembedding, &m->dhead_gain};
	const size_t real_sizes[] = {C, D, W, ALL * D / 2, ALL * D / 2, ALL * C, ALL * C, ALL * NH, ALL * V, ALL * C, W * C, W, C, V * C, D};
	for (int i = 0; i < 15; i++)
		*reals[i] = vector(be, &random, real_sizes[i]);
	struct act **acts[] = {&m->h, &m->plain, &m->qkv_rows, &m->heads, &m->gate_up_rows, &m->ffn, &m->picked, &m->dh, &m->dqkv, &m->dheads};
	const size_t act_sizes[] = {C, W, W, NH * D, 2 * F, F, C, C, W, NH * D};
	for (int i = 0; i < 10; i++) {
		*acts[i] = ops->act_new(be, ALL * act_sizes[i], NULL);
		assert_non_null(*acts[i]);
	}
}

static void model_done(struct model *m)
{
	struct backend *be = m->be;
	struct real *reals[] = {m->qkv_array, m->gain, m->head_gain, m->bias, m->cosine, m->sine, m->x, m->x2, m->lse, m->logits, m->dx,
				m->dqkv_array, m->dbias, m->dgain, m->dembedding, m->dhead_gain};
	struct act *acts[] = {m->h, m->plain, m->qkv_rows, m->heads, m->gate_up_rows, m->ffn, m->picked, m->dh, m->dqkv, m->dheads};
	struct weight *weights[] = {m->embedding, m->out, m->gate_up, m->down, m->qkv};
	for (int i = 0; i < 5; i++)
		be->ops->weight_free(be, weights[i]);
	for (int i = 0; i < 16; i++)
		be->ops->real_free(be, reals[i]);
	for (int i = 0; i < 10; i++)
		be->ops->act_free(be, acts[i]);
	backend_close(be);
}

static void run_forward(struct model *m, uint32_t T)
{
	struct backend *be = m->be;
	const struct backend_ops *ops = be->ops;
	ops->embed(be, m->x, m->embedding);
	ops->rmsnorm(be, m->h, m->x, m->gain, 1e-5f, T, C);
	ops->linear(be, m->plain, m->h, m->qkv, m->bias, T);
	ops->head_norm(be, m->qkv_rows, m->plain, m->head_gain, m->head_gain, &shape, 1e-5f);
	ops->rope(be, m->qkv_rows, m->cosine, m->sine, &shape, false);
	ops->attention(be, m->heads, m->lse, m->qkv_rows, &shape);
	ops->real_copy(be, m->x2, m->x, (size_t)T * C);
	ops->linear_real(be, m->x2, true, m->heads, m->out, T);
	ops->rmsnorm(be, m->h, m->x2, m->gain, 1e-5f, T, C);
	ops->linear(be, m->gate_up_rows, m->h, m->gate_up, NULL, T);
	ops->swiglu(be, m->ffn, m->gate_up_rows, T, F);
	ops->linear_real(be, m->x2, true, m->ffn, m->down, T);
	ops->rmsnorm(be, m->h, m->x2, m->gain, 1e-5f, T, C);
}

// The head over all rows, in one tile as large as the batch.
static void run_head(struct model *m, uint32_t T, struct results *r, uint32_t first)
{
	struct backend *be = m->be;
	static const float temperature = 1;
	struct sweep_row rows[ALL];
	uint32_t picked[ALL];
	for (uint32_t t = 0; t < T; t++) {
		picked[t] = t;
		rows[t] = (struct sweep_row){.top_k = TOP_K, .n_temperatures = 1, .temperatures = &temperature, .want_entropy = true,
					     .lse = r->lse + first + t, .ids = r->top_ids + (first + t) * TOP_K,
					     .logits = r->top_logits + (first + t) * TOP_K};
	}
	be->ops->pick_rows(be, m->picked, m->h, picked, T, C);
	be->ops->linear_real(be, m->logits, false, m->picked, m->embedding, T);
	be->ops->sweep(be, m->logits, T, V, rows);
	for (uint32_t t = 0; t < T; t++)
		r->entropy[first + t] = rows[t].entropy;
	be->ops->real_read(be, r->logits + first * V, m->logits, T * V);
}

// A way back through the attention half; the values of the acts above serve as incoming gradients.
static void run_backward(struct model *m, uint32_t T, struct results *r, uint32_t first)
{
	struct backend *be = m->be;
	const struct backend_ops *ops = be->ops;
	const struct { struct real *x; size_t n; } zeroed[] = {{m->dx, T * C}, {m->dqkv_array, W * C}, {m->dbias, W}, {m->dgain, C},
							      {m->dembedding, V * C}, {m->dhead_gain, D}};
	for (int i = 0; i < 6; i++)
		ops->real_zero(be, zeroed[i].x, zeroed[i].n);
	ops->attention_backward(be, m->dqkv, m->heads, m->qkv_rows, m->heads, m->lse, &shape);
	ops->rope(be, m->dqkv, m->cosine, m->sine, &shape, true);
	ops->head_norm_backward(be, m->dqkv, m->dhead_gain, m->dhead_gain, m->dqkv, m->plain, m->head_gain, m->head_gain, &shape, 1e-5f);
	ops->linear_backward(be, m->dh, m->dqkv_array, m->dbias, m->dqkv, m->h, m->qkv, T);
	ops->rmsnorm_backward(be, m->dx, m->dgain, m->dh, m->x, m->gain, 1e-5f, T, C);
	ops->embed_backward(be, m->dembedding, m->dx, C);
	ops->act_read(be, r->dqkv + first * W, m->dqkv, T * W);
	ops->real_read(be, r->dx + first * C, m->dx, T * C);
	ops->real_read(be, r->dw, m->dqkv_array, W * C);
	ops->real_read(be, r->dbias, m->dbias, W);
	ops->real_read(be, r->dgain, m->dgain, C);
	ops->real_read(be, r->dembedding, m->dembedding, V * C);
}

// Sequences from..to as one batch; results go where these rows stand in the whole.
static void run(struct model *m, uint32_t from, uint32_t to, struct results *r)
{
	uint32_t tokens[ALL], positions[ALL], own_starts[N_SEQUENCES + 1], first = starts[from], T = starts[to] - first;
	for (uint32_t s = from; s < to; s++) {
		own_starts[s - from] = starts[s] - first;
		for (uint32_t t = starts[s]; t < starts[s + 1]; t++) {
			tokens[t - first] = t * 37 % V;
			positions[t - first] = t - starts[s];
		}
	}
	own_starts[to - from] = T;
	struct layout layout = {T, to - from, tokens, positions, own_starts};
	m->be->ops->begin(m->be, &layout);
	run_forward(m, T);
	run_head(m, T, r, first);
	run_backward(m, T, r, first);
	struct error err = {0};
	if (backend_sync(m->be, &err) < 0)
		fail_msg("%s", err.message);
}

static void assert_same_rows(const struct results *a, const struct results *b)
{
	for (size_t i = 0; i < ALL * V; i++)
		assert_true(isfinite(a->logits[i]));
	for (size_t i = 0; i < ALL * C; i++)
		assert_true(isfinite(a->dx[i]) && a->dx[i] != 0);
	assert_memory_equal(a->logits, b->logits, sizeof a->logits);
	assert_memory_equal(a->lse, b->lse, sizeof a->lse);
	assert_memory_equal(a->entropy, b->entropy, sizeof a->entropy);
	assert_memory_equal(a->top_ids, b->top_ids, sizeof a->top_ids);
	assert_memory_equal(a->top_logits, b->top_logits, sizeof a->top_logits);
	assert_memory_equal(a->dqkv, b->dqkv, sizeof a->dqkv);
	assert_memory_equal(a->dx, b->dx, sizeof a->dx);
}

static void rows_do_not_depend_on_company(enum backend_numeric numeric)
{
	struct model m;
	struct results *together = allocate(sizeof *together), *alone = allocate(sizeof *alone), *pairs = allocate(sizeof *pairs);
	model_init(&m, numeric, 2);
	run(&m, 0, N_SEQUENCES, together);
	for (uint32_t s = 0; s < N_SEQUENCES; s++)
		run(&m, s, s + 1, alone);
	assert_same_rows(together, alone);
	run(&m, 3, N_SEQUENCES, pairs);
	run(&m, 0, 3, pairs);
	assert_same_rows(together, pairs);
	model_done(&m);
	free(together);
	free(alone);
	free(pairs);
}

static void results_do_not_depend_on_threads(enum backend_numeric numeric)
{
	struct results *want = allocate(sizeof *want), *got = allocate(sizeof *got);
	for (uint32_t n_threads = 1; n_threads <= 3; n_threads++) {
		struct model m;
		model_init(&m, numeric, n_threads);
		run(&m, 0, N_SEQUENCES, n_threads == 1 ? want : got);
		if (n_threads > 1)
			assert_memory_equal(got, want, sizeof *got);
		model_done(&m);
	}
	free(want);
	free(got);
}

static void rows_do_not_depend_on_company_f32(void **state)
{
	(void)state;
	rows_do_not_depend_on_company(BACKEND_NUMERIC_F32);
}

static void rows_do_not_depend_on_company_auto(void **state)
{
	(void)state;
	rows_do_not_depend_on_company(BACKEND_NUMERIC_AUTO);
}

static void results_do_not_depend_on_threads_f32(void **state)
{
	(void)state;
	results_do_not_depend_on_threads(BACKEND_NUMERIC_F32);
}

static void results_do_not_depend_on_threads_auto(void **state)
{
	(void)state;
	results_do_not_depend_on_threads(BACKEND_NUMERIC_AUTO);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rows_do_not_depend_on_company_f32),
		cmocka_unit_test(rows_do_not_depend_on_company_auto),
		cmocka_unit_test(results_do_not_depend_on_threads_f32),
		cmocka_unit_test(results_do_not_depend_on_threads_auto),
	};
	struct pair pair;
	int r = pair_open(&pair, BACKEND, BACKEND_NUMERIC_AUTO, 1);
	if (r != 0)
		return r;
	pair_close(&pair);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
