// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/optimizer.h"

#include <math.h>

#include "common/error.h"
#include "daemon/model/weights.h"

double optimizer_rate(const struct optimizer_options *o, uint64_t step)
{
	if (step <= o->warmup)
		return o->learning_rate * (double)step / (double)o->warmup;
	if (step >= o->steps)
		return o->learning_rate * o->min_ratio;
	double done = (double)(step - o->warmup) / (double)(o->steps - o->warmup);
	return o->learning_rate * (o->min_ratio + (1 - o->min_ratio) * 0.5 * (1 + cos(M_PI * done)));
}

// Neighbours in storage that are treated alike go to the device as one array.
static void parameters_update(struct weights *w, const struct adamw *plain, double weight_decay)
{
	struct backend *be = w->backend;
	struct parameters *p = w->parameters;
	for (size_t i = 0; i < p->n_parameters;) {
		size_t from = p->list[i].offset, n = 0;
		bool decay = p->list[i].decay;
		for (; i < p->n_parameters && p->list[i].decay == decay && p->list[i].offset == from + n; i++)
			n += p->list[i].n;
		struct adamw a = *plain;
		a.weight_decay = decay ? weight_decay : 0;
		be->ops->adamw(be, be->ops->real_at(p->value, from), be->ops->real_at(p->moment1, from), be->ops->real_at(p->moment2, from),
			       be->ops->real_at(p->gradient, from), n, &a);
	}
}

int optimizer_step(const struct optimizer_options *o, struct weights *w, uint64_t step, uint64_t n_positions, double *ret_norm,
		   struct error *err)
{
	struct backend *be = w->backend;
	struct parameters *p = w->parameters;
	double norm = sqrt(be->ops->sum_squares(be, p->gradient, p->n_values)) / (double)n_positions;
	int r = backend_sync(be, err);
	if (r)
		return r;
	if (!isfinite(norm))
		return error_set(err, ERROR_NOT_FINITE, "gradient", "the gradient of step %llu is not finite", (unsigned long long)step);
	double scale = o->clip > 0 && norm > o->clip ? o->clip / norm : 1;
	struct adamw a = {.learning_rate = optimizer_rate(o, step), .beta1 = o->beta1, .beta2 = o->beta2, .epsilon = o->epsilon,
			  .grad_scale = scale / (double)n_positions, .step = step};
	parameters_update(w, &a, o->weight_decay);
	be->ops->real_zero(be, p->gradient, p->n_values);
	weights_refresh(w);
	r = backend_sync(be, err);
	if (r)
		return r;
	*ret_norm = norm;
	return 0;
}
