// SPDX-License-Identifier: Apache-2.0
#include "daemon/loss/pair.h"

#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>

int pair_init(struct pair *pair, uint32_t room)
{
	*pair = (struct pair){0};
	double *numbers = calloc(room, 6 * sizeof *numbers + 2 * sizeof *pair->slots);
	if (!numbers)
		return -ENOMEM;
	pair->memory = numbers;
	pair->p = numbers;
	pair->log_p = numbers + room;
	pair->q = numbers + 2 * (size_t)room;
	pair->log_q = numbers + 3 * (size_t)room;
	pair->zt = numbers + 4 * (size_t)room;
	pair->zs = numbers + 5 * (size_t)room;
	pair->slots = (uint32_t *)(numbers + 6 * (size_t)room);
	pair->order = pair->slots + room;
	return 0;
}

void pair_done(struct pair *pair)
{
	free(pair->memory);
	*pair = (struct pair){0};
}

static uint32_t smaller(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

static bool pair_holds(const struct pair *pair, uint32_t slot)
{
	for (uint32_t i = 0; i < pair->n; i++)
		if (pair->slots[i] == slot)
			return true;
	return false;
}

static void slots_list(struct pair *pair, const struct loss_position *x, const struct pair_view *view)
{
	bool head = view->form != LOSS_FORM_DRAWS && view->support != LOSS_SUPPORT_STUDENT;
	bool own = view->form != LOSS_FORM_DRAWS && view->support != LOSS_SUPPORT_TEACHER;
	bool drawn = view->form == LOSS_FORM_DRAWS || view->form == LOSS_FORM_HEAD_DRAWS;
	uint32_t n_head = head ? smaller(x->n_top, view->form == LOSS_FORM_HEAD_DRAWS ? x->n_top : view->top_k) : 0;
	pair->n = 0;
	pair->n_head = n_head;
	for (uint32_t i = 0; i < n_head; i++)
		pair->slots[pair->n++] = i;
	for (uint32_t i = 0; own && i < x->n_own && i < view->own_k; i++)
		if (x->own[i] >= n_head)
			pair->slots[pair->n++] = x->own[i];
	for (uint32_t i = 0; drawn && i < x->n_drawn; i++)
		if (x->drawn[i] >= n_head)
			pair->slots[pair->n++] = x->drawn[i];
	if (pair->n && (view->label || view->form == LOSS_FORM_LABEL_TAIL) && !pair_holds(pair, x->label))
		pair->slots[pair->n++] = x->label;
}

static void rows_fill(struct pair *pair, const struct loss_position *x, uint32_t temperature)
{
	double T = x->temperatures[temperature], lse_t = x->teacher_lse[temperature], lse_s = x->student_lse[temperature];
	pair->temperature = T;
	pair->teacher_lse = lse_t;
	pair->student_lse = lse_s;
	pair->entropy = NAN;
	pair->label = PAIR_NO_LABEL;
	for (uint32_t i = 0; i < pair->n; i++) {
		uint32_t slot = pair->slots[i];
		if (slot == x->label)
			pair->label = i;
		pair->zt[i] = x->teacher[slot];
		pair->zs[i] = x->student[slot];
		pair->log_q[i] = pair->zs[i] / T - lse_s;
		pair->q[i] = exp(pair->log_q[i]);
		double log_p = pair->zt[i] / T - lse_t;        // NAN at ids that were only drawn, or only the label
		pair->p[i] = isnan(log_p) ? 0 : exp(log_p);
		pair->log_p[i] = isnan(log_p) ? PAIR_LOG_FLOOR : fmax(log_p, PAIR_LOG_FLOOR);
	}
}

// Sets the teacher's mass of one symbol.
static void mass_set(struct pair *pair, uint32_t i, double p)
{
	pair->p[i] = p;
	pair->log_p[i] = p > 0 ? fmax(log(p), PAIR_LOG_FLOOR) : PAIR_LOG_FLOOR;
}

static void weights_fill(struct pair *pair, const struct loss_position *x, bool head)
{
	uint32_t at = 0;
	for (uint32_t i = 0; i < pair->n; i++)
		if (!head || pair->slots[i] >= x->n_top)
			mass_set(pair, i, 0);
	for (uint32_t i = 0; i < x->n_drawn; i++) {
		if (head && x->drawn[i] < x->n_top)
			continue;
		while (pair->slots[at] != x->drawn[i])         // drawn ids stand in S in the same order
			at++;
		mass_set(pair, at, x->weights[i]);
	}
}

static double sum(const double *x, uint32_t n)
{
	double s = 0;
	for (uint32_t i = 0; i < n; i++)
		s += x[i];
	return s;
}

static void normalise(double *x, double *log_x, uint32_t n)
{
	double max = log_x[0], total = 0;
	for (uint32_t i = 1; i < n; i++)
		max = fmax(max, log_x[i]);
	for (uint32_t i = 0; i < n; i++)
		total += exp(log_x[i] - max);
	total = max + log(total);
	for (uint32_t i = 0; i < n; i++) {
		log_x[i] -= total;
		x[i] = exp(log_x[i]);
	}
}

// ln of the teacher's mass outside S. Its own word where it was asked for this very S; else what the head leaves.
static double teacher_tail(const struct pair *pair, const struct loss_position *x)
{
	if (pair->temperature == 1 && !x->foreign && pair->n == x->n_top && pair->slots[pair->n - 1] == x->n_top - 1 && !isnan(x->tail))
		return x->tail;
	return log1p(-fmin(sum(pair->p, pair->n), 1));
}

static void bucket_add(struct pair *pair, double p, double log_p, double floor)
{
	uint32_t n = pair->n++;
	double head = fmin(sum(pair->q, n), 1 - PAIR_TAIL_MIN);
	pair->bucket = true;
	pair->p[n] = p < PAIR_TAIL_MIN ? 0 : p;
	pair->log_p[n] = fmax(log_p, floor);
	pair->q[n] = 1 - head;
	pair->log_q[n] = log1p(-head);
}

static void uniform_set(struct pair *pair, const struct loss_position *x, double p_tail)
{
	pair->n_outside = (double)x->vocab_size - (double)pair->n;
	pair->uniform = p_tail / pair->n_outside;
	double z = (double)x->vocab_size * x->student_mean - sum(pair->zs, pair->n);
	pair->outside_log_q = z / pair->temperature - pair->n_outside * pair->student_lse;
}

void pair_make(struct pair *pair, const struct loss_position *x, const struct pair_view *view)
{
	pair->bucket = pair->conditional = false;
	pair->uniform = pair->n_outside = pair->outside_log_q = 0;
	slots_list(pair, x, view);
	rows_fill(pair, x, view->temperature);
	if (pair->n == 0)
		return;
	bool whole = pair->n >= x->vocab_size && !x->foreign;
	double log_tail = whole ? -INFINITY : teacher_tail(pair, x), p_tail = exp(log_tail);
	if (view->form == LOSS_FORM_DRAWS || view->form == LOSS_FORM_HEAD_DRAWS) {
		weights_fill(pair, x, view->form == LOSS_FORM_HEAD_DRAWS);
		pair->entropy = x->entropy;
	}
	if (view->form == LOSS_FORM_LABEL_TAIL)
		mass_set(pair, pair->label, pair->p[pair->label] + p_tail);
	if (view->form == LOSS_FORM_TEACHER_RENORMALISED || view->form == LOSS_FORM_RENORMALISED)
		normalise(pair->p, pair->log_p, pair->n);
	if (view->form == LOSS_FORM_RENORMALISED) {
		pair->conditional = true;
		normalise(pair->q, pair->log_q, pair->n);
	}
	if (whole || view->form == LOSS_FORM_RENORMALISED || view->form == LOSS_FORM_TRUNCATED)
		return;
	if (view->form == LOSS_FORM_UNIFORM)
		uniform_set(pair, x, p_tail);
	else if (view->form == LOSS_FORM_GHOST)
		bucket_add(pair, p_tail, log_tail, log(PAIR_TAIL_MIN));
	else
		bucket_add(pair, 0, PAIR_LOG_FLOOR, PAIR_LOG_FLOOR);           // the form leaves the teacher nothing outside S
}
