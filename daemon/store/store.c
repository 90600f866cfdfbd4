// SPDX-License-Identifier: Apache-2.0
// The store as others see it: open, find, append, walk. How it is written is appender.c's business, what happens at start recover.c's.
#include "daemon/store/store.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/store/appender.h"
#include "daemon/store/recover.h"
#include "daemon/store/scan.h"

#define SHARD_BYTES (UINT64_C(256) << 20)
#define QUEUE_BYTES (UINT64_C(64) << 20)
#define BATCH_BYTES (32u << 20)          // taken from the queue at a time: one fsync for all of it

struct store {
	struct store_parts parts;
	char *path;
	bool read_only;
	bool stopping;               // under the index's lock
	bool started;
	pthread_t thread;
	struct appender appender;    // the thread's
	struct scan *parked;         // where store_next stopped, under the index's lock; NULL while in use
};

static void *store_run(void *arg)
{
	struct store *s = arg;
	struct index *index = s->parts.index;
	index_lock(index);
	for (;;) {
		struct pending_list items;
		pending_pop(&s->parts.pending, BATCH_BYTES, &items);
		if (items.first) {
			index_unlock(index);
			appender_commit(&s->appender, &items);
			index_lock(index);
		} else if (s->stopping) {
			break;
		} else {
			index_wait(index);
		}
	}
	index_unlock(index);
	appender_done(&s->appender);
	return NULL;
}

// Signals are the main thread's.
static int store_start(struct store *s, struct error *err)
{
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int rc = pthread_create(&s->thread, NULL, store_run, s);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (rc)
		return error_system(err, rc, NULL, "cannot start the store's thread");
	s->started = true;
	return 0;
}

int store_open(const struct store_options *options, struct store **ret_store, struct error *err)
{
	struct tail_shard current = {.fd = -1};
	uint32_t next_id = 0;
	struct store *s = calloc(1, sizeof *s);
	if (!s)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a store");
	s->parts.directory = (struct directory){.fd = -1, .lock = -1};
	s->parts.pending.max_bytes = options->queue_bytes ? options->queue_bytes : QUEUE_BYTES;
	s->read_only = options->read_only;
	s->path = strdup(options->directory);
	s->parts.index = index_new();
	int rc = 0;
	if (!s->path || !s->parts.index)
		rc = error_set(err, ERROR_MEMORY, NULL, "no memory for a store");
	if (rc == 0)
		rc = directory_open(&s->parts.directory, s->path, s->read_only, err);
	s->parts.shards.directory = s->parts.directory.fd;
	if (rc == 0)
		rc = recover_shards(&s->parts, s->read_only, &current, &next_id, err);
	if (rc == 0 && !s->read_only) {
		uint64_t shard_bytes = options->shard_bytes ? options->shard_bytes : SHARD_BYTES;
		rc = appender_init(&s->appender, &s->parts, shard_bytes, &current, next_id, err);
		if (rc == 0)
			rc = store_start(s, err);
	}
	if (rc < 0) {
		store_close(s);
		return rc;
	}
	*ret_store = s;
	return 0;
}

void store_close(struct store *s)
{
	if (!s)
		return;
	if (s->started) {
		index_lock(s->parts.index);
		s->stopping = true;
		index_wake(s->parts.index);
		index_unlock(s->parts.index);
		pthread_join(s->thread, NULL);
	} else {
		appender_done(&s->appender);
	}
	if (s->parked)
		scan_done(s->parked);
	free(s->parked);
	shards_done(&s->parts.shards);
	directory_close(&s->parts.directory);
	index_free(s->parts.index);
	free(s->path);
	free(s);
}

// Reads from the disk, without the lock. A copy that fails its checks is forgotten, so that the record can be stored anew; when the
// place had changed meanwhile (its shard was given up) the new one is tried.
static int store_read(struct store *s, const struct content_id *key, struct index_entry place, struct record **ret_record,
		      struct error *err)
{
	struct store_parts *p = &s->parts;
	for (;;) {
		int fd = -1;
		uint32_t seed;
		index_lock(p->index);
		int rc = shards_acquire(&p->shards, place.shard, &fd, &seed, err);
		index_unlock(p->index);
		if (rc < 0)
			return rc;
		rc = shards_read(fd, seed, &place, key, ret_record, err);
		struct index_entry now;
		index_lock(p->index);
		shards_release(&p->shards, place.shard);
		bool moved = index_find(p->index, key, &now) == 0 && (now.shard != place.shard || now.offset != place.offset);
		if (rc == -EBADMSG && !moved)
			index_remove(p->index, key, &place);
		index_unlock(p->index);
		if (rc == -EBADMSG && moved) {
			place = now;
			continue;
		}
		if (rc == -EBADMSG)
			atomic_fetch_add(&p->counters.n_corrupt, 1);
		return rc;
	}
}

int store_find(struct store *s, const struct content_id *key, struct record **ret_record, struct error *err)
{
	struct store_parts *p = &s->parts;
	struct index_entry place;
	index_lock(p->index);
	struct record *waiting = pending_find(&p->pending, key);
	if (waiting)
		*ret_record = record_ref(waiting);
	int rc = waiting ? 0 : index_find(p->index, key, &place);
	index_unlock(p->index);
	if (rc == 0 && !waiting)
		rc = store_read(s, key, place, ret_record, err);
	else if (rc < 0)
		rc = error_set(err, ERROR_NOT_FOUND, NULL, "no such record");
	atomic_fetch_add(rc == 0 ? &p->counters.n_hits : &p->counters.n_misses, 1);
	return rc;
}

int store_append(struct store *s, struct record *record, enum store_durability durability, store_done_fn *done, void *arg,
		 struct error *err)
{
	struct store_parts *p = &s->parts;
	size_t n;
	record_bytes(record, &n);
	if (s->read_only)
		return error_set(err, ERROR_UNAVAILABLE, NULL, "store %s is open for reading only", s->path);
	if (n > SHARD_RECORD_MAX || n > p->pending.max_bytes)
		return error_set(err, ERROR_TOO_LARGE, NULL, "a record of %zu bytes is over the store's limit of %" PRIu64, n,
				 p->pending.max_bytes < SHARD_RECORD_MAX ? p->pending.max_bytes : SHARD_RECORD_MAX);
	index_lock(p->index);
	struct index_entry place;
	int rc = 0;
	// Nobody waits and the copy on disk is as good: not worth the queue.
	bool known = durability != STORE_DURABLE && !done && index_find(p->index, record_key(record), &place) == 0;
	if (!known)
		rc = pending_push(&p->pending, record, durability, done, arg);
	if (rc == 0 && !known)
		index_wake(p->index);
	index_unlock(p->index);
	if (known)
		atomic_fetch_add(&p->counters.n_duplicates, 1);
	if (rc == -EAGAIN)
		return error_set(err, ERROR_OVERLOADED, NULL, "the store's queue of %" PRIu64 " bytes is full", p->pending.max_bytes);
	return rc < 0 ? error_set(err, ERROR_MEMORY, NULL, "no memory to queue a record") : 0;
}

void store_stats(struct store *s, struct store_stats *ret)
{
	struct store_counters *c = &s->parts.counters;
	*ret = (struct store_stats){
		.n_bytes = atomic_load(&c->n_bytes), .n_appended = atomic_load(&c->n_appended),
		.appended_bytes = atomic_load(&c->appended_bytes), .n_duplicates = atomic_load(&c->n_duplicates),
		.n_hits = atomic_load(&c->n_hits), .n_misses = atomic_load(&c->n_misses),
		.n_failed_appends = atomic_load(&c->n_failed_appends), .n_corrupt = atomic_load(&c->n_corrupt),
		.recovered_bytes = atomic_load(&c->recovered_bytes),
		.n_overflows = atomic_load(&c->n_overflows), .uring = atomic_load(&c->uring), .direct = atomic_load(&c->direct),
		.failing = atomic_load(&c->failing),
	};
	index_lock(s->parts.index);
	ret->n_records = index_count(s->parts.index);
	ret->n_shards = s->parts.shards.n;
	ret->queued_bytes = s->parts.pending.n_bytes;
	index_unlock(s->parts.index);
}

// ---- the walk

// The scan of shard `id` at the cursor, from where the last call left it if that was there.
static int walk_resume(struct scan **scan, int fd, uint32_t id, const struct store_cursor *c, struct error *err)
{
	if (!*scan && !(*scan = calloc(1, sizeof **scan)))
		return error_set(err, ERROR_MEMORY, NULL, "no memory to read a shard");
	struct scan *s = *scan;
	if (s->window && s->header.id == id && s->position == c->position && c->position > 0) {
		s->fd = fd;
		return 0;
	}
	scan_done(s);
	int rc = scan_init(s, fd, id, err);
	if (rc == 0 && c->position > s->position) {
		s->position = c->position;
		s->next_number = c->n_record;
	}
	return rc;
}

// One step within a shard: 0 with a record, -EBADMSG with damage, 1 when there was nothing to report, -ENOENT at the shard's end.
static int walk_step(struct scan *scan, bool newest, struct store_cursor *c, struct record **ret_record, struct error *err)
{
	struct scan_item item;
	int rc = scan_next(scan, &item, err);
	if (rc < 0)
		return rc;
	c->position = scan->position;
	c->n_record = scan->next_number;
	switch (item.kind) {
	case SCAN_RECORD:
		rc = record_from_bytes(item.record, item.frame.record_bytes, ret_record, err);
		if (rc == 0 && memcmp(record_key(*ret_record), &item.frame.key, sizeof item.frame.key) != 0) {
			*ret_record = record_unref(*ret_record);
			rc = error_set(err, ERROR_CORRUPT, NULL, "the record is not the one its frame names");
		}
		return rc < 0 && rc != -ENOMEM ? -EBADMSG : rc;
	case SCAN_DAMAGE:
		return error_set(err, ERROR_CORRUPT, NULL, "%" PRIu64 " bytes are damaged, %" PRIu64 " records lost", item.n_bytes, item.n_lost);
	case SCAN_TORN:      // at the end of the shard being written this is work in progress, or of a writer that died
		if (!newest || scan->sealed)
			return error_set(err, ERROR_CORRUPT, NULL, "%" PRIu64 " bytes at the end are damaged", item.n_bytes);
		return 1;
	case SCAN_SEAL:
		return 1;
	case SCAN_END:
		break;
	}
	return -ENOENT;
}

static int walk_shard(struct scan **scan, int fd, uint32_t id, bool newest, struct store_cursor *c, struct record **ret_record,
		      char ret_place[96], struct error *err)
{
	uint64_t at = c->position;
	int rc = walk_resume(scan, fd, id, c, err);
	bool opened = rc == 0;
	if (opened && at == 0 && (*scan)->header.damaged) {
		c->position = SHARD_HEADER_BYTES;
		rc = error_set(err, ERROR_CORRUPT, NULL, "the header is damaged, its other copy holds");
	} else if (opened) {
		do {
			at = (*scan)->position;
			rc = walk_step(*scan, newest, c, ret_record, err);
		} while (rc == 1);
	}
	if (rc < 0 && rc != -ENOMEM && rc != -ENOENT && !(opened && rc == -EBADMSG)) {       // nothing more can be read of this shard
		*c = (struct store_cursor){.shard = id + 1};
		rc = -EBADMSG;
	}
	snprintf(ret_place, 96, "%08" PRIx32 ".shard:%" PRIu64, id, at);
	return rc;
}

int store_next(struct store *s, struct store_cursor *c, struct record **ret_record, char ret_place[96], struct error *err)
{
	struct store_parts *p = &s->parts;
	*ret_record = NULL;
	ret_place[0] = '\0';
	for (;;) {
		int fd = -1;
		uint32_t id, seed;
		index_lock(p->index);
		struct shards_file *f = shards_find(&p->shards, c->shard);
		id = f ? f->id : 0;
		bool newest = f && f == &p->shards.files[p->shards.n - 1];
		int rc = f ? shards_acquire(&p->shards, id, &fd, &seed, err) : -ENOENT;
		struct scan *scan = rc == 0 ? s->parked : NULL;
		if (scan)
			s->parked = NULL;
		index_unlock(p->index);
		if (!f)
			return error_set(err, ERROR_NOT_FOUND, NULL, "no more records");
		if (id != c->shard)
			*c = (struct store_cursor){.shard = id};
		if (rc < 0) {
			c->shard = id + 1;
			snprintf(ret_place, 96, "%08" PRIx32 ".shard", id);
			return -EBADMSG;
		}
		rc = walk_shard(&scan, fd, id, newest, c, ret_record, ret_place, err);
		index_lock(p->index);
		shards_release(&p->shards, id);
		struct scan *spare = s->parked;
		s->parked = scan;
		index_unlock(p->index);
		if (spare)
			scan_done(spare);
		free(spare);
		if (rc != -ENOENT)
			return rc;
		*c = (struct store_cursor){.shard = id + 1};
	}
}
