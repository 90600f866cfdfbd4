// SPDX-License-Identifier: Apache-2.0
// Work on the shards of a directory that nobody is writing to: letting go of old ones, rewriting them without what says nothing new. Takes
// the directory's lock (-EEXIST, ERROR_CONFLICT: a daemon has it). A process killed at any point leaves a store that answers all it did.
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct error;

struct upkeep_shard { uint32_t id; uint64_t n_bytes; int64_t written; };     // with its index; seconds since 1970
typedef void upkeep_removed(void *arg, const struct upkeep_shard *shard);

struct upkeep_prune {
	const char *directory;
	uint64_t max_bytes, max_age_s;       // 0 = no limit
	bool dry_run;                        // only says what would go; needs no lock
	upkeep_removed *removed;             // of each shard, the oldest first
	void *arg;
};
struct upkeep_pruned { uint64_t n_shards, n_bytes, n_left, left_bytes; };
// Whole shards, the oldest first, never the newest. What was removed before a failure stays removed and is in *ret.
int upkeep_prune(const struct upkeep_prune *o, struct upkeep_pruned *ret, struct error *err);
