// SPDX-License-Identifier: Apache-2.0
// Layer norm, n = (x - mean) / sqrt(variance + epsilon), y = n gain + bias; the variance is of all C values (not C - 1).
#include <math.h>

#include "kernels/ref/ref.h"

struct moments { double mean, inverse; };

static struct moments moments_of(const double *x, size_t n, double epsilon)
{
	double mean = 0, variance = 0;
	for (size_t i = 0; i < n; i++)
		mean += x[i];
	mean /= (double)n;
	for (size_t i = 0; i < n; i++)
		variance += (x[i] - mean) * (x[i] - mean);
	return (struct moments){mean, 1 / sqrt(variance / (double)n + epsilon)};
}

void ref_layernorm(struct backend *be, struct act *y, struct real *z, const struct real *x, const struct real *gain,
		   const struct real *bias, float epsilon, uint32_t rows, uint32_t C)
{
	(void)be;
	for (size_t r = 0; r < rows; r++) {
		struct moments m = moments_of(ref_real_in(x) + r * C, C, epsilon);
		for (size_t i = 0; i < C; i++) {
			double v = (ref_real_in(x)[r * C + i] - m.mean) * m.inverse * ref_real_in(gain)[i] + ref_real_in(bias)[i];
			if (y)
				ref_act(y)[r * C + i] = v;
			if (z)
				ref_real(z)[r * C + i] = v;
		}
	}
}

// d n = gain dy; dx = inverse (d n - mean(d n) - n mean(d n n)).
void ref_layernorm_backward(struct backend *be, struct real *dx, struct real *dgain, struct real *dbias, const struct act *dy,
			    const struct real *dz, const struct real *x, const struct real *gain, float epsilon, uint32_t rows, uint32_t C)
{
	bool add = dx != dz;
	(void)be;
	for (size_t r = 0; r < rows; r++) {
		struct moments m = moments_of(ref_real_in(x) + r * C, C, epsilon);
		double sum = 0, dot = 0;
		for (size_t i = 0; i < C; i++) {
			double d = (dy ? ref_act_in(dy)[r * C + i] : 0) + (dz ? ref_real_in(dz)[r * C + i] : 0);
			double n = (ref_real_in(x)[r * C + i] - m.mean) * m.inverse;
			sum += d * ref_real_in(gain)[i];
			dot += d * ref_real_in(gain)[i] * n;
			ref_real(dgain)[i] += d * n;
			ref_real(dbias)[i] += d;
		}
		for (size_t i = 0; i < C; i++) {
			double d = (dy ? ref_act_in(dy)[r * C + i] : 0) + (dz ? ref_real_in(dz)[r * C + i] : 0);
			double n = (ref_real_in(x)[r * C + i] - m.mean) * m.inverse;
			double v = m.inverse * (d * ref_real_in(gain)[i] - sum / C - n * dot / C), *to = ref_real(dx) + r * C + i;
			*to = add ? *to + v : v;
		}
	}
}
