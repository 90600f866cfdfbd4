// SPDX-License-Identifier: Apache-2.0
// One step of an objective: its parameters, its positions, what adaptive schedules learn from it.
#include <math.h>

#include "daemon/loss/objective_internal.h"
#include "daemon/loss/policy_gradient.h"

// A word that no other (seed, step, teacher) has: splitmix64 of each in turn. Coins are a function of where they are tossed, so that a
// resumed run tosses them alike.
static uint64_t word_of(uint64_t seed, uint64_t step, uint64_t teacher)
{
	const uint64_t parts[] = {seed, step, teacher};
	uint64_t x = 0;
	for (int i = 0; i < 3; i++) {
		x += parts[i] + UINT64_C(0x9e3779b97f4a7c15);
		x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
		x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
		x ^= x >> 31;
	}
	return x;
}

bool term_kept(const struct objective *o, const struct term *t, uint64_t step)
{
	return !term_is_soft(t) || t->keep >= 1 || (double)(word_of(o->seed, step, t->members[0]) >> 11) * 0x1p-53 < t->keep;
}

void objective_step(struct objective *o, uint64_t step)
{
	o->n_temperatures = 0;
	for (uint32_t i = 0; i < o->n_terms; i++) {
		struct term *t = &o->terms[i];
		t->weight_now = schedule_at(&t->weight, step, o->n_steps);
		t->active = term_kept(o, t, step);
		for (uint32_t k = 0; k < method_n_parameters(t->method); k++)
			t->x[k] = schedule_at(&t->own[k], step, o->n_steps);
		if (t->method->flags & METHOD_ADAPTIVE)
			t->x[0] = t->adaptive.t = fmax(t->adaptive.t, t->x[0]);
		if (!term_is_soft(t))
			continue;
		float temperature = (float)schedule_at(&t->temperature, step, o->n_steps);
		uint32_t at = 0;
		while (at < o->n_temperatures && o->temperatures[at] != temperature)
			at++;
		if (at == o->n_temperatures)
			o->temperatures[o->n_temperatures++] = temperature;
		t->temperature_at = at;
	}
}

static void hard_position(struct term *t, const struct loss_position *x, double *ret_value, struct gradient *g)
{
	double smoothing = t->x[0], z = (1 - smoothing) * x->student[x->label];
	if (smoothing > 0)
		z += smoothing * x->student_mean;
	*ret_value = x->student_lse_1 - z;
	if (g && t->weight_now != 0)
		gradient_add_label(g, x, smoothing, t->weight_now);
}

static void drawn_position(struct term *t, const struct loss_position *x, double *ret_value, struct gradient *g)
{
	double factor = 0;
	*ret_value = policy_gradient(x, t->x, &factor);
	if (g && t->weight_now * factor != 0)
		gradient_add_label(g, x, 0, -t->weight_now * factor);          // that of -ln q
}

static bool is_about(const struct term *t, const struct loss_position *x)
{
	return t->on == LOSS_ON_ALL || (t->on == LOSS_ON_ROLLOUTS) == (x->n_rewards > 0);
}

// Whether the position counts. One where the teacher named nothing (no ids drawn from an empty tail) costs nothing.
static bool soft_position(struct objective *o, struct term *t, const struct loss_position *x, struct objective_sums *sums,
			  struct divergence *d, struct gradient *g)
{
	double T = x->temperatures[t->temperature_at], T2 = t->t2_scale ? T * T : 1, trust = t->by_label ? 1 / (1 + x->teacher_ce) : 1;
	struct pair_view view = {.support = t->support, .form = t->form, .top_k = t->top_k, .own_k = t->own_k,
				 .label = (t->method->flags & METHOD_LABEL) != 0, .temperature = t->temperature_at,
				 .by_id = (t->method->flags & METHOD_BY_ID) != 0, .merge = term_merges(t)};
	(t->method->flags & METHOD_RANKS ? pair_make_ranks : pair_make)(&o->pair, x, &view);
	if (o->pair.n == 0)
		return !view.merge;            // a span that is not whole is no position of a loss that merges
	t->method->fn(&o->pair, t->x, d);
	d->value *= T2 * trust;
	d->floor = T2 * trust * (term_draws(t) ? x->entropy : d->floor);       // a sample's own entropy is not the row's
	for (uint32_t i = 0; view.merge && i < o->pair.n; i++)         // all of Q is proportional to its factor
		sums->pull += t->weight_now * T2 * trust * d->slope[i];
	if (g && t->weight_now != 0)
		gradient_add(g, x, &o->pair, d, t->weight_now * T2 * trust);
	return true;
}

void objective_position(struct objective *o, const struct loss_position *voices, struct objective_sums *sums, struct gradient *g)
{
	for (uint32_t i = 0; i < o->n_terms; i++) {
		struct term *t = &o->terms[i];
		struct divergence d = {.slope = o->slope};
		if (term_is_feature(t))
			continue;
		const struct loss_position *x = &voices[term_voice(o, t)];
		if (!t->active) {
			sums->values[i] = sums->entropies[i] = NAN;
			continue;
		}
		if (!is_about(t, x))
			continue;
		bool counts = true;
		if (t->method->flags & METHOD_DRAWN)
			drawn_position(t, x, &d.value, g);
		else if (term_is_hard(t))
			hard_position(t, x, &d.value, g);
		else
			counts = soft_position(o, t, x, sums, &d, g);
		sums->counts[i] += counts;
		sums->values[i] += d.value;
		sums->followed[i] += d.followed;
		sums->entropies[i] += t->method->fn == divergence_soft_cross_entropy ? d.floor : NAN;
		sums->total += t->weight_now * d.value;
	}
	if (g && voices[0].label_pull != 0)
		gradient_add_label(g, &voices[0], 0, -voices[0].label_pull);
}

void objective_label(struct objective *o, const struct loss_position *x, struct objective_sums *sums, struct gradient *g)
{
	for (uint32_t i = 0; i < o->n_terms; i++) {
		struct term *t = &o->terms[i];
		double value = 0;
		if (term_is_feature(t))
			continue;
		if (!t->active)
			sums->values[i] = sums->entropies[i] = NAN;
		if (!t->active || !term_is_hard(t) || (t->method->flags & METHOD_DRAWN) || !is_about(t, x))
			continue;
		hard_position(t, x, &value, g);
		sums->values[i] += value;
		sums->entropies[i] = NAN;
		sums->counts[i]++;
		sums->total += t->weight_now * value;
	}
	if (g && x->label_pull != 0)
		gradient_add_label(g, x, 0, -x->label_pull);
}

// The share t of the teacher rises with the relative fall of the loss (TAID): delta = rate sigmoid(momentum) (1 - t), never below the
// schedule. The first step only stores the loss.
static void adapt(const struct objective *o, struct term *t, double loss)
{
	struct adaptive *a = &t->adaptive;
	double rate = t->own[1].values[0], keep = t->own[2].values[0];
	if (a->started > 0) {
		double fall = (a->previous - loss) / (a->previous + 1e-15);
		a->momentum = keep * a->momentum + (1 - keep) * fall;
		a->t += rate / (1 + exp(-a->momentum)) * (1 - a->t);
		double end = schedule_at(&t->own[0], UINT64_MAX - 1, o->n_steps);
		a->t = fmin(a->t, end);
	}
	a->previous = loss;
	a->started = 1;
}

void objective_end_step(struct objective *o, const struct objective_sums *sums)
{
	for (uint32_t i = 0; i < o->n_terms; i++)
		if ((o->terms[i].method->flags & METHOD_ADAPTIVE) && o->terms[i].active && sums->counts[i] > 0)
			adapt(o, &o->terms[i], sums->followed[i] / sums->counts[i]);
}
