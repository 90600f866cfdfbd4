// SPDX-License-Identifier: Apache-2.0
// With a grid the optimizer trains `master`, and the student's matrices are its nearest points on the grid: the gradient at the grid's
// point is taken for the master's (straight through, Bengio et al., arXiv 1308.3432).
#include "daemon/worker/optimizer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/weights.h"

#define AVERAGE_COLUMNS 4096           // an array as rows for the device's `mix`
#define GRID_GROUP 32                  // columns that share a scale at less than 8 bits, as GGUF's Q4_0 has them

struct rule { double learning_rate, weight_decay; };           // factor, and absolute

enum array { MOMENT1, MOMENT2, AVERAGE, MASTER, N_ARRAYS };
_Static_assert(N_ARRAYS == OPTIMIZER_MAX_ARRAYS, "optimizer.h has room for each");

struct optimizer {
	struct optimizer_options options;
	struct weights *weights;
	struct rule *rules;                    // (n_parameters)
	struct real *arrays[N_ARRAYS];         // NULL = not kept
	bool swapped;
};

double optimizer_rate(const struct optimizer_options *o, uint64_t step)
{
	if (step <= o->warmup)
		return o->learning_rate * (double)step / (double)o->warmup;
	if (step >= o->steps)
		return o->learning_rate * o->min_ratio;
	double done = (double)(step - o->warmup) / (double)(o->steps - o->warmup);
	return o->learning_rate * (o->min_ratio + (1 - o->min_ratio) * 0.5 * (1 + cos(M_PI * done)));
}

static int rules_make(struct optimizer *o, struct error *err)
{
	const struct optimizer_options *options = &o->options;
	const struct parameters *p = o->weights->parameters;
	bool used[GROUP_MAX] = {0};
	o->rules = calloc(p->n_parameters, sizeof *o->rules);
	if (!o->rules)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	for (size_t i = 0; i < p->n_parameters; i++) {
		const struct group *g = group_find(options->groups, options->n_groups, p->list[i].name);
		double decay = p->list[i].decay ? options->weight_decay : 0;
		o->rules[i] = (struct rule){g ? g->learning_rate : 1, g && !isnan(g->weight_decay) ? g->weight_decay : decay};
		if (g)
			used[g - options->groups] = true;
	}
	for (size_t i = 0; i < options->n_groups; i++)
		if (!used[i])
			return error_set(err, ERROR_INVALID, "parameters",
					 "%s: no parameter of the student is left to it (a later line counts first)",
					 options->groups[i].pattern);
	return 0;
}

// A matrix of a layer: embedding and head keep their values, as quantised models usually do.
static bool on_grid(const struct parameter *p)
{
	return p->n_dims == 2 && (strstr(p->name, "layers.") || strstr(p->name, "layer.") || strstr(p->name, ".h."));
}

// The student's parameters become `from`, on the grid where they have one.
static void parameters_set(struct optimizer *o, const struct real *from)
{
	struct backend *be = o->weights->backend;
	const struct parameters *p = o->weights->parameters;
	be->ops->real_copy(be, p->value, from, p->n_values);
	for (size_t i = 0; i < p->n_parameters; i++) {
		const struct parameter *one = &p->list[i];
		uint32_t rows = (uint32_t)one->dims[0], columns = (uint32_t)one->dims[1];
		uint32_t group = o->options.bits < 8 && columns % GRID_GROUP == 0 ? GRID_GROUP : columns;
		if (o->arrays[MASTER] && on_grid(one))
			be->ops->fake_quantize(be, be->ops->real_at(p->value, one->offset), rows, columns, group, o->options.bits);
	}
}

static bool array_wanted(const struct optimizer_options *o, enum array which)
{
	switch (which) {
	case MOMENT2: return o->kind == OPTIMIZER_ADAMW;
	case AVERAGE: return o->average > 0;
	case MASTER: return o->bits > 0;
	default: return true;
	}
}

static int arrays_new(struct optimizer *o, struct error *err)
{
	struct backend *be = o->weights->backend;
	const struct parameters *p = o->weights->parameters;
	for (enum array i = 0; i < N_ARRAYS; i++) {
		if (!array_wanted(&o->options, i))
			continue;
		o->arrays[i] = be->ops->real_new(be, p->n_values, err);
		if (!o->arrays[i])
			return error_errno(ERROR_MEMORY);
		if (i == AVERAGE || i == MASTER)       // moments start at zero
			be->ops->real_copy(be, o->arrays[i], p->value, p->n_values);
	}
	return 0;
}

int optimizer_new(const struct optimizer_options *options, struct weights *w, struct optimizer **ret, struct error *err)
{
	struct optimizer *o = calloc(1, sizeof *o);
	if (!o)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	o->options = *options;
	o->weights = w;
	int r = rules_make(o, err);
	r = r ? r : arrays_new(o, err);
	if (r == 0 && o->arrays[MASTER]) {
		parameters_set(o, o->arrays[MASTER]);
		weights_refresh(w);
	}
	r = r ? r : backend_sync(w->backend, err);
	if (r) {
		optimizer_free(o);
		return r;
	}
	*ret = o;
	return 0;
}

struct optimizer *optimizer_free(struct optimizer *o)
{
	if (!o)
		return NULL;
	struct backend *be = o->weights->backend;
	for (enum array i = 0; i < N_ARRAYS; i++)
		be->ops->real_free(be, o->arrays[i]);
	free(o->rules);
	free(o);
	return NULL;
}

static void span_update(struct optimizer *o, size_t from, size_t n, const struct rule *rule, uint64_t step, double grad_scale)
{
	const struct optimizer_options *options = &o->options;
	struct backend *be = o->weights->backend;
	const struct backend_ops *ops = be->ops;
	const struct parameters *p = o->weights->parameters;
	double rate = optimizer_rate(options, step) * rule->learning_rate;
	struct real *value = ops->real_at(o->arrays[MASTER] ? o->arrays[MASTER] : p->value, from),
		*gradient = ops->real_at(p->gradient, from);
	if (options->kind == OPTIMIZER_LION) {
		struct lion l = {rate, options->beta1, options->beta2, rule->weight_decay, grad_scale};
		ops->lion(be, value, ops->real_at(o->arrays[MOMENT1], from), gradient, n, &l);
		return;
	}
	struct adamw a = {rate, options->beta1, options->beta2, options->epsilon, rule->weight_decay, grad_scale, step};
	ops->adamw(be, value, ops->real_at(o->arrays[MOMENT1], from), ops->real_at(o->arrays[MOMENT2], from), gradient, n, &a);
}

// Neighbours in storage that are treated alike go to the device as one array. What has no learning rate is left as it is.
static void parameters_update(struct optimizer *o, uint64_t step, double grad_scale)
{
	const struct parameters *p = o->weights->parameters;
	for (size_t i = 0; i < p->n_parameters;) {
		size_t from = p->list[i].offset, n = 0;
		const struct rule rule = o->rules[i];
		for (; i < p->n_parameters && o->rules[i].learning_rate == rule.learning_rate &&
		       o->rules[i].weight_decay == rule.weight_decay && p->list[i].offset == from + n; i++)
			n += p->list[i].n;
		if (rule.learning_rate > 0)
			span_update(o, from, n, &rule, step, grad_scale);
	}
}

static void average_update(struct optimizer *o)
{
	struct backend *be = o->weights->backend;
	const struct parameters *p = o->weights->parameters;
	for (size_t from = 0; from < p->n_values;) {
		size_t left = p->n_values - from;
		uint32_t rows = left < AVERAGE_COLUMNS ? 1 : left / AVERAGE_COLUMNS > 65536 ? 65536 : (uint32_t)(left / AVERAGE_COLUMNS);
		uint32_t columns = left < AVERAGE_COLUMNS ? (uint32_t)left : AVERAGE_COLUMNS;
		struct real *average = be->ops->real_at(o->arrays[AVERAGE], from);
		be->ops->mix(be, average, false, average, o->options.average, NULL, rows, columns);
		be->ops->mix(be, average, true, be->ops->real_at(o->arrays[MASTER] ? o->arrays[MASTER] : p->value, from),
			1 - o->options.average, NULL, rows, columns);
		from += (size_t)rows * columns;
	}
}

int optimizer_step(struct optimizer *o, uint64_t step, uint64_t n_positions, double *ret_norm, struct error *err)
{
	struct weights *w = o->weights;
	struct backend *be = w->backend;
	struct parameters *p = w->parameters;
	double norm = sqrt(be->ops->sum_squares(be, p->gradient, p->n_values)) / (double)n_positions;
	int r = backend_sync(be, err);
	if (r)
		return r;
	if (!isfinite(norm))
		return error_set(err, ERROR_NOT_FINITE, "gradient", "the gradient of step %llu is not finite", (unsigned long long)step);
	double scale = o->options.clip > 0 && norm > o->options.clip ? o->options.clip / norm : 1;
	parameters_update(o, step, scale / (double)n_positions);
	if (o->arrays[MASTER])
		parameters_set(o, o->arrays[MASTER]);
	if (o->arrays[AVERAGE])
		average_update(o);
	be->ops->real_zero(be, p->gradient, p->n_values);
	weights_refresh(w);
	r = backend_sync(be, err);
	if (r)
		return r;
	*ret_norm = norm;
	return 0;
}

void optimizer_swap_average(struct optimizer *o)
{
	struct backend *be = o->weights->backend;
	const struct parameters *p = o->weights->parameters;
	if (!o->arrays[AVERAGE])
		return;
	if (o->swapped) {
		be->ops->real_copy(be, p->value, p->gradient, p->n_values);
		be->ops->real_zero(be, p->gradient, p->n_values);
	} else {
		be->ops->real_copy(be, p->gradient, p->value, p->n_values);
		parameters_set(o, o->arrays[AVERAGE]);
	}
	o->swapped = !o->swapped;
	weights_refresh(o->weights);
}

uint32_t optimizer_n_arrays(const struct optimizer_options *options)
{
	uint32_t n = 0;
	for (enum array i = 0; i < N_ARRAYS; i++)
		n += array_wanted(options, i);
	return n;
}

uint32_t optimizer_arrays(const struct optimizer *o, struct optimizer_array ret[OPTIMIZER_MAX_ARRAYS])
{
	static const char *const names[] = {[MOMENT1] = "moment1", [MOMENT2] = "moment2", [AVERAGE] = "average", [MASTER] = "master"};
	uint32_t n = 0;
	for (enum array i = 0; i < N_ARRAYS; i++)
		if (o->arrays[i])
			ret[n++] = (struct optimizer_array){names[i], o->arrays[i]};
	return n;
}
