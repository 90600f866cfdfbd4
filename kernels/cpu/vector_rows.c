// SPDX-License-Identifier: Apache-2.0
// Element-wise work and norms on rows; compiled once per instruction set.
#include "kernels/cpu/vector_ops.h"

#include "kernels/backend.h"
#include "kernels/cpu/simd.h"

static float inverse_rms(const float *x, float epsilon, size_t n)
{
	vf sum[4] = {0};
	size_t i = 0;

	for (; i + 4 * LANES <= n; i += 4 * LANES)
		UNROLL for (int j = 0; j < 4; j++) {
			vf v = vf_load(x + i + j * LANES);
			sum[j] += v * v;
		}
	for (; i < n; i += LANES) {
		vf v = take(x + i, n - i);
		sum[0] += v * v;
	}
	return 1 / sqrtf(vf_sum((sum[0] + sum[1]) + (sum[2] + sum[3])) / (float)n + epsilon);
}

void VECTOR(rmsnorm)(float *y, const float *x, const float *gain, float epsilon, size_t n)
{
	vf r = vf_set(inverse_rms(x, epsilon, n));

	for (size_t i = 0; i < n; i += LANES)
		give(y + i, take(x + i, n - i) * r * take(gain + i, n - i), n - i);
}

float VECTOR(rmsnorm_backward)(float *dx, bool add, float *dgain, const float *dy, const float *x, const float *gain, float epsilon,
			       size_t n)
{
	float r = inverse_rms(x, epsilon, n);
	vf sum = {0};

	for (size_t i = 0; i < n; i += LANES)
		sum += take(gain + i, n - i) * take(dy + i, n - i) * take(x + i, n - i);
	vf mean = vf_set(vf_sum(sum) / (float)n * r * r);
	for (size_t i = 0; i < n; i += LANES) {
		vf d = (take(gain + i, n - i) * take(dy + i, n - i) - take(x + i, n - i) * mean) * r;
		if (dgain)
			give(dgain + i, take(dgain + i, n - i) + take(dy + i, n - i) * take(x + i, n - i) * r, n - i);
		give(dx + i, add ? take(dx + i, n - i) + d : d, n - i);
	}
	return r;
}

void VECTOR(gain_backward)(float *dgain, const float *dy, const float *x, float inverse_rms_of_x, size_t n)
{
	for (size_t i = 0; i < n; i += LANES)
		give(dgain + i, take(dgain + i, n - i) + take(dy + i, n - i) * take(x + i, n - i) * inverse_rms_of_x, n - i);
}

void VECTOR(rotate)(float *x, const float *cosine, const float *sine, float direction, size_t half)
{
	for (size_t i = 0; i < half; i += LANES) {
		vf a = take(x + i, half - i), b = take(x + half + i, half - i);
		vf c = take(cosine + i, half - i), s = take(sine + i, half - i) * direction;
		give(x + i, a * c - b * s, half - i);
		give(x + half + i, b * c + a * s, half - i);
	}
}

void VECTOR(swiglu)(float *y, const float *gate, const float *up, size_t n)
{
	for (size_t i = 0; i < n; i += LANES) {
		vf g = take(gate + i, n - i);
		give(y + i, g * sigmoid(g) * take(up + i, n - i), n - i);
	}
}

void VECTOR(swiglu_backward)(float *dgate, float *dup, const float *dy, const float *gate, const float *up, size_t n)
{
	for (size_t i = 0; i < n; i += LANES) {
		vf g = take(gate + i, n - i), s = sigmoid(g), d = take(dy + i, n - i);
		give(dgate + i, d * take(up + i, n - i) * s * (1 + g * (1 - s)), n - i);
		give(dup + i, d * g * s, n - i);
	}
}

void VECTOR(add)(float *y, const float *x, size_t n)
{
	for (size_t i = 0; i < n; i += LANES)
		give(y + i, take(y + i, n - i) + take(x + i, n - i), n - i);
}

void VECTOR(tile_store)(float *y, size_t ldy, const float *tile, const float *bias, bool add, uint32_t rows, uint32_t n)
{
	for (uint32_t r = 0; r < rows; r++, y += ldy, tile += n) {
		for (size_t i = 0; i < n; i += LANES) {
			vf v = take(tile + i, n - i);
			if (bias)
				v += take(bias + i, n - i);
			if (add)
				v += take(y + i, n - i);
			give(y + i, v, n - i);
		}
	}
}

typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

void VECTOR(to_bf16)(uint16_t *to, const float *from, size_t n)
{
	for (size_t i = 0; i < n; i += LANES) {
		halves half = __builtin_convertvector(bf16_bits(take(from + i, n - i)) >> 16, halves);
		if (n - i >= LANES)
			memcpy(to + i, &half, sizeof half);
		else
			memcpy(to + i, &half, (n - i) * sizeof *to);
	}
}

void VECTOR(round_bf16)(float *to, const float *from, size_t n)
{
	for (size_t i = 0; i < n; i += LANES)
		give(to + i, (vf)(bf16_bits(take(from + i, n - i)) & 0xffff0000u), n - i);
}

// Blocks of lanes in float, blocks of 4096 elements in double: good to about 1e-6 for any n.
double VECTOR(sum_squares)(const float *x, size_t n)
{
	double total = 0;

	for (size_t i = 0; i < n; i += 4096) {
		size_t m = n - i < 4096 ? n - i : 4096;
		vf sum[4] = {0};
		size_t j = 0;

		for (; j + 4 * LANES <= m; j += 4 * LANES)
			UNROLL for (int k = 0; k < 4; k++) {
				vf v = vf_load(x + i + j + k * LANES);
				sum[k] += v * v;
			}
		for (; j < m; j += LANES) {
			vf v = take(x + i + j, m - j);
			sum[0] += v * v;
		}
		total += (double)vf_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
	}
	return total;
}

void VECTOR(adamw)(float *w, float *m, float *v, const float *g, size_t n, const struct adamw_factors *f)
{
	for (size_t i = 0; i < n; i += LANES) {
		vf grad = take(g + i, n - i) * f->grad_scale;
		vf mean = take(m + i, n - i), square = take(v + i, n - i);

		mean = mean * f->beta1 + grad * f->one_minus_beta1;
		square = square * f->beta2 + grad * grad * f->one_minus_beta2;
		give(m + i, mean, n - i);
		give(v + i, square, n - i);
		vf step = mean * f->step_size / (vf_sqrt(square * f->inverse_correction2) + f->epsilon);
		give(w + i, take(w + i, n - i) * f->decay - step, n - i);
	}
}
