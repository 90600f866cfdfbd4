// SPDX-License-Identifier: Apache-2.0
// Nothing is left out on the word of a hash or a shape: what a record is said to contain is cut out of it and compared byte for byte. And a
// contained answer must be found again: lookups try FIND_CANDIDATES records of a group, so a group with more likely ones is left alone.
#include "daemon/store/surplus.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/store/directory.h"
#include "daemon/store/groups.h"
#include "daemon/store/packed.h"
#include "daemon/store/part.h"
#include "daemon/store/shard.h"
#include "daemon/store/store_internal.h"
#include "daemon/store/survey.h"

struct surplus {
	pthread_mutex_t lock;
	struct surplus_entry *entries;
	size_t n, capacity;
};

struct surplus *surplus_new(void)
{
	struct surplus *s = calloc(1, sizeof *s);
	if (s)
		pthread_mutex_init(&s->lock, NULL);
	return s;
}

struct surplus *surplus_free(struct surplus *s)
{
	if (!s)
		return NULL;
	pthread_mutex_destroy(&s->lock);
	free(s->entries);
	free(s);
	return NULL;
}

static int entry_push(struct surplus *s, const struct surplus_entry *e)
{
	if (s->n == s->capacity) {
		size_t capacity = s->capacity ? s->capacity + s->capacity / 2 : 1024;
		struct surplus_entry *more = reallocarray(s->entries, capacity, sizeof *more);
		if (!more)
			return -ENOMEM;
		s->entries = more;
		s->capacity = capacity;
	}
	s->entries[s->n++] = *e;
	return 0;
}

int surplus_append(struct surplus *s, const struct survey_item *item)
{
	const struct record *record = item->record;
	size_t n;
	record_bytes(record, &n);
	struct surplus_entry e = {.key = *record_key(record), .group = group_of_record(record), .offset = item->offset,
				  .shard = item->shard, .record_bytes = (uint32_t)n, .stored_bytes = item->stored_bytes,
				  .shape = part_shape(record_query(record))};
	pthread_mutex_lock(&s->lock);
	int rc = e.group ? entry_push(s, &e) : -ENOMEM;
	pthread_mutex_unlock(&s->lock);
	return rc;
}

void surplus_fix(struct surplus *s, uint32_t shard)
{
	for (size_t i = 0; i < s->n; i++)
		if (s->entries[i].shard == shard)
			s->entries[i].fixed = true;
}

static int compare_u64(uint64_t a, uint64_t b)
{
	return (a > b) - (a < b);
}

static int compare_places(const void *a, const void *b)
{
	const struct surplus_entry *x = a, *y = b;
	int c = compare_u64(x->shard, y->shard);
	return c ? c : compare_u64(x->offset, y->offset);
}

// Copies of a key together, the one that is to stay first: one that may move before one that stays in any case, then the later one,
// which is the one that counts.
static int compare_keys(const void *a, const void *b)
{
	const struct surplus_entry *x = a, *y = b;
	int c = memcmp(&x->key, &y->key, sizeof x->key);
	c = c ? c : x->fixed - y->fixed;
	return c ? c : compare_places(b, a);
}

// Groups together, in each what stays by size, the largest first.
static int compare_groups(const void *a, const void *b)
{
	const struct surplus_entry *x = a, *y = b;
	int c = compare_u64(x->group, y->group);
	c = c ? c : (x->kind == SURPLUS_DUPLICATE) - (y->kind == SURPLUS_DUPLICATE);
	c = c ? c : compare_u64(y->record_bytes, x->record_bytes);
	return c ? c : compare_places(a, b);
}

static void sort(struct surplus *s, int (*compare)(const void *, const void *))
{
	if (s->n)
		qsort(s->entries, s->n, sizeof *s->entries, compare);
}

static void find_duplicates(struct surplus *s)
{
	sort(s, compare_keys);
	for (size_t i = 0; i < s->n; i++) {
		struct surplus_entry *e = &s->entries[i];
		bool again = i && memcmp(&e->key, &e[-1].key, sizeof e->key) == 0;
		e->kind = again && !e->fixed ? SURPLUS_DUPLICATE : SURPLUS_KEEP;
	}
}

// The record as it lies there now. -ENOENT when it is not the one any more.
static int entry_read(struct shards *shards, const struct surplus_entry *e, struct record **ret_record, struct error *err)
{
	int fd = -1;
	uint32_t seed;
	uint8_t *bytes = malloc(e->stored_bytes);
	int rc = bytes ? shards_acquire(shards, e->shard, &fd, &seed, err) : error_set(err, ERROR_MEMORY, NULL, "no memory for a record");
	if (rc == 0) {
		ssize_t n = pread(fd, bytes, e->stored_bytes, (off_t)(e->offset + SHARD_FRAME_BYTES));
		rc = n == (ssize_t)e->stored_bytes ? packed_decode(bytes, (size_t)n, ret_record, err) : -ENOENT;
		shards_release(shards, e->shard);
	}
	if (rc == 0 && memcmp(record_key(*ret_record), &e->key, sizeof e->key) != 0) {
		*ret_record = record_unref(*ret_record);
		rc = -ENOENT;
	}
	free(bytes);
	return rc;
}

// Whether looking for `small` finds `large`'s answer, and it is these very bytes.
static bool contains(struct record *large, const struct record *small)
{
	struct sequence sequence;
	struct record *cut = NULL;
	if (record_sequence(small, &sequence) < 0)
		return false;
	struct store_question q = {.teacher = record_teacher(small), .sequence = &sequence, .query = record_query(small)};
	bool same = find_extract(large, &q, false, &cut) == 0;
	if (same) {
		size_t n, k;
		const void *a = record_bytes(cut, &n), *b = record_bytes(small, &k);
		same = n == k && memcmp(a, b, n) == 0;
	}
	record_unref(cut);
	sequence_done(&sequence);
	return same;
}

static bool may_be_left_out(const struct surplus_entry *group, size_t n, size_t i)
{
	unsigned n_likely = 0;
	for (size_t k = 0; k < n; k++)
		n_likely += k != i && part_shape_covers(group[k].shape, group[i].shape);
	return n_likely > 0 && n_likely <= FIND_CANDIDATES && !group[i].fixed;
}

// n different records of one group, the largest first.
static int group_find(struct shards *shards, struct surplus_entry *group, size_t n, struct error *err)
{
	struct record *records[GROUP_MAX] = {NULL};
	int rc = 0;
	for (size_t i = 0; i < n && rc != -ENOMEM; i++) {
		rc = entry_read(shards, &group[i], &records[i], err);
		if (rc < 0 || !may_be_left_out(group, n, i))
			continue;
		for (size_t k = 0; k < i && group[i].kind == SURPLUS_KEEP; k++)
			if (records[k] && group[k].kind == SURPLUS_KEEP && !group[k].fixed &&
			    part_shape_covers(group[k].shape, group[i].shape) && contains(records[k], records[i]))
				group[i].kind = SURPLUS_CONTAINED;
	}
	for (size_t i = 0; i < n; i++)
		record_unref(records[i]);
	return rc == -ENOMEM ? rc : 0;
}

static int find_contained(struct surplus *s, struct shards *shards, struct error *err)
{
	int rc = 0;
	sort(s, compare_groups);
	for (size_t i = 0, next; i < s->n && rc == 0; i = next) {
		size_t n = 0;
		for (next = i; next < s->n && s->entries[next].group == s->entries[i].group; next++)
			n += s->entries[next].kind != SURPLUS_DUPLICATE;
		if (n > 1 && n <= GROUP_MAX)
			rc = group_find(shards, &s->entries[i], n, err);
	}
	return rc;
}

int surplus_find(struct surplus *s, const char *directory, bool contained, struct error *err)
{
	struct shards shards = {.directory = -1};
	struct directory d = {.fd = -1, .lock = -1};
	int rc = 0;
	find_duplicates(s);
	sort(s, compare_places);
	if (contained)
		rc = directory_open(&d, directory, true, err);
	shards.directory = d.fd;
	for (size_t i = 0; contained && rc == 0 && i < s->n; i++)
		if (!shards.n || shards.files[shards.n - 1].id != s->entries[i].shard)
			rc = shards_append(&shards, s->entries[i].shard, 0, true);
	if (rc == -ENOMEM)
		error_set(err, ERROR_MEMORY, NULL, "no memory for the list of shards");
	if (contained && rc == 0)
		rc = find_contained(s, &shards, err);
	sort(s, compare_places);
	shards_done(&shards);
	directory_close(&d);
	return rc;
}

struct surplus_totals surplus_sum(const struct surplus *s)
{
	struct surplus_totals t = {0};
	for (size_t i = 0; i < s->n; i++) {
		const struct surplus_entry *e = &s->entries[i];
		t.n_duplicates += e->kind == SURPLUS_DUPLICATE;
		t.duplicate_bytes += e->kind == SURPLUS_DUPLICATE ? e->stored_bytes : 0;
		t.n_contained += e->kind == SURPLUS_CONTAINED;
		t.contained_bytes += e->kind == SURPLUS_CONTAINED ? e->stored_bytes : 0;
	}
	return t;
}

const struct surplus_entry *surplus_entries(const struct surplus *s, size_t *ret_n)
{
	*ret_n = s->n;
	return s->entries;
}
