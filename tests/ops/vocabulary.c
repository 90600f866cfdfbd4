// SPDX-License-Identifier: Apache-2.0
// Operations on rows of logits: the sweep and the gradient of token losses.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/ops/harness.h"

static const uint32_t vocabularies[] = {1, 5, 1000, 49152};
#define N_VOCABULARIES 4
static const float temperatures[] = {0.5f, 1, 2, 10};
#define N_TEMPERATURES 4
#define N_GATHER 6

// Results of n rows of a sweep that asks for everything.
struct answers {
	struct sweep_row *rows;
	double *lse, *logits, *gathered;
	uint32_t *ids, gather[N_GATHER];
	uint32_t n, top_k;
};

static void *poisoned_array(size_t n, size_t size)
{
	void *x = malloc(n * size + 1);
	assert_non_null(x);
	memset(x, 0xff, n * size);    // NaN as a double, no id as an integer
	return x;
}

static void answers_init(struct answers *a, uint32_t n, uint32_t top_k, uint32_t V)
{
	*a = (struct answers){.n = n, .top_k = top_k};
	a->rows = calloc(n, sizeof *a->rows);
	a->lse = poisoned_array(n * N_TEMPERATURES, sizeof *a->lse);
	a->logits = poisoned_array((size_t)n * top_k, sizeof *a->logits);
	a->gathered = poisoned_array(n * N_GATHER, sizeof *a->gathered);
	a->ids = poisoned_array((size_t)n * top_k, sizeof *a->ids);
	for (uint32_t i = 0; i < N_GATHER; i++)
		a->gather[i] = i == 1 ? 0 : (V - 1) / (i + 1);    // some ids twice, in no order
	assert_non_null(a->rows);
	for (uint32_t i = 0; i < n; i++)
		a->rows[i] = (struct sweep_row){.top_k = top_k, .n_temperatures = N_TEMPERATURES, .temperatures = temperatures,
						.n_gather = N_GATHER, .gather = a->gather, .want_entropy = true, .want_mean = true,
						.not_finite = true, .max_logit = NAN, .entropy = NAN, .mean = NAN,
						.lse = a->lse + i * N_TEMPERATURES, .ids = a->ids + (size_t)i * top_k,
						.logits = a->logits + (size_t)i * top_k, .gathered = a->gathered + i * N_GATHER};
}

static void answers_done(struct answers *a)
{
	free(a->rows);
	free(a->lse);
	free(a->logits);
	free(a->gathered);
	free(a->ids);
}

static void assert_answers(const struct answers *got, const struct answers *want)
{
	struct bound exact = {0, 0}, sum = {1e-6, 4 * EPS_F32};
	for (uint32_t i = 0; i < got->n; i++) {
		assert_int_equal(got->rows[i].not_finite, want->rows[i].not_finite);
		if (want->rows[i].not_finite)
			continue;
		assert_close("max_logit", &got->rows[i].max_logit, &want->rows[i].max_logit, 1, exact);
		// sum of p (z - max): terms of size up to |z - max| with exp() good to a few eps
		assert_close("entropy", &got->rows[i].entropy, &want->rows[i].entropy, 1, (struct bound){1e-5, 1e-5});
		assert_close("mean", &got->rows[i].mean, &want->rows[i].mean, 1, (struct bound){1e-12, 1e-12});
		assert_close("lse", got->rows[i].lse, want->rows[i].lse, N_TEMPERATURES, sum);
		assert_close("gathered", got->rows[i].gathered, want->rows[i].gathered, N_GATHER, exact);
		assert_close("top-k logits", got->rows[i].logits, want->rows[i].logits, got->top_k, exact);
		assert_memory_equal(got->rows[i].ids, want->rows[i].ids, got->top_k * sizeof(uint32_t));
	}
}

static void compare_sweep(struct pair *p, struct twin logits, uint32_t n, uint32_t V, uint32_t top_k)
{
	struct answers got, want;
	answers_init(&got, n, top_k, V);
	answers_init(&want, n, top_k, V);
	p->be->ops->sweep(p->be, logits.be, n, V, got.rows);
	p->ref->ops->sweep(p->ref, logits.ref, n, V, want.rows);
	assert_answers(&got, &want);
	answers_done(&got);
	answers_done(&want);
}

void sweep_matches_ref(void **state)
{
	struct pair *p = *state;
	for (uint32_t v = 0; v < N_VOCABULARIES; v++) {
		uint32_t V = vocabularies[v], n = V > 1000 ? 5 : 64, ks[] = {0, 1, V < 64 ? V : 64, V < 1000 ? V : 1000};
		pair_reset(p, V);
		struct twin wide = twin_random(p, (size_t)n * V, 12), narrow = twin_random(p, (size_t)n * V, 0.01f);
		for (int i = 0; i < 4; i++) {
			compare_sweep(p, wide, n, V, ks[i]);
			compare_sweep(p, narrow, n, V, ks[i]);
		}
	}
	pair_reset(p, 9);
	compare_sweep(p, twin_random(p, 1000, 5), 1, 1000, 1000);
	compare_sweep(p, twin_random(p, 49152, 5), 1, 49152, 49152);
}

// One logit and, at depths below it, thousands of equal ones: where errors of an exponential do not cancel. Logits are shifted to make their
// lse 0 at temperature 1.
void sweep_sums_equal_logits(void **state)
{
	struct pair *p = *state;
	enum { ROWS = 48, V = 49152 };
	float *values = calloc((size_t)ROWS * V, sizeof *values);
	pair_reset(p, 1);
	assert_non_null(values);
	for (uint32_t i = 0; i < ROWS; i++) {
		double depth = 0.347 * i, lse = log1p((V - 1) * exp(-depth));
		for (uint32_t j = 0; j < V; j++)
			values[(size_t)i * V + j] = (float)(j == 1000 * i ? -lse : -lse - depth);
	}
	compare_sweep(p, twin_values(p, values, (size_t)ROWS * V), ROWS, V, 64);
	free(values);
}

// To the bit, also where logits are too far below the largest to count.
void sweep_answers_whatever_else_is_asked(void **state)
{
	struct pair *p = *state;
	enum { ROWS = 3, V = 5003 };
	for (uint32_t scale = 1; scale < 200; scale *= 5) {
		pair_reset(p, scale);
		struct twin logits = twin_random(p, ROWS * V, (float)scale);
		struct answers all;
		answers_init(&all, ROWS, 64, V);
		p->be->ops->sweep(p->be, logits.be, ROWS, V, all.rows);
		for (uint32_t t = 0; t <= N_TEMPERATURES; t++) {
			double lse[ROWS];
			struct sweep_row rows[ROWS];
			for (uint32_t i = 0; i < ROWS; i++)
				rows[i] = t < N_TEMPERATURES ? (struct sweep_row){.n_temperatures = 1, .temperatures = &temperatures[t],
										  .lse = &lse[i]} : (struct sweep_row){.want_entropy = true};
			p->be->ops->sweep(p->be, logits.be, ROWS, V, rows);
			for (uint32_t i = 0; i < ROWS; i++)
				assert_true(t < N_TEMPERATURES ? lse[i] == all.lse[i * N_TEMPERATURES + t] :
					    rows[i].entropy == all.rows[i].entropy);
		}
		answers_done(&all);
	}
}

// Columns that were picked lie behind rows of any length.
void sweep_takes_rows_that_begin_anywhere(void **state)
{
	struct pair *p = *state;
	enum { ROWS = 3, COLUMNS = 512 };
	for (uint32_t at = 0; at < 5; at++) {
		pair_reset(p, at + 1);
		struct twin all = twin_random(p, at + ROWS * COLUMNS, 5);
		struct twin rows = {p->ref->ops->real_at(all.ref, at), p->be->ops->real_at(all.be, at), ROWS * COLUMNS};
		compare_sweep(p, rows, ROWS, COLUMNS, 16);
	}
}

// Two under way, a third begun when the first is finished; what comes behind a start may overwrite its logits.
void sweeps_overlap(void **state)
{
	struct pair *p = *state;
	enum { SWEEPS = 3, ROWS = 7, V = 1000 };
	struct answers got[SWEEPS], want[SWEEPS];
	pair_reset(p, 3);
	struct twin logits = twin_poisoned(p, ROWS * V);
	for (uint32_t i = 0; i < SWEEPS; i++) {
		struct twin next = twin_random(p, ROWS * V, (float)(i + 1));
		answers_init(&got[i], ROWS, 16, V);
		answers_init(&want[i], ROWS, 16, V);
		p->ref->ops->sweep(p->ref, next.ref, ROWS, V, want[i].rows);
		p->be->ops->real_copy(p->be, logits.be, next.be, ROWS * V);
		if (i > 1)
			p->be->ops->sweep_finish(p->be);
		p->be->ops->sweep_start(p->be, logits.be, ROWS, V, got[i].rows);
	}
	p->be->ops->real_zero(p->be, logits.be, ROWS * V);
	for (uint32_t i = 1; i < SWEEPS; i++)
		p->be->ops->sweep_finish(p->be);
	for (uint32_t i = 0; i < SWEEPS; i++) {
		assert_answers(&got[i], &want[i]);
		answers_done(&got[i]);
		answers_done(&want[i]);
	}
}

void sweep_breaks_ties_by_lower_id(void **state)
{
	struct pair *p = *state;
	const uint32_t n = 4, V = 1000;
	float *values = calloc(n * V, sizeof *values);
	pair_reset(p, 1);
	assert_non_null(values);
	for (uint32_t j = 0; j < V; j++) {
		values[j] = 2;                                           // all equal
		values[V + j] = (float)((j * 37) % 11);                  // eleven levels
		values[2 * V + j] = j % 2 ? 0.0f : -0.0f;                // zeros of both signs are equal
		values[3 * V + j] = j < 990 ? (float)(j / 100) : 9;      // rising, with ties at the top
	}
	struct twin logits = twin_values(p, values, n * V);
	free(values);
	static const uint32_t ks[] = {1, 3, 64, 100, 500, 1000};
	for (int i = 0; i < 6; i++)
		compare_sweep(p, logits, n, V, ks[i]);
	struct answers a;
	answers_init(&a, n, 3, V);
	p->be->ops->sweep(p->be, logits.be, n, V, a.rows);
	static const uint32_t first[] = {0, 1, 2}, levels[] = {8, 19, 30}, last[] = {900, 901, 902};
	assert_memory_equal(a.rows[0].ids, first, sizeof first);
	assert_memory_equal(a.rows[1].ids, levels, sizeof levels);    // 37 * 8 = 296 = 10 mod 11
	assert_memory_equal(a.rows[2].ids, first, sizeof first);
	assert_memory_equal(a.rows[3].ids, last, sizeof last);
	answers_done(&a);
}

void sweep_flags_rows_that_are_not_finite(void **state)
{
	struct pair *p = *state;
	const uint32_t n = 6, V = 1003;
	float *values = calloc(n * V, sizeof *values);
	pair_reset(p, 2);
	assert_non_null(values);
	random_fill(&p->random, values, n * V, 1);
	values[V + 1002] = NAN;
	values[2 * V] = INFINITY;
	values[3 * V + 500] = -INFINITY;
	values[4 * V + 77] = -NAN;
	struct twin logits = twin_values(p, values, n * V);
	free(values);
	compare_sweep(p, logits, n, V, 10);
	struct answers a;
	answers_init(&a, n, 10, V);
	p->be->ops->sweep(p->be, logits.be, n, V, a.rows);
	for (uint32_t i = 0; i < n; i++)
		assert_int_equal(a.rows[i].not_finite, i >= 1 && i <= 4);
	answers_done(&a);
}

void softmax_grad_matches_ref(void **state)
{
	struct pair *p = *state;
	static const double corrections[] = {-0.7, 0.2, -0.2, 0.05};
	static const float used[] = {1, 2, INFINITY};
	for (uint32_t v = 0; v < N_VOCABULARIES; v++) {
		uint32_t V = vocabularies[v], n = V > 1000 ? 5 : 64, ids[] = {0, V / 2, V / 2, V - 1};
		pair_reset(p, V + 1);
		struct twin logits = twin_random(p, (size_t)n * V, 6);
		struct answers a;
		answers_init(&a, n, 0, V);
		p->ref->ops->sweep(p->ref, logits.ref, n, V, a.rows);
		struct softmax_grad_row rows[64];
		double scales[3] = {0.25, -1.5, 3};
		for (uint32_t i = 0; i < n; i++) {
			a.rows[i].lse[3] = log(V);     // of the uniform row
			rows[i] = (struct softmax_grad_row){i % 4, used, a.rows[i].lse + 1, scales, i % 5, ids, corrections};
		}
		p->ref->ops->softmax_grad(p->ref, logits.ref, n, V, rows);
		p->be->ops->softmax_grad(p->be, logits.be, n, V, rows);
		// exp(z/T - lse) with |z/T - lse| up to 30: good to 30 eps; corrections cancel against it
		assert_twin(p, "softmax_grad", logits, (struct bound){2e-6, 64 * EPS_F32});
		answers_done(&a);
	}
}
