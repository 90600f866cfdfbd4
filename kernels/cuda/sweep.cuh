// SPDX-License-Identifier: Apache-2.0
// Private to sweep*.cu: what the host asks of one row of logits and where the answer lies.
#pragma once

#include "kernels/cuda/cuda.cuh"

struct sweep_plan {
	uint32_t top_k, n_sums, n_gather, n_draws;
	bool entropy;                   // the first sum is at temperature 1 and its entropy is wanted
	bool mean, tail, draw_tail;
	uint32_t sums, gather;          // first place in the list of words: log2(e) / T of each sum (floats); ids
	uint32_t uniforms;              // first place in the list of doubles
	double draw_tau;
	uint64_t results;               // first 8-byte place of the results
};

// Results of a row, in 8-byte places: these, then ln of each sum (of e^((z - max) / T)), gathered, drawn ids (as doubles), their logits,
// and the top-k as pairs.
enum { SWEEP_MAX, SWEEP_ENTROPY, SWEEP_MEAN, SWEEP_TAIL, SWEEP_DRAW_LSE, SWEEP_SORTED, SWEEP_FIXED };
struct sweep_pair { uint32_t id; float logit; };

static __host__ __device__ inline uint64_t sweep_gathered_at(const sweep_plan &p) { return p.results + SWEEP_FIXED + p.n_sums; }
static __host__ __device__ inline uint64_t sweep_drawn_at(const sweep_plan &p) { return sweep_gathered_at(p) + p.n_gather; }
static __host__ __device__ inline uint64_t sweep_top_at(const sweep_plan &p) { return sweep_drawn_at(p) + 2 * (uint64_t)p.n_draws; }

struct sweep_input {
	const float *logits;            // (n, V)
	uint32_t V;
	bool wide;                      // four logits may be read at a time
	const sweep_plan *plans;        // (n)
	const uint32_t *words;
	const double *uniforms;
	double *results;
};
void sweep_launch(backend *be, const sweep_input &in, uint32_t n);
