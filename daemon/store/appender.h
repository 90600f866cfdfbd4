// SPDX-License-Identifier: Apache-2.0
// The writing side of a store: takes pending items, puts their records into shards, makes them findable and acknowledges them. Belongs to
// one thread; everyone else meets it through the index and its lock.
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/store/directory.h"
#include "daemon/store/index.h"
#include "daemon/store/pending.h"
#include "daemon/store/shards.h"
#include "daemon/store/tail.h"

// What store_stats reports, counted where it happens.
struct store_counters {
	_Atomic uint64_t n_bytes, n_appended, appended_bytes, n_duplicates, n_hits, n_misses, n_failed_appends, n_corrupt, recovered_bytes,
		n_overflows, n_contained, n_removed_shards, removed_bytes;
	atomic_bool uring, direct, failing;
};

// What the threads of a store share. `pending` and `shards` under the index's lock; `directory` does not change.
struct store_parts {
	struct directory directory;
	struct index *index;
	struct pending pending;
	struct shards shards;
	struct store_counters counters;
	store_failing_fn *failing;
	void *failing_arg;
};

struct appender {
	struct store_parts *parts;
	struct tail tail;
	struct tail_shard retired;       // its last fsync failed: what it had not covered is to be written again
	uint64_t shard_bytes;
	uint32_t next_id;                // of the next new shard
	bool pauses;                     // appender_drain returns when it has begun a shard: the store has something to do then
	uint64_t retry_at_ms, backoff_ms;
	uint64_t refused_bytes;          // what the disk had no room for last
};

// `current` (fd -1: none) is taken over, also on failure.
int appender_init(struct appender *a, struct store_parts *parts, uint64_t shard_bytes, struct tail_shard *current, uint32_t next_id,
		  struct error *err);
void appender_done(struct appender *a);      // makes everything durable first; NULL-safe for a zeroed one

// Takes items from the queue until it is empty, a failure has been dealt with, or (see pauses) a shard was begun. Every item taken is
// acknowledged or failed, made findable or not, and freed when this returns.
void appender_drain(struct appender *a);

// While the disk refuses appends: how long until it should be tried again though nobody appends. UINT64_MAX: it takes them.
uint64_t appender_retry_ms(const struct appender *a);
void appender_retry(struct appender *a);
