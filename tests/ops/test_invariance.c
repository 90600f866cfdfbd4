// SPDX-License-Identifier: Apache-2.0
// The promise behind "same tokens, same bytes back": what a backend computes for a sequence has the same bits whether the sequence is
// alone or among others, wherever in the batch it lies, and however many threads work; and gradients do not depend on threads.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <errno.h>

#include "common/error.h"
#include "kernels/backend.h"
#include "tests/ops/harness.h"

enum { C = 96, F = 200, V = 1003, NH = 6, NKV = 2, D = 16, W = (NH + 2 * NKV) * D, TOP_K = 9, N_DRAWS = 5,
       N_RESULTS = 6 + 2 * TOP_K + N_DRAWS, MAX_T = 420 };
static const struct attention_shape heads = {NH, NKV, D, 0.25f, false, 0, 0};
static const uint32_t sequence_lengths[] = {1, 37, 70, 133, 64, 97};
#define N_SEQUENCES (sizeof sequence_lengths / sizeof *sequence_lengths)

enum { EMBEDDING, QKV, OUT, GATE_UP, DOWN, DEEP_UP, DEEP_DOWN, N_MATRICES };
enum { DEEP = 5000 };                // more terms than an implementation is likely to sum in one go
static const uint32_t shapes[N_MATRICES][2] = {{V, C}, {W, C}, {C, NH * D}, {2 * F, C}, {C, F}, {DEEP, C}, {C, DEEP}};

struct model {
	struct backend *be;
	struct attention_shape heads;
	struct real *values[N_MATRICES], *gradients[N_MATRICES];
	struct weight *w[N_MATRICES];
	struct real *table, *dtable, *gain, *dgain, *bias, *dbias, *cosine, *sine, *x, *dx, *x0, *lse, *logits;
	struct act *h, *qkv, *y, *gate_up, *ffn, *deep, *dh, *dqkv, *dgate_up, *dffn, *ddeep;
};

static struct real *real_of(struct backend *be, uint64_t seed, size_t n, float scale)
{
	float *values = calloc(n, sizeof *values);
	struct real *x = be->ops->real_new(be, n, NULL);
	assert_non_null(values);
	assert_non_null(x);
	random_fill(&seed, values, n, scale);
	be->ops->real_write(be, x, values, n);
	free(values);
	return x;
}

static struct weight *load(struct backend *be, enum weight_kind kind, uint64_t seed, uint32_t N, uint32_t K)
{
	size_t n = (size_t)N * K;
	float *values = calloc(n, sizeof *values);
	assert_non_null(values);
	random_fill(&seed, values, n, 0.1f);
	struct tensor part = tensor_matrix(DTYPE_F32, N, K, values);
	struct weight *w = be->ops->weight_load(be, kind, &part, 1, NULL);
	assert_non_null(w);
	free(values);
	return w;
}

static void model_open(struct model *m, uint32_t n_threads, enum backend_numeric numeric, bool trainable)
{
	struct backend_options options = {.n_threads = n_threads, .numeric = numeric, .max_rows = MAX_T};
	struct error err = {0};
	*m = (struct model){.heads = heads};
	if (backend_open(BACKEND, &options, &m->be, &err) < 0)
		fail_msg("%s", err.message);
	struct backend *be = m->be;
	for (uint32_t i = 0; i < N_MATRICES; i++) {
		size_t n = (size_t)shapes[i][0] * shapes[i][1];
		if (trainable) {
			m->values[i] = real_of(be, i + 1, n, 0.1f);
			m->gradients[i] = real_of(be, 0, n, 0);
			m->w[i] = be->ops->weight_view(be, m->values[i], shapes[i][0], shapes[i][1], NULL);
			be->ops->weight_refresh(be, m->w[i]);
		} else {
			m->w[i] = load(be, i == EMBEDDING ? WEIGHT_PLAIN : WEIGHT_BLOCK, i + 1, shapes[i][0], shapes[i][1]);
		}
	}
	m->table = real_of(be, 49, MAX_T * C, 1);
	m->dtable = real_of(be, 0, MAX_T * C, 0);
	m->gain = real_of(be, 50, C, 1);
	m->dgain = real_of(be, 0, C, 0);
	m->bias = real_of(be, 51, W, 1);
	m->dbias = real_of(be, 0, W, 0);
	m->cosine = real_of(be, 52, MAX_T * D / 2, 0.7f);
	m->sine = real_of(be, 53, MAX_T * D / 2, 0.7f);
	m->x = real_of(be, 0, MAX_T * C, 0);
	m->x0 = real_of(be, 0, MAX_T * C, 0);
	m->dx = real_of(be, 54, MAX_T * C, 0.1f);
	m->lse = real_of(be, 0, MAX_T * NH, 0);
	m->logits = real_of(be, 0, MAX_T * V, 0);
	struct { struct act **act; size_t width; } acts[] = {
		{&m->h, C}, {&m->qkv, W}, {&m->y, NH * D}, {&m->gate_up, 2 * F}, {&m->ffn, F}, {&m->deep, DEEP},
		{&m->dh, C}, {&m->dqkv, W}, {&m->dgate_up, 2 * F}, {&m->dffn, F}, {&m->ddeep, DEEP}};
	for (size_t i = 0; i < sizeof acts / sizeof *acts; i++) {
		*acts[i].act = be->ops->act_new(be, MAX_T * acts[i].width, NULL);
		assert_non_null(*acts[i].act);
	}
}

static void model_close(struct model *m)
{
	const struct backend_ops *ops = m->be->ops;
	struct real *reals[] = {m->table, m->dtable, m->gain, m->dgain, m->bias, m->dbias, m->cosine, m->sine, m->x,
				m->dx, m->x0, m->lse, m->logits};
	struct act *acts[] = {m->h, m->qkv, m->y, m->gate_up, m->ffn, m->deep, m->dh, m->dqkv, m->dgate_up, m->dffn, m->ddeep};
	for (size_t i = 0; i < sizeof reals / sizeof *reals; i++)
		ops->real_free(m->be, reals[i]);
	for (size_t i = 0; i < sizeof acts / sizeof *acts; i++)
		ops->act_free(m->be, acts[i]);
	for (int i = 0; i < N_MATRICES; i++) {
		ops->weight_free(m->be, m->w[i]);
		ops->real_free(m->be, m->values[i]);
		ops->real_free(m->be, m->gradients[i]);
	}
	backend_close(m->be);
}

// A batch of the given sequences (by number), in that order.
struct packed { uint32_t tokens[MAX_T], positions[MAX_T], starts[N_SEQUENCES + 1]; struct layout layout; };

static void pack(struct packed *p, const uint32_t *sequences, uint32_t n)
{
	uint32_t T = 0;
	for (uint32_t s = 0; s < n; s++) {
		p->starts[s] = T;
		for (uint32_t t = 0; t < sequence_lengths[sequences[s]]; t++, T++) {
			p->tokens[T] = (t * 7919u + sequences[s] * 104729u) % V;
			p->positions[T] = t;
		}
	}
	p->starts[n] = T;
	p->layout = (struct layout){.n_positions = T, .n_sequences = n, .tokens = p->tokens, .positions = p->positions,
		.starts = p->starts};
}

static void trunk(struct model *m, const struct layout *layout, bool with_lse)
{
	struct backend *be = m->be;
	const struct backend_ops *ops = be->ops;
	uint32_t T = layout->n_positions;
	ops->begin(be, layout);
	ops->embed(be, m->x0, m->w[EMBEDDING]);
	ops->embed_add(be, m->x0, m->table, true, C);
	ops->rmsnorm(be, m->h, m->x0, m->gain, 1e-5f, T, C);
	ops->linear(be, m->qkv, m->h, m->w[QKV], m->bias, T);
	ops->rope(be, m->qkv, m->cosine, m->sine, D, &m->heads, false);
	ops->attention(be, m->y, with_lse ? m->lse : NULL, m->qkv, &m->heads);
	ops->real_copy(be, m->x, m->x0, (size_t)T * C);
	ops->linear_real(be, m->x, true, m->y, m->w[OUT], m->gain, T);
	ops->layernorm(be, m->h, NULL, m->x, m->gain, m->gain, 1e-5f, T, C);
	ops->linear(be, m->gate_up, m->h, m->w[GATE_UP], NULL, T);
	ops->swiglu(be, m->ffn, m->gate_up, T, F);
	ops->linear_real(be, m->x, true, m->ffn, m->w[DOWN], NULL, T);
	ops->rmsnorm(be, m->h, m->x, m->gain, 1e-5f, T, C);
	ops->linear(be, m->deep, m->h, m->w[DEEP_UP], NULL, T);
	ops->gelu(be, m->deep, m->deep, GELU_ERF, T, DEEP);
	ops->linear_real(be, m->x, true, m->deep, m->w[DEEP_DOWN], NULL, T);
	ops->rmsnorm(be, m->h, m->x, m->gain, 1e-5f, T, C);
}

// What is said about row t: max, entropy, lse at two temperatures, tail, draws' lse, top-k logits and ids, drawn ids.
static void head(struct model *m, uint32_t T, double *results)
{
	static const float temperatures[] = {1, 2.5f};
	struct sweep_row rows[MAX_T];
	static const double uniforms[N_DRAWS] = {0.01, 0.3, 0.5, 0.9, 0.999};
	uint32_t ids[MAX_T][TOP_K], drawn[MAX_T][N_DRAWS];
	double drawn_logits[MAX_T][N_DRAWS];
	struct error err = {0};
	for (uint32_t t = 0; t < T; t++)
		rows[t] = (struct sweep_row){.top_k = TOP_K, .n_temperatures = 2, .temperatures = temperatures, .want_entropy = true,
					     .lse = results + t * N_RESULTS + 2, .logits = results + t * N_RESULTS + 6, .ids = ids[t],
					     .want_tail = true, .n_draws = N_DRAWS, .draw_tail = true, .draw_tau = 1.5,
					     .uniforms = uniforms, .drawn = drawn[t], .drawn_logits = drawn_logits[t]};
	m->be->ops->linear_real(m->be, m->logits, false, m->h, m->w[EMBEDDING], NULL, T);
	m->be->ops->sweep(m->be, m->logits, T, V, rows);
	if (backend_sync(m->be, &err) < 0)
		fail_msg("%s", err.message);
	for (uint32_t t = 0; t < T; t++) {
		assert_false(rows[t].not_finite);
		results[t * N_RESULTS] = rows[t].max_logit;
		results[t * N_RESULTS + 1] = rows[t].entropy;
		results[t * N_RESULTS + 4] = rows[t].tail_lse;
		results[t * N_RESULTS + 5] = rows[t].draw_lse;
		for (int k = 0; k < TOP_K; k++)
			results[t * N_RESULTS + 6 + TOP_K + k] = ids[t][k];
		for (int k = 0; k < N_DRAWS; k++)
			results[t * N_RESULTS + 6 + 2 * TOP_K + k] = drawn[t][k];
	}
}

static double *score(struct model *m, const uint32_t *sequences, uint32_t n)
{
	struct packed p;
	double *results = calloc(MAX_T * N_RESULTS, sizeof *results);
	assert_non_null(results);
	pack(&p, sequences, n);
	trunk(m, &p.layout, false);
	head(m, p.layout.n_positions, results);
	return results;
}

static void check_batches(enum backend_numeric numeric, bool bidirectional, uint32_t window, float soft_cap)
{
	static const uint32_t batches[][N_SEQUENCES] = {{0, 1, 2, 3, 4, 5}, {5, 3, 1, 0, 4, 2}, {3, 0, 5, 1, 2, 4}};
	struct model m;
	double *alone[N_SEQUENCES];
	model_open(&m, 1, numeric, false);
	m.heads.bidirectional = bidirectional, m.heads.window = window, m.heads.soft_cap = soft_cap;
	for (uint32_t s = 0; s < N_SEQUENCES; s++)
		alone[s] = score(&m, &s, 1);
	model_close(&m);
	for (uint32_t n_threads = 1; n_threads <= 3; n_threads++) {
		model_open(&m, n_threads, numeric, false);
		m.heads.bidirectional = bidirectional, m.heads.window = window, m.heads.soft_cap = soft_cap;
		double *results = score(&m, batches[n_threads - 1], N_SEQUENCES), *at = results;
		for (uint32_t i = 0; i < N_SEQUENCES; i++) {
			uint32_t s = batches[n_threads - 1][i];
			size_t n = (size_t)sequence_lengths[s] * N_RESULTS;
			assert_memory_equal(at, alone[s], n * sizeof(double));
			at += n;
		}
		free(results);
		model_close(&m);
	}
	for (uint32_t s = 0; s < N_SEQUENCES; s++)
		free(alone[s]);
}

static void rows_depend_on_their_sequence_alone(void **state)
{
	(void)state;
	check_batches(BACKEND_NUMERIC_F32, false, 0, 0);
	check_batches(BACKEND_NUMERIC_F32, true, 0, 0);
	check_batches(BACKEND_NUMERIC_F32, false, 40, 5);
}

static void rows_depend_on_their_sequence_alone_in_bfloat16(void **state)
{
	(void)state;
	check_batches(BACKEND_NUMERIC_BF16, false, 0, 0);
	check_batches(BACKEND_NUMERIC_BF16, true, 0, 0);
	check_batches(BACKEND_NUMERIC_BF16, false, 40, 5);
}

// Where a device refuses this form there is nothing to hold to it.
static bool refused(enum backend_numeric numeric, const char *message)
{
	struct backend_options options = {.n_threads = 1, .numeric = numeric, .max_rows = 1};
	struct backend *be = NULL;
	struct error err = {0};
	int r = backend_open(BACKEND, &options, &be, &err);
	backend_close(be);
	if (r == 0)
		return false;
	assert_int_equal(r, -EOPNOTSUPP);
	assert_string_equal(err.field, "numeric");
	assert_non_null(strstr(err.message, message));
	return true;
}

static void rows_depend_on_their_sequence_alone_in_int8(void **state)
{
	(void)state;
	bool none = refused(BACKEND_NUMERIC_INT8, "device cuda has no products of int8");
	assert_true(none == (strcmp(BACKEND, "cuda") == 0));
	if (none)
		return;
	check_batches(BACKEND_NUMERIC_INT8, false, 0, 0);
	check_batches(BACKEND_NUMERIC_INT8, true, 0, 0);
	check_batches(BACKEND_NUMERIC_INT8, false, 40, 5);
}

static void rows_depend_on_their_sequence_alone_in_fp8(void **state)
{
	(void)state;
	bool cpu = strcmp(BACKEND, "cpu") == 0, none = refused(BACKEND_NUMERIC_FP8, cpu ? "device cpu has no products of fp8" : "need 8.9");
	assert_true(none || !cpu);
	if (none)
		return;
	check_batches(BACKEND_NUMERIC_FP8, false, 0, 0);
	check_batches(BACKEND_NUMERIC_FP8, true, 0, 0);
	check_batches(BACKEND_NUMERIC_FP8, false, 40, 5);
}

// A row reads only what lies before it: a longer sequence begins like the shorter one.
static void rows_do_not_depend_on_what_follows(void **state)
{
	struct model m;
	struct packed p;
	double *whole = calloc(MAX_T * N_RESULTS, sizeof *whole), *prefix = calloc(MAX_T * N_RESULTS, sizeof *prefix);
	(void)state;
	assert_true(whole && prefix);
	model_open(&m, 2, BACKEND_NUMERIC_F32, false);
	pack(&p, (const uint32_t[]){3}, 1);
	trunk(&m, &p.layout, false);
	head(&m, p.layout.n_positions, whole);
	for (uint32_t T = 1; T < sequence_lengths[3]; T += 21) {
		p.layout.n_positions = p.starts[1] = T;
		trunk(&m, &p.layout, false);
		head(&m, T, prefix);
		assert_memory_equal(prefix, whole, T * N_RESULTS * sizeof(double));
	}
	model_close(&m);
	free(whole);
	free(prefix);
}

// Every gradient of the chain, one array after the other.
static size_t gradients(struct model *m, double *ret)
{
	struct backend *be = m->be;
	const struct backend_ops *ops = be->ops;
	struct packed p;
	size_t n = 0;
	pack(&p, (const uint32_t[]){5, 3, 1, 2}, 4);
	uint32_t T = p.layout.n_positions;
	trunk(m, &p.layout, true);
	ops->linear_real_backward(be, m->ddeep, m->gradients[DEEP_DOWN], NULL, m->dx, m->deep, m->w[DEEP_DOWN], T);
	ops->linear_backward(be, m->dh, m->gradients[DEEP_UP], NULL, m->ddeep, m->h, m->w[DEEP_UP], T);
	ops->rmsnorm_backward(be, m->dx, m->dgain, m->dh, m->x, m->gain, 1e-5f, T, C);
	ops->linear_real_backward(be, m->dffn, m->gradients[DOWN], NULL, m->dx, m->ffn, m->w[DOWN], T);
	ops->swiglu_backward(be, m->dgate_up, m->dffn, m->gate_up, T, F);
	ops->linear_backward(be, m->dh, m->gradients[GATE_UP], NULL, m->dgate_up, m->h, m->w[GATE_UP], T);
	ops->linear_real_backward(be, m->dh, m->gradients[OUT], NULL, m->dx, m->y, m->w[OUT], T);
	ops->attention_backward(be, m->dqkv, m->dh, m->qkv, m->y, m->lse, &m->heads);
	ops->rope(be, m->dqkv, m->cosine, m->sine, D, &m->heads, true);
	ops->linear_backward(be, m->dh, m->gradients[QKV], m->dbias, m->dqkv, m->h, m->w[QKV], T);
	ops->layernorm_backward(be, m->dx, m->dgain, m->dtable, m->dh, m->dx, m->x0, m->gain, 1e-5f, T, C);
	ops->embed_add_backward(be, m->dtable, m->dx, true, C);
	ops->embed_backward(be, m->gradients[EMBEDDING], m->dx, C);
	for (int i = 0; i < N_MATRICES; i++) {
		size_t size = (size_t)shapes[i][0] * shapes[i][1];
		ops->real_read(be, ret + n, m->gradients[i], size);
		n += size;
	}
	ops->real_read(be, ret + n, m->dtable, MAX_T * C);
	n += MAX_T * C;
	ops->real_read(be, ret + n, m->dgain, C);
	ops->real_read(be, ret + n + C, m->dbias, W);
	ret[n + C + W] = ops->sum_squares(be, m->gradients[DEEP_UP], DEEP * C);
	assert_int_equal(backend_sync(be, NULL), 0);
	return n + C + W + 1;
}

static void gradients_do_not_depend_on_threads(void **state)
{
	size_t n = 0, room = 2 * 1024 * 1024;
	double *one = calloc(room, sizeof *one), *other = calloc(room, sizeof *other);
	(void)state;
	assert_true(one && other);
	for (uint32_t n_threads = 1; n_threads <= 3; n_threads++) {
		struct model m;
		model_open(&m, n_threads, BACKEND_NUMERIC_F32, true);
		n = gradients(&m, n_threads == 1 ? one : other);
		assert_true(n <= room);
		if (n_threads > 1)
			assert_memory_equal(one, other, n * sizeof(double));
		model_close(&m);
	}
	double size = 0;
	for (size_t i = 0; i < n; i++)
		size += one[i] * one[i];
	assert_true(size > 0 && size < 1e30);    // gradients there were, and numbers
	free(one);
	free(other);
}

int main(void)
{
	struct backend *be = NULL;
	struct error err = {0};
	struct backend_options options = {.n_threads = 1, .max_rows = 1};
	int r = backend_open(BACKEND, &options, &be, &err);
	backend_close(be);
	if (r < 0) {
		print_message("skipped: %s\n", err.message);
		return 77;
	}
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rows_depend_on_their_sequence_alone),
		cmocka_unit_test(rows_depend_on_their_sequence_alone_in_bfloat16),
		cmocka_unit_test(rows_depend_on_their_sequence_alone_in_int8),
		cmocka_unit_test(rows_depend_on_their_sequence_alone_in_fp8),
		cmocka_unit_test(rows_do_not_depend_on_what_follows),
		cmocka_unit_test(gradients_do_not_depend_on_threads),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
