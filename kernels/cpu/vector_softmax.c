// SPDX-License-Identifier: Apache-2.0
// Passes over a row of logits: maxima of blocks, sums of exponentials, softmax, mixtures; compiled once per instruction set.
// Sums run in float over 16 elements of each lane of four vectors, then in double: lse is good to 1e-6, also of equal logits.
#include "kernels/cpu/vector_ops.h"

#define CHUNK (4 * 16 * LANES)

#define BLOCK_VECTORS (SWEEP_BLOCK / LANES)

// Four running maxima of a whole block, and sums of 0 x: 0, or NaN for good when an x is not finite.
INLINE vf block_max(const float *x, vf bad[4])
{
	vf m[4];

	UNROLL for (size_t j = 0; j < 4; j++)
		m[j] = vf_set(-INFINITY);
	UNROLL for (size_t j = 0; j < BLOCK_VECTORS; j++) {
		vf v = vf_load(x + j * LANES);
		bad[j % 4] += v * 0.0f;
		m[j % 4] = vf_max(m[j % 4], v);
	}
	return vf_max(vf_max(m[0], m[1]), vf_max(m[2], m[3]));
}

bool VECTOR(block_maxima)(const float *x, size_t n, float *maxima, float *ret_max)
{
	vf all = vf_set(-INFINITY), bad[4] = {0};
	size_t i = 0;

	for (; i + SWEEP_BLOCK <= n; i += SWEEP_BLOCK) {
		vf m = block_max(x + i, bad);
		maxima[i / SWEEP_BLOCK] = vf_max_lane(m);
		all = vf_max(all, m);
	}
	if (i < n) {
		float last[SWEEP_BLOCK];
		for (size_t j = 0; j < SWEEP_BLOCK; j++)
			last[j] = x[i + j < n ? i + j : i];    // repeats change no maximum
		vf m = block_max(last, bad);
		maxima[i / SWEEP_BLOCK] = vf_max_lane(m);
		all = vf_max(all, m);
	}
	*ret_max = vf_max_lane(all);
	return vf_sum((bad[0] + bad[1]) + (bad[2] + bad[3])) == 0;
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
	// The same sums in the same order as above: what a row says does not depend on whether its entropy is asked too.
	for (size_t i = 0; i < n; i += CHUNK) {
		size_t end = n - i < CHUNK ? n - i : CHUNK, j = 0;
		vf sum[4] = {0}, product[4] = {0};
		for (; j + 4 * LANES <= end; j += 4 * LANES)
			UNROLL for (size_t k = 0; k < 4; k++) {
				vf z = (vf_load(x + i + j + k * LANES) - m) * inverse, e = vf_exp_negative(z);
				sum[k] += e;
				product[k] += vf_max(low, z) * e;
			}
		for (; j < end; j += LANES) {
			vf z = load_z(x + i + j, end - j, m, inverse), e = vf_exp_negative(z);
			sum[0] += e;
			product[0] += vf_max(low, z) * e;    // e is 0 below -88, where z may be infinite
		}
		total += (double)vf_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
		weighted += (double)vf_sum((product[0] + product[1]) + (product[2] + product[3]));
	}
	*ret_weighted = weighted;
	return total;
}

void VECTOR(exp_blocks)(float *out, const float *x, size_t n, float max, float scale, double *sums)
{
	vf m = vf_set(max), s = vf_set(scale);

	for (size_t i = 0; i < n; i += SWEEP_BLOCK) {
		size_t end = n - i < SWEEP_BLOCK ? n - i : SWEEP_BLOCK, j = 0;
		vf sum = {0};
		for (; j + LANES <= end; j += LANES) {
			vf e = vf_exp_negative((vf_load(x + i + j) - m) * s);
			vf_store(out + i + j, e);
			sum += e;
		}
		if (j < end) {
			vf e = vf_exp_negative(load_z(x + i + j, end - j, m, s));
			vf_store_part(out + i + j, e, end - j);
			sum += e;
		}
		sums[i / SWEEP_BLOCK] = (double)vf_sum(sum);
	}
}

void VECTOR(softmax)(float *out, bool add, const float *x, size_t n, float temperature, double lse, double scale)
{
	// lse in two floats: x / temperature - lse cancels, and its error is the relative error of the result
	float high = (float)lse;
	vf inverse = vf_set(1 / temperature), h = vf_set(high), l = vf_set((float)(lse - (double)high)), s = vf_set((float)scale);
	size_t i = 0;

	for (; i + LANES <= n; i += LANES) {
		vf r = vf_exp_negative((vf_load(x + i) * inverse - h) - l) * s;
		vf_store(out + i, add ? vf_load(out + i) + r : r);
	}
	if (i < n) {
		vf r = vf_exp_negative((vf_load_part(x + i, n - i) * inverse - h) - l) * s;
		vf_store_part(out + i, add ? vf_load_part(out + i, n - i) + r : r, n - i);
	}
}

void VECTOR(mix)(float *y, bool add, const float *x, float weight, size_t n)
{
	vf w = vf_set(weight);
	size_t i = 0;

	for (; i + LANES <= n; i += LANES)
		vf_store(y + i, add ? vf_load(y + i) + w * vf_load(x + i) : w * vf_load(x + i));
	if (i < n) {
		vf v = w * vf_load_part(x + i, n - i);
		vf_store_part(y + i, add ? vf_load_part(y + i, n - i) + v : v, n - i);
	}
}

void VECTOR(soft_cap)(float *x, float cap, size_t n)
{
	float inverse = 1 / cap;

	for (size_t i = 0; i < n; i += LANES)
		give(x + i, cap * vf_tanh(take(x + i, n - i) * inverse), n - i);
}

void VECTOR(mix_log)(float *y, size_t n)
{
	vf low = vf_set(1e-38f);
	size_t i = 0;

	for (; i + LANES <= n; i += LANES)
		vf_store(y + i, vf_log(vf_max(low, vf_load(y + i))));
	if (i < n)
		vf_store_part(y + i, vf_log(vf_max(low, vf_load_part(y + i, n - i))), n - i);
}
