// SPDX-License-Identifier: Apache-2.0
// Work on the shards of a directory that nobody is writing to: letting go of old ones, rewriting them without what says nothing new, adding
// those of other directories. Takes the directory's lock (-EEXIST, ERROR_CONFLICT: a daemon has it). A process killed at any point leaves a
// store that answers all it did.
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
	int compression;                     // 0: records stay as they lie; else every shard is rewritten: level of zstd (packed.h),
	                                     // -1 = without
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
// one contains; joins small ones. What records say stays as it is. New shards are whole and durable before the ones they replace are
// removed, one after the other: room for two shards is enough. What was done before a failure stays done and is in *ret.
int upkeep_compact(const struct upkeep_compact *o, struct upkeep_compacted *ret, struct error *err);

struct upkeep_merge {
	const char *directory;               // made when missing
	uint64_t shard_bytes;                // at which a new shard is begun; 0 = 256 MiB
	char *const *from;                   // other directories; may be in use, nothing in them is touched
	size_t n_from;
	void (*damaged)(void *arg, const char *from, const struct survey_item *damage);
	void (*progress)(void *arg, uint64_t done_bytes, uint64_t all_bytes);       // of each directory in turn; NULL = none
	void *arg;
};
struct upkeep_merged {
	uint64_t n_records;                  // good ones met, in all
	uint64_t n_there;                    // of them not needed
	uint64_t n_damaged;                  // damaged places, left out
	uint64_t n_bytes;                    // added
};
// Appends what other directories hold, byte for byte and durably, then their notes on who answered. A key that is there already stays as
// it is; the first copy wins. Repeating it goes on with what is missing. What was done before a failure stays done and is in *ret.
int upkeep_merge(const struct upkeep_merge *o, struct upkeep_merged *ret, struct error *err);
