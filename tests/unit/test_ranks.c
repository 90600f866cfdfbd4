// SPDX-License-Identifier: Apache-2.0
// Losses over two vocabularies (ULD, GOLD): values worked out by hand, gradients against differences; and where two tokenisations of one
// text meet, against a search that looks at every pair.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "daemon/loss/divergence.h"
#include "daemon/loss/gradient.h"
#include "daemon/loss/pair.h"
#include "daemon/worker/align.h"
#include "kernels/backend.h"

#define V 4u
#define STEP 1e-6

// A teacher of three ids, a student of four. Which of the teacher's ids the student has, by rank: its own id, or -1.
struct rows {
	double p[3];
	int same[3];
	double zs[V];
	uint32_t n_told;               // of the teacher's ranks
	double log_p_factor, log_q_factor;
};

static double lse(const double *z, uint32_t n)
{
	double sum = 0;
	for (uint32_t i = 0; i < n; i++)
		sum += exp(z[i]);
	return log(sum);
}

static void gradient_spread(const struct loss_position *x, const struct gradient *g, double student_lse, double *ret)
{
	struct softmax_grad_row row;
	gradient_finish(g, x, &row);
	for (uint32_t i = 0; i < x->n; i++) {
		ret[x->ids[i]] = row.corrections[i];
		for (uint32_t k = 0; k < row.n_terms; k++)
			ret[x->ids[i]] += row.scales[k] * exp(x->student[i] - student_lse);
	}
}

// The student's ids lie in slots so that those the teacher has come first, in the order of its ranks.
static double evaluate(const struct rows *r, divergence_fn *fn, const double *parameters, bool by_id, double *ret_gradient)
{
	uint32_t ids[V], n = 0, ranks[V], n_top;
	bool taken[V] = {false}, in_student[3], in_teacher[V];
	double teacher[3], slots[V], top[V], T = 1, teacher_lse = 0, student_lse = lse(r->zs, V);
	for (uint32_t i = 0; i < 3; i++) {
		teacher[i] = log(r->p[i]);
		in_student[i] = r->same[i] >= 0;
		if (in_student[i] && i < r->n_told) {
			top[n] = teacher[i];
			taken[ids[n++] = (uint32_t)r->same[i]] = true;
		}
	}
	n_top = n;
	for (uint32_t j = 0; j < V; j++)
		if (!taken[j])
			ids[n++] = j;
	for (uint32_t i = 0; i < V; i++) {
		slots[i] = r->zs[ids[i]];
		ranks[i] = i;
		top[i] = i < n_top ? top[i] : NAN;
	}
	for (uint32_t i = 0; i < V; i++)
		for (uint32_t j = i + 1; j < V; j++)
			if (slots[ranks[j]] > slots[ranks[i]]) {
				uint32_t swap = ranks[i];
				ranks[i] = ranks[j];
				ranks[j] = swap;
			}
	for (uint32_t i = 0; i < V; i++)
		in_teacher[i] = taken[ids[ranks[i]]];
	struct loss_position x = {.vocab_size = V, .n = V, .ids = ids, .student = slots, .teacher = top, .n_top = n_top,
				  .n_temperatures = 1, .temperatures = &T, .teacher_lse = &teacher_lse, .student_lse = &student_lse,
				  .student_lse_1 = student_lse, .tail = NAN, .entropy = NAN, .student_mean = NAN,
				  .n_teacher_ranks = r->n_told, .teacher_ranks = teacher, .teacher_matched = in_student,
				  .n_student_ranks = r->n_told < V ? (r->n_told < 3 ? r->n_told : V) : V, .student_ranks = ranks,
				  .student_matched = in_teacher, .matched_share = n_top / 3.0, .log_teacher_factor = r->log_p_factor,
				  .log_student_factor = r->log_q_factor};
	struct pair_view view = {.top_k = UINT32_MAX, .own_k = UINT32_MAX, .by_id = by_id, .merge = true};
	double slope[2 * V + 1], corrections[V] = {0}, bases[3], scales[3];
	float temperatures[3];
	struct pair pair;
	assert_int_equal(pair_init(&pair, 2 * V + 1), 0);
	pair_make_ranks(&pair, &x, &view);
	struct divergence d = {.slope = slope};
	fn(&pair, parameters, &d);
	struct gradient g = {0, temperatures, bases, scales, corrections};
	gradient_add(&g, &x, &pair, &d, 1);
	if (ret_gradient)
		gradient_spread(&x, &g, student_lse, ret_gradient);
	pair_done(&pair);
	return d.value;
}

static struct rows rows_of(const double *q)
{
	struct rows r = {.p = {.6, .3, .1}, .same = {-1, -1, -1}, .n_told = 3};
	for (uint32_t j = 0; j < V; j++)
		r.zs[j] = log(q[j]) + 1.5;             // a logit is a logarithm up to a constant
	return r;
}

static void assert_gradient(const struct rows *r, divergence_fn *fn, const double *x, bool by_id)
{
	double gradient[V], sum = 0;
	evaluate(r, fn, x, by_id, gradient);
	for (uint32_t j = 0; j < V; j++) {
		struct rows up = *r, down = *r;
		up.zs[j] += STEP;
		down.zs[j] -= STEP;
		double slope = (evaluate(&up, fn, x, by_id, NULL) - evaluate(&down, fn, x, by_id, NULL)) / (2 * STEP);
		assert_true(fabs(slope - gradient[j]) < 1e-6);
		sum += gradient[j];
	}
	assert_true(fabs(sum) < 1e-6);
}

static void uld_is_the_gap_of_sorted_rows(void **state)
{
	(void)state;
	const double q[V] = {.2, .5, .2, .1}, p[V] = {.1, .6, .2999999999, 1e-10}, apart[V] = {.22, .5, .19, .09};
	struct rows r = rows_of(q), same = rows_of(p), smooth = rows_of(apart);      // the last without ties, where there is no gradient
	assert_true(fabs(evaluate(&r, rank_uld, NULL, false, NULL) - .4) < 2e-6);
	assert_true(fabs(evaluate(&same, rank_uld, NULL, false, NULL)) < 1e-6);
	assert_gradient(&smooth, rank_uld, NULL, false);
	r.n_told = 1;                                          // .6 against .5, and the rest against the rest
	assert_true(fabs(evaluate(&r, rank_uld, NULL, false, NULL) - .2) < 2e-6);
	assert_gradient(&r, rank_uld, NULL, false);
}

static void gold_multiplies_a_row_by_the_span_that_follows(void **state)
{
	(void)state;
	const double q[V] = {.4, .3, .2, .1}, x[] = {.5, 1, 1, 1};
	struct rows r = rows_of(q);
	r.log_p_factor = log(.9);                              // .54 .27 .09 against .4 .3 .2 .1
	assert_true(fabs(evaluate(&r, rank_gold, x, false, NULL) - (.14 + .03 + .11 + .1)) < 2e-6);
	r.log_q_factor = log(.5);                              // against .2 .15 .1 .05
	assert_true(fabs(evaluate(&r, rank_gold, x, false, NULL) - (.34 + .12 + .01 + .05)) < 2e-6);
	assert_gradient(&r, rank_gold, x, false);
	r.log_q_factor = -900;                                 // a long span, far from what the student expects: a number all the same
	for (int i = 0; i < 3; i++) {
		struct rows shared = r;
		memcpy(shared.same, (int[]){2, -1, 0}, sizeof shared.same);
		assert_true(isfinite(evaluate(&shared, rank_gold, (double[]){.5 * i, 1, 1, 1}, true, NULL)));
	}
	r.log_q_factor = NAN;                                  // what follows is not known: nothing to learn
	assert_true(evaluate(&r, rank_gold, x, false, NULL) == 0);
}

// The teacher's first and third ids are the student's 2 and 0.
static void gold_compares_shared_ids_as_themselves(void **state)
{
	(void)state;
	const double q[V] = {.2, .35, .4, .05}, p[] = {.6, .1}, its[] = {.4, .2};
	struct rows r = rows_of(q);
	r.same[0] = 2;
	r.same[2] = 0;
	double beta = .5, jsd = 0;
	for (int i = 0; i < 2; i++) {
		double m = beta * p[i] + (1 - beta) * its[i];
		jsd += beta * p[i] * log(p[i] / m) + (1 - beta) * its[i] * log(its[i] / m);
	}
	const double given[] = {beta, 1, 2, 3}, by_share[] = {beta, 1, -1, -1}, forward[] = {0, 1, 1, 1}, reverse[] = {1, 1, 1, 1};
	double uld = fabs(.3 - .35) + .05;
	assert_true(fabs(evaluate(&r, rank_gold, given, true, NULL) - (2 * jsd + 3 * uld)) < 2e-6);
	assert_true(fabs(evaluate(&r, rank_gold, by_share, true, NULL) - (2 / 3.0 * jsd + 1 / 3.0 * uld)) < 2e-6);
	assert_gradient(&r, rank_gold, given, true);
	assert_gradient(&r, rank_gold, forward, true);
	assert_gradient(&r, rank_gold, reverse, true);
	r.log_p_factor = log(.7);
	r.log_q_factor = log(.3);
	assert_gradient(&r, rank_gold, given, true);
}

static uint32_t ends_make(uint32_t *ends, uint32_t n_bytes, uint64_t *seed)
{
	uint32_t n = 0, at = 0;
	while (at < n_bytes) {
		*seed = *seed * 6364136223846793005u + 1442695040888963407u;
		at += (uint32_t)(*seed >> 33) % 4;             // 0: a token that adds no byte
		ends[n++] = at > n_bytes ? n_bytes : at;
	}
	return n;
}

static void every_shared_boundary_is_found(void **state)
{
	(void)state;
	uint64_t seed = 7;
	for (int round = 0; round < 2000; round++) {
		uint32_t a[400], b[400], n_bytes = 1 + (uint32_t)round % 40, at = 0;
		uint32_t n_a = ends_make(a, n_bytes, &seed), n_b = ends_make(b, n_bytes, &seed);
		struct align_boundary found[400];
		uint32_t n = align_boundaries(a, n_a, b, n_b, found);
		for (uint32_t i = 0; i < n_a; i++)             // the last of each side that ends at a byte
			for (uint32_t j = 0; j < n_b; j++) {
				bool last = (i + 1 == n_a || a[i + 1] != a[i]) && (j + 1 == n_b || b[j + 1] != b[j]);
				if (a[i] != b[j] || !last)
					continue;
				assert_true(at < n);
				assert_int_equal(found[at].a, i);
				assert_int_equal(found[at].b, j);
				assert_int_equal(found[at++].byte, a[i]);
			}
		assert_int_equal(at, n);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(uld_is_the_gap_of_sorted_rows),
		cmocka_unit_test(gold_multiplies_a_row_by_the_span_that_follows),
		cmocka_unit_test(gold_compares_shared_ids_as_themselves),
		cmocka_unit_test(every_shared_boundary_is_found),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
