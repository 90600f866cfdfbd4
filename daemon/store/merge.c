// SPDX-License-Identifier: Apache-2.0
// The records of other directories are appended to one; as much as the queue takes is under way at a time. A key that is there is left
// alone, so work that was interrupted is gone on with by doing it again.
#include "daemon/store/upkeep.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/error.h"
#include "common/provenance.h"
#include "common/record.h"
#include "daemon/store/store.h"
#include "daemon/store/survey.h"

struct merge {
	const struct upkeep_merge *options;
	struct upkeep_merged *result;
	struct store *into;
	const char *from;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	uint64_t n_under_way;            // to the disk
	bool failed;
	struct error error;              // the first
};

static void on_done(void *arg, const struct error *err)
{
	struct merge *m = arg;
	pthread_mutex_lock(&m->lock);
	m->n_under_way--;
	if (err && !m->failed) {
		m->failed = true;
		m->error = *err;
	}
	pthread_cond_signal(&m->changed);
	pthread_mutex_unlock(&m->lock);
}

// Waits while more than n are under way. The errno of the first that failed.
static int merge_wait(struct merge *m, uint64_t n)
{
	pthread_mutex_lock(&m->lock);
	while (m->n_under_way > n)
		pthread_cond_wait(&m->changed, &m->lock);
	int rc = m->failed ? error_errno(m->error.code) : 0;
	pthread_mutex_unlock(&m->lock);
	return rc;
}

static int merge_append(struct merge *m, struct record *record)
{
	struct record *there = NULL;
	struct error err;
	size_t n;
	(void)record_bytes(record, &n);
	m->result->n_records++;
	if (store_find(m->into, record_key(record), &there, NULL) == 0) {
		record_unref(there);
		m->result->n_there++;
		return 0;
	}
	for (;;) {
		pthread_mutex_lock(&m->lock);
		uint64_t before = m->n_under_way++;
		pthread_mutex_unlock(&m->lock);
		int rc = store_append(m->into, record, STORE_DURABLE, on_done, m, &err);
		m->result->n_bytes += rc == 0 ? n : 0;
		if (rc == 0)
			return merge_wait(m, UINT64_MAX);
		on_done(m, rc == -EAGAIN ? NULL : &err);        // never under way
		if (!before)                                    // what is acknowledged leaves the queue a moment later
			usleep(1000);
		rc = merge_wait(m, before ? before - 1 : 0);
		if (rc < 0)
			return rc;
	}
}

static int on_item(void *arg, const struct survey_item *item)
{
	struct merge *m = arg;
	if (item->record)
		return merge_append(m, item->record);
	m->result->n_damaged++;
	m->options->damaged(m->options->arg, m->from, item);
	return 0;
}

static void on_progress(void *arg, uint64_t done, uint64_t all)
{
	const struct upkeep_merge *o = ((struct merge *)arg)->options;
	if (o->progress)
		o->progress(o->arg, done, all);
}

// The notes beside the shards: who answered.
static int merge_notes(struct merge *m, struct error *err)
{
	struct store_options o = {.directory = m->from, .read_only = true};
	struct store *from = NULL;
	struct provenance *notes = NULL;
	size_t n = 0;
	int rc = store_open(&o, &from, err);
	if (rc == 0)
		rc = store_teachers(from, &notes, &n, err);
	for (size_t i = 0; rc == 0 && i < n; i++)
		rc = store_describe(m->into, &notes[i], err);
	free(notes);
	store_close(from);
	return rc;
}

// One thread reads, in order: the first of several copies wins.
static int merge_from(struct merge *m, const char *from, struct error *err)
{
	struct error its = {0};
	struct survey_totals t;
	struct survey_options o = {.directory = from, .n_threads = 1, .rows = true, .visit = on_item, .progress = on_progress, .arg = m};
	m->from = from;
	int rc = survey_run(&o, &t, &its);
	if (rc < 0 && !m->failed)
		return error_set(err, its.code ? its.code : ERROR_IO, NULL, "%s: %s", from,
			*its.message ? its.message : "it cannot be read");
	return rc < 0 ? rc : merge_notes(m, err);
}

int upkeep_merge(const struct upkeep_merge *o, struct upkeep_merged *ret, struct error *err)
{
	struct merge m = {.options = o, .result = ret, .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
	struct store_options into = {.directory = o->directory, .shard_bytes = o->shard_bytes};
	*ret = (struct upkeep_merged){0};
	int rc = store_open(&into, &m.into, err);
	if (rc < 0)
		return rc;
	for (size_t i = 0; rc == 0 && i < o->n_from; i++)
		rc = merge_from(&m, o->from[i], err);
	int rc2 = merge_wait(&m, 0);
	if (rc2 < 0)
		rc = error_set(err, m.error.code, m.error.field, "%s", m.error.message);
	store_close(m.into);
	return rc;
}
