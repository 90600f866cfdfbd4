// SPDX-License-Identifier: Apache-2.0
// Every record of a store in shard order.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/error.h"
#include "daemon/store/packed.h"
#include "daemon/store/scan.h"
#include "daemon/store/store_internal.h"

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

// The file was longer by now than when the scan began: what ended there, or did not hold, may be whole. True: look again from `c` on.
static bool walk_grown(struct scan *scan, const struct store_cursor *c)
{
	struct stat st;
	int fd = scan->fd;
	uint32_t id = scan->header.id;
	if (scan->sealed || fstat(fd, &st) < 0 || (uint64_t)st.st_size <= scan->file_bytes)
		return false;
	scan_done(scan);
	if (scan_init(scan, fd, id, NULL) < 0)
		return false;
	scan->position = c->position > scan->position ? c->position : scan->position;
	scan->next_number = c->n_record;
	return true;
}

// One step within a shard: 0 with a record, -EBADMSG with damage, 1 when there was nothing to report, -ENOENT at the shard's end.
static int walk_step(struct scan *scan, bool newest, struct store_cursor *c, struct record **ret_record, struct error *err)
{
	struct scan_item item;
	struct store_cursor before = {.position = scan->position, .n_record = scan->next_number};
	int rc = scan_next(scan, &item, err);
	if (rc < 0)
		return rc;
	if (item.kind != SCAN_RECORD && item.kind != SCAN_SEAL && walk_grown(scan, &before))
		return 1;
	c->position = scan->position;
	c->n_record = scan->next_number;
	switch (item.kind) {
	case SCAN_RECORD:
		rc = packed_decode(item.record, item.frame.record_bytes, ret_record, err);
		if (rc == 0 && memcmp(record_key(*ret_record), &item.frame.key, sizeof item.frame.key) != 0) {
			*ret_record = record_unref(*ret_record);
			rc = error_set(err, ERROR_CORRUPT, NULL, "the record is not the one its frame names");
		}
		return rc < 0 && rc != -ENOMEM ? -EBADMSG : rc;
	case SCAN_DAMAGE:
		return error_set(err, ERROR_CORRUPT, NULL, "%" PRIu64 " bytes are damaged, %" PRIu64 " records lost",
			item.n_bytes, item.n_lost);
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

// On behind shard `id`; nothing lies behind the last there can be.
static struct store_cursor cursor_behind(uint32_t id)
{
	return id == UINT32_MAX ? (struct store_cursor){.shard = id, .position = UINT64_MAX} : (struct store_cursor){.shard = id + 1};
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
		*c = cursor_behind(id);
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
		struct shards_file *f = c->position == UINT64_MAX ? NULL : shards_find(&p->shards, c->shard);
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
			*c = cursor_behind(id);
			if (rc == -ENOENT)           // removed by the process that writes: not damage
				continue;
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
		*c = cursor_behind(id);
	}
}
