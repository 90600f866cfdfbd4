// SPDX-License-Identifier: Apache-2.0
// The writing side of a store. Its one complication is failure. A write may fail in the middle of a frame: the shard is cut back to the
// last whole one. An fsync may fail, and is then final for its shard: the items waiting for it go to a new shard, and so does
// ("rescue") whatever earlier items left there without an fsync.
#include "daemon/store/appender.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/store/crash.h"
#include "daemon/store/ring.h"

#define BACKOFF_MIN_MS 100
#define BACKOFF_MAX_MS 2000              // space given back is noticed within this
#define ATTEMPTS 2                       // on a shard, then on a fresh one
#define RESCUE_BYTES (8u << 20)          // held in memory at a time

static uint64_t now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

// How writing goes, for store_stats.
static void tail_account(struct appender *a)
{
	struct store_counters *c = &a->parts->counters;
	atomic_store(&c->uring, ring_is_uring(a->tail.ring));
	atomic_store(&c->n_overflows, ring_n_overflows(a->tail.ring));
	if (a->tail.shard.fd >= 0)
		atomic_store(&c->direct, a->tail.shard.direct);
}

int appender_init(struct appender *a, struct store_parts *parts, uint64_t shard_bytes, struct tail_shard *current, uint32_t next_id,
		  struct error *err)
{
	*a = (struct appender){.parts = parts, .shard_bytes = shard_bytes, .next_id = next_id, .retired.fd = -1};
	int rc = tail_init(&a->tail, &parts->directory, shard_bytes, err);
	if (rc < 0) {
		tail_shard_done(current);
		a->parts = NULL;
		return rc;
	}
	if (tail_adopt(&a->tail, current) < 0)
		tail_drop(&a->tail, NULL);         // whole as it is, only not to be gone on with; the next start seals it
	tail_account(a);
	return 0;
}

void appender_done(struct appender *a)
{
	if (!a->parts)
		return;
	if (a->tail.shard.fd >= 0) {
		tail_cut(&a->tail);
		tail_sync(&a->tail);        // nobody waits for it: what was promised has been kept before
		tail_drop(&a->tail, NULL);
	}
	tail_done(&a->tail);
	a->parts = NULL;
}

static uint32_t item_bytes(const struct pending_item *item)
{
	size_t n;
	record_bytes(item->record, &n);
	return (uint32_t)n;
}

static void item_acknowledge(struct appender *a, struct pending_item *item, const struct error *err)
{
	if (err)
		atomic_fetch_add(&a->parts->counters.n_failed_appends, 1);
	crash(CRASH_ACKNOWLEDGE);
	if (item->done && !item->acknowledged)
		item->done(item->arg, err);
	item->acknowledged = true;
}

// ---- shards

static bool frame_fits(const struct appender *a, uint64_t n)
{
	uint64_t end = a->tail.end;
	return end == SHARD_HEADER_BYTES || (end <= a->shard_bytes && n <= a->shard_bytes - end);
}

// Entries of the retired shard that no fsync covered and that are still what the index points to lose their place in it.
static void retired_forget(struct appender *a)
{
	struct tail_shard *r = &a->retired;
	for (size_t i = 0; i < r->entries.n; i++) {
		const struct sidecar_entry *e = &r->entries.entries[i];
		struct index_entry place = sidecar_place(e, r->id);
		if (e->offset < r->synced)
			continue;
		index_lock(a->parts->index);
		index_remove(a->parts->index, &e->key, &place);
		index_unlock(a->parts->index);
	}
	tail_shard_done(r);
}

static void shard_retire(struct appender *a)
{
	retired_forget(a);
	tail_drop(&a->tail, &a->retired);
}

static void shard_leave(struct appender *a)
{
	if (tail_seal(&a->tail) < 0)
		shard_retire(a);
	else
		tail_drop(&a->tail, NULL);
}

// A current shard with room for n bytes. An id is used up by trying: after a failed commit the name may or may not be on the disk.
static int shard_ready(struct appender *a, uint64_t n, struct error *err)
{
	struct store_parts *parts = a->parts;
	if (a->tail.shard.fd >= 0 && !frame_fits(a, n))
		shard_leave(a);
	if (a->tail.shard.fd >= 0)
		return 0;
	if (a->next_id == UINT32_MAX)
		return error_set(err, ERROR_STORE, NULL, "store %s: no shard ids left", parts->directory.path);
	int rc = tail_create(&a->tail, a->next_id, err);
	if (rc != -ENOSPC)
		a->next_id++;
	if (rc < 0)
		return rc;
	index_lock(parts->index);
	rc = shards_append(&parts->shards, a->tail.shard.id, a->tail.shard.seed, true);
	index_unlock(parts->index);
	if (rc < 0) {
		tail_drop(&a->tail, NULL);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for another shard");
	}
	atomic_fetch_add(&parts->counters.n_bytes, SHARD_HEADER_BYTES);
	return 0;
}

// ---- runs: consecutive items that go into one shard

static void item_publish(struct appender *a, struct pending_item *item)
{
	struct store_counters *c = &a->parts->counters;
	const struct shard_frame *f = &item->frame;
	struct index_entry entry = {.shard = a->tail.shard.id, .record_bytes = f->record_bytes, .offset = f->offset};
	const struct sidecar_entry *e = tail_commit(&a->tail, f, item->record);
	if (e)
		entry = sidecar_place(e, entry.shard);
	index_lock(a->parts->index);
	// Without memory for its place the record is on disk all the same, and found after the next start.
	(void)index_append(a->parts->index, &f->key, &entry);
	index_unlock(a->parts->index);
	item->written = true;
	atomic_fetch_add(&c->n_appended, 1);
	atomic_fetch_add(&c->appended_bytes, f->record_bytes);
	atomic_fetch_add(&c->n_bytes, shard_frame_size(f->record_bytes));
}

// Its shard is not to be trusted: the item is written again.
static void item_take_back(struct appender *a, struct pending_item *item)
{
	struct store_counters *c = &a->parts->counters;
	atomic_fetch_sub(item->duplicate ? &c->n_duplicates : &c->n_appended, 1);
	if (!item->duplicate)
		atomic_fetch_sub(&c->appended_bytes, item->frame.record_bytes);
	item->written = item->duplicate = false;
}

// Whether the item's key is on disk already, by this item or an earlier one. A copy in the part of a retired shard that no fsync covered
// does not count. What needs no further fsync is acknowledged here.
static bool item_stored(struct appender *a, struct pending_item *item)
{
	const struct tail_shard *current = &a->tail.shard, *retired = &a->retired;
	struct index_entry e;
	if (item->written)
		return true;
	index_lock(a->parts->index);
	int rc = index_find(a->parts->index, record_key(item->record), &e);
	index_unlock(a->parts->index);
	if (rc < 0 || (retired->fd >= 0 && e.shard == retired->id && e.offset >= retired->synced))
		return false;
	item->written = item->duplicate = true;
	atomic_fetch_add(&a->parts->counters.n_duplicates, 1);
	bool synced = current->fd < 0 || e.shard != current->id || e.offset < current->synced;
	if (synced || item->durability != STORE_DURABLE)
		item_acknowledge(a, item, NULL);
	return true;
}

// Writes the items from `first` on that are not on disk yet, as many as fit the shard. *ret_next: the first that was not written.
static int run_write(struct appender *a, struct pending_item *first, struct pending_item **ret_next, struct error *err)
{
	struct tail *t = &a->tail;
	struct pending_item *item, *stop;
	for (stop = first; stop && !t->failed; stop = stop->next) {
		if (item_stored(a, stop))
			continue;
		if (!frame_fits(a, shard_frame_size(item_bytes(stop))))
			break;
		size_t n;
		const void *bytes = record_bytes(stop->record, &n);
		tail_append(t, record_key(stop->record), bytes, (uint32_t)n, &stop->frame);
	}
	uint64_t good;
	int rc = tail_flush(t, &good);
	crash(CRASH_PUBLISH);
	for (item = first; item != stop; item = item->next) {
		if (item->written)
			continue;
		if (item->frame.offset + shard_frame_size(item->frame.record_bytes) > good)
			break;
		item_publish(a, item);
	}
	*ret_next = item;
	if (rc == 0)
		return 0;
	if (tail_cut(t) < 0)
		shard_retire(a);
	return error_system(err, rc, NULL, "store %s: cannot write", a->parts->directory.path);
}

// Acknowledges what the run reached; a failed fsync takes the run's items back and retires the shard.
static int run_acknowledge(struct appender *a, struct pending_item *first, struct pending_item **next, struct error *err)
{
	bool durable = false;
	for (struct pending_item *item = first; item != *next; item = item->next) {
		if (item->durability != STORE_DURABLE)
			item_acknowledge(a, item, NULL);
		else
			durable = durable || !item->acknowledged;
	}
	if (!durable)
		return 0;
	int rc = a->tail.shard.fd >= 0 ? tail_sync(&a->tail) : -EIO;
	for (struct pending_item *item = first; item != *next; item = item->next) {
		if (rc == 0)
			item_acknowledge(a, item, NULL);
		else
			item_take_back(a, item);
	}
	if (rc == 0)
		return 0;
	if (a->tail.shard.fd >= 0)
		shard_retire(a);
	*next = first;
	return error_system(err, rc, NULL, "store %s: cannot synchronise a shard", a->parts->directory.path);
}

static int run_commit(struct appender *a, struct pending_item *first, struct pending_item **ret_next, struct error *err)
{
	int rc = 0;
	struct pending_item *next = first;
	while (next && item_stored(a, next))
		next = next->next;
	if (next == first) {
		rc = shard_ready(a, shard_frame_size(item_bytes(first)), err);
		if (rc == 0)
			rc = run_write(a, first, &next, err);
	}
	int rc2 = run_acknowledge(a, first, &next, rc < 0 ? NULL : err);
	*ret_next = next;
	// A shard that refuses writes for another reason than a full disk is left; what it holds is good.
	if (rc < 0 && rc != -ENOSPC && rc != -EDQUOT && a->tail.shard.fd >= 0)
		shard_leave(a);
	return rc < 0 ? rc : rc2;
}

// All items from `first` on. Returns the first that could not be stored (then err says why), NULL when all are.
static struct pending_item *items_commit(struct appender *a, struct pending_item *first, struct error *err)
{
	unsigned n_failures = 0;
	while (first) {
		int rc = run_commit(a, first, &first, err);
		if (rc < 0 && (rc == -ENOSPC || rc == -EDQUOT || ++n_failures >= ATTEMPTS))
			return first;
	}
	return NULL;
}

// ---- what a retired shard held without an fsync

// Reads the next entries back (from the page cache, most likely) as items; those that do not check are left out.
static void rescue_read(struct appender *a, size_t *i, struct pending_list *ret_list)
{
	const struct tail_shard *r = &a->retired;
	uint64_t n = 0;
	for (; *i < r->entries.n && n < RESCUE_BYTES; ++*i) {
		const struct sidecar_entry *e = &r->entries.entries[*i];
		struct index_entry place = sidecar_place(e, r->id);
		struct pending_item *item;
		struct record *record;
		if (e->offset < r->synced || shards_read(r->fd, r->seed, &place, &e->key, &record, NULL) < 0)
			continue;
		if (!(item = calloc(1, sizeof *item))) {
			record_unref(record);
			continue;
		}
		item->record = record;
		item->durability = STORE_FLUSHED;
		pending_list_push(ret_list, item);
		n += e->record_bytes;
	}
}

static void rescue(struct appender *a)
{
	uint32_t id = a->retired.id;
	uint64_t cut_from = a->retired.end;
	size_t i = 0;
	while (a->retired.fd >= 0 && a->retired.id == id) {
		struct pending_list list = {0};
		rescue_read(a, &i, &list);
		bool all = !list.first;
		struct pending_item *failed = items_commit(a, list.first, NULL);
		for (struct pending_item *item; (item = pending_list_pop(&list)); free(item))
			record_unref(item->record);
		if (!all && !failed)
			continue;
		if (all && ftruncate(a->retired.fd, (off_t)a->retired.synced) == 0)
			atomic_fetch_sub(&a->parts->counters.n_bytes, cut_from - a->retired.synced);
		if (a->retired.fd >= 0 && a->retired.id == id)
			retired_forget(a);
	}
}

// ---- batches

static void batch_free(struct appender *a, struct pending_list *items)
{
	for (struct pending_item *item; (item = pending_list_pop(items));) {
		index_lock(a->parts->index);
		struct record *record = pending_free(&a->parts->pending, item);
		index_unlock(a->parts->index);
		record_unref(record);
	}
}

// After a refusal appends fail at once for a while, so that a full disk is not asked for every record.
static void back_off(struct appender *a)
{
	a->backoff_ms = a->backoff_ms ? a->backoff_ms * 2 : BACKOFF_MIN_MS;
	if (a->backoff_ms > BACKOFF_MAX_MS)
		a->backoff_ms = BACKOFF_MAX_MS;
	a->retry_at_ms = now_ms() + a->backoff_ms;
	atomic_store(&a->parts->counters.failing, true);
}

void appender_commit(struct appender *a, struct pending_list *items)
{
	struct error err;
	struct pending_item *failed = items->first;
	for (struct pending_item *item = items->first; item; item = item->next)
		if (item->durability == STORE_NONE)
			item_acknowledge(a, item, NULL);
	if (a->backoff_ms && now_ms() < a->retry_at_ms) {
		error_set(&err, ERROR_STORE, NULL, "store %s: the disk refused lately; not tried", a->parts->directory.path);
	} else {
		failed = items_commit(a, items->first, &err);
		if (a->retired.fd >= 0)
			rescue(a);
		if (failed)
			back_off(a);
		else if (a->backoff_ms) {
			a->backoff_ms = 0;
			atomic_store(&a->parts->counters.failing, false);
		}
	}
	for (; failed; failed = failed->next) {
		if (!item_stored(a, failed) || !failed->acknowledged)
			item_acknowledge(a, failed, &err);
	}
	tail_account(a);
	batch_free(a, items);
}
