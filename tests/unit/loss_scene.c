// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/loss_scene.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "kernels/backend.h"

#define V SCENE_V
#define N_EXTRA SCENE_N_EXTRA

struct position {
	struct loss_position x;
	uint32_t ids[V], slot_of[V], own[V], drawn[V], ranks[V];
	bool teacher_matched[V], student_matched[V];
	double student[V], teacher[V], teacher_ranks[V], reward, T[OBJECTIVE_MAX_TERMS], teacher_lse[OBJECTIVE_MAX_TERMS],
		student_lse[OBJECTIVE_MAX_TERMS + 1];
};

static double random_number(uint64_t *seed)
{
	*seed = *seed * 6364136223846793005u + 1442695040888963407u;
	return (double)(*seed >> 40) / (double)(1 << 24) - .5;
}

static double scene_teacher_lse(const struct scene *s, double T)
{
	double sum = exp(example_lse(s->zt, s->n_ids, T));
	for (int i = 0; s->foreign && i < N_EXTRA; i++)
		sum += exp(s->extra[i] / T);
	return log(sum);
}

static void slots_make(struct position *p, const struct scene *s)
{
	bool taken[V] = {false};
	uint32_t n = 0;
	for (uint32_t i = 0; i < s->n_top; i++) {
		taken[s->top[i]] = true;
		p->ids[n++] = s->top[i];
	}
	for (uint32_t j = 0; j < s->n_ids; j++)
		if (!taken[j])
			p->ids[n++] = j;
	for (uint32_t i = 0; i < n; i++) {
		bool known = i < s->n_top || p->ids[i] == s->label;
		p->slot_of[p->ids[i]] = i;
		for (uint32_t k = 0; k < s->n_own; k++)
			known = known || s->own[k] == p->ids[i];
		p->teacher[i] = known ? s->zt[p->ids[i]] : NAN;
		p->student[i] = s->zs[p->ids[i]];
	}
	for (uint32_t i = 0; i < s->n_own; i++)
		p->own[i] = p->slot_of[s->own[i]];
	for (uint32_t i = 0; i < s->n_drawn; i++)
		p->drawn[i] = p->slot_of[s->drawn[i]];
}

static void ranks_make(struct position *p, const struct scene *s)
{
	for (uint32_t i = 0; i < s->n_top + N_EXTRA; i++) {
		p->teacher_ranks[i] = i < s->n_top ? s->zt[s->top[i]] : s->extra[i - s->n_top];
		p->teacher_matched[i] = i < s->n_top;
	}
	for (uint32_t i = 0; i < s->n_ids; i++) {
		uint32_t at = i;
		for (; at > 0 && p->student[p->ranks[at - 1]] < p->student[i]; at--)
			p->ranks[at] = p->ranks[at - 1];
		p->ranks[at] = i;
	}
	for (uint32_t i = 0; i < s->n_ids; i++)
		p->student_matched[i] = p->ranks[i] < s->n_top;
}

// At the temperatures of the objective's step.
static void position_make(struct position *p, const struct scene *s, struct objective *o)
{
	float temperatures[OBJECTIVE_MAX_TERMS];
	uint32_t n = objective_temperatures(o, temperatures);
	double mean = 0;
	slots_make(p, s);
	ranks_make(p, s);
	for (uint32_t i = 0; i < n; i++) {
		p->T[i] = (double)temperatures[i];
		p->teacher_lse[i] = scene_teacher_lse(s, p->T[i]);
		p->student_lse[i] = example_lse(s->zs, s->n_ids, p->T[i]);
	}
	for (uint32_t j = 0; j < s->n_ids; j++)
		mean += s->zs[j] / s->n_ids;
	p->reward = -.5;
	p->x = (struct loss_position){
		.vocab_size = s->n_ids, .n = s->n_ids, .ids = p->ids, .student = p->student, .teacher = p->teacher, .n_top = s->n_top,
		.n_own = s->n_own, .own = p->own, .n_drawn = s->n_drawn, .drawn = p->drawn, .weights = s->weights,
		.label = p->slot_of[s->label], .n_temperatures = n, .temperatures = p->T, .teacher_lse = p->teacher_lse,
		.student_lse = p->student_lse, .student_lse_1 = example_lse(s->zs, s->n_ids, 1), .tail = NAN, .entropy = NAN,
		.student_mean = mean, .teacher_ce = .4, .n_teacher_ranks = s->n_top + N_EXTRA, .teacher_ranks = p->teacher_ranks,
		.teacher_matched = p->teacher_matched, .n_student_ranks = s->n_ids, .student_ranks = p->ranks,
		.student_matched = p->student_matched, .foreign = s->foreign, .matched_share = .6, .log_teacher_factor = s->log_p_factor,
		.log_student_factor = s->log_q_factor, .n_rewards = 1, .rewards = &p->reward, .drawn_logprob = -2};
}

int scene_objective(const char *line, uint32_t vocab_size, struct objective **ret, struct error *err)
{
	int r;
	assert_int_equal(objective_new(ret), 0);
	r = objective_add(*ret, line, "run.conf:1", err);
	if (r) {
		*ret = objective_free(*ret);
		return r;
	}
	assert_int_equal(objective_begin(*ret, 10, vocab_size), 0);
	return 0;
}

struct shape {
	float temperatures[OBJECTIVE_MAX_SOFTMAX];
	double lse[OBJECTIVE_MAX_SOFTMAX], scales[OBJECTIVE_MAX_SOFTMAX], corrections[V];
	struct softmax_grad_row row;
};

static struct objective_sums shape_make(struct objective *o, const struct position *p, struct shape *s)
{
	struct objective_sums sums = {0};
	*s = (struct shape){0};
	struct gradient g = {0, s->temperatures, s->lse, s->scales, s->corrections};
	objective_position(o, &p->x, &sums, &g);
	gradient_finish(&g, &p->x, &s->row);
	return sums;
}

struct objective_sums scene_evaluate(struct objective *o, const struct scene *s, double *gradient)
{
	struct position p = {0};
	struct shape shape;
	position_make(&p, s, o);
	struct objective_sums sums = shape_make(o, &p, &shape);
	for (uint32_t i = 0; i < s->n_ids && gradient; i++) {
		uint32_t id = p.ids[i];
		gradient[id] = shape.corrections[i];
		for (uint32_t k = 0; k < shape.row.n_terms; k++)
			gradient[id] += shape.scales[k] * exp(s->zs[id] / (double)shape.temperatures[k] - shape.lse[k]);
	}
	return sums;
}

double scene_evaluate_on(struct backend *be, struct objective *o, const struct scene *s, double *gradient)
{
	float temperatures[OBJECTIVE_MAX_TERMS + 1] = {1}, row[V];
	struct position p = {0};
	struct shape shape;
	double gathered[V];
	position_make(&p, s, o);
	struct sweep_row swept = {.n_temperatures = 1 + objective_temperatures(o, temperatures + 1), .temperatures = temperatures,
				  .n_gather = s->n_ids, .gather = p.ids, .want_mean = true, .lse = p.student_lse, .gathered = gathered};
	struct real *z = be->ops->real_new(be, s->n_ids, NULL);
	assert_non_null(z);
	for (uint32_t j = 0; j < s->n_ids; j++)
		row[j] = (float)s->zs[j];
	be->ops->real_write(be, z, row, s->n_ids);
	be->ops->sweep(be, z, 1, s->n_ids, &swept);
	p.x.student = gathered;
	p.x.student_lse = p.student_lse + 1;
	p.x.student_lse_1 = p.student_lse[0];
	p.x.student_mean = swept.mean;
	struct objective_sums sums = shape_make(o, &p, &shape);
	be->ops->softmax_grad(be, z, 1, s->n_ids, &shape.row);
	be->ops->real_read(be, gradient, z, s->n_ids);
	assert_int_equal(backend_sync(be, NULL), 0);
	be->ops->real_free(be, z);
	return sums.total;
}

void scene_likeliest(struct scene *s, uint32_t n)
{
	bool taken[V] = {false};
	for (s->n_top = 0; s->n_top < n; s->n_top++) {
		uint32_t best = 0;
		while (taken[best])
			best++;
		for (uint32_t j = best; j < s->n_ids; j++)
			if (!taken[j] && s->zt[j] > s->zt[best])
				best = j;
		taken[best] = true;
		s->top[s->n_top] = best;
	}
}

struct scene scene_random(uint64_t *seed, bool foreign)
{
	struct scene s = {.n_ids = V, .foreign = foreign, .n_own = 3, .n_drawn = 3, .log_p_factor = foreign ? -.2 : 0,
			  .log_q_factor = foreign ? -.3 : 0, .extra = {.3, -.4}};
	for (uint32_t j = 0; j < V; j++) {
		s.zt[j] = 4 * random_number(seed);
		s.zs[j] = 4 * random_number(seed);
	}
	for (uint32_t i = 0; i < 3; i++) {
		s.own[i] = 4 * i + (uint32_t)(*seed >> 33) % 4;
		s.drawn[i] = 4 * i + 1;
		s.weights[i] = .1 + .2 * (random_number(seed) + .5);
	}
	s.label = (uint32_t)(*seed >> 40) % V;
	scene_likeliest(&s, 5);
	return s;
}
