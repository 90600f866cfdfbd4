// SPDX-License-Identifier: Apache-2.0
// Several teachers' rows of logits as one: a weighted sum of logits, or the logarithm of a weighted mean of probabilities.
#include <math.h>

#include "kernels/ref/ref.h"

void ref_mix(struct backend *be, struct real *y, bool add, const struct real *x, double weight, const double *lse, uint32_t n, uint32_t V)
{
	(void)be;
	for (size_t i = 0; i < n; i++)
		for (size_t j = i * V; j < (i + 1) * V; j++) {
			double z = ref_real_in(x)[j], term = weight * (lse ? exp(z - lse[i]) : z);
			ref_real(y)[j] = add ? ref_real(y)[j] + term : term;
		}
}

void ref_mix_log(struct backend *be, struct real *y, uint32_t n, uint32_t V)
{
	(void)be;
	for (size_t j = 0; j < (size_t)n * V; j++) {
		double p = ref_real(y)[j];
		ref_real(y)[j] = log(p < 1e-38 ? 1e-38 : p);    // NaN stays NaN: it marks a row that is not finite
	}
}
