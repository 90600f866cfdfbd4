// SPDX-License-Identifier: Apache-2.0
// store_writer DIRECTORY N: appends records 0..N-1 durably, one after the other, and says what became of them; with N = 0 counts what is
// there. Knows nothing of faults: preload.sh puts them in its way.
#include <stdio.h>
#include <stdlib.h>

#include "tests/unit/store_fixture.h"

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	unsigned n = (unsigned)strtoul(argv[2], NULL, 10), n_stored = 0;
	struct store *s = fixture_open(argv[1], 1 << 20);
	for (unsigned i = 0; i < n; i++) {
		struct record *r = fixture_record(i, 8, 4);
		n_stored += fixture_append(s, r, STORE_DURABLE) == 0;
		record_unref(r);
	}
	struct store_stats stats = fixture_stats(s);
	printf("uring %d stored %u failed %u shards %llu records %llu corrupt %llu\n", stats.uring, n_stored, n - n_stored,
	       (unsigned long long)stats.n_shards, (unsigned long long)stats.n_records, (unsigned long long)stats.n_corrupt);
	store_close(s);
	return 0;
}
