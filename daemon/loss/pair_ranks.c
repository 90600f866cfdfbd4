// SPDX-License-Identifier: Apache-2.0
// Pairs whose symbols are ranks: how losses compare rows over two vocabularies.
#include <math.h>

#include "daemon/loss/pair.h"

static void symbol_add(struct pair *pair, const struct loss_position *x, uint32_t slot, double log_p)
{
	uint32_t i = pair->n++;
	pair->slots[i] = slot;
	pair->zs[i] = x->student[slot];
	pair->log_q[i] = pair->zs[i] / pair->temperature - pair->student_lse;
	pair->q[i] = exp(pair->log_q[i]);
	pair->zt[i] = log_p * pair->temperature + pair->teacher_lse * pair->temperature;
	pair->p[i] = exp(log_p);
	pair->log_p[i] = fmax(log_p, PAIR_LOG_FLOOR);
}

// The next of the ranks from *at on that counts: any, or one that the other side has not.
static bool rank_next(const bool *matched, uint32_t n, bool by_id, uint32_t *at)
{
	while (*at < n && by_id && matched[*at])
		++*at;
	return *at < n;
}

// Student ranks beyond the teacher's are paired with nothing; the teacher's beyond the student's vocabulary are left to the rest.
static void ranks_add(struct pair *pair, const struct loss_position *x, uint32_t n_teacher, uint32_t n_student, bool by_id)
{
	uint32_t a = 0, b = 0;
	while (rank_next(x->student_matched, n_student, by_id, &b)) {
		bool more = rank_next(x->teacher_matched, n_teacher, by_id, &a);
		symbol_add(pair, x, x->student_ranks[b++],
			more ? x->teacher_ranks[a++] / pair->temperature - pair->teacher_lse : -INFINITY);
	}
}

static double rest(const double *mass, uint32_t n)
{
	double sum = 0;
	for (uint32_t i = 0; i < n; i++)
		sum += mass[i];
	return 1 - fmin(sum, 1);
}

void pair_make_ranks(struct pair *pair, const struct loss_position *x, const struct pair_view *view)
{
	uint32_t n_teacher = x->n_teacher_ranks < view->top_k ? x->n_teacher_ranks : view->top_k;
	uint32_t n_student = x->n_student_ranks < view->top_k ? x->n_student_ranks : view->top_k;
	pair->n = pair->n_head = 0;
	pair->conditional = pair->bucket = false;
	pair->uniform = pair->n_outside = pair->outside_log_q = 0;
	pair->entropy = NAN;
	pair->label = PAIR_NO_LABEL;
	pair->temperature = x->temperatures[view->temperature];
	pair->teacher_lse = x->teacher_lse[view->temperature];
	pair->student_lse = x->student_lse[view->temperature];
	pair->matched_share = x->matched_share;
	pair->log_p_factor = view->merge ? x->log_teacher_factor : 0;
	pair->log_q_factor = view->merge ? x->log_student_factor : 0;
	if (n_teacher == 0 || isnan(pair->log_p_factor) || isnan(pair->log_q_factor))
		return;
	for (uint32_t i = 0, slot = 0; view->by_id && i < n_teacher; i++)
		if (x->teacher_matched[i])             // slots of the top-k are in the order of the ranks that have one
			symbol_add(pair, x, slot++, x->teacher_ranks[i] / pair->temperature - pair->teacher_lse);
	pair->n_head = pair->n;
	ranks_add(pair, x, n_teacher, n_student, view->by_id);
	if (pair->n >= x->vocab_size && !x->foreign)
		return;
	uint32_t n = pair->n;
	double p = rest(pair->p, n), q = fmax(rest(pair->q, n), PAIR_TAIL_MIN);
	pair->bucket = true;
	pair->n++;
	pair->p[n] = p < PAIR_TAIL_MIN ? 0 : p;
	pair->log_p[n] = p > 0 ? fmax(log(p), PAIR_LOG_FLOOR) : PAIR_LOG_FLOOR;
	pair->q[n] = q;
	pair->log_q[n] = log(q);
}
