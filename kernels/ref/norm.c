// SPDX-License-Identifier: Apache-2.0
// Root-mean-square norm, y = x / sqrt(mean(x^2) + epsilon) * gain: of whole rows, and of single query and key heads.
#include <math.h>
#include <string.h>

#include "kernels/ref/ref.h"

static double inverse_rms(const double *x, size_t n, double epsilon)
{
	return 1 / sqrt(ref_dot(x, x, n) / (double)n + epsilon);
}

static void norm(double *y, const double *x, const double *gain, size_t n, double epsilon)
{
	double r = inverse_rms(x, n, epsilon);
	for (size_t i = 0; i < n; i++)
		y[i] = x[i] * r * gain[i];
}

// dx (+)= r (g dy - x r^2 mean(g dy x)), dgain += dy x r; dx may be dy.
static void norm_backward(double *dx, bool add, double *dgain, const double *dy, const double *x, const double *gain, size_t n,
			  double epsilon)
{
	double r = inverse_rms(x, n, epsilon), mean = 0;
	for (size_t i = 0; i < n; i++)
		mean += gain[i] * dy[i] * x[i];
	mean /= (double)n;
	for (size_t i = 0; i < n; i++) {
		double d = r * (gain[i] * dy[i] - x[i] * r * r * mean);
		dgain[i] += dy[i] * x[i] * r;
		dx[i] = add ? dx[i] + d : d;
	}
}

void ref_rmsnorm(struct backend *be, struct act *y, const struct real *x, const struct real *gain, float epsilon, uint32_t rows, uint32_t C)
{
	(void)be;
	for (size_t r = 0; r < rows; r++)
		norm(ref_act(y) + r * C, ref_real_in(x) + r * C, ref_real_in(gain), C, epsilon);
}

void ref_rmsnorm_backward(struct backend *be, struct real *dx, struct real *dgain, const struct act *dy, const struct real *x,
			  const struct real *gain, float epsilon, uint32_t rows, uint32_t C)
{
	(void)be;
	for (size_t r = 0; r < rows; r++)
		norm_backward(ref_real(dx) + r * C, true, ref_real(dgain), ref_act_in(dy) + r * C, ref_real_in(x) + r * C,
			      ref_real_in(gain), C, epsilon);
}

void ref_head_norm(struct backend *be, struct act *y, const struct act *x, const struct real *q_gain, const struct real *k_gain,
		   const struct attention_shape *shape, float epsilon)
{
	size_t D = shape->head_size, NH = shape->n_heads, NKV = shape->n_kv_heads, W = (NH + 2 * NKV) * D;
	for (uint32_t t = 0; t < ref_of(be)->n_positions; t++) {
		double *to = ref_act(y) + t * W;
		const double *from = ref_act_in(x) + t * W;
		for (size_t h = 0; h < NH + NKV; h++)
			norm(to + h * D, from + h * D, ref_real_in(h < NH ? q_gain : k_gain), D, epsilon);
		memmove(to + (NH + NKV) * D, from + (NH + NKV) * D, NKV * D * sizeof *to);
	}
}

void ref_head_norm_backward(struct backend *be, struct act *dx, struct real *dq_gain, struct real *dk_gain, const struct act *dy,
			    const struct act *x, const struct real *q_gain, const struct real *k_gain,
			    const struct attention_shape *shape, float epsilon)
{
	size_t D = shape->head_size, NH = shape->n_heads, NKV = shape->n_kv_heads, W = (NH + 2 * NKV) * D;
	for (uint32_t t = 0; t < ref_of(be)->n_positions; t++) {
		double *to = ref_act(dx) + t * W;
		const double *d = ref_act_in(dy) + t * W, *from = ref_act_in(x) + t * W;
		for (size_t h = 0; h < NH + NKV; h++)
			norm_backward(to + h * D, false, ref_real(h < NH ? dq_gain : dk_gain), d + h * D, from + h * D,
				      ref_real_in(h < NH ? q_gain : k_gain), D, epsilon);
		memmove(to + (NH + NKV) * D, d + (NH + NKV) * D, NKV * D * sizeof *to);
	}
}
