// SPDX-License-Identifier: Apache-2.0
// Layer norm of one row; compiled once per instruction set. The variance is of differences from the mean: a row far from zero keeps its
// digits.
#include "kernels/cpu/vector_ops.h"

struct layernorm_moments VECTOR(layernorm_moments)(const float *x, float epsilon, size_t n)
{
	vf sum = {0}, squares = {0};
	size_t i;

	for (i = 0; i < n; i += LANES)
		sum += take(x + i, n - i);
	float mean = vf_sum(sum) / (float)n;
	for (i = 0; i + LANES <= n; i += LANES) {
		vf d = vf_load(x + i) - mean;
		squares += d * d;
	}
	float variance = vf_sum(squares);
	for (; i < n; i++)               // lanes past the end would count mean^2
		variance += (x[i] - mean) * (x[i] - mean);
	return (struct layernorm_moments){mean, 1 / sqrtf(variance / (float)n + epsilon)};
}

void VECTOR(layernorm)(float *y, float *z, const float *x, const float *gain, const float *bias, float epsilon, size_t n)
{
	struct layernorm_moments m = VECTOR(layernorm_moments)(x, epsilon, n);

	for (size_t i = 0; i < n; i += LANES) {
		vf v = (take(x + i, n - i) - m.mean) * m.inverse * take(gain + i, n - i) + take(bias + i, n - i);
		if (y)
			give(y + i, v, n - i);
		if (z)
			give(z + i, v, n - i);
	}
}

INLINE vf gradient_at(const float *dy, const float *dz, size_t i, size_t n)
{
	vf d = {0};

	if (dy)
		d += take(dy + i, n - i);
	if (dz)
		d += take(dz + i, n - i);
	return d;
}

void VECTOR(layernorm_gains)(float *dgain, float *dbias, const float *dy, const float *dz, const float *x,
			     struct layernorm_moments m, size_t n)
{
	for (size_t i = 0; i < n; i += LANES) {
		vf d = gradient_at(dy, dz, i, n);
		give(dgain + i, take(dgain + i, n - i) + d * ((take(x + i, n - i) - m.mean) * m.inverse), n - i);
		give(dbias + i, take(dbias + i, n - i) + d, n - i);
	}
}

// Past the end d is 0, so the sums need no tail of their own.
void VECTOR(layernorm_backward)(float *dx, bool add, const float *dy, const float *dz, const float *x, const float *gain,
				struct layernorm_moments m, size_t n)
{
	vf sum = {0}, dot = {0};

	for (size_t i = 0; i < n; i += LANES) {
		vf d = gradient_at(dy, dz, i, n) * take(gain + i, n - i);
		sum += d;
		dot += d * ((take(x + i, n - i) - m.mean) * m.inverse);
	}
	float mean = vf_sum(sum) / (float)n, pull = vf_sum(dot) / (float)n;
	for (size_t i = 0; i < n; i += LANES) {
		vf d = gradient_at(dy, dz, i, n) * take(gain + i, n - i), at = (take(x + i, n - i) - m.mean) * m.inverse;
		vf v = (d - mean - at * pull) * m.inverse;
		give(dx + i, add ? take(dx + i, n - i) + v : v, n - i);
	}
}
