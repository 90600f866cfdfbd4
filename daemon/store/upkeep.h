// SPDX-License-Identifier: Apache-2.0
// Work on the shards of a directory that nobody is writing to: letting go of old ones, rewriting them without what says nothing new. Takes
// the directory's lock (-EEXIST, ERROR_CONFLICT: a daemon has it). A process killed at any point leaves a store that answers all it did.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct survey_item;

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

struct upkeep_compact {
	const char *directory;
	uint64_t shard_bytes;                // of the new shards; 0 = 256 MiB
	unsigned n_threads;                  // to read with; 0 = 1
	bool keep_contained;                 // only second copies are left out
	bool drop_damaged;                   // shards with damage are rewritten too, without what is damaged; else they stay as they are
	void (*damaged)(void *arg, const struct survey_item *damage);       // from one thread at a time
	void (*progress)(void *arg, uint64_t done_bytes, uint64_t all_bytes);       // of reading, then of rewriting; NULL = none
	void *arg;
};
struct upkeep_compacted {
	uint64_t n_records;                  // good ones there were
	uint64_t n_duplicates, n_contained;  // of them left out
	uint64_t n_damaged;                  // damaged places
	uint64_t n_dropped;                  // of them left out with what was in them
	uint64_t n_shards, n_rewritten;      // there were; of them replaced
	uint64_t n_left;                     // shards with damage that stay as they are
	uint64_t n_made;                     // in the place of those replaced
	uint64_t before_bytes, after_bytes;  // of all shards
};
// Rewrites sealed shards (the one that was being written is sealed first) without second copies of a key and without records that a larger
// one contains; joins small ones. The bytes of records stay as they are. New shards are whole and durable before the ones they replace are
// removed, one after the other: room for two shards is enough. What was done before a failure stays done and is in *ret.
int upkeep_compact(const struct upkeep_compact *o, struct upkeep_compacted *ret, struct error *err);
