// SPDX-License-Identifier: Apache-2.0
// A read-only store keeps up with the process that writes it: new shards, and new frames of the newest. Its one complication is a write
// under way: its blocks may become visible in any order. What does not hold yet is looked at again, and taken for damage only when it
// stays so.
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/store/packed.h"
#include "daemon/store/scan.h"
#include "daemon/store/store_internal.h"

#define FOLLOW_EVERY_MS 100
#define FOLLOW_PATIENCE_MS 2000        // no write takes this long

static uint64_t now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static int frame_publish(struct store *s, const struct scan_item *item)
{
	struct sidecar one = {0};
	struct record *record = NULL;
	int rc = packed_decode(item->record, item->frame.record_bytes, &record, NULL);
	rc = rc == -ENOMEM ? rc : sidecar_append(&one, &item->frame, record);
	if (rc == 0) {
		struct index_entry place = sidecar_place(&one.entries[0], s->newest.id);
		index_lock(s->parts.index);
		rc = index_append(s->parts.index, &item->frame.key, &place);
		index_unlock(s->parts.index);
	}
	record_unref(record);
	sidecar_done(&one);
	return rc;
}

// Whether to step over what does not hold at the scan's place: only when it has been lying there for long, or the shard goes on behind it
// for good.
static bool is_damage(struct store *s, bool more_shards)
{
	if (!s->held_since_ms)
		s->held_since_ms = now_ms();
	return more_shards || now_ms() - s->held_since_ms >= FOLLOW_PATIENCE_MS;
}

// The newest shard from where it was left.
static void shard_follow(struct store *s, bool more_shards)
{
	struct recovered *at = &s->newest;
	struct scan scan;
	struct scan_item item;
	int fd = -1;
	uint32_t seed;
	index_lock(s->parts.index);
	int rc = shards_acquire(&s->parts.shards, at->id, &fd, &seed, NULL);
	index_unlock(s->parts.index);
	if (rc < 0)
		return;
	rc = scan_init(&scan, fd, at->id, NULL);
	if (rc == 0 && scan.size > at->end) {
		scan.position = at->end;
		scan.next_number = at->next_number;
		do {
			rc = scan_next(&scan, &item, NULL);
			if (rc == 0 && item.kind == SCAN_DAMAGE && !is_damage(s, more_shards))
				break;
			if (rc == 0 && item.kind == SCAN_RECORD)
				rc = frame_publish(s, &item);
			if (rc < 0 || item.kind == SCAN_TORN || item.kind == SCAN_END)
				break;
			s->held_since_ms = 0;
			at->end = scan.position;
			at->next_number = scan.next_number;
			at->sealed = scan.sealed;
		} while (true);
	}
	scan_done(&scan);
	index_lock(s->parts.index);
	shards_release(&s->parts.shards, at->id);
	index_unlock(s->parts.index);
}

// Shards that the writer has removed: their places are forgotten, who reads one of them may finish. Both lists ascend.
static void removed_follow(struct store *s, const uint32_t *ids, size_t n)
{
	struct shards *shards = &s->parts.shards;
	size_t n_gone = 0, k = 0;
	index_lock(s->parts.index);
	uint32_t *gone = shards->n > n || (shards->n && n && shards->files[0].id < ids[0]) ? malloc(shards->n * sizeof *gone) : NULL;
	for (size_t i = 0; gone && i < shards->n; i++) {
		while (k < n && ids[k] < shards->files[i].id)
			k++;
		if ((k == n || ids[k] != shards->files[i].id) && !shards->files[i].gone)
			gone[n_gone++] = shards->files[i].id;
	}
	index_unlock(s->parts.index);
	if (n_gone)
		index_remove_shards(s->parts.index, gone, n_gone);
	index_lock(s->parts.index);
	for (size_t i = 0; i < n_gone; i++)
		shards_remove(shards, gone[i]);
	index_unlock(s->parts.index);
	free(gone);
}

static void directory_follow(struct store *s)
{
	uint32_t *ids = NULL;
	size_t n = 0, i = 0;
	if (directory_list(&s->parts.directory, &ids, &n, NULL) < 0)
		return;
	while (i < n && s->newest.any && ids[i] <= s->newest.id)
		i++;
	if (s->newest.any && !s->newest.sealed)
		shard_follow(s, i < n);
	for (; i < n; i++)
		if (recover_shard(&s->parts, ids[i], &s->newest, NULL) < 0)
			break;
	removed_follow(s, ids, n);       // last: what was rewritten has its new place by now
	free(ids);
}

bool follow(struct store *s, bool now)
{
	uint64_t ms = now_ms();
	if ((!now && ms - atomic_load(&s->follow_at_ms) < FOLLOW_EVERY_MS) || atomic_flag_test_and_set(&s->following))
		return false;
	directory_follow(s);
	atomic_store(&s->follow_at_ms, now_ms());
	atomic_flag_clear(&s->following);
	return true;
}
