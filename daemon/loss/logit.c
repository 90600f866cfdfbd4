// SPDX-License-Identifier: Apache-2.0
// Losses on logits and on their order.
#include <math.h>

#include "daemon/loss/divergence.h"

static uint32_t n_ids(const struct pair *pair)
{
	return pair->n - pair->bucket;
}

// Gap of the student to the teacher at each id, into the slopes.
static void gaps_set(const struct pair *pair, enum logit_target target, double phi, double *gap)
{
	double mean = 0;
	uint32_t n = n_ids(pair);
	for (uint32_t i = 0; i < n; i++) {
		if (target == LOGIT_LOG_PROB)
			gap[i] = pair->log_q[i] - (pair->zt[i] / pair->temperature - pair->teacher_lse);
		else
			gap[i] = (pair->zs[i] - phi * pair->zt[i]) / pair->temperature;
		mean += gap[i] / n;
	}
	for (uint32_t i = 0; target == LOGIT_CENTRED && i < n; i++)
		gap[i] -= mean;
}

void logit_mse(const struct pair *pair, const double *x, struct divergence *ret)
{
	enum logit_target target = (enum logit_target)x[0];
	uint32_t n = n_ids(pair);
	double by = x[2] > 0 ? 1 : 1.0 / n, squares = 0;
	gaps_set(pair, target, x[1], ret->slope);
	for (uint32_t i = 0; i < n; i++)
		squares += ret->slope[i] * ret->slope[i];
	if (x[3] > 0 && squares / n <= x[3] * x[1])            // learned well enough (Continuation-KD)
		by = 0;
	ret->value = by * squares;
	ret->direct = target != LOGIT_LOG_PROB;
	for (uint32_t i = 0; i < pair->n; i++)
		ret->slope[i] = i < n ? 2 * by * ret->slope[i] : 0;
}

static uint32_t slopes_clear(const struct pair *pair, struct divergence *ret)
{
	ret->value = 0;
	for (uint32_t i = 0; i < pair->n; i++)
		ret->slope[i] = 0;
	return n_ids(pair);
}

static void slopes_scale(const struct pair *pair, uint32_t n_pairs, struct divergence *ret)
{
	double by = n_pairs ? 1.0 / n_pairs : 0;
	ret->value *= by;
	for (uint32_t i = 0; i < pair->n; i++)
		ret->slope[i] *= by;
}

void logit_hinge(const struct pair *pair, const double *x, struct divergence *ret)
{
	uint32_t n = slopes_clear(pair, ret), n_pairs = 0;
	for (uint32_t i = 0; i < n; i++)
		for (uint32_t l = 0; l < n; l++) {
			double lead = pair->p[i] - pair->p[l];
			if (!(lead > 0))
				continue;
			n_pairs++;
			double short_of = (x[0] > 0 ? x[0] : lead) - (pair->q[i] - pair->q[l]);
			if (!(short_of > 0))
				continue;
			ret->value += short_of;
			ret->slope[i] -= pair->q[i];
			ret->slope[l] += pair->q[l];
		}
	slopes_scale(pair, n_pairs, ret);
}

void logit_logistic(const struct pair *pair, const double *x, struct divergence *ret)
{
	uint32_t n = slopes_clear(pair, ret), n_pairs = 0;
	(void)x;
	ret->direct = true;
	for (uint32_t i = 0; i < n; i++)
		for (uint32_t l = 0; l < n; l++) {
			if (!(pair->p[i] > pair->p[l]))
				continue;
			double lead = (pair->zs[i] - pair->zs[l]) / pair->temperature, push = 1 / (1 + exp(lead));
			n_pairs++;
			ret->value += lead > 0 ? log1p(exp(-lead)) : log1p(exp(lead)) - lead;
			ret->slope[i] -= push;
			ret->slope[l] += push;
		}
	slopes_scale(pair, n_pairs, ret);
}

void logit_top_n(const struct pair *pair, const double *x, struct divergence *ret)
{
	uint32_t n = slopes_clear(pair, ret), least = 0;
	(void)x;
	ret->direct = true;
	for (uint32_t i = 1; i < pair->n_head; i++)
		if (pair->zs[i] < pair->zs[least])
			least = i;
	for (uint32_t i = pair->n_head; i < n; i++) {
		double over = (pair->zs[i] - pair->zs[least]) / pair->temperature;
		if (!(over > 0))
			continue;
		ret->value += over;
		ret->slope[i] += 1;
		ret->slope[least] -= 1;
	}
}
