// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/align.h"

static uint32_t last_equal(const uint32_t *ends, uint32_t n, uint32_t i)
{
	while (i + 1 < n && ends[i + 1] == ends[i])
		i++;
	return i;
}

uint32_t align_boundaries(const uint32_t *ends_a, uint32_t n_a, const uint32_t *ends_b, uint32_t n_b, struct align_boundary *ret)
{
	uint32_t a = 0, b = 0, n = 0;
	while (a < n_a && b < n_b) {
		if (ends_a[a] < ends_b[b]) {
			a++;
		} else if (ends_a[a] > ends_b[b]) {
			b++;
		} else {
			a = last_equal(ends_a, n_a, a);
			b = last_equal(ends_b, n_b, b);
			ret[n++] = (struct align_boundary){a++, b, ends_b[b]};
			b++;
		}
	}
	return n;
}
