// SPDX-License-Identifier: Apache-2.0
// What the sweep says outside the top-k and draws at random, against sums written out here; picked columns and mixtures against ref.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/ops/harness.h"

#define N_DRAWS 200

// One row that is drawn from, and its results.
struct drawn {
	struct sweep_row row;
	double *z, *lse, *logits, uniforms[N_DRAWS], drawn_logits[N_DRAWS], unit;
	uint32_t *ids, drawn[N_DRAWS], V;
};

static const float one = 1;

// Ascending, with both ends of [0, 1) among them.
static void fill_uniforms(uint64_t *random, double *u, uint32_t n)
{
	double step = 1.0 / n;
	for (uint32_t i = 0; i < n; i++)
		u[i] = (i + 0.5 * (1 + random_unit(random) / sqrt(3))) * step;
	u[0] = 0;
	u[n - 1] = 1 - 0x1p-53;
}

static void drawn_init(struct drawn *d, uint64_t seed, uint32_t V, uint32_t top_k, bool tail, double tau)
{
	*d = (struct drawn){.V = V, .lse = &d->unit};
	d->z = calloc(V, sizeof *d->z);
	d->logits = calloc((size_t)top_k + 1, sizeof *d->logits);
	d->ids = calloc((size_t)top_k + 1, sizeof *d->ids);
	assert_true(d->z && d->logits && d->ids);
	fill_uniforms(&seed, d->uniforms, N_DRAWS);
	memset(d->drawn, 0xfe, sizeof d->drawn);
	for (int i = 0; i < N_DRAWS; i++)
		d->drawn_logits[i] = NAN;
	d->row = (struct sweep_row){.top_k = top_k, .n_temperatures = 1, .temperatures = &one, .want_tail = true, .n_draws = N_DRAWS,
		.draw_tail = tail, .draw_tau = tau, .uniforms = d->uniforms, .lse = d->lse, .ids = d->ids, .logits = d->logits,
		.tail_lse = NAN, .drawn = d->drawn, .drawn_logits = d->drawn_logits, .draw_lse = NAN};
}

static void drawn_done(struct drawn *d)
{
	free(d->z);
	free(d->logits);
	free(d->ids);
}

// e^(tau (z - max)) of the ids that may be drawn, 0 for the others, with max the largest of them; returns their number.
static uint32_t proposal_of(const struct drawn *d, double tau, bool outside_only, double *ret_t, double *ret_max)
{
	uint32_t n = 0;
	double max = -INFINITY;
	bool *inside = calloc(d->V, sizeof *inside);
	assert_non_null(inside);
	for (uint32_t i = 0; i < d->row.top_k && outside_only; i++)
		inside[d->ids[i]] = true;
	for (uint32_t j = 0; j < d->V; j++)
		if (!inside[j])
			max = fmax(max, d->z[j]);
	for (uint32_t j = 0; j < d->V; j++) {
		ret_t[j] = inside[j] ? 0 : exp(tau * (d->z[j] - max));
		n += !inside[j];
	}
	free(inside);
	*ret_max = max;
	return n;
}

static double sum_of(const double *t, uint32_t n)
{
	long double sum = 0;
	for (uint32_t j = 0; j < n; j++)
		sum += (long double)t[j];
	return (double)sum;
}

// Each draw is the lowest id whose cumulative share exceeds its uniform, up to the rounding of shares.
static void assert_draws(const struct drawn *d, const double *t, double sum)
{
	long double below = 0;
	uint32_t id = 0;
	for (uint32_t i = 0; i < N_DRAWS; i++) {
		assert_in_range(d->drawn[i], id, d->V - 1);    // ascending
		for (; id < d->drawn[i]; id++)
			below += (long double)t[id];
		double from = (double)(below / (long double)sum), to = from + t[id] / sum;
		if (!(t[id] > 0) || d->uniforms[i] < from - 1e-6 || d->uniforms[i] > to + 1e-6)
			fail_msg("draw %u, uniform %.9g, is id %u with share %.9g to %.9g", i, d->uniforms[i], id, from, to);
		assert_true(d->drawn_logits[i] == d->z[id]);
	}
}

static void assert_drawn(const struct drawn *d)
{
	const struct sweep_row *row = &d->row;
	double *t = calloc(d->V, sizeof *t), max, sum;
	assert_non_null(t);
	assert_false(row->not_finite);
	uint32_t n = proposal_of(d, 1, true, t, &max);
	double tail = n ? max + log(sum_of(t, d->V)) : -INFINITY;
	if (n)
		assert_close("tail_lse", &row->tail_lse, &tail, 1, (struct bound){1e-6, 4 * EPS_F32});
	else
		assert_true(row->tail_lse == -INFINITY);
	n = proposal_of(d, row->draw_tau, row->draw_tail, t, &max);
	if (n) {
		sum = sum_of(t, d->V);
		double lse = row->draw_tau * max + log(sum);
		assert_close("draw_lse", &row->draw_lse, &lse, 1, (struct bound){1e-6, 4 * EPS_F32});
		assert_draws(d, t, sum);
	}
	for (uint32_t i = 0; i < N_DRAWS && !n; i++)
		assert_int_equal(d->drawn[i], UINT32_MAX);
	if (!n)
		assert_true(row->draw_lse == -INFINITY);
	free(t);
}

static void check_draws(struct pair *p, struct twin logits, uint32_t n, uint32_t V, uint32_t top_k, bool tail, double tau)
{
	struct backend *backends[] = {p->ref, p->be};
	const struct real *arrays[] = {logits.ref, logits.be};
	for (int b = 0; b < 2; b++) {
		struct drawn *d = calloc(n, sizeof *d);
		struct sweep_row *rows = calloc(n, sizeof *rows);
		assert_true(d && rows);
		for (uint32_t i = 0; i < n; i++) {
			drawn_init(&d[i], i, V, top_k, tail, tau);
			rows[i] = d[i].row;
		}
		backends[b]->ops->sweep(backends[b], arrays[b], n, V, rows);
		assert_int_equal(backend_sync(backends[b], NULL), 0);
		for (uint32_t i = 0; i < n; i++) {
			backends[b]->ops->real_read(backends[b], d[i].z,
				backends[b]->ops->real_at((struct real *)arrays[b], (size_t)i * V), V);
			d[i].row = rows[i];
			assert_drawn(&d[i]);
			drawn_done(&d[i]);
		}
		free(rows);
		free(d);
	}
}

void draws_match_cumulative_sums(void **state)
{
	struct pair *p = *state;
	static const struct { uint32_t V, n; } shapes[] = {{1, 3}, {2, 3}, {63, 2}, {64, 2}, {65, 2}, {130, 7}, {1003, 5}, {49155, 2}};
	static const double taus[] = {1, 0.5, 2};
	for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
		uint32_t V = shapes[s].V, ks[] = {0, 1, V < 64 ? V : 64, V - 1, V};
		pair_reset(p, V);
		struct twin wide = twin_random(p, (size_t)shapes[s].n * V, 12), narrow = twin_random(p, (size_t)shapes[s].n * V, 0.01f);
		for (int k = 0; k < (V > 10000 ? 3 : 5); k++)
			for (int i = 0; i < 3; i++) {
				check_draws(p, wide, shapes[s].n, V, ks[k], k % 2, taus[i]);
				check_draws(p, narrow, shapes[s].n, V, ks[k], !(k % 2), taus[i]);
			}
	}
}

// A head 200 above the rest takes all the mass float can hold; the tail's own numbers must come out all the same. Ties at the edge too.
void tails_far_below_the_head_are_exact(void **state)
{
	struct pair *p = *state;
	const uint32_t n = 3, V = 500;
	float *values = calloc(n * V, sizeof *values);
	pair_reset(p, 3);
	assert_non_null(values);
	random_fill(&p->random, values, n * V, 1);
	for (uint32_t j = 0; j < V; j++)
		values[V + j] = j % 3 ? -4.0f : 3.0f;    // 167 of the largest: top-k ends among equals
	values[77] = 200;
	values[2 * V + 5] = 90;
	values[2 * V + 499] = 91;
	struct twin logits = twin_values(p, values, n * V);
	free(values);
	static const uint32_t ks[] = {1, 2, 3, 100, 167, 168, 499, 500};
	for (int i = 0; i < 8; i++)
		for (int tail = 0; tail < 2; tail++)
			check_draws(p, logits, n, V, ks[i], tail, 1);
}

void draws_leave_rows_that_are_not_finite_alone(void **state)
{
	struct pair *p = *state;
	const uint32_t n = 4, V = 130;
	float *values = calloc(n * V, sizeof *values);
	pair_reset(p, 4);
	assert_non_null(values);
	random_fill(&p->random, values, n * V, 1);
	values[V] = NAN;
	values[2 * V + 129] = -INFINITY;
	values[3 * V + 64] = INFINITY;
	struct twin logits = twin_values(p, values, n * V);
	free(values);
	for (uint32_t i = 0; i < n; i++) {
		struct drawn d;
		drawn_init(&d, 1, V, 4, i % 2, 1);
		p->be->ops->sweep(p->be, p->be->ops->real_at(logits.be, (size_t)i * V), 1, V, &d.row);
		assert_int_equal(backend_sync(p->be, NULL), 0);
		assert_int_equal(d.row.not_finite, i > 0);
		assert_int_equal(d.drawn[0] == 0xfefefefe, i > 0);
		drawn_done(&d);
	}
}

void columns_match_ref(void **state)
{
	struct pair *p = *state;
	static const struct { uint32_t n, V, n_ids; } shapes[] = {{1, 1, 1}, {3, 7, 7}, {5, 1000, 1}, {65, 130, 64}, {2, 49152, 24577}};
	for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
		uint32_t n = shapes[s].n, V = shapes[s].V, n_ids = shapes[s].n_ids, *ids = calloc(n_ids, sizeof *ids);
		assert_non_null(ids);
		pair_reset(p, s);
		for (uint32_t j = 0; j < n_ids; j++)
			ids[j] = (uint32_t)((uint64_t)(j + 1) * V / n_ids) - 1;    // the last id among them
		struct twin x = twin_random(p, (size_t)n * V, 1), y = twin_poisoned(p, (size_t)n * n_ids);
		p->ref->ops->pick_columns(p->ref, y.ref, x.ref, ids, n, n_ids, V);
		p->be->ops->pick_columns(p->be, y.be, x.be, ids, n, n_ids, V);
		assert_twin(p, "pick_columns", y, (struct bound){0, 0});
		free(ids);
	}
}

static void lse_of_rows(struct pair *p, struct twin x, uint32_t n, uint32_t V, double *ret_lse)
{
	struct sweep_row *rows = calloc(n, sizeof *rows);
	assert_non_null(rows);
	for (uint32_t i = 0; i < n; i++)
		rows[i] = (struct sweep_row){.n_temperatures = 1, .temperatures = &one, .lse = &ret_lse[i]};
	p->ref->ops->sweep(p->ref, x.ref, n, V, rows);
	free(rows);
}

void mixtures_match_ref(void **state)
{
	struct pair *p = *state;
	static const struct { uint32_t n, V; } shapes[] = {{1, 1}, {3, 5}, {7, 63}, {64, 1003}, {3, 49155}};
	for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
		uint32_t n = shapes[s].n, V = shapes[s].V;
		size_t size = (size_t)n * V;
		double lse[64];
		pair_reset(p, s);
		struct twin a = twin_random(p, size, 10), b = twin_random(p, size, 10), sum = twin_poisoned(p, size),
			mean = twin_poisoned(p, size);
		for (int be = 0; be < 2; be++) {
			struct backend *on = be ? p->be : p->ref;
			on->ops->mix(on, be ? sum.be : sum.ref, false, be ? a.be : a.ref, 1, NULL, n, V);
			on->ops->mix(on, be ? sum.be : sum.ref, true, be ? b.be : b.ref, -0.75, NULL, n, V);
		}
		assert_twin(p, "signed sum", sum, (struct bound){4e-6, 2 * EPS_F32});
		for (int term = 0; term < 2; term++) {
			struct twin x = term ? b : a;
			lse_of_rows(p, x, n, V, lse);
			p->ref->ops->mix(p->ref, mean.ref, term > 0, x.ref, term ? 0.3 : 0.7, lse, n, V);
			p->be->ops->mix(p->be, mean.be, term > 0, x.be, term ? 0.3 : 0.7, lse, n, V);
		}
		// e^(x - lse) with |x - lse| up to 40
		assert_twin(p, "mean of probabilities", mean, (struct bound){1e-37, 64 * EPS_F32});
		p->ref->ops->mix_log(p->ref, mean.ref, n, V);
		p->be->ops->mix_log(p->be, mean.be, n, V);
		assert_twin(p, "logarithm of a mean", mean, (struct bound){64 * EPS_F32, 4 * EPS_F32});
	}
}

// The logarithm at the ends of float, and what marks a row that is not finite must survive both steps.
void mixtures_keep_what_is_not_a_number(void **state)
{
	struct pair *p = *state;
	static const float values[] = {
		0, 1e-44f, 1e-38f, 1.1754944e-38f, 1.5e-38f, 0.5f, 0.70710678f, 0.9999999f, 1, 1.0000001f, 2, 3e38f,
		NAN, INFINITY, -0.0f, 0.1f, 0.25f};
	const uint32_t n = sizeof values / sizeof *values;
	double got[32];
	pair_reset(p, 1);
	struct twin y = twin_values(p, values, n);
	p->be->ops->mix_log(p->be, y.be, 1, n);
	p->be->ops->real_read(p->be, got, y.be, n);
	for (uint32_t i = 0; i < n; i++) {
		double want = log(fmax((double)values[i], 1e-38));
		if (isnan(values[i]))
			assert_true(isnan(got[i]));
		else if (isinf(values[i]))
			assert_true(got[i] == INFINITY);
		else
			assert_close("logarithm", &got[i], &want, 1, (struct bound){1e-9, 2 * EPS_F32});
	}
	static const float row[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17};
	const double lse[] = {NAN};
	struct twin x = twin_values(p, row, 17), mean = twin_values(p, row, 17);
	p->be->ops->mix(p->be, mean.be, true, x.be, 0.5, lse, 1, 17);
	p->be->ops->mix_log(p->be, mean.be, 1, 17);
	p->be->ops->real_read(p->be, got, mean.be, 17);
	for (int i = 0; i < 17; i++)
		assert_true(isnan(got[i]));
}
