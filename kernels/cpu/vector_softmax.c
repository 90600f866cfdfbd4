// SPDX-License-Identifier: Apache-2.0
// Passes over a row of logits: maxima of blocks, bounds, sums of exponentials, softmax, mixtures; compiled once per instruction set.
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

size_t VECTOR(find)(const float *x, size_t n, float bound, uint32_t *places)
{
	vf b = vf_set(bound);
	size_t n_found = 0;

	for (size_t i = 0; i < n; i += LANES) {
		uint32_t bits = vf_at_least(take(x + i, n - i), b);
		if (n - i < LANES)
			bits &= (1u << (n - i)) - 1;
		for (; bits; bits &= bits - 1)
			places[n_found++] = (uint32_t)i + (uint32_t)__builtin_ctz(bits);
	}
	return n_found;
}

static size_t count_from(const float *x, size_t n, float bound)
{
	vf b = vf_set(bound);
	vi lanes = {0};
	size_t i = 0, count = 0;

	for (; i + LANES <= n; i += LANES)
		lanes -= vf_load(x + i) >= b;    // a true lane is -1
	for (; i < n; i++)
		count += x[i] >= bound;
	for (int j = 0; j < LANES; j++)
		count += (size_t)lanes[j];
	return count;
}

// The float whose place among all of them, from 0 on to either side, is `order`.
static float float_at(int32_t order)
{
	uint32_t bits = order < 0 ? (uint32_t)-order | UINT32_C(1) << 31 : (uint32_t)order;
	float x;

	memcpy(&x, &bits, sizeof x);
	return x;
}

// By halves of the floats there are: at least k elements reach low, fewer high.
float VECTOR(bound_of_largest)(const float *x, size_t n, size_t k)
{
	int64_t low = -0x7f7fffff, high = 0x7f800000;

	while (high - low > 1) {
		int64_t middle = low + (high - low) / 2;
		size_t count = count_from(x, n, float_at((int32_t)middle));
		if (count < k)
			high = middle;
		else
			low = middle;
		if (count == k)
			break;
	}
	return float_at((int32_t)low);
}

// (x - max) unit; lanes past the end have x = -infinity, so they add nothing.
INLINE vf load_z(const float *x, size_t n, vf max, vf unit)
{
	if (n >= LANES)
		return (vf_load(x) - max) * unit;
	vf v = vf_set(-INFINITY);
	memcpy(&v, x, n * sizeof(float));
	return (v - max) * unit;
}

// product may be NULL. What is left out of the sum below -126 is nothing beside the largest term, 1.
INLINE void add_exp2(vf z, vf *sum, vf *product)
{
	if (product)
		z = vf_max(vf_set(-126), z);    // finite, and e is no denormal
	vf e = vf_exp2_negative(z);
	*sum += e;
	if (product)
		*product += z * e;
}

// Sums of 2^z and, when weigh, of z 2^z, with z = (x - max) unit. Either is the same whether the other is asked.
INLINE double exp2_sum(const float *x, size_t n, vf max, vf unit, const bool weigh, double *ret_weighted)
{
	double total = 0, weighted = 0;

	for (size_t i = 0; i < n; i += CHUNK) {
		size_t end = n - i < CHUNK ? n - i : CHUNK, j = 0;
		vf sum[4] = {0}, product[4] = {0};
		for (; j + 4 * LANES <= end; j += 4 * LANES)
			UNROLL for (size_t k = 0; k < 4; k++)
				add_exp2((vf_load(x + i + j + k * LANES) - max) * unit, &sum[k], weigh ? &product[k] : NULL);
		for (; j < end; j += LANES)
			add_exp2(load_z(x + i + j, end - j, max, unit), &sum[0], weigh ? &product[0] : NULL);
		total += (double)vf_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
		weighted += (double)vf_sum((product[0] + product[1]) + (product[2] + product[3]));
	}
	*ret_weighted = weighted;
	return total;
}

double VECTOR(exp_sum)(const float *x, size_t n, float max, float temperature, double *ret_weighted)
{
	vf m = vf_set(max), unit = vf_set((float)(M_LOG2E / (double)temperature));
	double weighted;

	if (!ret_weighted)
		return exp2_sum(x, n, m, unit, false, &weighted);
	double total = exp2_sum(x, n, m, unit, true, &weighted);
	*ret_weighted = weighted * M_LN2;
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
