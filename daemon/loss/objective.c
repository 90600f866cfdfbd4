// SPDX-License-Identifier: Apache-2.0
#include "daemon/loss/objective.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/query.h"
#include "daemon/loss/objective_internal.h"

int objective_new(struct objective **ret)
{
	*ret = calloc(1, sizeof **ret);
	if (!*ret)
		return -ENOMEM;
	(*ret)->n_teachers = 1;
	return 0;
}

struct objective *objective_free(struct objective *o)
{
	if (!o)
		return NULL;
	for (uint32_t i = 0; i < o->n_terms; i++)
		term_done(&o->terms[i]);
	for (uint32_t i = 1; i < OBJECTIVE_MAX_TEACHERS; i++) {
		free(o->teachers[i]);
		free(o->teachers_where[i]);
	}
	pair_done(&o->pair);
	free(o->slope);
	free(o);
	return NULL;
}

static bool name_taken(const struct objective *o, const char *name)
{
	for (uint32_t i = 0; i < o->n_terms; i++)
		if (strcmp(o->terms[i].name, name) == 0)
			return true;
	return false;
}

// A second forward-kl is forward-kl-2.
static int name_make(const struct objective *o, struct term *t, struct error *err)
{
	char name[64];
	snprintf(name, sizeof name, "%s", t->method->name);
	for (uint32_t i = 2; name_taken(o, name); i++)
		snprintf(name, sizeof name, "%s-%u", t->method->name, i);
	t->name = strdup(name);
	return t->name ? 0 : error_set(err, ERROR_MEMORY, "loss", "out of memory");
}

int objective_add(struct objective *o, const char *text, const char *where, struct error *err)
{
	struct term *t = &o->terms[o->n_terms];
	if (o->n_terms == OBJECTIVE_MAX_TERMS)
		return error_set(err, ERROR_TOO_LARGE, "loss", "%s: loss: more than %d losses", where, OBJECTIVE_MAX_TERMS);
	int r = term_parse(t, text, where, err);
	if (r == 0 && !t->name)
		r = name_make(o, t, err);
	else if (r == 0 && name_taken(o, t->name))
		r = error_set(err, ERROR_INVALID, "loss", "%s: loss %s: name=%s: another loss has this name", where,
			t->method->name, t->name);
	r = r ? r : objective_teachers_add(o, t, where, err);
	if (r) {
		term_done(t);
		return r;
	}
	o->n_terms++;
	return 0;
}

static bool share_a_teacher(const struct term *a, const struct term *b)
{
	for (uint32_t i = 0; i < a->n_members; i++)
		if (term_hears(b, a->members[i]))
			return true;
	return false;
}

static bool draw_alike(const struct term *a, const struct term *b)
{
	return a->n_draws == b->n_draws && a->tau == b->tau && a->form == b->form;
}

static int draws_check(const struct objective *o, struct error *err)
{
	for (uint32_t i = 0; i < o->n_terms; i++)
		for (uint32_t k = 0; k < i; k++) {
			const struct term *a = &o->terms[k], *b = &o->terms[i];
			if (term_draws(a) && term_draws(b) && share_a_teacher(a, b) && !draw_alike(a, b))
				return error_set(err, ERROR_INVALID, "loss",
						 "loss %s and loss %s: a question draws once: form, draws and tau must be the same",
						 a->name, b->name);
		}
	return 0;
}

int objective_check(const struct objective *o, struct error *err)
{
	bool any = false;
	for (uint32_t i = 0; i < o->n_terms; i++)
		any |= !schedule_is(&o->terms[i].weight, 0);
	if (!any)
		return error_set(err, ERROR_INVALID, "loss", "every weight is 0: there is nothing to learn");
	int r = draws_check(o, err);
	return r ? r : feature_check(o, err);
}

void objective_seed(struct objective *o, uint64_t seed)
{
	o->seed = seed;
}

int objective_begin(struct objective *o, uint64_t n_steps, uint32_t vocab_size)
{
	uint32_t room = objective_width(o, vocab_size) + 1;    // and the bucket
	pair_done(&o->pair);
	free(o->slope);
	o->slope = calloc(room, sizeof *o->slope);
	if (!o->slope || pair_init(&o->pair, room))
		return -ENOMEM;
	o->n_steps = n_steps;
	for (uint32_t i = 0; i < o->n_terms; i++)
		if (o->terms[i].method->flags & METHOD_ADAPTIVE)
			o->terms[i].adaptive = (struct adaptive){.t = schedule_at(&o->terms[i].own[0], 0, n_steps)};
	objective_step(o, 0);
	return 0;
}

uint32_t objective_n_terms(const struct objective *o)
{
	return o->n_terms;
}

const char *objective_name(const struct objective *o, uint32_t term)
{
	return o->terms[term].name;
}

static const char *support_words(const struct term *t, char *to, size_t room)
{
	if (t->support == LOSS_SUPPORT_STUDENT)
		snprintf(to, room, "the student's %u likeliest ids", t->own_k);
	else if (t->support == LOSS_SUPPORT_BOTH)
		snprintf(to, room, "the teacher's %u and the student's %u likeliest ids", t->top_k, t->own_k);
	else if (t->form == LOSS_FORM_DRAWS)
		snprintf(to, room, "%u drawn ids", t->n_draws);
	else if (t->form == LOSS_FORM_HEAD_DRAWS)
		snprintf(to, room, "the teacher's %u likeliest ids and %u drawn", t->top_k, t->n_draws);
	else
		snprintf(to, room, "the teacher's %u likeliest ids", t->top_k);
	return to;
}

static const char *schedule_words(const struct schedule *s, char *to, size_t room)
{
	if (s->n == 1)
		snprintf(to, room, "%.6g", s->values[0]);
	else
		snprintf(to, room, "%.6g to %.6g", s->values[0], s->values[s->n - 1]);
	return to;
}

void objective_describe(const struct objective *o, uint32_t term, char *to, size_t room)
{
	const struct term *t = &o->terms[term];
	static const char *const on[] = {"", ", on text", ", on rollouts"};
	char support[96], weight[64], temperature[64];
	schedule_words(&t->weight, weight, sizeof weight);
	if (term_is_hard(t)) {
		snprintf(to, room, "%s: weight %s%s", t->name, weight, on[t->on]);
		return;
	}
	if (term_is_feature(t)) {
		feature_describe(t, weight, to, room);
		return;
	}
	snprintf(to, room, "%s: %s%s%sweight %s%s, temperature %s%s, %s, form %s", t->name, t->words ? "teacher " : "",
		 t->words ? t->words : "", t->words ? ", " : "", weight, on[t->on],
		 schedule_words(&t->temperature, temperature, sizeof temperature),
		 t->t2_scale && !schedule_is(&t->temperature, 1) ? " (times T^2)" : "", support_words(t, support, sizeof support),
		 t->method->flags & METHOD_FORMS ? form_name(t->form) : "none");
}

const char *objective_bias(const struct objective *o, uint32_t term, uint32_t vocab_size)
{
	const struct term *t = &o->terms[term];
	bool whole = t->support != LOSS_SUPPORT_STUDENT && t->form != LOSS_FORM_DRAWS && t->top_k >= vocab_size;
	return whole ? NULL : method_bias(t->method, t->form, t->support);
}

bool objective_wants_rollouts(const struct objective *o, uint32_t *ret_term)
{
	for (*ret_term = 0; *ret_term < o->n_terms; ++*ret_term)
		if (o->terms[*ret_term].on == LOSS_ON_ROLLOUTS)
			return true;
	return false;
}

bool objective_asks_teacher(const struct objective *o)
{
	for (uint32_t i = 0; i < o->n_terms; i++)
		if (!term_is_hard(&o->terms[i]))
			return true;
	return false;
}

uint32_t objective_own_k(const struct objective *o, uint32_t teacher)
{
	for (uint32_t i = 0; i < o->n_terms; i++)
		if (term_hears(&o->terms[i], teacher) && o->terms[i].own_k)
			return objective_any_own_k(o);
	return 0;
}

uint32_t objective_any_own_k(const struct objective *o)
{
	uint32_t k = 0;
	for (uint32_t i = 0; i < o->n_terms; i++)
		if (o->terms[i].own_k > k)
			k = o->terms[i].own_k;
	return k;
}

uint32_t objective_ranks(const struct objective *o)
{
	uint32_t k = 0;
	for (uint32_t i = 0; i < o->n_terms; i++)
		if ((o->terms[i].method->flags & METHOD_RANKS) && o->terms[i].top_k > k)
			k = o->terms[i].top_k;
	return k;
}

bool objective_merges(const struct objective *o)
{
	for (uint32_t i = 0; i < o->n_terms; i++)
		if (term_merges(&o->terms[i]))
			return true;
	return false;
}

bool objective_learns_labels(const struct objective *o)
{
	for (uint32_t i = 0; i < o->n_terms; i++)
		if (term_is_hard(&o->terms[i]) && !term_is_feature(&o->terms[i]))
			return true;
	return false;
}

int objective_check_foreign(const struct objective *o, struct error *err)
{
	for (uint32_t i = 0; i < o->n_terms; i++) {
		const struct term *t = &o->terms[i];
		const char *fault = method_foreign_fault(t->method, t->form, t->support);
		if (term_is_feature(t))
			fault = "rows of positions are compared one by one: the same tokens are expected on both sides";
		if (!fault && term_is_soft(t) && (t->n_members > 1 || t->members[0]))
			fault = "another teacher: one alone is expected where the vocabularies differ";
		if (fault)
			return error_set(err, ERROR_UNSUPPORTED, "loss", "%s: loss %s: %s", t->where, t->name, fault);
	}
	return 0;
}

bool objective_wants_mean(const struct objective *o)
{
	for (uint32_t i = 0; i < o->n_terms; i++) {
		const struct term *t = &o->terms[i];
		if (term_is_hard(t) ? !schedule_is(&t->own[0], 0) : t->form == LOSS_FORM_UNIFORM)
			return true;
	}
	return false;
}

uint32_t objective_temperatures(const struct objective *o, float *ret)
{
	memcpy(ret, o->temperatures, sizeof o->temperatures);
	return o->n_temperatures;
}

uint32_t objective_n_state(const struct objective *o)
{
	uint32_t n = 0;
	for (uint32_t i = 0; i < o->n_terms; i++)
		n += o->terms[i].method->flags & METHOD_ADAPTIVE ? ADAPTIVE_N : 0;
	return n;
}

void objective_state(const struct objective *o, double *ret)
{
	for (uint32_t i = 0; i < o->n_terms; i++) {
		const struct adaptive *a = &o->terms[i].adaptive;
		if (!(o->terms[i].method->flags & METHOD_ADAPTIVE))
			continue;
		memcpy(ret, (double[ADAPTIVE_N]){a->t, a->momentum, a->previous, a->started}, ADAPTIVE_N * sizeof *ret);
		ret += ADAPTIVE_N;
	}
}

void objective_restore(struct objective *o, const double *state)
{
	for (uint32_t i = 0; i < o->n_terms; i++) {
		if (!(o->terms[i].method->flags & METHOD_ADAPTIVE))
			continue;
		o->terms[i].adaptive = (struct adaptive){state[0], state[1], state[2], state[3]};
		state += ADAPTIVE_N;
	}
}
