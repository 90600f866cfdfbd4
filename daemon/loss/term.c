// SPDX-License-Identifier: Apache-2.0
// Reads one line of an objective: the loss's name, then key=value words. Every error names the line, the loss and the key.
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/loss/objective_internal.h"

#define TERM_MAX_TEXT 1024
#define TERM_NAME_MAX 28       // with a word before it, a key of a run's progress

struct line { const char *where; const struct method *method; };

static int refuse(const struct line *l, const char *key, const char *value, const char *why, struct error *err)
{
	return error_set(err, ERROR_INVALID, "loss", "%s: loss %s: %s%s%s: %s", l->where, l->method->name, key,
		*value ? "=" : "", value, why);
}

static int switch_read(const char *value, bool *ret)
{
	static const char *const words[] = {"off", "on", "no", "yes", "false", "true", "0", "1"};
	for (size_t i = 0; i < sizeof words / sizeof *words; i++)
		if (strcmp(value, words[i]) == 0) {
			*ret = i % 2;
			return 0;
		}
	return -EINVAL;
}

// Place of the word in "a|b|c".
static int choice_read(const char *choices, const char *value, int *ret)
{
	size_t n = strlen(value);
	int i = 0;
	for (const char *p = choices; p; i++) {
		const char *end = strchrnul(p, '|');
		if (n && (size_t)(end - p) == n && memcmp(p, value, n) == 0) {
			*ret = i;
			return 0;
		}
		p = *end ? end + 1 : NULL;
	}
	return -EINVAL;
}

static int out_of_range(const struct line *l, const struct parameter_row *p, const char *value, struct error *err)
{
	char why[96];
	snprintf(why, sizeof why, "from %.15g to %.15g is expected", p->min, p->max);
	return refuse(l, p->name, value, why, err);
}

static int schedule_read(const struct line *l, const struct parameter_row *p, const char *value, struct schedule *ret, struct error *err)
{
	if (schedule_parse(value, ret))
		return refuse(l, p->name, value, "a number is expected, or linear:FROM:TO[:BEGIN-END], cosine:FROM:TO[:BEGIN-END], "
			      "piecewise:STEP=VALUE,...", err);
	return schedule_within(ret, p->min, p->max) ? 0 : out_of_range(l, p, value, err);
}

static int number_read(const struct line *l, const struct parameter_row *p, const char *value, double *ret, struct error *err)
{
	struct schedule s;
	bool bad = schedule_parse(value, &s) || s.kind != SCHEDULE_CONSTANT;
	if (bad || (p->type == PARAMETER_COUNT && s.values[0] != floor(s.values[0])))
		return refuse(l, p->name, value, p->type == PARAMETER_COUNT ? "a whole number is expected" : "a number is expected", err);
	*ret = s.values[0];
	return schedule_within(&s, p->min, p->max) ? 0 : out_of_range(l, p, value, err);
}

static int count_read(const struct line *l, const struct parameter_row *p, const char *value, uint32_t *ret, struct error *err)
{
	double number = 0;
	int r = number_read(l, p, value, &number, err);
	*ret = r ? 0 : (uint32_t)number;
	return r;
}

static int support_read(const struct line *l, struct term *t, const struct parameter_row *p, const char *value, struct error *err)
{
	struct parameter_row count = *p;
	count.type = PARAMETER_COUNT;
	if (strcmp(value, "teacher") == 0)
		return 0;
	if (strncmp(value, "student:", 8) == 0)
		t->support = LOSS_SUPPORT_STUDENT;
	else if (strncmp(value, "both:", 5) == 0)
		t->support = LOSS_SUPPORT_BOTH;
	else
		return refuse(l, p->name, value, "teacher, student:K or both:K is expected", err);
	return count_read(l, &count, strchr(value, ':') + 1, &t->own_k, err);
}

static int text_read(const struct line *l, const struct parameter_row *p, const char *value, char **to, struct error *err)
{
	static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789_-";
	if (!*value)
		return 0;
	if (strlen(value) > TERM_NAME_MAX || strspn(value, letters) != strlen(value))
		return refuse(l, p->name, value, "a-z, 0-9, _ and - are expected, at most 28", err);
	*to = strdup(value);
	return *to ? 0 : error_set(err, ERROR_MEMORY, "loss", "out of memory");
}

// The names are read when it is known which there are (objective_teachers.c).
static int teacher_read(const struct line *l, struct term *t, const struct parameter_row *p, const char *value, struct error *err)
{
	static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789_-:.,";
	if (!*value)
		return 0;
	if (strspn(value, letters) != strlen(value))
		return refuse(l, p->name, value, "a name is expected, or several with their shares: big:3,small", err);
	t->words = strdup(value);
	return t->words ? 0 : error_set(err, ERROR_MEMORY, "loss", "out of memory");
}

static int choice_set(const struct line *l, const struct parameter_row *p, const char *value, int *ret, struct error *err)
{
	char why[160];
	if (choice_read(p->choices, value, ret) == 0)
		return 0;
	snprintf(why, sizeof why, "one of %s is expected", p->choices);
	return refuse(l, p->name, value, why, err);
}

static int switch_set(const struct line *l, const struct parameter_row *p, const char *value, bool *ret, struct error *err)
{
	return switch_read(value, ret) ? refuse(l, p->name, value, "on or off is expected", err) : 0;
}

static int own_set(const struct line *l, struct term *t, uint32_t i, const char *value, struct error *err)
{
	const struct parameter_row *p = &t->method->parameters[i];
	struct schedule *to = &t->own[i];
	bool on = false;
	int choice = 0, r;
	if (p->type == PARAMETER_SCHEDULE)
		return schedule_read(l, p, value, to, err);
	*to = (struct schedule){.n = 1};
	if (p->type == PARAMETER_SWITCH) {
		r = switch_set(l, p, value, &on, err);
		to->values[0] = on;
	} else if (p->type == PARAMETER_CHOICE) {
		r = choice_set(l, p, value, &choice, err);
		to->values[0] = choice;
	} else {
		r = number_read(l, p, value, &to->values[0], err);
	}
	return r;
}

static int layers_set(const struct line *l, struct term *t, const struct parameter_row *p, const char *value, struct error *err)
{
	if (layer_map_parse(value, &t->feature.layers) == 0)
		return 0;
	return refuse(l, p->name, value, "last, final, uniform, skip:N, tail or pairs STUDENT:TEACHER,... are expected", err);
}

static int feature_set(const struct line *l, struct term *t, enum common_parameter which, const char *value, struct error *err)
{
	const struct parameter_row *p = &common_parameters[which];
	int choice = 0, r;
	if (which == COMMON_LAYERS)
		return layers_set(l, t, p, value, err);
	if (which == COMMON_BIAS)
		return switch_set(l, p, value, &t->feature.bias, err);
	r = choice_set(l, p, value, &choice, err);
	if (which == COMMON_PROJECTION)
		t->feature.projection = (enum feature_projection)choice;
	else
		t->feature.pooling = (enum query_pooling)choice;
	return r;
}

static int common_set(const struct line *l, struct term *t, enum common_parameter which, const char *value, struct error *err)
{
	const struct parameter_row *p = &common_parameters[which];
	int form = t->form, on = t->on, trust = 0, r;
	switch (which) {
	case COMMON_WEIGHT: return schedule_read(l, p, value, &t->weight, err);
	case COMMON_NAME: return text_read(l, p, value, &t->name, err);
	case COMMON_ON:
		r = choice_set(l, p, value, &on, err);
		t->on = (enum loss_on)on;
		return r;
	case COMMON_TEMPERATURE: return schedule_read(l, p, value, &t->temperature, err);
	case COMMON_T2_SCALE: return switch_set(l, p, value, &t->t2_scale, err);
	case COMMON_TOP_K: return count_read(l, p, value, &t->top_k, err);
	case COMMON_SUPPORT: return support_read(l, t, p, value, err);
	case COMMON_FORM:
		r = choice_set(l, p, value, &form, err);
		t->form = (enum loss_form)form;
		return r;
	case COMMON_TAIL: return switch_set(l, p, value, &t->tail, err);
	case COMMON_DRAWS: return count_read(l, p, value, &t->n_draws, err);
	case COMMON_TAU: return number_read(l, p, value, &t->tau, err);
	case COMMON_KEEP: return number_read(l, p, value, &t->keep, err);
	case COMMON_TRUST:
		r = choice_set(l, p, value, &trust, err);
		t->by_label = trust == 1;
		return r;
	case COMMON_TEACHER: return teacher_read(l, t, p, value, err);
	default: return feature_set(l, t, which, value, err);
	}
}

// seen: bit i of the method's own parameters, bit METHOD_MAX_PARAMETERS + i of the common ones.
static int word_set(const struct line *l, struct term *t, char *word, unsigned *seen, struct error *err)
{
	char *value = strchr(word, '=');
	unsigned bit = 0;
	int r = -ENOENT;
	if (!value)
		return refuse(l, word, "", "key=value is expected", err);
	*value++ = '\0';
	for (uint32_t i = 0; i < method_n_parameters(l->method) && r == -ENOENT; i++)
		if (strcmp(word, l->method->parameters[i].name) == 0) {
			bit = 1u << i;
			r = *seen & bit ? 0 : own_set(l, t, i, value, err);
		}
	for (int i = 0; i < N_COMMON && r == -ENOENT; i++)
		if (strcmp(word, common_parameters[i].name) == 0 && method_common(l->method, (enum common_parameter)i)) {
			bit = 1u << (METHOD_MAX_PARAMETERS + i);
			r = *seen & bit ? 0 : common_set(l, t, (enum common_parameter)i, value, err);
		}
	if (r == -ENOENT)
		return refuse(l, word, "", "this loss has no such parameter (kdserved-worker --list-losses)", err);
	if (*seen & bit)
		return refuse(l, word, "", "is set twice", err);
	*seen |= bit;
	return r;
}

static const char *common_fallback(const struct method *m, enum common_parameter which)
{
	if (which == COMMON_TOP_K && m->top_k)
		return m->top_k;
	return which == COMMON_POOLING && m->flags & METHOD_POOLED ? METHOD_POOLED_FALLBACK : common_parameters[which].fallback;
}

static int defaults_set(const struct line *l, struct term *t, struct error *err)
{
	int r = 0;
	for (uint32_t i = 0; r == 0 && i < method_n_parameters(l->method); i++)
		r = own_set(l, t, i, l->method->parameters[i].fallback, err);
	for (int i = 0; r == 0 && i < N_COMMON; i++)
		if (method_common(l->method, (enum common_parameter)i))
			r = common_set(l, t, (enum common_parameter)i, common_fallback(l->method, (enum common_parameter)i), err);
	return r;
}

static const char *mix_fault(const struct term *t, unsigned seen, const char **ret_key)
{
	bool draws_given = seen >> (METHOD_MAX_PARAMETERS + COMMON_DRAWS) & 1 || seen >> (METHOD_MAX_PARAMETERS + COMMON_TAU) & 1;
	*ret_key = "on";
	if ((t->method->flags & METHOD_DRAWN) && t->on == LOSS_ON_TEXT)
		return "it learns from what the student writes";
	*ret_key = "form";
	if (t->form == LOSS_FORM_UNIFORM && !(t->method->flags & METHOD_LINEAR))
		return "a uniform tail is for forward-kl and soft-cross-entropy alone";
	if (term_draws(t) && t->support != LOSS_SUPPORT_TEACHER)
		return "draws come from the teacher: support=teacher is expected";
	if (term_draws(t) && !schedule_is(&t->temperature, 1))
		return "draws are at temperature 1";
	*ret_key = "draws";
	if (!term_draws(t) && draws_given)
		return "is for form=draws and form=head-draws";
	*ret_key = "teacher";
	if (t->words && strchr(t->words, ',') && (term_draws(t) || t->tail))
		return "the mean of several teachers has no draws and no tail of its own";
	*ret_key = "trust";
	if (t->words && strchr(t->words, ',') && t->by_label)
		return "each teacher is trusted by its own loss: name them in a line each";
	*ret_key = "support";
	if ((t->method->flags & METHOD_OWN_IDS) && t->support != LOSS_SUPPORT_BOTH)
		return "both:K is expected: it compares the teacher's ids with the student's own";
	*ret_key = "beta";
	if (t->method->fn == divergence_jsd && t->own[1].values[0] == 0 && (schedule_is(&t->own[0], 0) || schedule_is(&t->own[0], 1)))
		return "is 0 everywhere at this end: normalise-beta=on has the limits";
	*ret_key = "pooling";
	if (t->method->flags & METHOD_POOLED && t->feature.pooling == QUERY_POOLING_NONE)
		return "mean or last is expected: it compares sequences";
	*ret_key = "quantile";
	if (t->method->fn == divergence_dac_kl && !schedule_within(&t->own[0], 1e-9, 1))
		return "more than 0 is expected";
	return NULL;
}

int term_parse(struct term *t, const char *text, const char *where, struct error *err)
{
	struct line l = {where, NULL};
	char copy[TERM_MAX_TEXT], *rest = copy, *word;
	const char *key, *fault;
	unsigned seen = 0;
	int r = 0;
	*t = (struct term){.support = LOSS_SUPPORT_TEACHER};
	if (strlen(text) >= sizeof copy)
		return error_set(err, ERROR_INVALID, "loss", "%s: loss: longer than %d bytes", where, TERM_MAX_TEXT - 1);
	strcpy(copy, text);
	word = strsep(&rest, " \t");
	t->method = l.method = method_find(word);
	if (!l.method)
		return error_set(err, ERROR_INVALID, "loss",
				 "%s: loss: there is no \"%.64s\"; did you mean \"%s\"? (kdserved-worker --list-losses)", where, word,
				 method_nearest(word)->name);
	r = defaults_set(&l, t, err);
	if (r == 0 && !(t->feature.where = strdup(where)))
		r = error_set(err, ERROR_MEMORY, "loss", "out of memory");
	t->where = strdup(where);
	if (r == 0 && !t->where)
		r = error_set(err, ERROR_MEMORY, "loss", "out of memory");
	while (r == 0 && (word = strsep(&rest, " \t")))
		if (*word)
			r = word_set(&l, t, word, &seen, err);
	if (t->method->flags & METHOD_DRAWN && t->on == LOSS_ON_ALL)
		t->on = LOSS_ON_ROLLOUTS;
	if (r == 0 && (fault = mix_fault(t, seen, &key)))
		r = refuse(&l, key, "", fault, err);
	return r;
}

void term_done(struct term *t)
{
	free(t->name);
	free(t->words);
	free(t->feature.where);
	free(t->where);
	t->name = t->words = t->feature.where = t->where = NULL;
}
