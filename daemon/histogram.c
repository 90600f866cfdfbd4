// SPDX-License-Identifier: Apache-2.0
#include "daemon/histogram.h"

static const double bounds[HISTOGRAM_BUCKETS] = {0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300};

double histogram_bound(int i)
{
	return bounds[i];
}

void histogram_append(struct histogram *h, double seconds)
{
	int i = 0;
	while (i < HISTOGRAM_BUCKETS && seconds > bounds[i])
		i++;
	atomic_fetch_add(&h->counts[i], 1);
	atomic_fetch_add(&h->sum_us, (uint64_t)(seconds * 1e6));
}
