// SPDX-License-Identifier: Apache-2.0
// Records on their way to the disk: a queue in order of arrival, bounded in bytes, in which a key can be found. The caller holds the
// index's lock throughout.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/store/shard.h"
#include "daemon/store/store.h"

struct pending_item {
	struct record *record;                // a reference
	enum store_durability durability;
	store_done_fn *done;
	void *arg;
	uint64_t n_bytes;                     // counted against the limit until freed
	bool listed;                          // found by its key (false: an earlier item had the key already)
	struct pending_item *next, *chain;
	// for the thread that writes
	bool acknowledged, written, duplicate;
	struct shard_frame frame;             // once written
};

struct pending_list { struct pending_item *first, *last; };

#define PENDING_BUCKETS 16384          // 128 KiB; 20 records to a bucket with 64 MiB of the smallest records
struct pending {
	uint64_t n_bytes, max_bytes;
	struct pending_list queue;
	struct pending_item *buckets[PENDING_BUCKETS];
};

void pending_list_push(struct pending_list *list, struct pending_item *item);
struct pending_item *pending_list_pop(struct pending_list *list);      // NULL when empty

// Takes its own reference to the record. -EAGAIN when full, -ENOMEM.
int pending_push(struct pending *p, struct record *record, enum store_durability durability, store_done_fn *done, void *arg);
struct record *pending_find(const struct pending *p, const struct content_id *key);    // borrowed; NULL when absent
// The next items, about max_bytes, go to the end of the list. An item whose key was pending already goes to an empty list only, so that by
// then the earlier one is on disk or has failed.
void pending_pop(struct pending *p, uint64_t max_bytes, struct pending_list *items);
// Forgets the item; the record's reference goes to the caller, who drops it without the lock.
struct record *pending_free(struct pending *p, struct pending_item *item);
