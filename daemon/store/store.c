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
#include <sys/statvfs.h>
#include <time.h>

#include "common/error.h"
#include "daemon/store/scan.h"
#include "daemon/store/store_internal.h"

#define SHARD_BYTES (UINT64_C(256) << 20)
#define QUEUE_BYTES (UINT64_C(64) << 20)
#define RETAIN_EVERY_MS 60000

static uint64_t now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static bool store_retains(const struct store *s)
{
	return s->retention.max_bytes || s->retention.max_age_s;
}

// Once a minute, and when a shard was begun.
static bool retention_due(const struct store *s)
{
	return store_retains(s) && (s->appender.next_id != s->retained_next_id || now_ms() >= s->retain_at_ms);
}

static void store_retain(struct store *s)
{
	const struct tail_shard *current = &s->appender.tail.shard;
	s->retained_next_id = s->appender.next_id;
	s->retain_at_ms = now_ms() + RETAIN_EVERY_MS;
	retention_apply(&s->parts, &s->retention, current->fd >= 0 ? current->id : UINT32_MAX);
}

// Until there is something to do, or it is time to look again. The index's lock is held.
static void store_wait(struct store *s)
{
	uint64_t ms = appender_retry_ms(&s->appender);
	if (store_retains(s) && ms > RETAIN_EVERY_MS)
		ms = RETAIN_EVERY_MS;
	if (ms == UINT64_MAX)
		index_wait(s->parts.index);
	else
		index_wait_ms(s->parts.index, ms);
}

static void drain(struct store *s)
{
	struct timespec from, to;
	clock_gettime(CLOCK_MONOTONIC, &from);
	appender_drain(&s->appender);
	clock_gettime(CLOCK_MONOTONIC, &to);
	histogram_append(&s->append_seconds, (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) * 1e-9);
}

// What store_change left. The index's lock is held.
static void take_limits(struct store *s)
{
	if (!s->changed)
		return;
	s->changed = false;
	s->retention = s->wanted;
	s->appender.pauses = store_retains(s);
	s->retain_at_ms = 0;
}

static void *store_run(void *arg)
{
	struct store *s = arg;
	struct index *index = s->parts.index;
	index_lock(index);
	for (;;) {
		take_limits(s);
		if (s->parts.pending.queue.first) {
			index_unlock(index);
			drain(s);
			if (retention_due(s))        // the queue may not be empty for hours
				store_retain(s);
			index_lock(index);
		} else if (!s->stopping && retention_due(s)) {
			index_unlock(index);
			store_retain(s);
			index_lock(index);
		} else if (s->stopping) {
			break;
		} else if (appender_retry_ms(&s->appender) == 0) {
			index_unlock(index);
			appender_retry(&s->appender);
			index_lock(index);
		} else {
			store_wait(s);
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
	s->parts.failing = options->failing;
	s->parts.failing_arg = options->failing_arg;
	s->parts.pending.max_bytes = options->queue_bytes ? options->queue_bytes : QUEUE_BYTES;
	s->read_only = options->read_only;
	s->rounded = options->rounded;
	s->retention = (struct retention){options->max_bytes, options->max_age_s};
	s->path = strdup(options->directory);
	s->parts.index = index_new();
	int rc = 0;
	if (!s->path || !s->parts.index)
		rc = error_set(err, ERROR_MEMORY, NULL, "no memory for a store");
	if (rc == 0)
		rc = directory_open(&s->parts.directory, s->path, s->read_only, err);
	s->parts.shards.directory = s->parts.directory.fd;
	if (rc == 0)
		rc = recover_shards(&s->parts, s->read_only, &current, &next_id, &s->newest, err);
	if (rc == 0 && !s->read_only) {
		uint64_t shard_bytes = options->shard_bytes ? options->shard_bytes : SHARD_BYTES;
		rc = appender_init(&s->appender, &s->parts, shard_bytes, &current, next_id, err);
		s->appender.pauses = store_retains(s);
		if (rc == 0)
			rc = packer_init(&s->appender.tail.packer, options->compression, err);
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

int store_append(struct store *s, struct record *record, enum store_durability durability, store_done_fn *done, void *arg,
		 struct error *err)
{
	struct store_parts *p = &s->parts;
	size_t n;
	record_bytes(record, &n);
	if (s->read_only)
		return error_set(err, ERROR_UNAVAILABLE, NULL, "store %s is open for reading only", s->path);
	index_lock(p->index);
	uint64_t queue_bytes = p->pending.max_bytes, largest = queue_bytes < SHARD_RECORD_MAX ? queue_bytes : SHARD_RECORD_MAX;
	if (n > largest) {
		index_unlock(p->index);
		return error_set(err, ERROR_TOO_LARGE, NULL, "a record of %zu bytes is over the store's limit of %" PRIu64, n, largest);
	}
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
		return error_set(err, ERROR_OVERLOADED, NULL, "the store's queue of %" PRIu64 " bytes is full", queue_bytes);
	return rc < 0 ? error_set(err, ERROR_MEMORY, NULL, "no memory to queue a record") : 0;
}

void store_change(struct store *s, const struct store_limits *limits)
{
	index_lock(s->parts.index);
	s->parts.pending.max_bytes = limits->queue_bytes;
	s->wanted = (struct retention){limits->max_bytes, limits->max_age_s};
	s->changed = true;
	index_wake(s->parts.index);
	index_unlock(s->parts.index);
}

struct histogram *store_append_seconds(struct store *s)
{
	return &s->append_seconds;
}

static void stat_disk(const struct store *s, struct store_stats *ret)
{
	struct statvfs v;
	if (fstatvfs(s->parts.directory.fd, &v) != 0)
		return;
	ret->free_bytes = (uint64_t)v.f_bavail * v.f_frsize;
	ret->disk_bytes = (uint64_t)v.f_blocks * v.f_frsize;
	ret->disk_read_only = v.f_flag & ST_RDONLY;
}

void store_stats(struct store *s, struct store_stats *ret)
{
	struct store_counters *c = &s->parts.counters;
	*ret = (struct store_stats){
		.n_bytes = atomic_load(&c->n_bytes), .n_appended = atomic_load(&c->n_appended),
		.appended_bytes = atomic_load(&c->appended_bytes), .n_duplicates = atomic_load(&c->n_duplicates),
		.n_removed_shards = atomic_load(&c->n_removed_shards), .removed_bytes = atomic_load(&c->removed_bytes),
		.n_contained = atomic_load(&c->n_contained), .n_hits = atomic_load(&c->n_hits), .n_misses = atomic_load(&c->n_misses),
		.n_failed_appends = atomic_load(&c->n_failed_appends), .n_corrupt = atomic_load(&c->n_corrupt),
		.recovered_bytes = atomic_load(&c->recovered_bytes),
		.n_overflows = atomic_load(&c->n_overflows), .uring = atomic_load(&c->uring), .direct = atomic_load(&c->direct),
		.failing = atomic_load(&c->failing),
	};
	stat_disk(s, ret);
	index_lock(s->parts.index);
	ret->n_records = index_count(s->parts.index);
	ret->n_shards = s->parts.shards.n;
	ret->queued_bytes = s->parts.pending.n_bytes;
	index_unlock(s->parts.index);
}
