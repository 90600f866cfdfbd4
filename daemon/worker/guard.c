// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/guard.h"

#include <math.h>
#include <stdbool.h>

#define GUARD_DEVIATIONS 3.0

static void point_add(struct guard_state *s, double x, double y)
{
	s->n++;
	s->x += x, s->y += y;
	s->xx += x * x, s->xy += x * y, s->yy += y * y;
}

// How far y lies above the fitted line, in standard deviations of the fit; NAN: there is no line.
static double residual(const struct guard_state *s, double x, double y)
{
	double n = s->n, sxx = s->xx - s->x * s->x / n, sxy = s->xy - s->x * s->y / n, syy = s->yy - s->y * s->y / n;
	if (n < GUARD_LEAST_POINTS || !(sxx > 0))
		return NAN;
	double slope = sxy / sxx, rest = fmax(0, syy - slope * sxy);
	double deviation = fmax(sqrt(rest / (n - 2)), GUARD_LEAST_DEVIATION);
	return (y - (s->y / n + slope * (x - s->x / n))) / deviation;
}

// Whether a count that goes on while `so` is full now, and was not before.
static bool counted(double *count, bool so, uint32_t checks)
{
	*count = so ? *count + 1 : 0;
	return *count == checks;
}

enum guard_verdict guard_look(const struct guard_options *o, struct guard_state *s, uint64_t step, const struct guard_point *point,
			      double *ret_residual)
{
	double kl = point->kl, ce = point->ce;
	bool usable = step > 0 && kl > 0 && isfinite(kl), first = s->kl == 0 && s->ce == 0;
	*ret_residual = NAN;
	if (usable && (double)step <= o->fit_steps)
		point_add(s, log((double)step), log(kl));
	else if (usable)
		*ret_residual = residual(s, log((double)step), log(kl));
	bool off = counted(&s->off, *ret_residual > GUARD_DEVIATIONS, o->checks);
	bool apart = counted(&s->apart, !first && kl < s->kl && ce > s->ce && !(ce <= point->teacher_ce), o->checks);
	s->kl = kl;
	s->ce = ce;
	s->alarms += off || apart;
	return off ? GUARD_OFF_CURVE : apart ? GUARD_APART : GUARD_FINE;
}

double guard_best_teacher(double n_student)
{
	return n_student < 24e6 ? 2.5 * n_student : 2.498 * n_student - 11.498e6;
}
