// SPDX-License-Identifier: Apache-2.0
// What a store lets go of: whole shards, the oldest first, by size and age. A shard is as old as the last write to its file; the newest,
// and the one being written, always stay.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct directory;
struct error;
struct store_parts;

struct retention { uint64_t max_bytes, max_age_s; };      // of shards and their index files; since the last write. 0 = no limit

struct retention_shard {
	uint32_t id;
	uint64_t n_bytes, index_bytes;       // with its index; of that alone
	int64_t written;             // seconds since 1970
};

struct retention_plan {
	struct retention_shard *shards;      // those to remove, in order; retention_plan_done
	size_t n;
	uint64_t n_bytes;                    // of them
	uint64_t n_left, left_bytes;         // shards that stay
};

// `now`: seconds since 1970. `current`: an id that stays besides the highest; UINT32_MAX = none.
int retention_find(const struct directory *d, const struct retention *r, int64_t now, uint32_t current, struct retention_plan *ret,
		   struct error *err);
void retention_plan_done(struct retention_plan *p);
// Index first: a shard without one is whole, an index without its shard would stay for ever. A shard that is gone already is fine.
int retention_remove(const struct directory *d, uint32_t id, struct error *err);

// All of it, for the thread that writes a store: removes, forgets the places, counts. Readers who hold a file finish.
void retention_apply(struct store_parts *parts, const struct retention *r, uint32_t current);
