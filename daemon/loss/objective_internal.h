// SPDX-License-Identifier: Apache-2.0
// Private to objective*.c.
#pragma once

#include "daemon/loss/method.h"
#include "daemon/loss/objective.h"
#include "daemon/loss/objective_feature.h"
#include "daemon/loss/schedule.h"

struct adaptive { double t, momentum, previous, started; };
#define ADAPTIVE_N 4

struct term {
	const struct method *method;
	char *name, *where;
	char *words;                   // of teacher=; NULL: the run's own
	uint32_t n_members, members[OBJECTIVE_MAX_TEACHERS];   // teachers; of several the mean of their probabilities
	double shares[OBJECTIVE_MAX_TEACHERS];
	uint32_t mean;                 // which of the means it is
	struct schedule own[METHOD_MAX_PARAMETERS], weight, temperature;
	bool t2_scale, tail, by_label;
	double keep;
	enum loss_on on;
	enum loss_form form;
	enum loss_support support;
	uint32_t top_k, own_k, n_draws;
	double tau;
	struct adaptive adaptive;
	struct feature_term feature;   // of those on features
	// of the present step
	bool active;
	double x[METHOD_MAX_PARAMETERS], weight_now;
	uint32_t temperature_at;
};

struct objective {
	struct term terms[OBJECTIVE_MAX_TERMS];
	uint32_t n_terms;
	char *teachers[OBJECTIVE_MAX_TEACHERS], *teachers_where[OBJECTIVE_MAX_TEACHERS];       // [0]: NULL, the run's own
	uint32_t n_teachers, n_means;
	uint64_t n_steps, seed;
	float temperatures[OBJECTIVE_MAX_TERMS];
	uint32_t n_temperatures;
	struct pair pair;              // scratch
	double *slope;
};

static inline bool term_draws(const struct term *t)
{
	return t->form == LOSS_FORM_DRAWS || t->form == LOSS_FORM_HEAD_DRAWS;
}

static inline bool term_is_hard(const struct term *t)
{
	return t->method->flags & METHOD_HARD;
}

// Whether the term looks at that teacher.
static inline bool term_hears(const struct term *t, uint32_t teacher)
{
	for (uint32_t i = 0; !term_is_hard(t) && i < t->n_members; i++)
		if (t->members[i] == teacher)
			return true;
	return false;
}

bool term_kept(const struct objective *o, const struct term *t, uint64_t step);        // whether the step has this term

static inline uint32_t term_voice(const struct objective *o, const struct term *t)
{
	return term_is_hard(t) ? 0 : t->n_members == 1 ? t->members[0] : o->n_teachers + t->mean;
}

// Finds or adds what the term's words name. Errors have the field "loss".
int objective_teachers_add(struct objective *o, struct term *t, const char *where, struct error *err);

static inline bool term_is_feature(const struct term *t)
{
	return t->method->feature != NULL;
}

// On the teacher's row of the vocabulary.
static inline bool term_is_soft(const struct term *t)
{
	return t->method->fn != NULL;
}

void feature_query(const struct objective *o, struct query *q);        // objective_query's part
void feature_describe(const struct term *t, const char *weight, char *to, size_t room);
int feature_check(const struct objective *o, struct error *err);       // objective_check's part
static inline bool term_merges(const struct term *t)
{
	return (t->method->flags & METHOD_BY_ID) && t->own[1].values[0] > 0;
}

int term_parse(struct term *t, const char *text, const char *where, struct error *err);
void term_done(struct term *t);
