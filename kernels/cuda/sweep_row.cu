// SPDX-License-Identifier: Apache-2.0
// The vocabulary sweep of one row, by one block: twice over the logits. First the maximum, of all and of each thread's share; the k-th
// largest of the shares' maxima is a bound below which no top-k logit lies. Then the sums at each temperature, while the few logits above
// the bound are collected and put in order. The rare row whose candidates are too many (k large, or thousands of equals) is selected bit by
// bit instead. What lies outside the top-k, and draws, cost two further passes. Sums have a fixed order.
#include "kernels/cuda/sweep.cuh"

#include <float.h>

#define THREADS 512
#define CANDIDATES 1024                 // of which k <= MOST_SHARES are kept
#define MOST_SHARES 256                 // with 512 shares, about 360 logits lie above the 256th largest of their maxima
#define CHUNKS 1024                     // of a row that is drawn from, each at least 128 ids
#define BINS 256
#define BOUND_BITS 20                   // of a float's 32: twelve of the fraction, so hardly more candidates than with all
#define DEEP 4                          // loads under way at once, per thread

struct candidate { float logit; uint32_t id; };

struct row_memory {
	double sums[CUDA_WARP];
	float maxima[CUDA_WARP];
	union {
		uint32_t counts[2][THREADS];
		double cumulative[CHUNKS + 1];
	};
	candidate list[CANDIDATES];
	uint32_t n_list, prefix, wanted;
	candidate cut;                  // the last of the top-k
	uint32_t last_chunk;
};

// One row, and this thread's part of it.
struct row {
	const float *z;
	uint32_t V;
	bool wide;                      // four logits at a time
	row_memory *m;
};

template <int N, typename F> static __device__ __forceinline__ void walk_packs(const row &r, F f)
{
	const uint32_t step = THREADS * N;
	for (uint32_t first = threadIdx.x * N; first < r.V; first += DEEP * step) {
		cuda_pack<float, N> v[DEEP];
#pragma unroll
		for (int i = 0; i < DEEP; i++)
			if (first + i * step < r.V)
				v[i] = load_pack<N>(r.z + first + i * step);
#pragma unroll
		for (int i = 0; i < DEEP; i++)
			if (first + i * step < r.V)
				f(first + i * step, v[i]);
	}
}

// f(first id, pack of logits) for this thread's share of the row.
template <typename F> static __device__ __forceinline__ void walk(const row &r, F f)
{
	if (r.wide)
		walk_packs<4>(r, f);
	else
		walk_packs<1>(r, f);
}

// Of equal logits the lower id comes first.
static __device__ __forceinline__ bool before(float a, uint32_t a_id, float b, uint32_t b_id) { return a > b || (a == b && a_id < b_id); }

// Maximum of the row and of this thread's share; false when some logit is not finite.
static __device__ bool find_max(const row &r, float *ret_max, float *ret_share)
{
	float max = -INFINITY, bad = 0;
	walk(r, [&](uint32_t, const auto &v) {
		for (float x : v.v) {
			max = fmaxf(max, x);
			bad = fabsf(x) <= FLT_MAX ? bad : 1.0f;
		}
	});
	*ret_share = max;
	*ret_max = block_max(max, r.m->maxima);
	bad = block_max(bad, r.m->maxima);
	return bad == 0;
}

// Larger float, larger integer; zeros of both signs are one.
static __device__ __forceinline__ uint32_t ordered(float x)
{
	uint32_t bits = __float_as_uint(x + 0.0f);
	return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static __device__ __forceinline__ float disordered(uint32_t x) { return __uint_as_float(x & 0x80000000u ? x & 0x7fffffffu : ~x); }

// A bound that at least k shares' maxima reach, so k different logits too: their k-th largest, cut to BOUND_BITS, found bit by bit.
static __device__ float find_bound(const row &r, float mine, uint32_t k)
{
	uint32_t x = ordered(mine), bound = 0;
	for (uint32_t bit = 1u << 31; bit > 1u << (31 - BOUND_BITS); bit >>= 1)
		if (__syncthreads_count(x >= (bound | bit)) >= (int)k)
			bound |= bit;
	if (threadIdx.x == 0)
		r.m->n_list = 0;
	__syncthreads();
	return disordered(bound);
}

static __device__ __forceinline__ void collect(const row &r, float x, uint32_t id)
{
	uint32_t at = atomicAdd(&r.m->n_list, 1u);
	if (at < CANDIDATES)
		r.m->list[at] = candidate{x, id};
}

// Sums of 2^(scale (z - max)) at n_sums scales; the first also weighted by z - max. Logits of at least `bound` are collected.
template <int n_sums> static __device__ void add_up(const row &r, float max, float bound, const float *scales, double *ret_sums,
						    double *ret_weighted)
{
	double sums[n_sums ? n_sums : 1] = {0}, weighted = 0;
	walk(r, [&](uint32_t id, const auto &v) {
		float parts[n_sums ? n_sums : 1] = {0}, weighted_part = 0;
		constexpr int N = sizeof v.v / sizeof *v.v;
#pragma unroll
		for (int j = 0; j < N; j++) {
			float below = v.v[j] - max;
#pragma unroll
			for (int i = 0; i < n_sums; i++) {
				float e = exp2f(below * scales[i]);
				parts[i] += e;
				weighted_part += i == 0 ? e * below : 0.0f;
			}
			if (v.v[j] >= bound)
				collect(r, v.v[j], id + j);
		}
		for (int i = 0; i < n_sums; i++)
			sums[i] += parts[i];
		weighted += weighted_part;
	});
	for (int i = 0; i < n_sums; i++)
		ret_sums[i] = block_sum(sums[i], r.m->sums);
	*ret_weighted = block_sum(weighted, r.m->sums);
}

// The logarithm of every sum, two at a time, the first pass also collecting; and the entropy, of the first.
static __device__ void all_sums(const row &r, const sweep_plan &p, const uint32_t *words, float max, float bound, double *out)
{
	for (uint32_t i = 0; i < p.n_sums || i == 0; i += 2) {
		uint32_t n = min(2u, p.n_sums - i);
		float scales[2] = {n > 0 ? __uint_as_float(words[p.sums + i]) : 0, n > 1 ? __uint_as_float(words[p.sums + i + 1]) : 0};
		double sums[2], weighted = 0;
		if (n == 2)
			add_up<2>(r, max, bound, scales, sums, &weighted);
		else if (n == 1)
			add_up<1>(r, max, bound, scales, sums, &weighted);
		else if (bound < INFINITY)
			add_up<0>(r, max, bound, scales, sums, &weighted);
		bound = INFINITY;
		for (uint32_t j = 0; j < n && threadIdx.x == 0; j++)
			out[SWEEP_FIXED + i + j] = log(sums[j]);
		if (i == 0 && p.entropy && threadIdx.x == 0)
			out[SWEEP_ENTROPY] = log(sums[0]) - weighted / sums[0];
	}
}

// Candidates to their places; the k-th is the cut.
static __device__ void order_candidates(const row &r, uint32_t k, sweep_pair *top)
{
	for (uint32_t i = threadIdx.x; i < r.m->n_list; i += THREADS) {
		candidate mine = r.m->list[i];
		uint32_t rank = 0;
		for (uint32_t j = 0; j < r.m->n_list; j++)
			rank += before(r.m->list[j].logit, r.m->list[j].id, mine.logit, mine.id);
		if (rank < k)
			top[rank] = sweep_pair{mine.id, mine.logit};
		if (rank == k - 1)
			r.m->cut = mine;
	}
	__syncthreads();
}

// The k-th largest as an ordered integer, by four histograms of eight bits each; m->wanted: how many of its equals belong to the k.
static __device__ uint32_t select_threshold(const row &r, uint32_t k)
{
	uint32_t *histogram = r.m->counts[0];
	__syncthreads();
	if (threadIdx.x == 0) {
		r.m->prefix = 0;
		r.m->wanted = k;
	}
	for (int shift = 24; shift >= 0; shift -= 8) {
		for (uint32_t i = threadIdx.x; i < BINS; i += THREADS)
			histogram[i] = 0;
		__syncthreads();
		uint32_t mask = shift == 24 ? 0 : 0xffffffffu << (shift + 8), prefix = r.m->prefix;
		walk(r, [&](uint32_t, const auto &v) {
			for (float x : v.v)
				if ((ordered(x) & mask) == prefix)
					atomicAdd(&histogram[ordered(x) >> shift & (BINS - 1)], 1u);
		});
		__syncthreads();
		if (threadIdx.x == 0) {
			int bin = BINS - 1;
			while (bin > 0 && histogram[bin] < r.m->wanted)
				r.m->wanted -= histogram[bin--];
			r.m->prefix |= (uint32_t)bin << shift;
		}
		__syncthreads();
	}
	return r.m->prefix;
}

// The k in id order: each thread counts its own stretch of the row, then knows where to write. Of the equals the higher ids are left out.
static __device__ void select_top(const row &r, uint32_t k, sweep_pair *top)
{
	uint32_t threshold = select_threshold(r, k), equal = r.m->wanted;
	uint32_t stretch = (r.V + THREADS - 1) / THREADS, first = min(threadIdx.x * stretch, r.V), end = min(first + stretch, r.V), g = 0, e = 0;
	for (uint32_t j = first; j < end; j++) {
		uint32_t x = ordered(r.z[j]);
		g += x > threshold;
		e += x == threshold;
	}
	r.m->counts[0][threadIdx.x] = g;
	r.m->counts[1][threadIdx.x] = e;
	__syncthreads();
	uint32_t at = 0, equals_before = 0;
	for (uint32_t i = 0; i < threadIdx.x; i++) {
		at += r.m->counts[0][i];
		equals_before += r.m->counts[1][i];
	}
	at += min(equals_before, equal);
	for (uint32_t j = first; j < end; j++) {
		uint32_t x = ordered(r.z[j]);
		bool mine = x > threshold || (x == threshold && equals_before < equal);
		equals_before += x == threshold;
		if (mine)
			top[at++] = sweep_pair{j, r.z[j]};
		if (mine && x == threshold && equals_before == equal)
			r.m->cut = candidate{r.z[j], j};
	}
	__syncthreads();
}

// Not among the top-k.
struct outside {
	bool all;
	candidate cut;
	__device__ bool operator()(float x, uint32_t id) const { return all || before(cut.logit, cut.id, x, id); }
};

static __device__ float find_max_outside(const row &r, const outside &is_outside)
{
	float max = -INFINITY;
	walk(r, [&](uint32_t id, const auto &v) {
		for (uint32_t j = 0; j < sizeof v.v / sizeof *v.v; j++)
			if (is_outside(v.v[j], id + j))
				max = fmaxf(max, v.v[j]);
	});
	return block_max(max, r.m->maxima);
}

static __device__ double sum_of_logits(const row &r)
{
	double sum = 0;
	walk(r, [&](uint32_t, const auto &v) {
		for (float x : v.v)
			sum += x;
	});
	return block_sum(sum, r.m->sums);
}

static __device__ double tail_lse(const row &r, const outside &is_outside, float max)
{
	double sum = 0;
	walk(r, [&](uint32_t id, const auto &v) {
		for (uint32_t j = 0; j < sizeof v.v / sizeof *v.v; j++)
			if (is_outside(v.v[j], id + j))
				sum += expf(v.v[j] - max);
	});
	sum = block_sum(sum, r.m->sums);
	return max > -INFINITY ? max + log(sum) : -INFINITY;
}

// What a row is drawn from: e^(tau (z - max)) of some ids.
struct proposal {
	const float *z;
	outside may;
	double tau;
	float max;
	__device__ double operator()(uint32_t id) const { return may(z[id], id) ? (double)expf((float)(tau * (double)(z[id] - max))) : 0.0; }
};

static __device__ uint32_t chunk_ids(uint32_t V) { return max(128u, (V + CHUNKS - 1) / CHUNKS); }

// cumulative[c] = sum over the chunks below c; m->last_chunk: the last that has anything.
static __device__ void sum_chunks(const row &r, const proposal &t)
{
	uint32_t size = chunk_ids(r.V), n = (r.V + size - 1) / size, lane = threadIdx.x % CUDA_WARP;
	__syncthreads();
	for (uint32_t c = threadIdx.x / CUDA_WARP; c < n; c += THREADS / CUDA_WARP) {
		double sum = 0;
		for (uint32_t j = c * size + lane; j < min((c + 1) * size, r.V); j += CUDA_WARP)
			sum += t(j);
		for (int o = CUDA_WARP / 2; o; o >>= 1)
			sum += __shfl_xor_sync(0xffffffffu, sum, o);
		if (lane == 0)
			r.m->cumulative[c + 1] = sum;
	}
	__syncthreads();
	if (threadIdx.x == 0) {
		r.m->cumulative[0] = 0;
		r.m->last_chunk = 0;
		for (uint32_t c = 0; c < n; c++) {
			if (r.m->cumulative[c + 1] > 0)
				r.m->last_chunk = c;
			r.m->cumulative[c + 1] += r.m->cumulative[c];
		}
	}
	__syncthreads();
}

// The lowest id whose share and those below it exceed `want`: its chunk by bisection, then id by id. A want that rounding put beyond the
// sum goes to the last id that can be drawn.
static __device__ uint32_t draw_one(const row &r, const proposal &t, double want)
{
	uint32_t size = chunk_ids(r.V), low = 0, high = r.m->last_chunk, id = 0;
	while (low < high) {
		uint32_t middle = low + (high - low) / 2;
		if (r.m->cumulative[middle + 1] > want)
			high = middle;
		else
			low = middle + 1;
	}
	double below = r.m->cumulative[low];
	for (uint32_t j = low * size; j < min((low + 1) * size, r.V); j++) {
		double share = t(j);
		if (share > 0)
			id = j;
		below += share;
		if (below > want)
			break;
	}
	return id;
}

static __device__ void draw(const row &r, const sweep_plan &p, const proposal &t, const double *uniforms, double *all_results)
{
	double *drawn = all_results + sweep_drawn_at(p), *out = all_results + p.results;
	if (t.max > -INFINITY)
		sum_chunks(r, t);
	uint32_t n_chunks = (r.V + chunk_ids(r.V) - 1) / chunk_ids(r.V);
	double sum = t.max > -INFINITY ? r.m->cumulative[n_chunks] : 0;
	for (uint32_t i = threadIdx.x; i < p.n_draws; i += THREADS) {
		uint32_t id = sum > 0 ? draw_one(r, t, uniforms[p.uniforms + i] * sum) : UINT32_MAX;
		drawn[i] = id;
		drawn[p.n_draws + i] = id == UINT32_MAX ? 0.0 : (double)r.z[id];
	}
	if (threadIdx.x == 0)
		out[SWEEP_DRAW_LSE] = sum > 0 ? t.tau * (double)t.max + log(sum) : -INFINITY;
}

static __global__ void __launch_bounds__(THREADS) sweep_kernel(sweep_input in)
{
	__shared__ row_memory memory;
	sweep_plan p = in.plans[blockIdx.x];
	double *out = in.results + p.results;
	sweep_pair *top = (sweep_pair *)(in.results + sweep_top_at(p));
	row r = {in.logits + (size_t)blockIdx.x * in.V, in.V, in.wide, &memory};
	float max, share, bound = INFINITY;
	bool finite = find_max(r, &max, &share), by_share = p.top_k && p.top_k <= MOST_SHARES && p.top_k <= in.V / (r.wide ? 4 : 1);
	if (threadIdx.x == 0)
		out[SWEEP_MAX] = finite ? (double)max : NAN;
	if (!finite)
		return;
	if (by_share)
		bound = find_bound(r, share, p.top_k);
	all_sums(r, p, in.words, max, bound, out);
	double all = p.mean ? sum_of_logits(r) : 0;
	if (threadIdx.x == 0)
		out[SWEEP_MEAN] = all / in.V;
	for (uint32_t i = threadIdx.x; i < p.n_gather; i += THREADS)
		in.results[sweep_gathered_at(p) + i] = r.z[in.words[p.gather + i]];
	__syncthreads();
	bool sorted = by_share && memory.n_list <= CANDIDATES;
	if (threadIdx.x == 0)
		out[SWEEP_SORTED] = sorted;
	if (p.top_k && sorted)
		order_candidates(r, p.top_k, top);
	else if (p.top_k)
		select_top(r, p.top_k, top);
	if (!p.tail && !p.n_draws)
		return;
	outside anything = {true, {}}, is_outside = p.top_k ? outside{false, memory.cut} : anything;
	float max_outside = find_max_outside(r, is_outside);
	double tail = p.tail ? tail_lse(r, is_outside, max_outside) : 0;
	if (threadIdx.x == 0)
		out[SWEEP_TAIL] = tail;
	if (p.n_draws)
		draw(r, p, proposal{r.z, p.draw_tail ? is_outside : anything, p.draw_tau, p.draw_tail ? max_outside : max}, in.uniforms, in.results);
}

void sweep_launch(backend *be, const sweep_input &in, uint32_t n)
{
	cuda_launch(be, "sweep", n, THREADS, 0, sweep_kernel, in);
}
