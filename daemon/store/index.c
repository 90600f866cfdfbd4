// SPDX-License-Identifier: Apache-2.0
// The table is cut into parts by hash, each of which grows on its own: with 100 million records one doubling moves about 10 ms worth of
// slots instead of stopping every thread for a second.
#include "daemon/store/index.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define N_PARTS 64
#define PART_START 64            // slots of a new part; a power of two
#define PREFIX_BYTES 16

struct slot {
	uint8_t prefix[PREFIX_BYTES];
	struct index_entry entry;        // record_bytes 0: empty
};
_Static_assert(sizeof(struct slot) == 32, "documented stride");

struct part {
	struct slot *slots;
	uint64_t n_slots, n_used;
};

struct index {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	uint64_t salt;
	struct part parts[N_PARTS];
};

struct index *index_new(void)
{
	struct index *index = calloc(1, sizeof *index);
	if (!index)
		return NULL;
	pthread_mutex_init(&index->lock, NULL);
	pthread_cond_init(&index->changed, NULL);
	// Clients choose tokens, hence (by trial) keys: a secret salt keeps them from choosing slots.
	if (getrandom(&index->salt, sizeof index->salt, GRND_NONBLOCK) != sizeof index->salt)
		index->salt = (uint64_t)(uintptr_t)index * UINT64_C(0x9e3779b97f4a7c15);
	return index;
}

struct index *index_free(struct index *index)
{
	if (!index)
		return NULL;
	for (size_t i = 0; i < N_PARTS; i++)
		free(index->parts[i].slots);
	pthread_cond_destroy(&index->changed);
	pthread_mutex_destroy(&index->lock);
	free(index);
	return NULL;
}

void index_lock(struct index *index) { pthread_mutex_lock(&index->lock); }
void index_unlock(struct index *index) { pthread_mutex_unlock(&index->lock); }
void index_wait(struct index *index) { pthread_cond_wait(&index->changed, &index->lock); }
void index_wake(struct index *index) { pthread_cond_broadcast(&index->changed); }

static uint64_t hash(const struct index *index, const uint8_t prefix[PREFIX_BYTES])
{
	uint64_t a, b;
	memcpy(&a, prefix, 8);
	memcpy(&b, prefix + 8, 8);
	uint64_t h = (a ^ index->salt) * UINT64_C(0xff51afd7ed558ccd);
	h = (h ^ (h >> 32) ^ b) * UINT64_C(0xc4ceb9fe1a85ec53);
	return h ^ (h >> 29);
}

// The top bits choose the part, the low ones the slot within it.
static struct part *part_of(struct index *index, uint64_t h)
{
	return &index->parts[h >> 58];
}

// The slot of the key, or the empty one where it belongs. The part has slots, one of them empty.
static struct slot *slot_find(const struct part *part, uint64_t h, const uint8_t prefix[PREFIX_BYTES])
{
	uint64_t i = h & (part->n_slots - 1);
	while (part->slots[i].entry.record_bytes && memcmp(part->slots[i].prefix, prefix, PREFIX_BYTES) != 0)
		i = (i + 1) & (part->n_slots - 1);
	return &part->slots[i];
}

static int part_grow(const struct index *index, struct part *part)
{
	struct part bigger = {.n_slots = part->n_slots ? part->n_slots * 2 : PART_START, .n_used = part->n_used};
	bigger.slots = calloc(bigger.n_slots, sizeof *bigger.slots);
	if (!bigger.slots)
		return -ENOMEM;
	for (uint64_t i = 0; i < part->n_slots; i++) {
		const struct slot *from = &part->slots[i];
		if (from->entry.record_bytes)
			*slot_find(&bigger, hash(index, from->prefix), from->prefix) = *from;
	}
	free(part->slots);
	*part = bigger;
	return 0;
}

int index_find(const struct index *index, const struct content_id *key, struct index_entry *ret_entry)
{
	uint64_t h = hash(index, key->bytes);
	const struct part *part = &index->parts[h >> 58];
	if (!part->n_used)
		return -ENOENT;
	const struct slot *slot = slot_find(part, h, key->bytes);
	if (!slot->entry.record_bytes)
		return -ENOENT;
	*ret_entry = slot->entry;
	return 0;
}

int index_append(struct index *index, const struct content_id *key, const struct index_entry *entry)
{
	uint64_t h = hash(index, key->bytes);
	struct part *part = part_of(index, h);
	if (part->n_used >= part->n_slots / 4 * 3 && part_grow(index, part) < 0)
		return -ENOMEM;
	struct slot *slot = slot_find(part, h, key->bytes);
	if (!slot->entry.record_bytes)
		part->n_used++;
	memcpy(slot->prefix, key->bytes, PREFIX_BYTES);
	slot->entry = *entry;
	return 0;
}

void index_remove(struct index *index, const struct content_id *key, const struct index_entry *entry)
{
	uint64_t h = hash(index, key->bytes);
	struct part *part = part_of(index, h);
	if (!part->n_used)
		return;
	uint64_t mask = part->n_slots - 1;
	struct slot *slots = part->slots;
	uint64_t hole = (uint64_t)(slot_find(part, h, key->bytes) - slots);
	if (!slots[hole].entry.record_bytes || slots[hole].entry.shard != entry->shard || slots[hole].entry.offset != entry->offset)
		return;
	part->n_used--;
	// No tombstones: what follows moves back into the hole unless that would put it before its own place.
	for (uint64_t i = (hole + 1) & mask; slots[i].entry.record_bytes; i = (i + 1) & mask) {
		uint64_t home = hash(index, slots[i].prefix) & mask;
		if (((i - home) & mask) < ((i - hole) & mask))
			continue;
		slots[hole] = slots[i];
		hole = i;
	}
	slots[hole].entry.record_bytes = 0;
}

uint64_t index_count(const struct index *index)
{
	uint64_t n = 0;
	for (size_t i = 0; i < N_PARTS; i++)
		n += index->parts[i].n_used;
	return n;
}
