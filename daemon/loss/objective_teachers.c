// SPDX-License-Identifier: Apache-2.0
// Whom the terms of an objective look at: names, shares, voices, and what each teacher is asked.
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/query.h"
#include "daemon/loss/objective_internal.h"

static int refuse(const struct term *t, const char *where, const char *why, struct error *err)
{
	return error_set(err, ERROR_INVALID, "loss", "%s: loss %s: teacher=%s: %s", where, t->method->name, t->words, why);
}

// Where the teacher of that name stands; it is added if need be.
static int teacher_place(struct objective *o, const struct term *t, const char *name, const char *where, uint32_t *ret, struct error *err)
{
	if (strcmp(name, OBJECTIVE_OWN) == 0) {
		*ret = 0;
		return 0;
	}
	for (*ret = 1; *ret < o->n_teachers; ++*ret)
		if (strcmp(o->teachers[*ret], name) == 0)
			return 0;
	if (o->n_teachers == OBJECTIVE_MAX_TEACHERS)
		return refuse(t, where, "a run has at most 8 teachers", err);
	o->teachers[o->n_teachers] = strdup(name);
	o->teachers_where[o->n_teachers] = strdup(where);
	if (o->teachers[o->n_teachers] && o->teachers_where[o->n_teachers++])
		return 0;
	return error_set(err, ERROR_MEMORY, "loss", "out of memory");
}

static int member_add(struct objective *o, struct term *t, char *word, const char *where, struct error *err)
{
	char *share = strchr(word, ':'), *end = NULL;
	double number = 1;
	uint32_t at = 0;
	if (share) {
		*share++ = '\0';
		number = strtod(share, &end);
		if (end == share || *end || !(number > 0 && number <= 1e6))
			return refuse(t, where, "a share is a number over 0", err);
	}
	if (!*word || strlen(word) > OBJECTIVE_TEACHER_NAME_MAX)
		return refuse(t, where, "a name has 1 to 28 letters", err);
	int r = teacher_place(o, t, word, where, &at, err);
	if (r)
		return r;
	if (term_hears(t, at))
		return refuse(t, where, "a teacher is named twice", err);
	t->members[t->n_members] = at;
	t->shares[t->n_members++] = number;
	return 0;
}

int objective_teachers_add(struct objective *o, struct term *t, const char *where, struct error *err)
{
	double sum = 0;
	int r = 0;
	if (!t->words) {
		t->n_members = 1;
		t->shares[0] = 1;
		return 0;
	}
	char *copy = strdup(t->words), *rest = copy, *word;
	if (!copy)
		return error_set(err, ERROR_MEMORY, "loss", "out of memory");
	while (r == 0 && (word = strsep(&rest, ",")))
		r = member_add(o, t, word, where, err);
	free(copy);
	for (uint32_t i = 0; i < t->n_members; i++)
		sum += t->shares[i];
	for (uint32_t i = 0; i < t->n_members; i++)
		t->shares[i] /= sum;
	if (r == 0 && t->n_members > 1)
		t->mean = o->n_means++;
	return r;
}

uint32_t objective_n_teachers(const struct objective *o)
{
	return o->n_teachers;
}

const char *objective_teacher_name(const struct objective *o, uint32_t teacher)
{
	return teacher ? o->teachers[teacher] : OBJECTIVE_OWN;
}

const char *objective_teacher_where(const struct objective *o, uint32_t teacher)
{
	return teacher ? o->teachers_where[teacher] : "";
}

uint32_t objective_n_voices(const struct objective *o)
{
	return objective_n_teachers(o) + o->n_means;
}

static const struct term *mean_term(const struct objective *o, uint32_t mean)
{
	const struct term *t = o->terms;
	while (t->n_members < 2 || t->mean != mean)
		t++;
	return t;
}

void objective_voice(const struct objective *o, uint32_t voice, struct objective_voice *ret)
{
	*ret = (struct objective_voice){.n = 1, .members = {voice}, .shares = {1}};
	if (voice >= o->n_teachers) {
		const struct term *t = mean_term(o, voice - o->n_teachers);
		ret->n = t->n_members;
		memcpy(ret->members, t->members, sizeof ret->members);
		memcpy(ret->shares, t->shares, sizeof ret->shares);
		ret->temperature = t->temperature_at;
	}
	for (uint32_t i = 0; i < o->n_terms; i++)
		ret->active |= !term_is_hard(&o->terms[i]) && term_voice(o, &o->terms[i]) == voice && o->terms[i].active;
}

static bool asks_head(const struct term *t)
{
	return term_is_soft(t) && t->form != LOSS_FORM_DRAWS && t->support != LOSS_SUPPORT_STUDENT;
}

uint32_t objective_top_k(const struct objective *o, uint32_t teacher)
{
	uint32_t k = 0;
	for (uint32_t i = 0; i < o->n_terms; i++)
		if (term_hears(&o->terms[i], teacher) && asks_head(&o->terms[i]) && o->terms[i].top_k > k)
			k = o->terms[i].top_k;
	return k;
}

static uint32_t draws_of(const struct objective *o, uint32_t teacher)
{
	for (uint32_t i = 0; i < o->n_terms; i++)
		if (term_hears(&o->terms[i], teacher) && term_draws(&o->terms[i]))
			return o->terms[i].n_draws;
	return 0;
}

// The label is a slot of every position.
uint32_t objective_voice_width(const struct objective *o, uint32_t voice, uint64_t vocab_size)
{
	uint64_t n, ranks = voice < objective_n_teachers(o) ? objective_ranks(o) : 0;
	if (voice < objective_n_teachers(o)) {
		n = (uint64_t)objective_top_k(o, voice) + objective_own_k(o, voice) + draws_of(o, voice) + 1;
	} else {
		const struct term *t = mean_term(o, voice - o->n_teachers);
		n = (uint64_t)objective_top_k(o, t->members[0]) + objective_own_k(o, t->members[0]) + 1;
	}
	n = (n < vocab_size ? n : vocab_size) + (ranks < vocab_size ? ranks : vocab_size);     // ranks beside what is asked for by id
	return (uint32_t)(n < UINT32_MAX ? n : UINT32_MAX);
}

uint32_t objective_width(const struct objective *o, uint64_t vocab_size)
{
	uint64_t n = 0;
	for (uint32_t i = 0; i < objective_n_voices(o); i++)
		n += objective_voice_width(o, i, vocab_size);
	return (uint32_t)(n < UINT32_MAX ? n : UINT32_MAX);
}

static void temperature_add(float *list, uint32_t *n, float temperature)
{
	for (uint32_t i = 0; i < *n; i++)
		if (list[i] == temperature)
			return;
	list[(*n)++] = temperature;
}

static void term_query(const struct objective *o, const struct term *t, uint64_t step, struct query *q)
{
	bool entropy = (t->method->flags & METHOD_LINEAR) && term_draws(t);
	temperature_add(q->temperatures, &q->n_temperatures, (float)schedule_at(&t->temperature, step, o->n_steps));
	q->own |= (t->method->flags & METHOD_LABEL) != 0 || t->by_label || term_merges(t);
	q->tail |= t->tail;
	q->entropy |= entropy && schedule_is(&t->temperature, 1) && t->n_members == 1;
	if (term_draws(t)) {
		q->draws.n = t->n_draws;
		q->draws.tau = (float)t->tau;
		q->draws.tail = t->form == LOSS_FORM_HEAD_DRAWS;
		q->tail |= q->draws.tail;
	}
}

void objective_query(const struct objective *o, uint32_t teacher, uint64_t step, uint64_t seed, uint32_t vocab_size, struct query *q)
{
	uint32_t top_k = objective_top_k(o, teacher);
	q->top_k = top_k < vocab_size ? top_k : vocab_size;
	temperature_add(q->temperatures, &q->n_temperatures, 1);       // evaluation is at 1, and one answer may serve both
	for (uint32_t i = 0; i < o->n_terms; i++)
		if (term_hears(&o->terms[i], teacher) && term_is_soft(&o->terms[i]))
			term_query(o, &o->terms[i], step, q);
	if (q->draws.n)
		q->draws.seed = seed;
	if (teacher == 0)
		feature_query(o, q);
}

bool objective_asks(const struct objective *o, uint32_t teacher, uint64_t step)
{
	bool asks = teacher == 0;
	for (uint32_t i = 0; i < o->n_terms; i++)
		asks |= term_hears(&o->terms[i], teacher) && term_kept(o, &o->terms[i], step);
	return asks;
}

bool objective_asks_at(const struct objective *o, uint32_t teacher, float temperature)
{
	for (uint32_t i = 0; i < o->n_terms; i++) {
		const struct term *t = &o->terms[i];
		if (term_hears(t, teacher) && term_is_soft(t) && t->active && o->temperatures[t->temperature_at] == temperature)
			return true;
	}
	return false;
}
