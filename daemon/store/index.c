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
#include <time.h>

#include "daemon/store/groups.h"

#define N_PARTS 64
#define PART_START 64            // slots of a new part; a power of two
#define PREFIX_BYTES 12
#define SWEEP_SLOTS 4096         // looked at while the lock is held
#define HALF_BYTES 8             // of the prefix: these choose the slot, and are what groups.h keeps

struct slot {
	uint8_t prefix[PREFIX_BYTES];
	uint32_t shape;
	uint32_t shard, record_bytes;    // record_bytes 0: empty
	uint64_t offset;
};
_Static_assert(sizeof(struct slot) == 32, "documented stride");
_Static_assert(GROUP_MAX == INDEX_GROUP_MAX, "one limit");

struct part {
	struct slot *slots;
	uint64_t n_slots, n_used;
};

struct index {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	uint64_t salt;
	struct groups *groups;
	struct part parts[N_PARTS];
};

struct index *index_new(void)
{
	struct index *index = calloc(1, sizeof *index);
	if (!index)
		return NULL;
	pthread_mutex_init(&index->lock, NULL);
	pthread_condattr_t monotonic;
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&index->changed, &monotonic);
	pthread_condattr_destroy(&monotonic);
	// Clients choose tokens, hence (by trial) keys: a secret salt keeps them from choosing slots.
	if (getrandom(&index->salt, sizeof index->salt, GRND_NONBLOCK) != sizeof index->salt)
		index->salt = (uint64_t)(uintptr_t)index * UINT64_C(0x9e3779b97f4a7c15);
	index->groups = groups_new(index->salt);
	return index->groups ? index : index_free(index);
}

struct index *index_free(struct index *index)
{
	if (!index)
		return NULL;
	for (size_t i = 0; i < N_PARTS; i++)
		free(index->parts[i].slots);
	groups_free(index->groups);
	pthread_cond_destroy(&index->changed);
	pthread_mutex_destroy(&index->lock);
	free(index);
	return NULL;
}

void index_lock(struct index *index) { pthread_mutex_lock(&index->lock); }
void index_unlock(struct index *index) { pthread_mutex_unlock(&index->lock); }
void index_wait(struct index *index) { pthread_cond_wait(&index->changed, &index->lock); }
void index_wait_ms(struct index *index, uint64_t ms)
{
	struct timespec until;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += (time_t)(ms / 1000);
	until.tv_nsec += (long)(ms % 1000) * 1000000;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	pthread_cond_timedwait(&index->changed, &index->lock, &until);
}

void index_wake(struct index *index) { pthread_cond_broadcast(&index->changed); }

static uint64_t hash(const struct index *index, const uint8_t prefix[HALF_BYTES])
{
	uint64_t a;
	memcpy(&a, prefix, HALF_BYTES);
	uint64_t h = (a ^ index->salt) * UINT64_C(0xff51afd7ed558ccd);
	h = (h ^ h >> 32) * UINT64_C(0xc4ceb9fe1a85ec53);
	return h ^ h >> 29;
}

// The top bits choose the part, the low ones the slot within it.
static struct part *part_of(struct index *index, uint64_t h)
{
	return &index->parts[h >> 58];
}

// The slot of the key, by its first n bytes, or the empty one where it belongs. The part has slots, one of them empty.
static struct slot *slot_find(const struct part *part, uint64_t h, const uint8_t *prefix, size_t n)
{
	uint64_t i = h & (part->n_slots - 1);
	while (part->slots[i].record_bytes && memcmp(part->slots[i].prefix, prefix, n) != 0)
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
		if (from->record_bytes)
			*slot_find(&bigger, hash(index, from->prefix), from->prefix, PREFIX_BYTES) = *from;
	}
	free(part->slots);
	*part = bigger;
	return 0;
}

static const struct slot *find(const struct index *index, const uint8_t *prefix, size_t n)
{
	uint64_t h = hash(index, prefix);
	const struct part *part = &index->parts[h >> 58];
	const struct slot *slot = part->n_used ? slot_find(part, h, prefix, n) : NULL;
	return slot && slot->record_bytes ? slot : NULL;
}

static struct index_entry slot_entry(const struct slot *s)
{
	return (struct index_entry){.shard = s->shard, .record_bytes = s->record_bytes, .offset = s->offset, .shape = s->shape};
}

int index_find(const struct index *index, const struct content_id *key, struct index_entry *ret_entry)
{
	const struct slot *slot = find(index, key->bytes, PREFIX_BYTES);
	if (!slot)
		return -ENOENT;
	*ret_entry = slot_entry(slot);
	return 0;
}

unsigned index_find_group(const struct index *index, uint64_t group, struct index_entry ret_entries[INDEX_GROUP_MAX])
{
	uint64_t keys[GROUP_MAX];
	unsigned n = 0, n_keys = groups_find(index->groups, group, keys);
	for (unsigned i = 0; i < n_keys; i++) {
		const struct slot *slot = find(index, (const uint8_t *)&keys[i], HALF_BYTES);
		if (slot)
			ret_entries[n++] = slot_entry(slot);
	}
	return n;
}

int index_append(struct index *index, const struct content_id *key, const struct index_entry *entry)
{
	uint64_t h = hash(index, key->bytes), half;
	struct part *part = part_of(index, h);
	if (part->n_used >= part->n_slots / 4 * 3 && part_grow(index, part) < 0)
		return -ENOMEM;
	struct slot *slot = slot_find(part, h, key->bytes, PREFIX_BYTES);
	if (!slot->record_bytes)
		part->n_used++;
	memcpy(slot->prefix, key->bytes, PREFIX_BYTES);
	slot->shard = entry->shard;
	slot->record_bytes = entry->record_bytes;
	slot->offset = entry->offset;
	slot->shape = entry->shape;
	memcpy(&half, key->bytes, sizeof half);
	(void)groups_append(index->groups, entry->group, half);       // without memory for it: found by its key alone
	return 0;
}

static void slot_remove(const struct index *index, struct part *part, uint64_t hole)
{
	uint64_t mask = part->n_slots - 1;
	struct slot *slots = part->slots;
	part->n_used--;
	// No tombstones: what follows moves back into the hole unless that would put it before its own place.
	for (uint64_t i = (hole + 1) & mask; slots[i].record_bytes; i = (i + 1) & mask) {
		uint64_t home = hash(index, slots[i].prefix) & mask;
		if (((i - home) & mask) < ((i - hole) & mask))
			continue;
		slots[hole] = slots[i];
		hole = i;
	}
	slots[hole].record_bytes = 0;
}

void index_remove(struct index *index, const struct content_id *key, const struct index_entry *entry)
{
	uint64_t h = hash(index, key->bytes);
	struct part *part = part_of(index, h);
	if (!part->n_used)
		return;
	const struct slot *slot = slot_find(part, h, key->bytes, PREFIX_BYTES);
	if (slot->record_bytes && slot->shard == entry->shard && slot->offset == entry->offset)
		slot_remove(index, part, (uint64_t)(slot - part->slots));
}

static bool among(const uint32_t *ids, size_t n, uint32_t id)
{
	size_t low = 0;
	while (n > 1) {
		size_t half = n / 2;
		low += ids[low + half] <= id ? half : 0;
		n -= half;
	}
	return n && ids[low] == id;
}

// SWEEP_SLOTS of the part from *at on; false at its end. A part that has grown meanwhile is begun anew.
static bool part_sweep(struct index *index, struct part *part, uint64_t *at, uint64_t *n_slots, const uint32_t *ids, size_t n)
{
	if (part->n_slots != *n_slots)
		*at = 0;
	*n_slots = part->n_slots;
	for (uint64_t left = SWEEP_SLOTS; left && *at < part->n_slots; left--) {
		const struct slot *slot = &part->slots[*at];
		if (slot->record_bytes && among(ids, n, slot->shard))
			slot_remove(index, part, *at);      // another may have moved here
		else
			++*at;
	}
	return *at < part->n_slots;
}

static bool key_is_lost(const void *arg, uint64_t key)
{
	return !find(arg, (const uint8_t *)&key, HALF_BYTES);
}

void index_remove_shards(struct index *index, const uint32_t *ids, size_t n)
{
	bool more = true;
	for (size_t i = 0; i < N_PARTS; i++) {
		uint64_t at = 0, n_slots = 0;
		do {
			index_lock(index);
			more = part_sweep(index, &index->parts[i], &at, &n_slots, ids, n);
			index_unlock(index);
		} while (more);
	}
	struct groups_sweep sweep = {0};
	do {
		index_lock(index);
		more = groups_remove_lost(index->groups, &sweep, SWEEP_SLOTS, key_is_lost, index);
		index_unlock(index);
	} while (more);
}

uint64_t index_count(const struct index *index)
{
	uint64_t n = 0;
	for (size_t i = 0; i < N_PARTS; i++)
		n += index->parts[i].n_used;
	return n;
}
