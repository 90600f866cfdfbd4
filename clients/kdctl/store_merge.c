// SPDX-License-Identifier: Apache-2.0
// kdctl store merge: the records of other directories, byte for byte; a key that is there already stays as it is. Doing it again does
// no harm, so an interrupted merge is resumed by doing it again.
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clients/kdctl/store.h"
#include "common/error.h"
#include "common/provenance.h"
#include "common/record.h"
#include "daemon/store/store.h"
#include "daemon/store/survey.h"

// What became of the records on their way to the disk.
struct merge {
	struct kdctl *k;
	struct store *into;
	const char *from;
	struct progress progress;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	uint64_t n_under_way;
	uint64_t n_records, n_there, n_damaged, n_bytes;         // of all sources: read, not needed, damaged; bytes added
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

// Waits while more than n are under way. -EIO when one has failed.
static int merge_wait(struct merge *m, uint64_t n)
{
	pthread_mutex_lock(&m->lock);
	while (m->n_under_way > n)
		pthread_cond_wait(&m->changed, &m->lock);
	int rc = m->failed ? -EIO : 0;
	pthread_mutex_unlock(&m->lock);
	return rc;
}

static int record_add(struct merge *m, struct record *record)
{
	struct record *there = NULL;
	struct error err;
	size_t n;
	(void)record_bytes(record, &n);
	m->n_records++;
	if (store_find(m->into, record_key(record), &there, NULL) == 0) {
		record_unref(there);
		m->n_there++;
		return 0;
	}
	for (;;) {
		pthread_mutex_lock(&m->lock);
		uint64_t before = m->n_under_way++;
		pthread_mutex_unlock(&m->lock);
		int rc = store_append(m->into, record, STORE_DURABLE, on_done, m, &err);
		m->n_bytes += rc == 0 ? n : 0;
		if (rc == 0)
			return merge_wait(m, UINT64_MAX);
		on_done(m, rc == -EAGAIN ? NULL : &err);                // never under way
		if (!before)                                            // what is acknowledged leaves the queue a moment later
			usleep(1000);
		if (merge_wait(m, before ? before - 1 : 0) < 0)
			return -EIO;
	}
}

static int visit(void *arg, const struct survey_item *item)
{
	struct merge *m = arg;
	char place[512];
	if (item->record)
		return record_add(m, item->record);
	progress_stop(&m->progress);
	snprintf(place, sizeof place, "%s/%s", m->from, item->place);
	store_report_damage(m->k, place, item->offset, item->n_bytes, item->message);
	m->n_damaged++;
	return 0;
}

static void show_progress(void *arg, uint64_t done, uint64_t all)
{
	store_progress(&((struct merge *)arg)->progress, done, all);
}

// The notes beside the shards: who answered.
static int merge_teachers(struct merge *m)
{
	struct store_options o = {.directory = m->from, .read_only = true};
	struct store *from = NULL;
	struct provenance *notes = NULL;
	struct error err = {0};
	size_t n = 0;
	int rc = store_open(&o, &from, &err);
	if (rc == 0)
		rc = store_teachers(from, &notes, &n, &err);
	for (size_t i = 0; rc == 0 && i < n; i++)
		rc = store_describe(m->into, &notes[i], &err);
	free(notes);
	store_close(from);
	return rc ? store_failure(m->k, &err) : 0;
}

// One thread reads, in order: the first of several copies wins.
static int merge_from(struct merge *m, const char *from)
{
	struct error err = {0};
	struct survey_totals t;
	struct survey_options o = {.directory = from, .n_threads = 1, .rows = true, .visit = visit, .progress = show_progress, .arg = m};
	m->from = from;
	m->progress = progress_start();
	int rc = survey_run(&o, &t, &err);
	progress_stop(&m->progress);
	if (rc && !m->failed)
		return kdctl_fail(m->k, "%s: %s", from, *err.message ? err.message : "it cannot be read");
	return rc ? 1 : merge_teachers(m);
}

static void print_summary(const struct merge *m, int n_from)
{
	uint64_t n_added = m->n_records - m->n_there;
	char added[24];
	store_bytes_text(m->n_bytes, added);
	if (m->k->json)
		printf("{\"summary\":{\"sources\":%d,\"records\":%" PRIu64 ",\"added\":%" PRIu64 ",\"added_bytes\":%" PRIu64 ",\"there\":%" PRIu64
		       ",\"damaged\":%" PRIu64 "}}\n", n_from, m->n_records, n_added, m->n_bytes, m->n_there, m->n_damaged);
	else
		printf("%" PRIu64 " records of %d directories: %" PRIu64 " added (%s), %" PRIu64 " were there already, %" PRIu64
		       " damaged places\n", m->n_records, n_from, n_added, added, m->n_there, m->n_damaged);
}

static int merge(struct kdctl *k, const char *directory, uint64_t shard_bytes, char **from, int n_from)
{
	struct merge m = {.k = k, .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
	struct store_options o = {.directory = directory, .shard_bytes = shard_bytes};
	struct error err = {0};
	int status = 0;
	if (store_open(&o, &m.into, &err))
		return store_failure(k, &err);
	for (int i = 0; !status && i < n_from; i++)
		status = merge_from(&m, from[i]);
	merge_wait(&m, 0);
	if (m.failed)
		status = store_failure(k, &m.error);
	else
		print_summary(&m, n_from);
	store_close(m.into);
	return status ? status : m.n_damaged > 0;
}

static bool same_directory(const char *a, const char *b)
{
	struct stat x, y;
	return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

int store_merge(struct kdctl *k, int argc, char **argv)
{
	static const struct option options[] = {{"shard", required_argument, NULL, 'b'}, STORE_OPTIONS, {0}};
	static const char help[] = "merge [--shard SIZE] DIR FROM ...\n"
		"Adds the records of other directories to DIR (made when missing), byte for byte. What DIR has already stays as it\n"
		"is; the first copy of a key wins. Repeat it after an interruption: it goes on with what is missing. --shard: size\n"
		"at which a new shard is begun, 256M. Refused while a server has DIR; those in FROM may be in use.\n";
	uint64_t shard_bytes = 0;
	int status = 0;
	for (int c; (c = store_option(k, argc, argv, options, help, &status)) != -1;) {
		if (c != 'b')
			return status;
		if (!store_size(optarg, &shard_bytes) || shard_bytes < 1u << 20)
			return kdctl_usage(k, "--shard %s: a size of at least 1M is expected", optarg);
	}
	if (argc - optind < 2)
		return kdctl_usage(k, "merge: a DIR and at least one other are expected (kdctl store merge --help)");
	for (int i = optind + 1; i < argc; i++) {
		if (store_expect_directory(k, argv[i]))
			return 1;
		if (same_directory(argv[optind], argv[i]))
			return kdctl_usage(k, "merge: %s: is the directory to merge into", argv[i]);
	}
	return merge(k, argv[optind], shard_bytes, argv + optind + 1, argc - optind - 1);
}
