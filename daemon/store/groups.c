// SPDX-License-Identifier: Apache-2.0
// Open addressing; the slots of a group lie on one probe path. In parts that grow on their own, as the index is. A key that the index
// no longer knows is passed over by whoever looks it up, and swept away when shards are removed.
#include "daemon/store/groups.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/record.h"

#define N_PARTS 64
#define PART_START 64            // slots of a new part; a power of two

struct slot { uint64_t group, key; };       // group 0: empty
struct part { struct slot *slots; uint64_t n_slots, n_used; };
struct groups { uint64_t salt; struct part parts[N_PARTS]; };

uint64_t group_name(const struct content_id *teacher, const struct content_id *sequence)
{
	struct content_id both[2] = {*teacher, *sequence};
	struct content_id id = content_id_of(both, sizeof both);
	uint64_t name;
	memcpy(&name, id.bytes, sizeof name);
	return name ? name : 1;
}

uint64_t group_of_record(const struct record *record)
{
	struct sequence s;
	if (record_sequence(record, &s) < 0)
		return 0;
	struct content_id id = sequence_id(&s);
	sequence_done(&s);
	return group_name(record_teacher(record), &id);
}

struct groups *groups_new(uint64_t salt)
{
	struct groups *g = calloc(1, sizeof *g);
	if (g)
		g->salt = salt;
	return g;
}

struct groups *groups_free(struct groups *g)
{
	if (!g)
		return NULL;
	for (size_t i = 0; i < N_PARTS; i++)
		free(g->parts[i].slots);
	free(g);
	return NULL;
}

static uint64_t hash(const struct groups *g, uint64_t group)
{
	uint64_t h = (group ^ g->salt) * UINT64_C(0xff51afd7ed558ccd);
	return h ^ h >> 32;
}

// To the first empty slot, or to the one that already has this pair; *ret_n: slots of the group on the way, *ret_nth: one of them.
static struct slot *slot_find(const struct part *p, uint64_t h, uint64_t group, uint64_t key, unsigned *ret_n, struct slot **ret_nth)
{
	uint64_t mask = p->n_slots - 1;
	unsigned n = 0;
	*ret_nth = NULL;
	for (uint64_t i = h & mask;; i = (i + 1) & mask) {
		struct slot *s = &p->slots[i];
		if (!s->group || (s->group == group && s->key == key)) {
			*ret_n = n;
			return s;
		}
		if (s->group == group && n++ <= key % GROUP_MAX)
			*ret_nth = s;
	}
}

static int part_grow(const struct groups *g, struct part *p)
{
	struct part bigger = {.n_slots = p->n_slots ? 2 * p->n_slots : PART_START, .n_used = p->n_used};
	unsigned n;
	struct slot *nth;
	bigger.slots = calloc(bigger.n_slots, sizeof *bigger.slots);
	if (!bigger.slots)
		return -ENOMEM;
	for (uint64_t i = 0; i < p->n_slots; i++) {
		const struct slot *s = &p->slots[i];
		if (s->group)
			*slot_find(&bigger, hash(g, s->group), s->group, s->key, &n, &nth) = *s;
	}
	free(p->slots);
	*p = bigger;
	return 0;
}

int groups_append(struct groups *g, uint64_t group, uint64_t key)
{
	uint64_t h = hash(g, group);
	struct part *p = &g->parts[h >> 58];
	unsigned n;
	struct slot *nth;
	if (!group)
		return 0;
	if (p->n_used >= p->n_slots / 4 * 3 && part_grow(g, p) < 0)
		return -ENOMEM;
	struct slot *s = slot_find(p, h, group, key, &n, &nth);
	if (s->group)
		return 0;
	if (n >= GROUP_MAX)
		s = nth;                 // a full group forgets one
	else
		p->n_used++;
	*s = (struct slot){group, key};
	return 0;
}

unsigned groups_find(const struct groups *g, uint64_t group, uint64_t ret_keys[GROUP_MAX])
{
	uint64_t h = hash(g, group);
	const struct part *p = &g->parts[h >> 58];
	unsigned n = 0;
	if (!p->n_used)
		return 0;
	for (uint64_t mask = p->n_slots - 1, i = h & mask; p->slots[i].group && n < GROUP_MAX; i = (i + 1) & mask)
		if (p->slots[i].group == group)
			ret_keys[n++] = p->slots[i].key;
	return n;
}

// What follows moves back into the hole unless that would put it before its own place.
static void slot_remove(const struct groups *g, struct part *p, uint64_t hole)
{
	uint64_t mask = p->n_slots - 1;
	p->n_used--;
	for (uint64_t i = (hole + 1) & mask; p->slots[i].group; i = (i + 1) & mask) {
		uint64_t home = hash(g, p->slots[i].group) & mask;
		if (((i - home) & mask) < ((i - hole) & mask))
			continue;
		p->slots[hole] = p->slots[i];
		hole = i;
	}
	p->slots[hole] = (struct slot){0};
}

bool groups_remove_lost(struct groups *g, struct groups_sweep *sweep, size_t n, groups_lost_fn *lost, const void *arg)
{
	for (; n && sweep->part < N_PARTS; n--) {
		struct part *p = &g->parts[sweep->part];
		if (p->n_slots != sweep->n_slots)       // it has grown: anew
			sweep->at = 0;
		sweep->n_slots = p->n_slots;
		if (sweep->at == p->n_slots) {
			sweep->part++;
			sweep->at = sweep->n_slots = 0;
			continue;
		}
		const struct slot *s = &p->slots[sweep->at];
		if (s->group && lost(arg, s->key))
			slot_remove(g, p, sweep->at);
		else
			sweep->at++;
	}
	return sweep->part < N_PARTS;
}
