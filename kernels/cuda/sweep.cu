// SPDX-License-Identifier: Apache-2.0
// The vocabulary sweep: one block per row reads its logits and leaves lse at each temperature, entropy, top-k and gathered values. Top-k by
// selecting the k-th value bit by bit (four histograms over an order-preserving integer), so its cost does not grow with k; only the k
// survivors leave the device and are put in order on the host.
#include "kernels/cuda/cuda.cuh"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <vector>

#define BINS 256

struct sweep_plan {                     // of one row: where its inputs and results lie in the scratch buffer
	uint32_t top_k, n_temperatures, n_gather, want_entropy;
	uint32_t temperatures, gather;  // in words from the start of the inputs
	uint32_t results;               // in 8-byte units: max, entropy, lse[], gathered[], then k (id, logit) pairs
};

// Larger float, larger integer.
static __device__ uint32_t ordered(float x)
{
	uint32_t bits = __float_as_uint(x);
	return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static __device__ double row_sum(const float *z, uint32_t V, float max, float inverse_temperature, double *shared)
{
	double sum = 0;
	for (uint32_t j = threadIdx.x; j < V; j += blockDim.x)
		sum += expf((z[j] - max) * inverse_temperature);
	return block_sum(sum, shared);
}

static __device__ double row_entropy(const float *z, uint32_t V, float max, double *shared)
{
	double sum = 0, weighted = 0;
	for (uint32_t j = threadIdx.x; j < V; j += blockDim.x) {
		float e = expf(z[j] - max);
		sum += e;
		weighted += (double)e * (z[j] - max);
	}
	sum = block_sum(sum, shared);
	return log(sum) - block_sum(weighted, shared) / sum;
}

// The k-th largest as an ordered integer, and how many of its equals belong to the k.
static __device__ uint32_t kth_largest(const float *z, uint32_t V, uint32_t k, uint32_t *histogram, uint32_t *ret_equal)
{
	__shared__ uint32_t prefix, wanted;
	if (threadIdx.x == 0) {
		prefix = 0;
		wanted = k;
	}
	for (int shift = 24; shift >= 0; shift -= 8) {
		for (uint32_t i = threadIdx.x; i < BINS; i += blockDim.x)
			histogram[i] = 0;
		__syncthreads();
		uint32_t mask = shift == 24 ? 0 : 0xffffffffu << (shift + 8);
		for (uint32_t j = threadIdx.x; j < V; j += blockDim.x) {
			uint32_t x = ordered(z[j]);
			if ((x & mask) == prefix)
				atomicAdd(&histogram[x >> shift & (BINS - 1)], 1u);
		}
		__syncthreads();
		if (threadIdx.x == 0) {
			int bin = BINS - 1;
			while (bin > 0 && histogram[bin] < wanted)
				wanted -= histogram[bin--];
			prefix |= (uint32_t)bin << shift;
		}
		__syncthreads();
	}
	*ret_equal = wanted;
	return prefix;
}

// Writes the k survivors as (id, logit) pairs in id order: each thread counts its own stretch of the row, then knows where to write. Equal
// values beyond `equal` are left out from the high ids, so ties go to the lower id.
static __device__ void write_top(const float *z, uint32_t V, uint32_t threshold, uint32_t equal, uint2 *to, uint32_t *greater_counts, uint32_t *equal_counts)
{
	uint32_t stretch = (V + blockDim.x - 1) / blockDim.x, first = threadIdx.x * stretch, end = min(first + stretch, V), g = 0, e = 0;
	for (uint32_t j = first; j < end; j++) {
		uint32_t x = ordered(z[j]);
		g += x > threshold;
		e += x == threshold;
	}
	greater_counts[threadIdx.x] = g;
	equal_counts[threadIdx.x] = e;
	__syncthreads();
	uint32_t at = 0, equals_before = 0;
	for (uint32_t i = 0; i < threadIdx.x; i++) {
		at += greater_counts[i];
		equals_before += equal_counts[i];
	}
	at += min(equals_before, equal);
	for (uint32_t j = first; j < end; j++) {
		uint32_t x = ordered(z[j]);
		if (x > threshold || (x == threshold && equals_before++ < equal))
			to[at++] = make_uint2(j, __float_as_uint(z[j]));
	}
}

static __global__ void sweep_kernel(const float *logits, uint32_t V, const sweep_plan *plans, const uint32_t *inputs, double *results)
{
	__shared__ double sums[CUDA_BLOCK / CUDA_WARP + 1];
	__shared__ float maxima[CUDA_BLOCK / CUDA_WARP + 1];
	__shared__ uint32_t counts[CUDA_BLOCK], more_counts[CUDA_BLOCK];
	sweep_plan p = plans[blockIdx.x];
	const float *z = logits + (size_t)blockIdx.x * V;
	double *out = results + p.results;
	float max = -INFINITY, bad = 0;
	for (uint32_t j = threadIdx.x; j < V; j += blockDim.x) {
		max = fmaxf(max, z[j]);
		bad = isfinite(z[j]) ? bad : 1.0f;
	}
	max = block_max(max, maxima);
	bad = block_max(bad, maxima);
	if (threadIdx.x == 0)
		out[0] = bad > 0 ? NAN : (double)max;
	if (bad > 0)
		return;
	double entropy = p.want_entropy ? row_entropy(z, V, max, sums) : 0;
	if (threadIdx.x == 0)
		out[1] = entropy;
	for (uint32_t i = 0; i < p.n_temperatures; i++) {
		float inverse = 1.0f / __uint_as_float(inputs[p.temperatures + i]);
		double sum = row_sum(z, V, max, inverse, sums);
		if (threadIdx.x == 0)
			out[2 + i] = (double)max / __uint_as_float(inputs[p.temperatures + i]) + log(sum);
	}
	for (uint32_t i = threadIdx.x; i < p.n_gather; i += blockDim.x)
		out[2 + p.n_temperatures + i] = z[inputs[p.gather + i]];
	if (!p.top_k)
		return;
	uint32_t equal, threshold = kth_largest(z, V, p.top_k, counts, &equal);
	__syncthreads();
	write_top(z, V, threshold, equal, (uint2 *)(out + 2 + p.n_temperatures + p.n_gather), counts, more_counts);
}

static void take_results(struct sweep_row *row, const sweep_plan *p, const double *all)
{
	const double *from = all + p->results;
	row->not_finite = isnan(from[0]);
	if (row->not_finite)
		return;
	row->max_logit = from[0];
	if (row->want_entropy)
		row->entropy = from[1];
	for (uint32_t i = 0; i < row->n_temperatures; i++)
		row->lse[i] = from[2 + i];
	for (uint32_t i = 0; i < row->n_gather; i++)
		row->gathered[i] = from[2 + row->n_temperatures + i];
	if (!row->top_k)
		return;
	struct pair { uint32_t id; float logit; };
	std::vector<pair> top(row->top_k);
	memcpy(top.data(), from + 2 + row->n_temperatures + row->n_gather, row->top_k * sizeof(pair));
	std::stable_sort(top.begin(), top.end(), [](const pair &a, const pair &b) { return a.logit > b.logit; });    // they come in id order
	for (uint32_t i = 0; i < row->top_k; i++) {
		row->ids[i] = top[i].id;
		row->logits[i] = top[i].logit;
	}
}

// As many of the n rows as fit the scratch buffer with their plans and inputs; returns how many (0: the backend failed).
static uint32_t sweep_chunk(backend *be, const float *logits, uint32_t n, uint32_t V, struct sweep_row *rows)
{
	cuda *c = cuda_of(be);
	std::vector<sweep_plan> plans;
	std::vector<uint32_t> inputs;
	size_t units = 0, bytes = 0;
	for (uint32_t i = 0; i < n; i++) {
		const struct sweep_row *r = &rows[i];
		bytes += sizeof(sweep_plan) + 4 * ((size_t)r->n_temperatures + r->n_gather) + plan_sweep_row_bytes(r->top_k, r->n_temperatures, r->n_gather);
		if (bytes + 64 > CUDA_SCRATCH_BYTES)
			break;
		sweep_plan p = {r->top_k, r->n_temperatures, r->n_gather, r->want_entropy, (uint32_t)inputs.size(), (uint32_t)(inputs.size() + r->n_temperatures), (uint32_t)units};
		for (uint32_t t = 0; t < r->n_temperatures; t++) {
			uint32_t bits;
			memcpy(&bits, &r->temperatures[t], sizeof bits);
			inputs.push_back(bits);
		}
		inputs.insert(inputs.end(), r->gather, r->gather + r->n_gather);
		units += 2 + r->n_temperatures + r->n_gather + r->top_k;
		plans.push_back(p);
	}
	if (plans.empty())
		backend_fail(be, "a row's answer does not fit the scratch buffer");
	if (backend_failed(be))
		return 0;
	size_t at_inputs = plans.size() * sizeof(sweep_plan), at_results = (at_inputs + inputs.size() * 4 + 15) & ~(size_t)15;
	char *device = (char *)c->scratch;
	std::vector<double> results(units);
	cudaMemcpyAsync(device, plans.data(), at_inputs, cudaMemcpyHostToDevice, c->stream);
	if (!inputs.empty())
		cudaMemcpyAsync(device + at_inputs, inputs.data(), inputs.size() * 4, cudaMemcpyHostToDevice, c->stream);
	sweep_kernel<<<(uint32_t)plans.size(), CUDA_BLOCK, 0, c->stream>>>(logits, V, (const sweep_plan *)device, (const uint32_t *)(device + at_inputs),
									   (double *)(device + at_results));
	CUDA_LAUNCHED(be, "sweep");
	cudaMemcpyAsync(results.data(), device + at_results, units * sizeof(double), cudaMemcpyDeviceToHost, c->stream);
	if (!cuda_check(be, cudaStreamSynchronize(c->stream), "sweep"))
		return 0;
	for (size_t i = 0; i < plans.size(); i++)
		take_results(&rows[i], &plans[i], results.data());
	return (uint32_t)plans.size();
}

void cuda_sweep(backend *be, const struct real *logits, uint32_t n, uint32_t V, struct sweep_row *rows)
{
	for (uint32_t done = 0, step; done < n; done += step) {
		step = backend_failed(be) ? 0 : sweep_chunk(be, real_of(logits) + (size_t)done * V, n - done, V, rows + done);
		for (uint32_t i = done; !step && i < n; i++)
			rows[i].not_finite = true;    // a failed device gives no numbers at all
		if (!step)
			return;
	}
}
