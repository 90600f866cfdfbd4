// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/loss_example.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "kernels/backend.h"

const double example_zt[5] = {2, 1, .5, -.5, -1}, example_zs[5] = {1.5, 1.2, 0, .3, -2};

struct example example_five(double temperature, uint32_t n_top)
{
	struct example e = {.V = 5, .n_top = n_top, .label = 1, .temperature = temperature};
	memcpy(e.zt, example_zt, sizeof example_zt);
	memcpy(e.zs, example_zs, sizeof example_zs);
	return e;
}

double example_lse(const double *z, uint32_t V, double temperature)
{
	double sum = 0;
	for (uint32_t i = 0; i < V; i++)
		sum += exp(z[i] / temperature);
	return log(sum);
}

// A position being put together: slots in the order in which ids are named.
struct slots {
	uint32_t n, ids[EXAMPLE_V], own[EXAMPLE_V], drawn[EXAMPLE_V];
	double student[EXAMPLE_V], teacher[EXAMPLE_V];
};

static uint32_t slot_of(struct slots *s, const struct example *e, uint32_t id, bool known)
{
	uint32_t i = 0;
	while (i < s->n && s->ids[i] != id)
		i++;
	if (i == s->n) {
		s->ids[s->n++] = id;
		s->student[i] = e->zs[id];
		s->teacher[i] = NAN;
	}
	if (known)
		s->teacher[i] = e->zt[id];
	return i;
}

static void top_list(struct slots *s, const struct example *e)
{
	bool taken[EXAMPLE_V] = {false};
	for (uint32_t k = 0; k < e->n_top; k++) {
		uint32_t best = UINT32_MAX;
		for (uint32_t j = 0; j < e->V; j++)
			if (!taken[j] && (best == UINT32_MAX || e->zt[j] > e->zt[best]))
				best = j;
		best = e->n_given ? e->top[k] : best;
		taken[best] = true;
		slot_of(s, e, best, true);
	}
}

static double mean(const double *z, uint32_t n)
{
	double sum = 0;
	for (uint32_t i = 0; i < n; i++)
		sum += z[i] / n;
	return sum;
}

static void spread(const struct example *e, const struct softmax_grad_row *row, double *gradient)
{
	for (uint32_t j = 0; j < e->V; j++) {
		gradient[j] = 0;
		for (uint32_t i = 0; i < row->n_terms; i++)
			gradient[j] += row->scales[i] * exp(e->zs[j] / (double)row->temperatures[i] - row->lse[i]);
	}
	for (uint32_t i = 0; i < row->n_corrections; i++)
		gradient[row->ids[i]] += row->corrections[i];
}

double example_evaluate(const struct example *e, divergence_fn *fn, const double *x, const struct pair_view *view, double *gradient)
{
	struct slots s = {0};
	top_list(&s, e);
	for (uint32_t i = 0; i < e->n_own; i++)
		s.own[i] = slot_of(&s, e, e->own[i], true);
	for (uint32_t i = 0; i < e->n_drawn; i++)
		s.drawn[i] = slot_of(&s, e, e->drawn[i], false);
	uint32_t label = slot_of(&s, e, e->label, view->label);
	double teacher_lse = example_lse(e->zt, e->V, e->temperature), student_lse = example_lse(e->zs, e->V, e->temperature), head = 0;
	for (uint32_t i = 0; i < e->n_top; i++)
		head += exp(s.teacher[i] - example_lse(e->zt, e->V, 1));
	struct loss_position p = {
		.vocab_size = e->V, .n = s.n, .ids = s.ids, .student = s.student, .teacher = s.teacher, .n_top = e->n_top,
		.n_own = e->n_own, .own = s.own, .n_drawn = e->n_drawn, .drawn = s.drawn, .weights = e->weights, .label = label,
		.n_temperatures = 1, .temperatures = &e->temperature, .teacher_lse = &teacher_lse, .student_lse = &student_lse,
		.student_lse_1 = example_lse(e->zs, e->V, 1), .tail = e->tail && e->n_top < e->V ? log1p(-head) : NAN, .entropy = NAN,
		.student_mean = mean(e->zs, e->V)};
	struct pair pair;
	double slope[EXAMPLE_V + 1], corrections[EXAMPLE_V] = {0}, lse[3], scales[3];
	float temperatures[3];
	assert_int_equal(pair_init(&pair, EXAMPLE_V + 1), 0);
	pair_make(&pair, &p, view);
	struct divergence d = {.slope = slope};
	fn(&pair, x, &d);
	struct gradient g = {0, temperatures, lse, scales, corrections};
	struct softmax_grad_row row;
	gradient_add(&g, &p, &pair, &d, 1);
	gradient_finish(&g, &p, &row);
	if (gradient)
		spread(e, &row, gradient);
	pair_done(&pair);
	return d.value;
}
