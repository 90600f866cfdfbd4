// SPDX-License-Identifier: Apache-2.0
// Gated unit: y = g sigmoid(g) u, rows hold the F gates, then the F ups.
#include <math.h>

#include "kernels/ref/ref.h"

void ref_swiglu(struct backend *be, struct act *y, const struct act *gate_up, uint32_t rows, uint32_t F)
{
	(void)be;
	for (size_t r = 0; r < rows; r++) {
		const double *gate = ref_act_in(gate_up) + r * 2 * F, *up = gate + F;
		for (size_t i = 0; i < F; i++)
			ref_act(y)[r * F + i] = gate[i] / (1 + exp(-gate[i])) * up[i];
	}
}

void ref_swiglu_backward(struct backend *be, struct act *dgate_up, const struct act *dy, const struct act *gate_up, uint32_t rows,
			 uint32_t F)
{
	(void)be;
	for (size_t r = 0; r < rows; r++) {
		const double *gate = ref_act_in(gate_up) + r * 2 * F, *up = gate + F, *d = ref_act_in(dy) + r * F;
		double *dgate = ref_act(dgate_up) + r * 2 * F, *dup = dgate + F;
		for (size_t i = 0; i < F; i++) {
			double s = 1 / (1 + exp(-gate[i]));
			dgate[i] = d[i] * up[i] * s * (1 + gate[i] * (1 - s));
			dup[i] = d[i] * gate[i] * s;
		}
	}
}
