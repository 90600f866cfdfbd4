// SPDX-License-Identifier: Apache-2.0
// Content key -> place on disk, in memory. Open addressing in slots of 32 bytes (a part of the key, which is a SHA-256: whoever reads the
// place checks the whole of it), at most 3/4 full, doubling: 43 to 85 bytes per record, and half of that for groups.h. Holds the store's
// one lock.
#pragma once

#include <stdint.h>

#include "common/sequence.h"

struct index;

struct index_entry {
	uint32_t shard;
	uint32_t record_bytes;       // > 0
	uint64_t offset;             // of the frame
	uint32_t shape;              // of its question, see part.h; 0 = unknown
	uint64_t group;              // see groups.h; 0 = none. Found by, not found
};

struct index *index_new(void);                      // NULL: no memory
struct index *index_free(struct index *index);      // returns NULL; NULL is fine

// The lock: short sections only, nothing that waits for a disk. index_wait gives it up until index_wake.
void index_lock(struct index *index);
void index_unlock(struct index *index);
void index_wait(struct index *index);
void index_wait_ms(struct index *index, uint64_t ms);       // at most so long
void index_wake(struct index *index);

// Forgets every place in these shards (ids ascend). Takes the lock, for a short section at a time; a place that moves meanwhile may slip
// through, and is found to be gone by who looks there.
void index_remove_shards(struct index *index, const uint32_t *ids, size_t n);

// The caller holds the lock.
int index_find(const struct index *index, const struct content_id *key, struct index_entry *ret_entry);         // -ENOENT
int index_append(struct index *index, const struct content_id *key, const struct index_entry *entry);           // replaces; -ENOMEM
void index_remove(struct index *index, const struct content_id *key, const struct index_entry *entry);          // only if it is still there
uint64_t index_count(const struct index *index);
// Places of records of one group, the most recent not first nor last; at most INDEX_GROUP_MAX. How many.
#define INDEX_GROUP_MAX 16
unsigned index_find_group(const struct index *index, uint64_t group, struct index_entry ret_entries[INDEX_GROUP_MAX]);
