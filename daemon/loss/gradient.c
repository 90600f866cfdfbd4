// SPDX-License-Identifier: Apache-2.0
#include "daemon/loss/gradient.h"

#include <math.h>

#include "daemon/loss/divergence.h"
#include "kernels/backend.h"

static void term_add(struct gradient *g, double temperature, double lse, double scale)
{
	for (uint32_t i = 0; i < g->n_terms; i++)
		if (g->temperatures[i] == (float)temperature) {
			g->scales[i] += scale;
			return;
		}
	g->temperatures[g->n_terms] = (float)temperature;
	g->lse[g->n_terms] = lse;
	g->scales[g->n_terms++] = scale;
}

// The same amount at each of the V ids: V times a softmax row at infinite temperature.
static void uniform_add(struct gradient *g, const struct loss_position *x, double each)
{
	double V = (double)x->vocab_size;
	term_add(g, INFINITY, log(V), each * V);
}

static double slopes_sum(const struct pair *pair, const struct divergence *d)
{
	double sum = -pair->uniform * pair->n_outside;
	for (uint32_t i = 0; i < pair->n; i++)
		sum += d->slope[i];
	return sum;
}

void gradient_add(struct gradient *g, const struct loss_position *x, const struct pair *pair, const struct divergence *d, double factor)
{
	uint32_t n = pair->n - pair->bucket;
	double by = factor / pair->temperature;
	double outside = pair->bucket && !d->direct ? d->slope[n] / pair->q[n] : 0;
	double all = d->direct ? 0 : slopes_sum(pair, d);
	for (uint32_t i = 0; i < n; i++) {
		double more = d->direct ? 0 : pair->conditional ? -pair->q[i] * all : pair->uniform - pair->q[i] * outside;
		g->corrections[x->at + pair->slots[i]] += by * (d->slope[i] + more);
	}
	if (d->direct || pair->conditional)
		return;
	term_add(g, pair->temperature, pair->student_lse, by * (outside - all));
	if (pair->uniform > 0)
		uniform_add(g, x, -by * pair->uniform);
}

void gradient_add_label(struct gradient *g, const struct loss_position *x, double smoothing, double factor)
{
	term_add(g, 1, x->student_lse_1, factor);
	g->corrections[x->at + x->label] -= factor * (1 - smoothing);
	if (smoothing > 0)
		uniform_add(g, x, -factor * smoothing / (double)x->vocab_size);
}

void gradient_finish(const struct gradient *g, const struct loss_position *x, struct softmax_grad_row *ret)
{
	*ret = (struct softmax_grad_row){.n_terms = g->n_terms, .temperatures = g->temperatures, .lse = g->lse, .scales = g->scales,
					 .n_corrections = x->n, .ids = x->ids, .corrections = g->corrections};
}
