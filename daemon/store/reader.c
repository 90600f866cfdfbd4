// SPDX-License-Identifier: Apache-2.0
// Many records at once, in whatever order they lie: one ring, a bounded number of reads under way. What does not come the straight way
// (waiting for the disk, damaged, in a second candidate) is looked up as any single question is.
#include <errno.h>
#include <stdlib.h>

#include "common/error.h"
#include "daemon/ring.h"
#include "daemon/store/shard.h"
#include "daemon/store/store_internal.h"

#define READER_MAX_DEPTH 256

struct reading {
	struct ring_op op;
	struct index_entry place;
	uint32_t seed;
	size_t question;
	uint8_t *bytes;
	size_t capacity;
	bool busy;
};

struct store_reader {
	struct store *store;
	struct ring *ring;
	unsigned depth;
	struct reading *readings;        // (depth)
};

int store_reader_open(struct store *s, unsigned depth, struct store_reader **ret_reader, struct error *err)
{
	struct store_reader *r = calloc(1, sizeof *r);
	depth = depth < 1 ? 1 : depth > READER_MAX_DEPTH ? READER_MAX_DEPTH : depth;
	if (r)
		*r = (struct store_reader){.store = s, .depth = depth, .readings = calloc(depth, sizeof *r->readings)};
	int rc = r && r->readings ? ring_open(depth, &r->ring, err) : error_set(err, ERROR_MEMORY, NULL, "no memory for a reader");
	if (rc < 0)
		store_reader_close(r);
	else
		*ret_reader = r;
	return rc;
}

struct store_reader *store_reader_close(struct store_reader *r)
{
	if (!r)
		return NULL;
	ring_close(r->ring);
	for (unsigned i = 0; r->readings && i < r->depth; i++)
		free(r->readings[i].bytes);
	free(r->readings);
	free(r);
	return NULL;
}

// Starts reading where the answer most likely is. False when this question is not to be had that way.
static bool reading_start(struct store_reader *r, struct reading *g, const struct store_question *q, size_t question)
{
	struct store_parts *p = &r->store->parts;
	struct content_id key = query_key(q->teacher, q->sequence, q->query);
	struct index_entry places[FIND_CANDIDATES];
	int fd = -1;
	index_lock(p->index);
	bool known = !pending_find(&p->pending, &key) && index_find(p->index, &key, &places[0]) == 0;
	index_unlock(p->index);
	if (!known && find_candidates(r->store, q, places) == 0)
		return false;
	size_t n = (size_t)shard_frame_size(places[0].record_bytes);
	if (n > SHARD_RECORD_MAX)
		return false;
	if (n > g->capacity) {
		uint8_t *larger = realloc(g->bytes, n);
		if (!larger)
			return false;
		g->bytes = larger;
		g->capacity = n;
	}
	index_lock(p->index);
	int rc = shards_acquire(&p->shards, places[0].shard, &fd, &g->seed, NULL);
	index_unlock(p->index);
	if (rc < 0)
		return false;
	g->place = places[0];
	g->question = question;
	g->busy = true;
	g->op = (struct ring_op){.kind = RING_READ, .fd = fd, .data = g->bytes, .n = n, .offset = places[0].offset};
	ring_queue(r->ring, &g->op);
	return true;
}

static void reading_finish(struct store_reader *r, struct reading *g, const struct store_question *q, struct record **ret_record)
{
	struct store_parts *p = &r->store->parts;
	struct record *record = NULL;
	int rc = ring_complete(r->ring, &g->op);
	index_lock(p->index);
	shards_release(&p->shards, g->place.shard);
	index_unlock(p->index);
	g->busy = false;
	if (rc == 0)
		rc = shards_check(g->bytes, g->op.n_done, g->seed, &g->place, NULL, &record, NULL);
	if (rc == 0)
		rc = find_extract(record, q, r->store->rounded, ret_record);
	if (rc == 0) {
		atomic_fetch_add(&p->counters.n_hits, 1);
		if (*ret_record != record)
			atomic_fetch_add(&p->counters.n_contained, 1);
	}
	record_unref(record);
}

// One that is not under way, finishing others until there is one; NULL with `idle` false: none is under way any more.
static struct reading *reading_take(struct store_reader *r, const struct store_question *questions, struct record **ret_records, bool idle)
{
	for (;;) {
		bool any = false;
		for (unsigned i = 0; i < r->depth; i++) {
			struct reading *g = &r->readings[i];
			if (g->busy && !g->op.busy)
				reading_finish(r, g, &questions[g->question], &ret_records[g->question]);
			if (!g->busy && idle)
				return g;
			any |= g->busy;
		}
		if (!any)
			return NULL;
		ring_reap(r->ring);
	}
}

int store_reader_answer(struct store_reader *r, const struct store_question *questions, size_t n, struct record **ret_records,
			struct error *err)
{
	for (size_t i = 0; i < n; i++)
		ret_records[i] = NULL;
	for (size_t i = 0; i < n; i++)
		reading_start(r, reading_take(r, questions, ret_records, true), &questions[i], i);
	reading_take(r, questions, ret_records, false);
	int rc = 0;
	for (size_t i = 0; i < n && rc != -ENOMEM; i++)
		if (!ret_records[i])
			rc = store_answer(r->store, &questions[i], &ret_records[i], err);
	for (size_t i = 0; i < n && rc == -ENOMEM; i++)
		ret_records[i] = record_unref(ret_records[i]);
	return rc == -ENOMEM ? rc : 0;
}
