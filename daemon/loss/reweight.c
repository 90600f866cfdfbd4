// SPDX-License-Identifier: Apache-2.0
#include "daemon/loss/reweight.h"

#include <math.h>

static double score(const struct reweight *w, double h)
{
	double delta = w->strength;
	switch (w->kind) {
	case REWEIGHT_LINEAR_UPPER: return fmin(h + delta, delta);
	case REWEIGHT_QUADRATIC: return 1 - h * h / (delta * delta);
	case REWEIGHT_EXTREMES: return fabs(h);
	default: return 0;
	}
}

void reweight_weigh(const struct reweight *w, const double *losses, uint32_t n, double *ret)
{
	double least = INFINITY, most = -INFINITY, highest = -INFINITY, sum = 0;
	for (uint32_t i = 0; i < n; i++) {
		least = fmin(least, losses[i]);        // a NAN is passed over
		most = fmax(most, losses[i]);
	}
	for (uint32_t i = 0; i < n; i++) {
		double h = most > least ? w->strength * (2 * losses[i] - most - least) / (most - least) : 0;
		ret[i] = isnan(losses[i]) ? NAN : score(w, h) / w->temperature;
		highest = fmax(highest, ret[i]);
	}
	for (uint32_t i = 0; i < n; i++) {
		ret[i] = isnan(ret[i]) ? 0 : exp(ret[i] - highest);
		sum += ret[i];
	}
	for (uint32_t i = 0; i < n && sum > 0; i++)
		ret[i] /= sum;
}
