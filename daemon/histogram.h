// SPDX-License-Identifier: Apache-2.0
// Durations counted in fixed buckets, by any thread without a lock; read by /metrics.
#pragma once

#include <stdatomic.h>
#include <stdint.h>

#define HISTOGRAM_BUCKETS 14    // upper bounds from 100 us, times about 3.16 each, to 300 s; then infinity

struct histogram {
	atomic_uint_fast64_t counts[HISTOGRAM_BUCKETS + 1];    // not cumulative; the last is "over all bounds"
	atomic_uint_fast64_t sum_us;
};

static inline double histogram_bound(int i)            // seconds, 0 <= i < HISTOGRAM_BUCKETS
{
	static const double bounds[HISTOGRAM_BUCKETS] = {0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300};
	return bounds[i];
}

static inline void histogram_append(struct histogram *h, double seconds)
{
	int i = 0;
	while (i < HISTOGRAM_BUCKETS && seconds > histogram_bound(i))
		i++;
	atomic_fetch_add(&h->counts[i], 1);
	// What a worker reports may be any number: beyond a year it counts as one.
	atomic_fetch_add(&h->sum_us, (uint64_t)(seconds > 0 ? (seconds < 3e7 ? seconds : 3e7) * 1e6 : 0));
}
