// SPDX-License-Identifier: Apache-2.0
// The shards of an open store, by id, and the descriptors for reading them: opened when first wanted, a bounded number kept.
// The caller holds the index's lock.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/store/index.h"

struct error;
struct record;

#define SHARDS_OPEN_MAX 512            // of the 1024 descriptors a process may have by default

struct shards_file {
	uint32_t id;
	uint32_t seed;
	bool readable;               // false: the header is damaged or another shard's
	bool gone;                   // removed; forgotten when the last user has gone
	int fd;                      // -1 when not open
	uint32_t n_users;
};

struct shards {
	int directory;               // the directory's descriptor
	struct shards_file *files;   // ascending by id
	size_t n, capacity;
	size_t n_open, hand;
};

void shards_done(struct shards *s);
int shards_append(struct shards *s, uint32_t id, uint32_t seed, bool readable);     // id above all others; -ENOMEM
struct shards_file *shards_find(const struct shards *s, uint32_t id);     // the first with this id or a higher one; NULL at the end
// The descriptor stays open until released (by id: the table may have moved).
int shards_acquire(struct shards *s, uint32_t id, int *ret_fd, uint32_t *ret_seed, struct error *err);
// Reads and checks one record; needs no lock. -EBADMSG when the bytes are not the ones written there under this key (NULL: any key).
int shards_read(int fd, uint32_t seed, const struct index_entry *place, const struct content_id *key, struct record **ret_record,
		struct error *err);
// The checks alone, of n bytes read at the place.
int shards_check(const uint8_t *bytes, size_t n, uint32_t seed, const struct index_entry *place, const struct content_id *key,
		 struct record **ret_record, struct error *err);
void shards_release(struct shards *s, uint32_t id);
void shards_remove(struct shards *s, uint32_t id);         // its file is gone: who reads it may finish
