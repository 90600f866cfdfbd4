// SPDX-License-Identifier: Apache-2.0
// The router's choice, and the products of each expert with its rows.
#include "daemon/model/experts.h"

#include <math.h>
#include <stdlib.h>

struct choice_of_experts {
	double *scores;                  // (max_positions, n_experts)
	uint32_t *experts;               // (max_positions, n_experts_used) of each row
	double *shares;                  // the same
	uint32_t *rows;                  // (max_positions) of one expert
	float *scales;
};

struct choice_of_experts *experts_new(const struct architecture *a, uint32_t max_positions)
{
	struct choice_of_experts *c = calloc(1, sizeof *c);
	if (!c)
		return NULL;
	c->scores = calloc((size_t)max_positions * a->n_experts, sizeof *c->scores);
	c->experts = calloc((size_t)max_positions * a->n_experts_used, sizeof *c->experts);
	c->shares = calloc((size_t)max_positions * a->n_experts_used, sizeof *c->shares);
	c->rows = calloc(max_positions, sizeof *c->rows);
	c->scales = calloc(max_positions, sizeof *c->scales);
	if (c->scores && c->experts && c->shares && c->rows && c->scales)
		return c;
	experts_free(c);
	return NULL;
}

void experts_free(struct choice_of_experts *c)
{
	if (!c)
		return;
	free(c->scores);
	free(c->experts);
	free(c->shares);
	free(c->rows);
	free(c->scales);
	free(c);
}

static bool is_chosen(const uint32_t *experts, uint32_t n, uint32_t e)
{
	for (uint32_t i = 0; i < n; i++)
		if (experts[i] == e)
			return true;
	return false;
}

void experts_choose(const double *scores, uint32_t n, uint32_t n_used, bool normalise, uint32_t *ret_experts, double *ret_shares)
{
	double sum = 0, chosen = 0;
	for (uint32_t i = 0; i < n_used; i++) {
		uint32_t best = n;
		for (uint32_t e = 0; e < n; e++)      // a NaN is never larger: every number is still taken once at most
			if (!is_chosen(ret_experts, i, e) && (best == n || scores[e] > scores[best]))
				best = e;
		ret_experts[i] = best;
	}
	for (uint32_t e = 0; e < n; e++)
		sum += exp(scores[e] - scores[ret_experts[0]]);
	for (uint32_t i = 0; i < n_used; i++) {
		ret_shares[i] = exp(scores[ret_experts[i]] - scores[ret_experts[0]]) / sum;
		chosen += ret_shares[i];
	}
	for (uint32_t i = 0; normalise && i < n_used; i++)
		ret_shares[i] /= chosen;
}

// The rows that chose expert e, and their shares.
static uint32_t rows_of(const struct choice_of_experts *c, uint32_t n_used, uint32_t e, uint32_t T)
{
	uint32_t n = 0;
	for (uint32_t t = 0; t < T; t++) {
		for (uint32_t i = 0; i < n_used; i++) {
			if (c->experts[(size_t)t * n_used + i] == e) {
				c->rows[n] = t;
				c->scales[n++] = (float)c->shares[(size_t)t * n_used + i];
			}
		}
	}
	return n;
}

void experts_forward(const struct weights *w, const struct layer_weights *l, struct choice_of_experts *c, const struct experts_work *work,
		     struct real *x, const struct act *h, uint32_t T)
{
	const struct architecture *a = &w->architecture;
	struct backend *be = w->backend;
	const struct backend_ops *ops = be->ops;
	uint32_t n = a->n_experts, n_used = a->n_experts_used;
	ops->linear_real(be, work->scores, false, h, l->router, NULL, T);
	ops->real_read(be, c->scores, work->scores, (size_t)T * n);
	if (backend_failed(be))
		return;
	for (size_t t = 0; t < T; t++)
		experts_choose(c->scores + t * n, n, n_used, a->normalise_experts, c->experts + t * n_used, c->shares + t * n_used);
	for (uint32_t e = 0; e < n; e++) {
		uint32_t n_rows = rows_of(c, n_used, e, T);
		if (!n_rows)
			continue;
		ops->pick_rows(be, work->h, h, c->rows, n_rows, a->width);
		ops->linear(be, work->gate_up, work->h, l->experts[e].gate_up, NULL, n_rows);
		ops->swiglu(be, work->ffn, work->gate_up, n_rows, a->ffn_width);
		ops->linear_real(be, work->y, false, work->ffn, l->experts[e].down, NULL, n_rows);
		ops->add_rows(be, x, work->y, c->rows, c->scales, n_rows, a->width);
	}
}
