// SPDX-License-Identifier: Apache-2.0
// Every sum is written in p, ln p, q and ln q, so that no ratio of two small numbers is ever formed. A term with p = 0 counts 0 where it is
// weighted by p.
#include "daemon/loss/divergence.h"

#include <math.h>

// - sum p ln p; with the uniform form the ids outside S count too.
static double own_entropy(const struct pair *pair)
{
	double value = 0;
	for (uint32_t i = 0; i < pair->n; i++)
		if (pair->p[i] > 0)
			value -= pair->p[i] * pair->log_p[i];
	return pair->uniform > 0 ? value - pair->uniform * pair->n_outside * log(pair->uniform) : value;
}

static double forward_value(const struct pair *pair)
{
	double value = 0;
	for (uint32_t i = 0; i < pair->n; i++)
		if (pair->p[i] > 0)
			value += pair->p[i] * (pair->log_p[i] - pair->log_q[i]);
	if (pair->uniform > 0)
		value += pair->uniform * (pair->n_outside * log(pair->uniform) - pair->outside_log_q);
	return value;
}

static double reverse_value(const struct pair *pair)
{
	double value = 0;
	for (uint32_t i = 0; i < pair->n; i++)
		value += pair->q[i] * (pair->log_q[i] - pair->log_p[i]);
	return value;
}

static void forward_set(const struct pair *pair, double value, struct divergence *ret)
{
	ret->value = value;
	for (uint32_t i = 0; i < pair->n; i++)
		ret->slope[i] = -pair->p[i];
}

// With draws the value is less the entropy of the teacher's row, not that of the sample: like the gradient, it then has no bias.
void divergence_forward_kl(const struct pair *pair, const double *x, struct divergence *ret)
{
	double value = forward_value(pair);
	(void)x;
	forward_set(pair, isnan(pair->entropy) ? value : value + own_entropy(pair) - pair->entropy, ret);
}

void divergence_soft_cross_entropy(const struct pair *pair, const double *x, struct divergence *ret)
{
	(void)x;
	ret->floor = own_entropy(pair);
	forward_set(pair, forward_value(pair) + ret->floor, ret);
}

// forward KL(p; q) + reverse KL(q; p).
static void sum_set(const struct pair *pair, double forward, double reverse, struct divergence *ret)
{
	ret->value = forward * forward_value(pair) + reverse * reverse_value(pair);
	for (uint32_t i = 0; i < pair->n; i++)
		ret->slope[i] = -forward * pair->p[i] + reverse * pair->q[i] * (pair->log_q[i] - pair->log_p[i] + 1);
}

void divergence_reverse_kl(const struct pair *pair, const double *x, struct divergence *ret)
{
	(void)x;
	sum_set(pair, 0, 1, ret);
}

void divergence_half_sum(const struct pair *pair, const double *x, struct divergence *ret)
{
	sum_set(pair, 1 - x[0], x[0], ret);
}

void divergence_jeffreys(const struct pair *pair, const double *x, struct divergence *ret)
{
	(void)x;
	sum_set(pair, 1, 1, ret);
}

// ln(share a + (1 - share) b) from logarithms.
static double log_mix(double share, double log_a, double log_b)
{
	if (share <= 0 || share >= 1)
		return share <= 0 ? log_b : log_a;
	double high = fmax(log_a, log_b);
	return high + log(share * exp(log_a - high) + (1 - share) * exp(log_b - high));
}

void divergence_jsd(const struct pair *pair, const double *x, struct divergence *ret)
{
	double beta = x[0], by = x[1] > 0 ? 1 / (beta * (1 - beta)) : 1;
	if (beta == 0 || beta == 1) {          // without limits it is 0 everywhere there: a schedule may pass through
		sum_set(pair, x[1] > 0 && beta == 0, x[1] > 0 && beta == 1, ret);
		return;
	}
	ret->value = 0;
	for (uint32_t i = 0; i < pair->n; i++) {
		double p = pair->p[i], q = pair->q[i], log_m = log_mix(beta, p > 0 ? pair->log_p[i] : -INFINITY, pair->log_q[i]);
		if (p > 0)
			ret->value += by * beta * p * (pair->log_p[i] - log_m);
		ret->value += by * (1 - beta) * q * (pair->log_q[i] - log_m);
		ret->slope[i] = by * (1 - beta) * q * (pair->log_q[i] - log_m);
	}
}

void divergence_skew_forward(const struct pair *pair, const double *x, struct divergence *ret)
{
	double skew = x[0];
	ret->value = 0;
	for (uint32_t i = 0; i < pair->n; i++) {
		double p = pair->p[i], log_m = log_mix(skew, p > 0 ? pair->log_p[i] : -INFINITY, pair->log_q[i]);
		if (p > 0)
			ret->value += p * (pair->log_p[i] - log_m);
		ret->slope[i] = p > 0 ? -(1 - skew) * p * exp(pair->log_q[i] - log_m) : 0;
	}
}

void divergence_skew_reverse(const struct pair *pair, const double *x, struct divergence *ret)
{
	double skew = x[0];
	ret->value = 0;
	for (uint32_t i = 0; i < pair->n; i++) {
		double q = pair->q[i], log_m = log_mix(1 - skew, pair->log_p[i], pair->log_q[i]), log_ratio = pair->log_q[i] - log_m;
		ret->value += q * log_ratio;
		ret->slope[i] = q * (log_ratio + 1 - (x[1] > 0 ? 0 : skew * exp(log_ratio)));
	}
}

// A gap that is only rounding has no sign: a student that agrees must not be pushed.
static double sign(double gap)
{
	return fabs(gap) < 1e-12 ? 0 : gap > 0 ? 1 : -1;
}

void divergence_tvd(const struct pair *pair, const double *x, struct divergence *ret)
{
	(void)x;
	ret->value = 0;
	for (uint32_t i = 0; i < pair->n; i++) {
		double gap = pair->q[i] - pair->p[i];
		ret->value += fabs(gap) / 2;
		ret->slope[i] = pair->q[i] * sign(gap) / 2;
	}
}

// (e^(a y) - 1) / a with its limit y.
static double grown(double a, double y)
{
	return a == 0 ? y : expm1(a * y) / a;
}

// One term of the alpha-beta divergence. Its four limits are those of Cichocki, Cruces and Amari (2011).
static double ab_term(double a, double b, double log_p, double log_q)
{
	if (a == 0 && b == 0)
		return (log_p - log_q) * (log_p - log_q) / 2;
	if (a == 0)
		return (exp(b * log_q) * b * (log_q - log_p) - exp(b * log_q) + exp(b * log_p)) / (b * b);
	if (b == 0)
		return (exp(a * log_p) * a * (log_p - log_q) - exp(a * log_p) + exp(a * log_q)) / (a * a);
	if (a + b == 0)
		return (a * (log_q - log_p) + expm1(a * (log_p - log_q))) / (a * a);
	return (a / (a + b) * exp((a + b) * log_p) + b / (a + b) * exp((a + b) * log_q) - exp(a * log_p + b * log_q)) / (a * b);
}

void divergence_ab(const struct pair *pair, const double *x, struct divergence *ret)
{
	double a = fabs(x[0]) < 1e-6 ? 0 : x[0], b = fabs(x[1]) < 1e-6 ? 0 : x[1];     // nearer, the formula has no digits left
	if (fabs(a + b) < 1e-6)
		b = -a;
	ret->value = 0;
	for (uint32_t i = 0; i < pair->n; i++) {
		ret->value += ab_term(a, b, pair->log_p[i], pair->log_q[i]);
		ret->slope[i] = -exp((a + b) * pair->log_q[i]) * grown(a, pair->log_p[i] - pair->log_q[i]);
	}
}

// The symbols in descending order of p, the bucket last whatever its mass: pair->order. Insertion, as S is nearly always in order.
static void order_make(const struct pair *pair)
{
	uint32_t n = pair->n - pair->bucket, *order = pair->order;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t at = i;
		for (; at > 0 && pair->p[order[at - 1]] < pair->p[i]; at--)
			order[at] = order[at - 1];
		order[at] = i;
	}
	if (pair->bucket)
		order[n] = n;
}

void divergence_adaptive_kl(const struct pair *pair, const double *x, struct divergence *ret)
{
	double gaps[2] = {0}, cumulative = 0;
	order_make(pair);
	for (uint32_t i = 0; i < pair->n; i++) {
		uint32_t at = pair->order[i];
		cumulative += pair->p[at];
		bool head = i == 0 || (cumulative <= x[0] && !(pair->bucket && i == pair->n - 1));
		gaps[!head] += fabs(pair->p[at] - pair->q[at]);
	}
	double both = gaps[0] + gaps[1];
	sum_set(pair, both > 0 ? gaps[0] / both : .5, both > 0 ? gaps[1] / both : .5, ret);
}

// ln of the student's mass of the symbols marked in pair->order (non-zero), of the first n; from logarithms: at a low temperature it may
// underflow.
static double marked_log_q(const struct pair *pair, uint32_t n)
{
	double max = -INFINITY, total = 0;
	for (uint32_t i = 0; i < n; i++)
		max = pair->order[i] ? fmax(max, pair->log_q[i]) : max;
	for (uint32_t i = 0; i < n; i++)
		total += pair->order[i] ? exp(pair->log_q[i] - max) : 0;
	return max + log(total);
}

void divergence_dkd(const struct pair *pair, const double *x, struct divergence *ret)
{
	double p_rest = 0, others = 0;
	uint32_t y = pair->label;
	for (uint32_t i = 0; i < pair->n; i++) {
		pair->order[i] = i != y;
		p_rest += i != y ? pair->p[i] : 0;
	}
	double p_y = pair->p[y], log_p_rest = log(p_rest), log_q_rest = marked_log_q(pair, pair->n);
	for (uint32_t i = 0; i < pair->n; i++)
		if (i != y && pair->p[i] > 0)
			others += pair->p[i] / p_rest * (pair->log_p[i] - log_p_rest - pair->log_q[i] + log_q_rest);
	double target = p_y > 0 ? p_y * (pair->log_p[y] - pair->log_q[y]) : 0;
	if (p_rest > 0)
		target += p_rest * (log_p_rest - log_q_rest);
	ret->value = x[0] * target + x[1] * others;
	for (uint32_t i = 0; i < pair->n; i++) {
		double q = exp(pair->log_q[i] - log_q_rest), p = p_rest > 0 ? pair->p[i] / p_rest : q;
		ret->slope[i] = i == y ? -x[0] * p_y : -x[0] * p_rest * q + x[1] * (q - p);
	}
}

// P = softmax over the symbols of (1 - t) ln q + t ln p: the logits of the two rows between each other, tails as one logit.
void divergence_taid(const struct pair *pair, const double *x, struct divergence *ret)
{
	double t = x[0], max = -INFINITY, total = 0;
	for (uint32_t i = 0; i < pair->n; i++) {
		ret->slope[i] = (1 - t) * pair->log_q[i] + t * pair->log_p[i];
		max = fmax(max, ret->slope[i]);
	}
	for (uint32_t i = 0; i < pair->n; i++)
		total += exp(ret->slope[i] - max);
	double lse = max + log(total);
	ret->value = ret->followed = 0;
	for (uint32_t i = 0; i < pair->n; i++) {
		double log_target = ret->slope[i] - lse, target = exp(log_target);
		ret->value += target * (log_target - pair->log_q[i]);
		ret->followed -= target * pair->log_q[i];
		ret->slope[i] = -target;
	}
}

// KL of p / P to q / Q over the ids marked in pair->order (non-zero), P and Q their sums; slopes of q as it is.
static void kept_set(const struct pair *pair, struct divergence *ret)
{
	double p_sum = 0;
	uint32_t n = pair->n - pair->bucket;
	for (uint32_t i = 0; i < n; i++)
		p_sum += pair->order[i] ? pair->p[i] : 0;
	double log_p_sum = log(p_sum), log_q_sum = marked_log_q(pair, n);
	ret->value = 0;
	for (uint32_t i = 0; i < pair->n; i++) {
		ret->slope[i] = 0;
		if (i >= n || !pair->order[i])
			continue;
		if (pair->p[i] > 0)
			ret->value += pair->p[i] / p_sum * (pair->log_p[i] - log_p_sum - pair->log_q[i] + log_q_sum);
		ret->slope[i] = exp(pair->log_q[i] - log_q_sum) - pair->p[i] / p_sum;
	}
}

void divergence_dac_kl(const struct pair *pair, const double *x, struct divergence *ret)
{
	uint32_t n = pair->n - pair->bucket, n_kept = 0;
	double cumulative = 0;
	order_make(pair);
	while (n_kept < n && cumulative < x[0])
		cumulative += pair->p[pair->order[n_kept++]];
	double least = pair->p[pair->order[n_kept - 1]];
	uint32_t last = pair->order[n_kept - 1];
	for (uint32_t i = 0; i < n; i++)                       // from an order to marks; equals of the last stand in order of place
		pair->order[i] = pair->p[i] > least || (pair->p[i] == least && i <= last) || i == pair->label;
	kept_set(pair, ret);
}

// Not a function of the teacher's logits: its probabilities, over c, are the logits of the target. q is renormalised over S.
void divergence_first(const struct pair *pair, const double *x, struct divergence *ret)
{
	uint32_t n = pair->n - pair->bucket;
	double max = -INFINITY, total = 0;
	for (uint32_t i = 0; i < n; i++) {
		max = fmax(max, pair->p[i] / x[0]);
		pair->order[i] = true;
	}
	for (uint32_t i = 0; i < n; i++)
		total += exp(pair->p[i] / x[0] - max);
	double lse = max + log(total), log_q_sum = marked_log_q(pair, n);
	ret->value = 0;
	for (uint32_t i = 0; i < n; i++) {
		double log_target = pair->p[i] / x[0] - lse, target = exp(log_target);
		ret->value += target * (log_target - pair->log_q[i] + log_q_sum);
		ret->slope[i] = exp(pair->log_q[i] - log_q_sum) - target;
	}
	if (pair->bucket)
		ret->slope[n] = 0;
}
