// SPDX-License-Identifier: Apache-2.0
// A directory of append-only, checksummed shards holding records by content key. The first copy of a key wins. Thread-safe:
// find may be called from any thread; append queues to the store's own thread, which alone writes (through ring.c).
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "common/record.h"
#include "daemon/histogram.h"

struct error;
struct provenance;
struct store;

enum store_durability {
	STORE_NONE,          // acknowledged when queued
	STORE_FLUSHED,       // acknowledged when the kernel has every byte (survives kill -9 of this process)
	STORE_DURABLE,       // acknowledged after a later fsync succeeded (survives a power cut)
};

// The disk began to refuse appends (why says so), or takes them again (NULL). From the store's thread.
typedef void store_failing_fn(void *arg, const struct error *why);

struct store_options {
	const char *directory;           // made (0750) when missing
	uint64_t shard_bytes;            // rotate after this many; 0 = 256 MiB
	uint64_t queue_bytes;            // appends waiting; more is -EAGAIN; 0 = 64 MiB
	bool rounded;                    // smaller answers are cut out of rounded values as they stand (part_extract_rounded): for trainers
	int compression;                 // level of zstd for what is appended (packed.h), 0 = none; what is there is read in any case
	uint64_t max_bytes;              // the oldest shards are removed beyond this; 0 = no limit.
	                                 // May be passed by the shard being written
	uint64_t max_age_s;              // shards not written to for so long are removed; 0 = never
	store_failing_fn *failing;       // may be NULL
	void *failing_arg;
	bool read_only;                  // no lock, no recovery writes, no thread; finds what another process appends, a moment later
};

// Opens, takes the directory's lock (a second writer is refused), recovers: a torn tail of the newest shard is cut (and reported through
// stats), damage in the middle is left, reported, and its records are not served. -EBADMSG only when nothing can be trusted.
int store_open(const struct store_options *options, struct store **ret_store, struct error *err);
// Other limits from now on (queue_bytes: not 0). Of a store that is not read_only; any thread.
struct store_limits { uint64_t queue_bytes, max_bytes, max_age_s; };
void store_change(struct store *s, const struct store_limits *limits);
// Waits until what is queued is written and fsynced, then frees. NULL is fine.
void store_close(struct store *s);

// A new reference to the record under `key`, its bytes checked. -ENOENT when absent; -EBADMSG (counted) when the disk lies.
int store_find(struct store *s, const struct content_id *key, struct record **ret_record, struct error *err);

// The answer to a question: the record itself, or cut out of one that contains it (a larger top-k, more rows, temperatures, ids or signals
// of the same sequence), with the bytes the teacher would have answered. -ENOENT when there is none.
struct store_question {
	const struct content_id *teacher;
	const struct sequence *sequence;
	const struct query *query;       // canonical
};
int store_answer(struct store *s, const struct store_question *q, struct record **ret_record, struct error *err);
// The same from the index alone, nothing is read or counted: 1 = a record of this very question is there (undamaged or not), 0 = one that
// may contain the answer, -ENOENT = none.
int store_peek(struct store *s, const struct store_question *q);

// Many answers at once, `depth` reads under way together: for trainers that go through a store at random. One thread's own.
struct store_reader;
int store_reader_open(struct store *s, unsigned depth, struct store_reader **ret_reader, struct error *err);
struct store_reader *store_reader_close(struct store_reader *r);       // returns NULL; NULL is fine
// ret_records[i]: the answer to questions[i], or NULL when there is none. Only want of memory fails.
int store_reader_answer(struct store_reader *r, const struct store_question *questions, size_t n, struct record **ret_records,
			struct error *err);

// Queues the record (takes its own reference). `done` (may be NULL) is called once from the store's thread, with err == NULL when the
// asked durability was reached. -EAGAIN (ERROR_OVERLOADED) when the queue is full: `done` is then not called.
typedef void store_done_fn(void *arg, const struct error *err);
int store_append(struct store *s, struct record *record, enum store_durability durability, store_done_fn *done, void *arg,
		 struct error *err);

struct store_stats {
	uint64_t n_records, n_shards, n_bytes;             // on disk
	uint64_t n_appended, appended_bytes, n_duplicates; // since open
	uint64_t n_hits, n_misses;
	uint64_t n_contained;                              // of the hits: cut out of a record that contains the answer
	uint64_t n_failed_appends, n_corrupt;              // n_corrupt: damaged records met
	uint64_t recovered_bytes;                          // cut from a torn tail at open
	uint64_t queued_bytes;
	uint64_t n_removed_shards, removed_bytes;          // let go of by max_bytes and max_age_s, since open
	uint64_t free_bytes, disk_bytes;                   // of the file system it lies on; both 0 when that cannot be asked
	bool disk_read_only;                               // and that it is mounted so
	uint64_t n_overflows;                              // completions the ring had to hold back; none are lost
	bool uring;                                        // false: fell back to pwrite
	bool direct;                                       // the shard being written bypasses the page cache (O_DIRECT)
	bool failing;                                      // the disk refused lately (ENOSPC, EIO): serving goes on without storing;
	                                                   // it is tried again with the next append, or without one, every 2 s
};
void store_stats(struct store *s, struct store_stats *ret);
struct histogram *store_append_seconds(struct store *s);   // of each time that what was queued is written

// Every record in shard order (begin with a zeroed cursor). Damage is reported where it lies: -EBADMSG, ret_record NULL, err filled, and
// the next call goes on behind it. -ENOENT at the end. ret_place: "0000002a.shard:4096". n_record is the next record's number in its shard.
struct store_cursor { uint32_t shard; uint64_t position; uint64_t n_record; };
int store_next(struct store *s, struct store_cursor *c, struct record **ret_record, char ret_place[96], struct error *err);

// Who answered: a note beside the shards for each teacher, so that its answers can be used without it. Written once, durably; one that is
// there already stays. Any thread of the process that writes the store.
int store_describe(struct store *s, const struct provenance *p, struct error *err);
// The notes, in order of fingerprints; the caller frees. Notes that are damaged, or of a fingerprint that they do not prove, are left out.
int store_teachers(struct store *s, struct provenance **ret_notes, size_t *ret_n, struct error *err);
