// SPDX-License-Identifier: Apache-2.0
// Texts as hashed unigrams and bigrams, and how much likelier one is in a target than in the rest (DSIR, arXiv 2302.03169).
#pragma once

#include <stddef.h>
#include <stdint.h>

#define NGRAMS_BUCKETS 10000

struct ngrams {
	uint32_t counts[NGRAMS_BUCKETS];
	uint64_t n_words;
};

// Adds a UTF-8 text: lower-cased, cut into runs of letters, digits and _ and runs of what is neither those nor white space; every word and
// every pair of neighbours ("word word") counts in bucket SHA-256 (as one big-endian number) mod 10000. What letters are is the locale's
// business: the program calls ngrams_init once. Bytes that are not UTF-8 stand for themselves.
int ngrams_init(void);                                             // -ENOENT: there is no C.UTF-8
int ngrams_add(struct ngrams *g, const char *text, size_t n);      // -ENOMEM

// ret[b] = ln(P_target(b) + 1e-8) - ln(P_raw(b) + 1e-8), P a bucket's share of the counts
void ngrams_log_ratios(const uint64_t *target, const uint64_t *raw, double *ret /*(NGRAMS_BUCKETS)*/);
double ngrams_log_weight(const struct ngrams *g, const double *log_ratios);      // sum of counts * log ratio
