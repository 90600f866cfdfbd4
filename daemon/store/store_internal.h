// SPDX-License-Identifier: Apache-2.0
// The store as its own files see it: store.c opens and appends, find.c and reader.c look up, follow.c keeps up with another process that
// writes, walk.c goes through everything.
#pragma once

#include <pthread.h>

#include "daemon/store/appender.h"
#include "daemon/store/recover.h"
#include "daemon/store/retention.h"
#include "daemon/store/store.h"

struct scan;

struct store {
	struct store_parts parts;
	char *path;
	bool read_only, rounded;
	bool stopping;               // under the index's lock
	bool started;
	pthread_t thread;
	struct appender appender;    // the thread's, as the next three
	struct retention retention;
	uint64_t retain_at_ms;       // when to look again
	uint32_t retained_next_id;   // what the next shard's id was then: it has changed when a shard was begun
	struct retention wanted;     // from store_change, under the index's lock, as the next
	bool changed;
	struct histogram append_seconds;
	struct scan *parked;         // where store_next stopped, under the index's lock; NULL while in use
	// read-only: how far the newest shard has been read (follow.c)
	atomic_flag following;       // set: some thread is at it
	_Atomic uint64_t follow_at_ms;
	struct recovered newest;
	uint64_t held_since_ms;      // something unreadable lies there since; 0 = no
};

// What is on disk or on its way there under the key; counts nothing. -ENOENT, -EBADMSG as store_find.
int find_exact(struct store *s, const struct content_id *key, struct record **ret_record, struct error *err);
// The record at a place; key NULL: whichever it is. Forgets places whose bytes are not the ones written.
int find_at(struct store *s, const struct content_id *key, struct index_entry place, struct record **ret_record, struct error *err);
// Whether the record holds the answer to the question; then the answer (perhaps the record itself).
int find_extract(struct record *record, const struct store_question *q, bool rounded, struct record **ret_record);
// Places that may hold an answer, the likeliest first; at most FIND_CANDIDATES.
#define FIND_CANDIDATES 4
unsigned find_candidates(struct store *s, const struct store_question *q, struct index_entry ret_places[FIND_CANDIDATES]);

// Read-only: what another process has appended meanwhile becomes findable. At most every 100 ms, unless `now`. True when it looked.
bool follow(struct store *s, bool now);
