// SPDX-License-Identifier: Apache-2.0
// Passes over a row of logits: maxima of blocks, sums of exponentials, softmax; compiled once per instruction set.
// Sums run in float over 1024 elements (per lane, 64 to 256 additions of numbers below 1), then in double: lse is good to 1e-6.
#include "kernels/cpu/vector_ops.h"

#define CHUNK 1024

// The last part of a row: lanes beyond it repeat the first element, which changes no maximum.
INLINE vf load_rest(const float *x, size_t n)
{
	vf v = vf_set(x[0]);

	memcpy(&v, x, n * sizeof(float));
	return v;
}

bool VECTOR(block_maxima)(const float *x, size_t n, float *maxima, float *ret_max)
{
	vf all = vf_set(-INFINITY), bad = {0};    // 0 * x is 0, or NaN when x is not finite, and NaN stays

	for (size_t i = 0; i < n; i += SWEEP_BLOCK) {
		size_t end = n - i < SWEEP_BLOCK ? n - i : SWEEP_BLOCK;
		vf m = vf_set(-INFINITY);
		for (size_t j = 0; j < end; j += LANES) {
			vf v = end - j >= LANES ? vf_load(x + i + j) : load_rest(x + i + j, end - j);
			bad += v * 0.0f;
			m = vf_max(m, v);
		}
		maxima[i / SWEEP_BLOCK] = vf_max_lane(m);
		all = vf_max(all, m);
	}
	*ret_max = vf_max_lane(all);
	return vf_sum(bad) == 0;
}

// Chunks of at most CHUNK elements; lanes past the end have z = -infinity, so they add nothing.
INLINE vf load_z(const float *x, size_t n, vf max, vf inverse)
{
	if (n >= LANES)
		return (vf_load(x) - max) * inverse;
	vf v = vf_set(-INFINITY);
	memcpy(&v, x, n * sizeof(float));
	return (v - max) * inverse;
}

static double exp_sum_plain(const float *x, size_t n, vf max, vf inverse)
{
	double total = 0;

	for (size_t i = 0; i < n; i += CHUNK) {
		size_t end = n - i < CHUNK ? n - i : CHUNK, j = 0;
		vf sum[4] = {0};
		for (; j + 4 * LANES <= end; j += 4 * LANES)
			UNROLL for (size_t k = 0; k < 4; k++)
				sum[k] += vf_exp_negative((vf_load(x + i + j + k * LANES) - max) * inverse);
		for (; j < end; j += LANES)
			sum[0] += vf_exp_negative(load_z(x + i + j, end - j, max, inverse));
		total += (double)vf_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
	}
	return total;
}

double VECTOR(exp_sum)(const float *x, size_t n, float max, float temperature, double *ret_weighted)
{
	vf m = vf_set(max), inverse = vf_set(1 / temperature), low = vf_set(-100.0f);
	double total = 0, weighted = 0;

	if (!ret_weighted)
		return exp_sum_plain(x, n, m, inverse);
	for (size_t i = 0; i < n; i += CHUNK) {
		size_t end = n - i < CHUNK ? n - i : CHUNK;
		vf sum = {0}, product = {0};
		for (size_t j = 0; j < end; j += LANES) {
			vf z = load_z(x + i + j, end - j, m, inverse), e = vf_exp_negative(z);
			sum += e;
			product += vf_max(low, z) * e;    // e is 0 below -88, where z may be infinite
		}
		total += (double)vf_sum(sum);
		weighted += (double)vf_sum(product);
	}
	*ret_weighted = weighted;
	return total;
}

void VECTOR(softmax)(float *out, bool add, const float *x, size_t n, float temperature, double lse, double scale)
{
	// lse in two floats: x / temperature - lse cancels, and its error is the relative error of the result
	float high = (float)lse;
	vf inverse = vf_set(1 / temperature), h = vf_set(high), l = vf_set((float)(lse - (double)high)), s = vf_set((float)scale);

	for (size_t i = 0; i < n; i += LANES) {
		size_t m = n - i;
		vf z = m >= LANES ? vf_load(x + i) : vf_load_part(x + i, m);
		vf r = vf_exp((z * inverse - h) - l) * s;
		if (add)
			r += m >= LANES ? vf_load(out + i) : vf_load_part(out + i, m);
		if (m >= LANES)
			vf_store(out + i, r);
		else
			vf_store_part(out + i, r, m);
	}
}
