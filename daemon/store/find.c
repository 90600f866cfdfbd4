// SPDX-License-Identifier: Apache-2.0
// Looking things up: by key, and by question among the records of the same sequence.
#include <errno.h>
#include <string.h>

#include "common/error.h"
#include "daemon/store/groups.h"
#include "daemon/store/part.h"
#include "daemon/store/store_internal.h"

// Reads from the disk, without the lock. A copy that fails its checks is forgotten, so that the record can be stored anew; when the
// place had changed meanwhile (its shard was given up) the new one is tried.
int find_at(struct store *s, const struct content_id *key, struct index_entry place, struct record **ret_record, struct error *err)
{
	struct store_parts *p = &s->parts;
	for (;;) {
		int fd = -1;
		uint32_t seed;
		index_lock(p->index);
		int rc = shards_acquire(&p->shards, place.shard, &fd, &seed, err);
		if (rc == -ENOENT && key)            // its shard was removed
			index_remove(p->index, key, &place);
		index_unlock(p->index);
		if (rc < 0)
			return rc;
		rc = shards_read(fd, seed, &place, key, ret_record, err);
		struct index_entry now;
		index_lock(p->index);
		shards_release(&p->shards, place.shard);
		bool moved = key && index_find(p->index, key, &now) == 0 && (now.shard != place.shard || now.offset != place.offset);
		if (rc == -EBADMSG && key && !moved)
			index_remove(p->index, key, &place);
		index_unlock(p->index);
		if (rc == -EBADMSG && moved) {
			place = now;
			continue;
		}
		if (rc == -EBADMSG && key)
			atomic_fetch_add(&p->counters.n_corrupt, 1);
		return rc;
	}
}

int find_exact(struct store *s, const struct content_id *key, struct record **ret_record, struct error *err)
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
		return find_at(s, key, place, ret_record, err);
	return rc < 0 ? error_set(err, ERROR_NOT_FOUND, NULL, "no such record") : 0;
}

static void count(struct store *s, int rc)
{
	atomic_fetch_add(rc == 0 ? &s->parts.counters.n_hits : &s->parts.counters.n_misses, 1);
}

int store_find(struct store *s, const struct content_id *key, struct record **ret_record, struct error *err)
{
	int rc = find_exact(s, key, ret_record, err);
	if (rc == -ENOENT && s->read_only && follow(s, false))
		rc = find_exact(s, key, ret_record, err);
	count(s, rc);
	return rc;
}

unsigned find_candidates(struct store *s, const struct store_question *q, struct index_entry ret_places[FIND_CANDIDATES])
{
	struct index_entry all[INDEX_GROUP_MAX];
	struct content_id sequence = sequence_id(q->sequence);
	uint64_t group = group_name(q->teacher, &sequence);
	uint32_t shape = part_shape(q->query);
	index_lock(s->parts.index);
	unsigned n_all = index_find_group(s->parts.index, group, all), n = 0;
	index_unlock(s->parts.index);
	for (unsigned i = n_all; i-- > 0 && n < FIND_CANDIDATES;)
		if (part_shape_covers(all[i].shape, shape))
			ret_places[n++] = all[i];
	return n;
}

static bool same_sequence(const struct record *record, const struct store_question *q)
{
	struct sequence s;
	if (memcmp(record_teacher(record), q->teacher, sizeof *q->teacher) != 0 || record_n_tokens(record) != q->sequence->n_tokens ||
	    record_sequence(record, &s) < 0)
		return false;
	bool same = memcmp(s.tokens, q->sequence->tokens, s.n_tokens * sizeof *s.tokens) == 0;
	sequence_done(&s);
	return same;
}

int find_extract(struct record *record, const struct store_question *q, bool rounded, struct record **ret_record)
{
	if (!same_sequence(record, q))
		return -ENOENT;
	if (!query_equal(record_query(record), q->query))
		return (rounded ? part_extract_rounded : part_extract)(record, q->query, ret_record, NULL);
	*ret_record = record_ref(record);
	return 0;
}

static int find_contained(struct store *s, const struct store_question *q, struct record **ret_record)
{
	struct index_entry places[FIND_CANDIDATES];
	unsigned n = find_candidates(s, q, places);
	int rc = -ENOENT;
	for (unsigned i = 0; i < n && rc < 0; i++) {
		struct record *record;
		if (find_at(s, NULL, places[i], &record, NULL) < 0)
			continue;
		rc = find_extract(record, q, s->rounded, ret_record);
		record_unref(record);
	}
	if (rc == 0)
		atomic_fetch_add(&s->parts.counters.n_contained, 1);
	return rc;
}

int store_answer(struct store *s, const struct store_question *q, struct record **ret_record, struct error *err)
{
	struct content_id key = query_key(q->teacher, q->sequence, q->query);
	int rc = find_exact(s, &key, ret_record, err);
	if (rc < 0 && find_contained(s, q, ret_record) == 0)
		rc = 0;
	if (rc < 0 && s->read_only && follow(s, false)) {
		rc = find_exact(s, &key, ret_record, err);
		if (rc < 0 && find_contained(s, q, ret_record) == 0)
			rc = 0;
	}
	count(s, rc);
	return rc;
}

static int peek(struct store *s, const struct store_question *q, const struct content_id *key)
{
	struct index_entry places[FIND_CANDIDATES];
	index_lock(s->parts.index);
	bool known = pending_find(&s->parts.pending, key) || index_find(s->parts.index, key, &places[0]) == 0;
	index_unlock(s->parts.index);
	return known ? 1 : find_candidates(s, q, places) ? 0 : -ENOENT;
}

int store_peek(struct store *s, const struct store_question *q)
{
	struct content_id key = query_key(q->teacher, q->sequence, q->query);
	int rc = peek(s, q, &key);
	return rc < 0 && s->read_only && follow(s, false) ? peek(s, q, &key) : rc;
}
