// SPDX-License-Identifier: Apache-2.0
// Goes through every byte of a directory of shards, several shards at a time: what the operator's tools stand on. Opens nothing for writing
// and needs no lock; a store in use may be surveyed.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/sequence.h"

struct error;
struct record;

#define SURVEY_MAX_THREADS 64

// A record, or damage.
struct survey_item {
	unsigned thread;                 // whose, from 0 on: for totals without a lock
	uint32_t shard;
	const char *place;               // "0000002a.shard:4096", "0000002a.index"
	uint64_t offset, n_bytes;        // of the frame, or of what is damaged; n_bytes 0: all from there on, or an index
	struct record *record;           // NULL: damage
	uint32_t stored_bytes;           // of the record in its frame: fewer where it is compressed
	const char *message;             // damage: what is wrong
};
// Called from several threads at once for records, for damage from one at a time and never while `progress` is. Other than 0 ends the
// survey with that value.
typedef int survey_visit(void *arg, const struct survey_item *item);
typedef void survey_progress(void *arg, uint64_t done_bytes, uint64_t all_bytes);

struct survey_options {
	const char *directory;
	unsigned n_threads;              // 0 = 1; at most SURVEY_MAX_THREADS
	bool rows;                       // also what the records say: record_check
	bool indexes;                    // also the index files, against their shards
	survey_visit *visit;
	survey_progress *progress;       // NULL, or called ten times a second from the thread that called survey_run
	void *arg;
};

struct survey_totals {
	uint64_t n_shards, n_sealed, n_records;
	uint64_t n_damaged;              // places
	uint64_t shard_bytes;            // of the files as they are
	uint64_t frame_bytes;            // headers and padding of the frames of good records
	uint64_t index_bytes;
	uint64_t n_unindexed;            // sealed shards without an index file: opened slowly, and given one, by the next writer
	uint64_t torn_bytes;             // at the end of the newest shard: a write under way, or of a writer that died
	uint64_t n_vanished;             // shards removed by their writer meanwhile
	double seconds;
};

// 0 also when something is damaged: see totals. What visit said, -ENOENT (no such directory), -ENOMEM, ...
int survey_run(const struct survey_options *o, struct survey_totals *ret_totals, struct error *err);
