// SPDX-License-Identifier: Apache-2.0
// GELU of rows, in its two forms; compiled once per instruction set. By erf: Phi(x) = erfc(-x / sqrt 2) / 2, with the polynomials of Cephes
// for erf below 1 and for erfc below 2 and beyond, so that the small values of the left tail keep their digits.
#include "kernels/cpu/vector_ops.h"

INLINE vf choose(vi where, vf yes, vf no)
{
	return (vf)(((vi)yes & where) | ((vi)no & ~where));
}

INLINE vf polynomial(vf x, const float *c, int n)
{
	vf p = vf_set(c[0]);

	UNROLL for (int i = 1; i < n; i++)
		p = p * x + c[i];
	return p;
}

// Phi(x); bell: e^(-x^2 / 2).
INLINE vf normal_share(vf x, vf *ret_bell)
{
	static const float erf_1[] = {
		7.853861353e-5f, -8.010193625e-4f, 5.188327686e-3f, -2.685381194e-2f, 1.128358515e-1f,
		-3.761262582e-1f, 1.128379166f};
	static const float erfc_2[] = {
		2.326819970e-2f, -1.387039389e-1f, 3.687424675e-1f, -5.824733027e-1f, 6.210004622e-1f,
		-4.944515323e-1f, 3.404879938e-1f, -2.741127028e-1f, 5.638259427e-1f};
	static const float erfc_more[] = {-10.47766400f, 12.97719955f, -7.495518718f, 2.921019019f, -1.015265279f, 4.218463358e-1f,
					  -2.820767440e-1f, 5.641895068e-1f};
	vf t = x * 0.707106781f, bell = vf_exp_negative(t * -t);
	t = choose(t < 0, -t, t);
	vf q = 1 / t, body = t * polynomial(t * t, erf_1, 7) * 0.5f;
	vf tail = bell * q * choose(t < 2, polynomial(q * q, erfc_2, 9), polynomial(q * q, erfc_more, 8)) * 0.5f;

	*ret_bell = bell;
	vf left = choose(t < 1, 0.5f - body, tail);    // Phi(-|x|)
	return choose(x < 0, left, 1 - left);
}

// tanh form: the share is sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3).
#define TWO_U 1.59576912f
#define CUBE 0.044715f

void VECTOR(gelu_erf)(float *y, const float *x, size_t n)
{
	vf bell;

	for (size_t i = 0; i < n; i += LANES) {
		vf v = take(x + i, n - i);
		give(y + i, v * normal_share(v, &bell), n - i);
	}
}

void VECTOR(gelu_tanh)(float *y, const float *x, size_t n)
{
	for (size_t i = 0; i < n; i += LANES) {
		vf v = take(x + i, n - i);
		give(y + i, v * sigmoid(TWO_U * v * (1 + CUBE * v * v)), n - i);
	}
}

void VECTOR(gelu_erf_backward)(float *dx, const float *dy, const float *x, size_t n)
{
	vf bell;

	for (size_t i = 0; i < n; i += LANES) {
		vf v = take(x + i, n - i), p = normal_share(v, &bell);
		give(dx + i, take(dy + i, n - i) * (p + v * bell * 0.398942280f), n - i);
	}
}

void VECTOR(gelu_tanh_backward)(float *dx, const float *dy, const float *x, size_t n)
{
	for (size_t i = 0; i < n; i += LANES) {
		vf v = take(x + i, n - i), p = sigmoid(TWO_U * v * (1 + CUBE * v * v));
		// At a large |v| the slope p (1 - p) is 0 before v^2 could be infinite.
		give(dx + i, take(dy + i, n - i) * (p + v * p * (1 - p) * TWO_U * (1 + 3 * CUBE * v * v)), n - i);
	}
}
