// SPDX-License-Identifier: Apache-2.0
// The index file beside a sealed shard (kdserved-shard.5): what the shard holds, so that opening a store need not read shards.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "daemon/store/directory.h"
#include "daemon/store/shard.h"

struct sidecar_entry {
	struct content_id key;
	uint64_t offset;
	uint32_t record_bytes;
	uint32_t shape;              // part.h; 0 = unknown
	uint64_t group;              // groups.h; 0 = unknown
};

// Entries in shard order, gathered while a shard is written or scanned.
struct sidecar {
	struct sidecar_entry *entries;
	size_t n, capacity;
};

struct record;
struct index_entry;
// `record`: what the frame holds, to note shape and group; NULL = unknown. -ENOMEM
int sidecar_append(struct sidecar *s, const struct shard_frame *f, const struct record *record);
struct index_entry sidecar_place(const struct sidecar_entry *e, uint32_t shard);
void sidecar_done(struct sidecar *s);

// The bytes; the caller frees. decode refuses what does not fit the shard: id, seed, size of the sealed file.
int sidecar_encode(const struct sidecar *s, uint32_t id, uint32_t seed, uint64_t shard_bytes, uint8_t **ret_bytes, size_t *ret_n);
int sidecar_decode(const void *bytes, size_t n, uint32_t id, uint32_t seed, uint64_t shard_bytes, struct sidecar *ret, struct error *err);

int sidecar_write(const struct sidecar *s, const struct directory *d, uint32_t id, uint32_t seed, uint64_t shard_bytes, struct error *err);
int sidecar_read(const struct directory *d, uint32_t id, uint32_t seed, uint64_t shard_bytes, struct sidecar *ret, struct error *err);
