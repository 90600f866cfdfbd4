// SPDX-License-Identifier: Apache-2.0
// Losses by rank, for vocabularies that differ (ULD; GOLD's hybrid of it).
#include <math.h>

#include "daemon/loss/divergence.h"

static double sign(double x)
{
	return x > 0 ? 1 : x < 0 ? -1 : 0;
}

void rank_uld(const struct pair *pair, const double *x, struct divergence *ret)
{
	(void)x;
	ret->value = 0;
	for (uint32_t i = 0; i < pair->n; i++) {
		ret->value += fabs(pair->p[i] - pair->q[i]);
		ret->slope[i] = pair->q[i] * sign(pair->q[i] - pair->p[i]);
	}
}

// One id's part of the divergence of two rows that need not sum to 1, and its slope; never negative, 0 where P = Q.
static double part(double P, double Q, double log_P, double log_Q, double beta, double *ret_slope)
{
	if (beta <= 0) {
		*ret_slope = Q - P;
		return (P > 0 ? P * (log_P - log_Q) : 0) - P + Q;
	}
	if (beta >= 1) {
		*ret_slope = Q * (log_Q - log_P);
		return Q * (log_Q - log_P) - Q + P;
	}
	double M = beta * P + (1 - beta) * Q, log_M = log(M);
	if (!(M > 0)) {
		*ret_slope = 0;
		return 0;
	}
	*ret_slope = (1 - beta) * Q * (log_Q - log_M);
	return (P > 0 ? beta * P * (log_P - log_M) : 0) + (1 - beta) * Q * (log_Q - log_M);
}

void rank_gold(const struct pair *pair, const double *x, struct divergence *ret)
{
	double log_c = pair->log_p_factor, log_d = pair->log_q_factor, c = exp(log_c), d = exp(log_d);      // d may underflow
	double matched = x[2] < 0 ? pair->matched_share : x[2], unmatched = x[3] < 0 ? 1 - pair->matched_share : x[3];
	ret->value = 0;
	for (uint32_t i = 0; i < pair->n; i++) {
		double P = c * pair->p[i], Q = d * pair->q[i], slope = Q * sign(Q - P);
		bool by_id = i < pair->n_head;
		double value = by_id ? part(P, Q, log_c + pair->log_p[i], log_d + pair->log_q[i], x[0], &slope) : fabs(P - Q);
		ret->value += (by_id ? matched : unmatched) * value;
		ret->slope[i] = (by_id ? matched : unmatched) * slope;
	}
}
