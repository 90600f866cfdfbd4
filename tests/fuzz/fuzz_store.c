// SPDX-License-Identifier: Apache-2.0
// A store's directory as its writer, a reader and the operator's tools find it: first byte how it is rewritten at the end (1: contained
// ones stay; 2: damage is let go of; 4: without compression; 8: not at all), then the files (shards.h). Whatever lies there: what is served
// are true answers, no good record is lost, and what is appended is there afterwards.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/error.h"
#include "common/provenance.h"
#include "daemon/store/store.h"
#include "daemon/store/survey.h"
#include "daemon/store/upkeep.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/scratch.h"
#include "tests/fuzz/shards.h"

#define SHARD_BYTES (64u << 10)

// The tools look again, a moment later, at what a writer may be writing: nobody writes here.
int nanosleep(const struct timespec *wanted, struct timespec *left)
{
	(void)wanted, (void)left;
	return 0;
}

static void require(bool holds)
{
	if (!holds)
		abort();
}

static bool is_true(const struct record *record, unsigned i)
{
	size_t n, n_true;
	const void *bytes = record_bytes(record, &n), *truth = record_bytes(shards_record(i), &n_true);
	return n == n_true && memcmp(bytes, truth, n) == 0;
}

static unsigned number_of(const struct record *record)
{
	for (unsigned i = 0; i < SHARDS_RECORDS; i++)
		if (memcmp(record_key(record), record_key(shards_record(i)), sizeof(struct content_id)) == 0)
			return i;
	return SHARDS_RECORDS;
}

// ---- what the tools find

struct found { unsigned n[SHARDS_RECORDS], n_damaged; };

static int visit(void *arg, const struct survey_item *item)
{
	struct found *f = arg;
	if (!item->record) {
		require(item->message && item->place);
		f->n_damaged++;
		return 0;
	}
	unsigned i = number_of(item->record);
	if (i < SHARDS_RECORDS) {
		require(is_true(item->record, i));
		f->n[i]++;
	}
	return 0;
}

static struct found survey(void)
{
	struct found f = {0};
	struct survey_options o = {.directory = scratch_folder(), .rows = true, .indexes = true, .visit = visit, .arg = &f};
	struct survey_totals t;
	require(survey_run(&o, &t, NULL) == 0 && t.n_damaged == f.n_damaged);
	return f;
}

// ---- what a daemon finds

// How it is answered: its own record, or cut out of one that contains it.
static bool answers(struct store *s, unsigned i)
{
	struct sequence sequence;
	struct query q;
	struct record *record = NULL;
	shards_question(i, &sequence, &q);
	struct store_question question = {&shards_teacher, &sequence, &q};
	int r = store_answer(s, &question, &record, NULL);
	require(r == 0 || r == -ENOENT || r == -EBADMSG);
	require(r || is_true(record, i));
	record_unref(record);
	query_done(&q);
	return r == 0;
}

static void walk(struct store *s)
{
	struct store_cursor c = {0};
	struct record *record;
	char place[96];
	struct error err;
	size_t n_steps = 0;
	for (int r; (r = store_next(s, &c, &record, place, &err)) != -ENOENT;) {
		require(r == 0 || r == -EBADMSG || r == -EIO);
		require(r || number_of(record) == SHARDS_RECORDS || is_true(record, number_of(record)));
		require(++n_steps < 100000);
		if (!r)
			record_unref(record);
	}
}

static void try_reader(void)
{
	struct store_options o = {.directory = scratch_folder(), .read_only = true};
	struct provenance *notes = NULL;
	struct store *s;
	struct error err = {0};
	size_t n_notes;
	if (store_open(&o, &s, &err)) {
		require(err.code && err.message[0]);
		return;
	}
	for (unsigned i = 0; i < SHARDS_RECORDS; i++)
		(void)answers(s, i);
	walk(s);
	require(store_teachers(s, &notes, &n_notes, NULL) == 0);
	free(notes);
	store_close(s);
}

static void appended(void *arg, const struct error *err)
{
	unsigned *n_failed = arg;
	*n_failed += err != NULL;            // read once the store is closed
}

// False: it did not open.
static bool try_writer(const struct found *before)
{
	struct store_options o = {.directory = scratch_folder(), .shard_bytes = SHARD_BYTES};
	struct store *s;
	struct error err = {0};
	unsigned n_failed = 0;
	if (store_open(&o, &s, &err)) {
		require(err.code && err.message[0]);
		return false;
	}
	for (unsigned i = 0; i < SHARDS_RECORDS; i++) {
		bool there = answers(s, i);
		require(there || !before->n[i] || before->n_damaged);
		if (!there)
			require(store_append(s, shards_record(i), STORE_FLUSHED, appended, &n_failed, NULL) == 0);
	}
	store_close(s);
	require(n_failed == 0);
	return true;
}

static void require_all(void)
{
	struct store_options o = {.directory = scratch_folder(), .shard_bytes = SHARD_BYTES};
	struct store *s;
	require(store_open(&o, &s, NULL) == 0);
	for (unsigned i = 0; i < SHARDS_RECORDS; i++)
		require(answers(s, i));
	walk(s);
	store_close(s);
}

static void damaged(void *arg, const struct survey_item *item)
{
	(void)arg;
	require(item->message != NULL);
}

static void try_compact(uint8_t how)
{
	struct upkeep_compact o = {.directory = scratch_folder(), .shard_bytes = SHARD_BYTES, .compression = how & 4 ? -1 : 0,
				   .keep_contained = how & 1, .drop_damaged = how & 2, .damaged = damaged};
	struct upkeep_compacted done;
	struct error err = {0};
	if (upkeep_compact(&o, &done, &err))
		require(err.code && err.message[0]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!size)
		return 0;
	scratch_folder();
	scratch_empty();
	shards_make(data + 1, size - 1);
	struct found before = survey();
	try_reader();
	if (!try_writer(&before))
		return 0;
	require_all();
	if (data[0] & 8)
		return 0;
	try_compact(data[0]);
	require_all();
	return 0;
}
