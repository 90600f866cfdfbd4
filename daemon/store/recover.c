// SPDX-License-Identifier: Apache-2.0
// Opening the shards of a directory. A sealed shard is known from its index file; any other is scanned, after an fsync: what the page cache
// holds of a dead writer's work is worth nothing until the disk has it too.
#include "daemon/store/recover.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/store/crash.h"
#include "daemon/store/packed.h"
#include "daemon/store/scan.h"

#define LOOKS 3                  // at what is damaged at the end of a shard that another process may be writing

struct recovery {
	struct store_parts *parts;
	bool writable;
	struct tail_shard shard;         // the one at hand
	uint64_t size;                   // of its file
	bool sealed;
	bool damaged;                    // not to be appended to
	bool failed;                     // reading or synchronising it failed: leave the file as it is
	bool unsynced;                   // the disk may not have what was read
	uint64_t n_corrupt, torn_bytes;  // of it
};

static int recovery_publish(struct recovery *r, struct error *err)
{
	const struct tail_shard *s = &r->shard;
	for (size_t i = 0; i < s->entries.n; i++) {
		const struct sidecar_entry *e = &s->entries.entries[i];
		struct index_entry place = sidecar_place(e, s->id);
		index_lock(r->parts->index);
		// A later copy wins: it was written because the earlier one was found bad.
		int rc = index_append(r->parts->index, &e->key, &place);
		index_unlock(r->parts->index);
		if (rc < 0)
			return error_set(err, ERROR_MEMORY, NULL, "no memory for the store's index");
	}
	return 0;
}

// A record of another version, or one that is broken inside a good frame, is known by its key alone.
static int entry_append(struct sidecar *entries, const struct scan_item *item)
{
	struct record *record = NULL;
	if (packed_decode(item->record, item->frame.record_bytes, &record, NULL) == -ENOMEM)
		return -ENOMEM;
	int rc = sidecar_append(entries, &item->frame, record);
	record_unref(record);
	return rc;
}

static int recovery_scan(struct recovery *r, struct scan *scan, struct error *err)
{
	struct tail_shard *s = &r->shard;
	struct scan_item item;
	struct error local;
	if (r->writable && fsync(s->fd) < 0)
		r->failed = r->unsynced = true;
	do {
		int rc = scan_next(scan, &item, &local);
		if (rc == -ENOMEM)
			return error_set(err, ERROR_MEMORY, NULL, "no memory to read a shard");
		if (rc < 0) {
			r->failed = r->damaged = true;
			r->n_corrupt++;
			return 0;
		}
		if (item.kind == SCAN_RECORD && entry_append(&s->entries, &item) < 0)
			return error_set(err, ERROR_MEMORY, NULL, "no memory for the store's index");
		if (item.kind == SCAN_DAMAGE) {
			r->damaged = true;
			r->n_corrupt += item.n_lost;
		}
		if (item.kind == SCAN_TORN)
			r->torn_bytes += item.n_bytes;
	} while (item.kind != SCAN_END);
	r->sealed = scan->sealed;
	s->end = item.offset;
	s->next_number = scan->next_number;
	return 0;
}

// A reader may meet a write under way, whose blocks become visible in any order: what is damaged is looked at again.
static int recovery_look(struct recovery *r, struct scan *scan, bool newest, struct error *err)
{
	int rc = recovery_scan(r, scan, err);
	for (int i = 0; rc == 0 && i < LOOKS && !r->writable && newest && r->damaged && !r->sealed && !r->failed; i++) {
		nanosleep(&(struct timespec){.tv_nsec = 20 * 1000 * 1000}, NULL);
		scan_done(scan);
		sidecar_done(&r->shard.entries);
		r->damaged = false;
		r->n_corrupt = r->torn_bytes = 0;
		rc = scan_init(scan, r->shard.fd, r->shard.id, err);
		rc = rc < 0 ? rc : recovery_scan(r, scan, err);
	}
	return rc;
}

// After a scan, for writers: the file ends where its last valid thing does; unless it is to be appended to it is sealed and indexed.
static void recovery_mend(struct recovery *r, bool newest)
{
	struct tail_shard *s = &r->shard;
	uint8_t seal[SHARD_SEAL_BYTES];
	crash(CRASH_MEND_BEFORE);
	if (r->failed || ftruncate(s->fd, (off_t)s->end) < 0) {        // also when nothing is torn: gives back space set aside
		r->failed = true;
		return;
	}
	r->size = s->end;
	crash(CRASH_MEND_CUT);
	if (!r->sealed && !(newest && !r->damaged)) {
		shard_seal_encode(s->seed, s->end, s->next_number, seal);
		if (directory_write(s->fd, seal, sizeof seal, s->end) < 0) {
			(void)!ftruncate(s->fd, (off_t)s->end);
			return;
		}
		r->sealed = true;
		r->size += sizeof seal;
	}
	crash(CRASH_MEND_SEALED);
	if (fsync(s->fd) < 0) {
		r->failed = true;
		return;
	}
	crash(CRASH_MEND_SYNCED);
	s->synced = s->end;
	if (r->sealed)
		sidecar_write(&s->entries, &r->parts->directory, s->id, s->seed, r->size, NULL);
}

// One shard; r->shard holds it afterwards. 1 when it is not readable.
static int recovery_shard(struct recovery *r, uint32_t id, bool newest, struct error *err)
{
	char name[DIRECTORY_NAME_MAX];
	struct scan scan;
	struct tail_shard *s = &r->shard;
	*s = (struct tail_shard){.id = id};
	r->sealed = r->damaged = r->failed = r->unsynced = false;
	r->n_corrupt = r->torn_bytes = 0;
	directory_shard_name(id, name);
	s->fd = openat(r->parts->directory.fd, name, (r->writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOFOLLOW);
	if (s->fd < 0)
		return error_system(err, errno, NULL, "store %s: cannot open %s", r->parts->directory.path, name);
	int rc = scan_init(&scan, s->fd, id, err);
	bool readable = rc == 0;
	if (rc == -EBADMSG || rc == -EIO)
		rc = 0;
	if (rc < 0)
		goto out;
	s->seed = scan.header.seed;
	r->size = scan.size;
	index_lock(r->parts->index);
	int known = shards_append(&r->parts->shards, id, s->seed, readable);
	index_unlock(r->parts->index);
	if (known < 0)
		rc = error_set(err, ERROR_MEMORY, NULL, "no memory for the list of shards");
	if (!readable || scan.header.damaged) {
		r->damaged = true;
		r->n_corrupt++;
	}
	if (rc == 0 && readable && sidecar_read(&r->parts->directory, id, s->seed, r->size, &s->entries, NULL) == 0) {
		r->sealed = true;
	} else if (rc == 0 && readable) {
		rc = recovery_look(r, &scan, newest, err);
		if (rc == 0 && r->writable)
			recovery_mend(r, newest);
	}
	// Found, a record counts as durable: of what no fsync has covered nothing is found, and it is stored anew.
	if (rc == 0 && r->unsynced)
		r->n_corrupt += s->entries.n;
	else if (rc == 0)
		rc = recovery_publish(r, err);
	atomic_fetch_add(&r->parts->counters.n_bytes, r->size);
	atomic_fetch_add(&r->parts->counters.n_corrupt, r->n_corrupt);
	atomic_fetch_add(&r->parts->counters.recovered_bytes, r->writable ? r->torn_bytes : 0);
out:
	scan_done(&scan);
	return rc < 0 ? rc : !readable;
}

static void recovery_report(const struct recovery *r, struct recovered *ret)
{
	*ret = (struct recovered){true, r->shard.id, r->shard.end, r->shard.next_number, r->sealed};
}

int recover_shard(struct store_parts *parts, uint32_t id, struct recovered *ret, struct error *err)
{
	struct recovery r = {.parts = parts, .shard.fd = -1};
	int rc = recovery_shard(&r, id, true, err);
	if (rc >= 0)
		recovery_report(&r, ret);
	tail_shard_done(&r.shard);
	return rc;
}

int recover_shards(struct store_parts *parts, bool read_only, struct tail_shard *ret_current, uint32_t *ret_next_id,
		   struct recovered *ret_newest, struct error *err)
{
	struct recovery r = {.parts = parts, .writable = !read_only, .shard.fd = -1};
	uint32_t *ids;
	size_t n, n_unreadable = 0;
	int rc = directory_list(&parts->directory, &ids, &n, err);
	if (rc < 0)
		return rc;
	*ret_current = (struct tail_shard){.fd = -1};
	*ret_next_id = n ? ids[n - 1] + (ids[n - 1] != UINT32_MAX) : 0;
	for (size_t i = 0; i < n && rc >= 0; i++) {
		bool newest = i == n - 1;
		rc = recovery_shard(&r, ids[i], newest, err);
		if (rc == 1)
			n_unreadable++;
		if (rc >= 0)
			recovery_report(&r, ret_newest);
		if (rc == 0 && newest && r.writable && !r.sealed && !r.damaged && !r.failed) {
			*ret_current = r.shard;
			r.shard = (struct tail_shard){.fd = -1};
		}
		tail_shard_done(&r.shard);
	}
	free(ids);
	if (rc >= 0 && n && n_unreadable == n)
		return error_set(err, ERROR_CORRUPT, NULL, "store %s: none of its %zu shards can be read", parts->directory.path, n);
	if (rc < 0)
		tail_shard_done(ret_current);
	return rc < 0 ? rc : 0;
}
