// SPDX-License-Identifier: Apache-2.0
// Private to objective*.c.
#pragma once

#include "daemon/loss/method.h"
#include "daemon/loss/objective.h"
#include "daemon/loss/schedule.h"

struct adaptive { double t, momentum, previous, started; };
#define ADAPTIVE_N 4

struct term {
	const struct method *method;
	char *name, *teacher;
	struct schedule own[METHOD_MAX_PARAMETERS], weight, temperature;
	bool t2_scale, tail;
	enum loss_form form;
	enum loss_support support;
	uint32_t top_k, own_k, n_draws;
	double tau;
	struct adaptive adaptive;
	// of the present step
	double x[METHOD_MAX_PARAMETERS], weight_now;
	uint32_t temperature_at;
};

struct objective {
	struct term terms[OBJECTIVE_MAX_TERMS];
	uint32_t n_terms;
	uint64_t n_steps;
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

int term_parse(struct term *t, const char *text, const char *where, struct error *err);
void term_done(struct term *t);
