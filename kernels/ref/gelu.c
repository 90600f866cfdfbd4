// SPDX-License-Identifier: Apache-2.0
// y = x Phi(x), Phi the normal distribution function, or its approximation (1 + tanh(u)) / 2 with u = sqrt(2/pi) (x + 0.044715 x^3)
// (Hendrycks and Gimpel 2016); copies between the two kinds of array.
#include <math.h>
#include <string.h>

#include "kernels/ref/ref.h"

// The share of x that passes, and its derivative.
static double share(double x, enum gelu form, double *ret_slope)
{
	if (form == GELU_ERF) {
		*ret_slope = exp(-x * x / 2) / sqrt(2 * M_PI);
		return erfc(-x / sqrt(2)) / 2;
	}
	double k = sqrt(2 / M_PI), p = 1 / (1 + exp(-2 * k * (x + 0.044715 * x * x * x)));
	*ret_slope = p * (1 - p) * 2 * k * (1 + 3 * 0.044715 * x * x);
	return p;
}

void ref_gelu(struct backend *be, struct act *y, const struct act *x, enum gelu form, uint32_t rows, uint32_t F)
{
	double slope;
	(void)be;
	for (size_t i = 0; i < (size_t)rows * F; i++)
		ref_act(y)[i] = ref_act_in(x)[i] * share(ref_act_in(x)[i], form, &slope);
}

void ref_geglu(struct backend *be, struct act *y, const struct act *gate_up, uint32_t rows, uint32_t F)
{
	double slope;
	(void)be;
	for (size_t r = 0; r < rows; r++) {
		const double *gate = ref_act_in(gate_up) + r * 2 * F, *up = gate + F;
		for (size_t i = 0; i < F; i++)
			ref_act(y)[r * F + i] = gate[i] * share(gate[i], GELU_TANH, &slope) * up[i];
	}
}

void ref_gelu_backward(struct backend *be, struct act *dx, const struct act *dy, const struct act *x, enum gelu form, uint32_t rows,
		       uint32_t F)
{
	(void)be;
	for (size_t i = 0; i < (size_t)rows * F; i++) {
		double v = ref_act_in(x)[i], slope, p = share(v, form, &slope);
		ref_act(dx)[i] = ref_act_in(dy)[i] * (p + v * slope);
	}
}

void ref_widen(struct backend *be, struct real *y, const struct act *x, size_t n)
{
	(void)be;
	memcpy(y, x, n * sizeof(double));
}

void ref_narrow(struct backend *be, struct act *y, const struct real *x, size_t n)
{
	(void)be;
	memcpy(y, x, n * sizeof(double));
}
