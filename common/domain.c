// SPDX-License-Identifier: Apache-2.0
#include "common/domain.h"

#include <math.h>

#define DOMAIN_RATIO_MAX 10.0

void domain_shares(const double *student, const double *teacher, const double *previous, size_t n, double alpha, double *ret)
{
	double sum = 0;
	for (size_t i = 0; i < n; i++) {
		ret[i] = exp(fmin(student[i] / teacher[i], DOMAIN_RATIO_MAX)) * (previous ? previous[i] : 1);
		sum += ret[i];
	}
	for (size_t i = 0; i < n; i++)
		ret[i] = previous ? alpha * ret[i] / sum + (1 - alpha) / (double)n : ret[i] / sum;
}
