// SPDX-License-Identifier: Apache-2.0
// Durations counted in fixed buckets, by any thread without a lock; read by /metrics.
#pragma once

#include <stdatomic.h>
#include <stdint.h>

#define HISTOGRAM_BUCKETS 12    // upper bounds from 1 ms, times about 3.16 each, to 300 s; then infinity

struct histogram {
	atomic_uint_fast64_t counts[HISTOGRAM_BUCKETS + 1];    // not cumulative; the last is "over all bounds"
	atomic_uint_fast64_t sum_us;
};

double histogram_bound(int i);                       // seconds, 0 <= i < HISTOGRAM_BUCKETS
void histogram_append(struct histogram *h, double seconds);
