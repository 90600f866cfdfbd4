// SPDX-License-Identifier: Apache-2.0
#include "daemon/loss/policy_gradient.h"

#include <math.h>

#include "daemon/loss/pair.h"

static double reward(double r, const double *parameters)
{
	double limit = parameters[POLICY_LIMIT], scaled = r / parameters[POLICY_SCALE];
	return limit > 0 ? fmin(fmax(scaled, -limit), limit) : scaled;
}

double policy_return(const struct loss_position *x, const double *parameters)
{
	double gamma = parameters[POLICY_GAMMA], sum = 0, factor = 1;
	uint32_t first = parameters[POLICY_CURRENT] != 0 ? 0 : 1;
	for (uint32_t i = first; i < x->n_rewards && factor != 0; i++) {
		sum += factor * reward(x->rewards[i], parameters);
		factor *= gamma;
	}
	if (parameters[POLICY_NORMALISE] != 0 && x->n_rewards > first)
		sum /= x->n_rewards - first;
	return sum;
}

double policy_gradient(const struct loss_position *x, const double *parameters, double *ret_factor)
{
	double R = policy_return(x, parameters), clip = parameters[POLICY_CLIP];
	double rho = exp(x->student[x->label] - x->student_lse_1 - x->drawn_logprob);
	double value = -rho * R;
	*ret_factor = value;
	if (clip > 0) {
		double clipped = -fmin(fmax(rho, 1 - clip), 1 + clip) * R;
		if (clipped > value) {
			*ret_factor = 0;
			value = clipped;
		}
	}
	return value;
}
