// SPDX-License-Identifier: Apache-2.0
// From the results of a sweep to the rows of a record.
#include <math.h>

#include "common/record.h"
#include "daemon/teacher/answer_internal.h"

static uint32_t id_of(const struct plan *plan, uint32_t place)
{
	return plan->query->n_keep ? plan->query->keep[place] : place;
}

static void keep_top(const struct plan *plan, const struct chunk *c, uint32_t i, uint32_t k, struct record_rows *rows)
{
	const struct sweep_row *s = &c->sweep[i];
	uint32_t top_k = plan->query->top_k, n = c->n_top[i];
	for (uint32_t j = 0; j < top_k; j++) {
		rows->ids[(size_t)k * top_k + j] = j < n ? id_of(plan, s->ids[j]) : RECORD_NO_ID;
		rows->logits[(size_t)k * top_k + j] = j < n ? (float)s->logits[j] : 0;
	}
	if (rows->n_top)
		rows->n_top[k] = n;
}

static void keep_scalars(const struct plan *plan, const struct sweep_row *s, uint32_t k, struct record_rows *rows)
{
	const struct query *q = plan->query;
	rows->max_logit[k] = (float)s->max_logit;
	for (uint32_t j = 0; j < q->n_temperatures; j++)
		rows->lse[(size_t)k * q->n_temperatures + j] = (float)s->lse[j];
	if (q->entropy)
		rows->entropy[k] = (float)s->entropy;
	if (q->max_prob)
		rows->max_prob[k] = (float)exp(s->max_logit - s->lse[plan->one]);
	if (q->argmax)
		rows->argmax[k] = id_of(plan, s->ids[0]);
	if (q->sum_squares)    // sum of e^(2 z) over (sum of e^z)^2; the largest logit cancels exactly
		rows->sum_squares[k] = (float)exp(s->lse[plan->half] - 2 * s->lse[plan->one]);
	if (q->tail)           // two sums that agree in all digits may round to a probability above 1
		rows->tail[k] = (float)fmin(0, s->tail_lse - s->lse[plan->one]);
}

static void keep_gathered(const struct plan *plan, const struct chunk *c, uint32_t i, uint32_t k, struct record_rows *rows)
{
	const double *gathered = c->sweep[i].gathered;
	uint32_t n;
	if (plan->query->own)
		rows->own_logit[k] = c->has_own[i] ? (float)gathered[0] : NAN;
	(void)record_gather_ids(rows, k, &n);
	for (uint32_t j = 0; j < n; j++)
		rows->gathered[record_gather_at(rows, k) + j] = (float)gathered[c->has_own[i] + j];
}

// Drawn ids ascend: equal ones are neighbours.
static int keep_draws(const struct plan *plan, const struct sweep_row *s, uint32_t k, struct record_rows *rows, struct error *err)
{
	double tau = (double)plan->query->draws.tau;
	uint32_t at = rows->draw_starts[k], n = plan->query->draws.n;
	int r = record_rows_reserve_draws(rows, at + n, err);
	if (r)
		return r;
	for (uint32_t i = 0, j; i < n && s->drawn[i] != UINT32_MAX; i = j, at++) {
		for (j = i + 1; j < n && s->drawn[j] == s->drawn[i];)
			j++;
		rows->draw_ids[at] = id_of(plan, s->drawn[i]);
		rows->draw_counts[at] = j - i;
		if (rows->draw_log_ratios)    // ln p - ln t
			rows->draw_log_ratios[at] =
				(float)((s->drawn_logits[i] - s->lse[plan->one]) - (tau * s->drawn_logits[i] - s->draw_lse));
	}
	rows->draw_starts[k + 1] = at;
	return 0;
}

static int keep_row(const struct plan *plan, const struct chunk *c, uint32_t i, uint32_t k, struct record_rows *rows, struct error *err)
{
	const struct sweep_row *s = &c->sweep[i];
	if (rows->draw_starts)
		rows->draw_starts[k + 1] = rows->draw_starts[k];
	if (s->not_finite)
		rows->status[k] = ROW_NOT_FINITE;
	if (rows->status[k] != ROW_OK)     // perhaps for a feature's sake
		return 0;
	keep_scalars(plan, s, k, rows);
	if (plan->query->top_k)
		keep_top(plan, c, i, k, rows);
	keep_gathered(plan, c, i, k, rows);
	return plan->query->draws.n ? keep_draws(plan, s, k, rows, err) : 0;
}

int rows_keep(const struct plan *plan, struct chunk *c, uint32_t i, struct record_rows *rows, struct error *err)
{
	const struct sweep_row *s = &c->sweep[i];
	uint32_t position = c->positions[i];
	if (plan->needs[position] & NEED_OWN)
		plan->own[position] = s->not_finite || !c->has_own[i] ? NAN
			: s->gathered[0] - c->lse[(size_t)i * PLAN_TEMPERATURES + plan->one];
	return plan->needs[position] & NEED_ROW ? keep_row(plan, c, i, position - (uint32_t)plan->query->first, rows, err) : 0;
}
