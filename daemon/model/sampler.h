// SPDX-License-Identifier: Apache-2.0
// Next-token choice for generation, from one row of raw logits, on the host.
//
// Filters, in the order of transformers' generate(), each acting on the distribution the one before left, renormalised:
//   temperature   logits / temperature (0: the largest logit, ties to the lower id; no filter can matter then)
//   top_k         the k most probable ids (ties to the lower id)
//   top_p         the fewest most probable ids whose probabilities sum to at least top_p
//   min_p         ids at least min_p times as probable as the most probable
//   typical_p     the fewest ids whose probabilities sum to at least typical_p, taken in the order of |-ln p - entropy| (Meister et al.)
// Every filter leaves at least one id. Then the id is drawn by inversion with one uniform number.
#pragma once

#include <stdint.h>

struct error;
struct sampler;

struct sampler_options {
	float temperature;           // 0, or in [SAMPLER_MIN_TEMPERATURE, SAMPLER_MAX_TEMPERATURE]
	uint32_t top_k;              // 0 = all
	float top_p;                 // (0, 1]; 1 = all
	float min_p;                 // [0, 1]; 0 = all
	float typical_p;             // (0, 1]; 1 = all
};

#define SAMPLER_MIN_TEMPERATURE 1e-4f
#define SAMPLER_MAX_TEMPERATURE 1e4f

void sampler_options_init(struct sampler_options *o);                          // temperature 1, no filter
int sampler_options_check(const struct sampler_options *o, struct error *err);    // fields have their own names ("top_p")

// Buffers for rows of vocab_size logits.
int sampler_new(uint32_t vocab_size, struct sampler **ret_sampler, struct error *err);
struct sampler *sampler_free(struct sampler *s);                               // NULL is fine; returns NULL

// logits (V), finite; options checked; uniform in [0, 1). *ret_logprob: ln of the chosen id's probability among what the filters left.
uint32_t sampler_choose(struct sampler *s, const struct sampler_options *o, const double *logits, double uniform, double *ret_logprob);

// Uniform in [0, 1) by a counter-based generator (philox.h): a pure function of its arguments, so that a sequence does not depend on
// its batch mates, nor on whether it was made in one request or token by token. position: of the token chosen, in its sequence.
double sampler_uniform(uint64_t seed, uint32_t sample, uint32_t position);
