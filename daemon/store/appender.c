// SPDX-License-Identifier: Apache-2.0
// The writing side of a store: a line of items, taken from the queue at one end while at the other, as writes and fsyncs end, they are made
// findable, acknowledged and freed; so the disk never waits for a batch to be over. Its one complication is failure. A write may fail in
// the middle of a frame: the shard is cut back to the last whole one. An fsync may fail, and is then final for its shard: the items waiting
// for it go to a new shard, and so does ("rescue") whatever earlier items left there without an fsync.
#include "daemon/store/appender.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/store/crash.h"
#include "daemon/ring.h"

#define BACKOFF_MIN_MS 100
#define BACKOFF_MAX_MS 2000              // space given back is noticed within this
#define ATTEMPTS 2                       // on a shard, then on a fresh one
#define RESCUE_BYTES (8u << 20)          // held in memory at a time
#define TAKE_BYTES (8u << 20)            // from the queue at a time
#define SYNC_BYTES (32u << 20)           // one fsync for all of it, or for what there is when the queue is empty

struct line {
	struct pending_list items;       // in order, freed from the front on
	struct pending_item *unsettled;  // the first whose bytes are not known to be in the kernel
	struct pending_item *next;       // the first that has not been gathered; NULL: all are
	bool waiting;                    // a settled one waits for an fsync
	bool grows;                      // from the queue
	uint32_t next_id;                // of shards, when the line began
};

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
	tail_shard_done(&a->retired);       // of a rescue that failed itself: what it was to bring had been promised to no disk
	a->parts = NULL;
}

// At most: it may become smaller on its way to the disk.
static uint64_t item_bytes(const struct pending_item *item)
{
	size_t n;
	record_bytes(item->record, &n);
	return shard_frame_size((uint32_t)n);
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
	tail_account(a);
	return 0;
}

// ---- items

static void item_publish(struct appender *a, struct pending_item *item)
{
	struct store_counters *c = &a->parts->counters;
	const struct shard_frame *f = &item->frame;
	struct index_entry entry = {.shard = a->tail.shard.id, .record_bytes = f->record_bytes, .offset = f->offset};
	crash(CRASH_PUBLISH);
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

// ---- the line

// From the queue; false when it is empty. What asks for no more than that is acknowledged.
static bool line_take(struct appender *a, struct line *l)
{
	struct pending_item *last = l->items.last;
	index_lock(a->parts->index);
	pending_pop(&a->parts->pending, TAKE_BYTES, &l->items);
	index_unlock(a->parts->index);
	l->next = last ? last->next : l->items.first;
	if (!l->unsettled)
		l->unsettled = l->next;
	for (struct pending_item *item = l->next; item; item = item->next)
		if (item->durability == STORE_NONE)
			item_acknowledge(a, item, NULL);
	return l->next;
}

static void line_free(struct appender *a, struct line *l, const struct pending_item *upto)
{
	while (l->items.first != upto) {
		struct pending_item *item = pending_list_pop(&l->items);
		index_lock(a->parts->index);
		struct record *record = pending_free(&a->parts->pending, item);
		index_unlock(a->parts->index);
		record_unref(record);
	}
}

// What the kernel has by now is made findable; what need not wait for an fsync is acknowledged and freed.
static void line_settle(struct appender *a, struct line *l)
{
	for (; l->unsettled != l->next; l->unsettled = l->unsettled->next) {
		struct pending_item *item = l->unsettled;
		if (!item->written && item->frame.offset + shard_frame_size(item->frame.record_bytes) > a->tail.good)
			break;
		if (!item->written)
			item_publish(a, item);
		if (item->durability != STORE_DURABLE)
			item_acknowledge(a, item, NULL);
		l->waiting = l->waiting || !item->acknowledged;
	}
	struct pending_item *item = l->items.first;
	while (item != l->unsettled && item->acknowledged)
		item = item->next;
	line_free(a, l, item);
}

// An fsync for all that waits for one. When it fails, all that is settled is to be written again, and the shard is retired.
static int line_sync(struct appender *a, struct line *l, struct error *err)
{
	if (!l->waiting)
		return 0;
	l->waiting = false;
	int rc = a->tail.shard.fd >= 0 ? tail_sync(&a->tail) : -EIO;
	for (struct pending_item *item = l->items.first; item != l->unsettled; item = item->next) {
		if (rc == 0)
			item_acknowledge(a, item, NULL);
		else
			item_take_back(a, item);
	}
	if (rc == 0) {
		line_settle(a, l);
		return 0;
	}
	l->unsettled = l->next = l->items.first;
	tail_abandon(&a->tail);
	if (a->tail.shard.fd >= 0)
		shard_retire(a);
	return error_system(err, rc, NULL, "store %s: cannot synchronise a shard", a->parts->directory.path);
}

// More to write at once? While the disk is busy there is time to wait for it. Not after a failure: that is dealt with first.
static bool line_grow(struct appender *a, struct line *l)
{
	if (!l->grows || a->retired.fd >= 0 || a->backoff_ms || (a->pauses && a->next_id != l->next_id))
		return false;
	while (!line_take(a, l)) {
		if (!tail_wait(&a->tail))
			return false;
		line_settle(a, l);
	}
	return true;
}

// Writes items that are not on disk yet, as many as fit the shard.
static int line_write(struct appender *a, struct line *l, struct error *err)
{
	struct tail *t = &a->tail;
	while (!t->failed && (l->next || line_grow(a, l))) {
		struct pending_item *item = l->next;
		if (!item_stored(a, item)) {
			if (!frame_fits(a, item_bytes(item)))
				break;
			tail_append(t, item->record, &item->frame);
		}
		l->next = item->next;
		line_settle(a, l);
		int rc = l->waiting && t->shard.end - t->shard.synced >= SYNC_BYTES ? line_sync(a, l, err) : 0;
		if (rc < 0)
			return rc;
	}
	int rc = tail_flush(t);
	line_settle(a, l);
	if (rc == 0)
		return 0;
	l->next = l->unsettled;
	if (tail_cut(t) < 0)
		shard_retire(a);
	return error_system(err, rc, NULL, "store %s: cannot write", a->parts->directory.path);
}

// Whatever there is to do in one shard: something waits.
static int line_commit(struct appender *a, struct line *l, struct error *err)
{
	int rc = 0;
	struct pending_item *first = l->next;
	assert(first);
	while (l->next && item_stored(a, l->next))
		l->next = l->next->next;
	bool all_stored = l->next != first;
	if (!all_stored)
		rc = shard_ready(a, item_bytes(first), err);
	if (!all_stored && rc == 0)
		rc = line_write(a, l, err);
	line_settle(a, l);
	int rc2 = line_sync(a, l, rc < 0 ? NULL : err);
	// A shard that refuses writes for another reason than a full disk is left; what it holds is good.
	if (rc < 0 && rc != -ENOSPC && rc != -EDQUOT && a->tail.shard.fd >= 0)
		shard_leave(a);
	return rc < 0 ? rc : rc2;
}

// All of it; what could not be stored stays in the line (then err says why).
static int line_run(struct appender *a, struct line *l, struct error *err)
{
	unsigned n_failures = 0;
	while (l->next) {
		int rc = line_commit(a, l, err);
		n_failures = rc < 0 ? n_failures + 1 : 0;
		// With nothing left only padding failed: all that counts is stored.
		if (l->next && (rc == -ENOSPC || rc == -EDQUOT || n_failures >= ATTEMPTS))
			return rc;
	}
	return 0;
}

// ---- what a retired shard held without an fsync

// Reads the next entries back (from the page cache, most likely) as items; those that do not check are left out.
static void rescue_read(struct appender *a, size_t *i, struct line *l)
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
		pending_list_push(&l->items, item);
		n += e->record_bytes;
	}
	l->unsettled = l->next = l->items.first;
}

static void rescue(struct appender *a)
{
	uint32_t id = a->retired.id;
	uint64_t cut_from = a->retired.end;
	size_t i = 0;
	while (a->retired.fd >= 0 && a->retired.id == id) {
		struct line l = {0};
		rescue_read(a, &i, &l);
		bool all = !l.next;
		int rc = line_run(a, &l, NULL);
		line_free(a, &l, NULL);
		if (!all && rc == 0)
			continue;
		if (all && ftruncate(a->retired.fd, (off_t)a->retired.synced) == 0)
			atomic_fetch_sub(&a->parts->counters.n_bytes, cut_from - a->retired.synced);
		if (a->retired.fd >= 0 && a->retired.id == id)
			retired_forget(a);
	}
}

// ---- the queue

static void set_failing(struct appender *a, bool failing, const struct error *why)
{
	struct store_parts *p = a->parts;
	if (atomic_exchange(&p->counters.failing, failing) != failing && p->failing)
		p->failing(p->failing_arg, why);
}

// After a refusal appends fail at once for a while, so that a full disk is not asked for every record.
static void back_off(struct appender *a, const struct error *why)
{
	a->backoff_ms = a->backoff_ms ? a->backoff_ms * 2 : BACKOFF_MIN_MS;
	if (a->backoff_ms > BACKOFF_MAX_MS)
		a->backoff_ms = BACKOFF_MAX_MS;
	a->retry_at_ms = now_ms() + a->backoff_ms;
	set_failing(a, true, why);
}

void appender_drain(struct appender *a)
{
	struct error err;
	struct line l = {.grows = true, .next_id = a->next_id};
	line_take(a, &l);
	if (a->backoff_ms && now_ms() < a->retry_at_ms) {
		error_set(&err, ERROR_STORE, NULL, "store %s: the disk refused lately; not tried", a->parts->directory.path);
	} else {
		int rc = line_run(a, &l, &err);
		if (a->retired.fd >= 0)
			rescue(a);
		if (rc < 0) {
			a->refused_bytes = SHARD_HEADER_BYTES + item_bytes(l.next);      // it may need a new shard
			back_off(a, &err);
		} else if (a->backoff_ms) {
			a->backoff_ms = 0;
			set_failing(a, false, NULL);
		}
	}
	for (struct pending_item *item = l.next; item; item = item->next) {
		if (!item_stored(a, item) || !item->acknowledged)
			item_acknowledge(a, item, &err);
	}
	tail_account(a);
	line_free(a, &l, NULL);
}

uint64_t appender_retry_ms(const struct appender *a)
{
	uint64_t now = now_ms();
	if (!atomic_load(&a->parts->counters.failing))
		return UINT64_MAX;
	return now < a->retry_at_ms ? a->retry_at_ms - now : 0;
}

// Without an append there is nothing to lose, so a file of no importance is tried, as large as what was refused. The pause between attempts
// is only forgotten when an append succeeds: a disk that takes this file and refuses records is not asked more often for it.
void appender_retry(struct appender *a)
{
	if (directory_try(&a->parts->directory, a->refused_bytes) < 0) {
		back_off(a, NULL);
	} else {
		a->retry_at_ms = 0;
		set_failing(a, false, NULL);
	}
}
