// SPDX-License-Identifier: Apache-2.0
// kdctl store verify: every byte of a store is read and held to its checks.
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "clients/kdctl/store.h"
#include "common/error.h"
#include "common/record.h"
#include "daemon/store/survey.h"

struct verification {
	const struct kdctl *k;
	const char *wanted;
	struct progress progress;
	struct count { _Alignas(64) uint64_t n_records, n_rows, n_bytes; } counts[SURVEY_MAX_THREADS];
};

static int visit(void *arg, const struct survey_item *item)
{
	struct verification *v = arg;
	char key[CONTENT_ID_HEX];
	size_t n;
	if (!item->record) {
		progress_stop(&v->progress);
		store_report_damage(v->k, item->place, item->offset, item->n_bytes, item->message);
		return 0;
	}
	content_id_to_hex(record_key(item->record), key);
	if (v->wanted && strncmp(key, v->wanted, strlen(v->wanted)) != 0)
		return 0;
	struct count *c = &v->counts[item->thread];
	(void)record_bytes(item->record, &n);
	c->n_records++;
	c->n_rows += record_n_rows(item->record);
	c->n_bytes += n;
	return 0;
}

static void show_progress(void *arg, uint64_t done, uint64_t all)
{
	store_progress(&((struct verification *)arg)->progress, done, all);
}

static void print_summary(const struct kdctl *k, const struct count *sum, const struct survey_totals *t, unsigned n_threads)
{
	double rate = (double)t->shard_bytes / (t->seconds > 1e-6 ? t->seconds : 1e-6);
	if (k->json) {
		json_t *j = json_pack("{s:{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f}}", "summary",
				      "records", (json_int_t)sum->n_records, "rows", (json_int_t)sum->n_rows,
				      "bytes", (json_int_t)sum->n_bytes, "damaged", (json_int_t)t->n_damaged,
				      "shards", (json_int_t)t->n_shards, "sealed", (json_int_t)t->n_sealed,
				      "unindexed", (json_int_t)t->n_unindexed, "shard_bytes", (json_int_t)t->shard_bytes,
				      "torn_bytes", (json_int_t)t->torn_bytes, "threads", (json_int_t)n_threads, "seconds", t->seconds,
				      "bytes_per_s", rate);
		kdctl_print_json(j);
		json_decref(j);
		return;
	}
	if (t->n_unindexed)
		printf("%" PRIu64 " sealed shards have no index file: the next writer makes it\n", t->n_unindexed);
	if (t->torn_bytes)
		printf("%" PRIu64 " bytes at the end are of an unfinished write\n", t->torn_bytes);
	printf("%" PRIu64 " records verified, %" PRIu64 " rows, %" PRIu64 " bytes in %" PRIu64 " shards, %" PRIu64
	       " damaged; %.2f s, %.0f MB/s, %u threads\n", sum->n_records, sum->n_rows, sum->n_bytes, t->n_shards, t->n_damaged,
	       t->seconds, rate / 1e6, n_threads);
}

static int verify(struct kdctl *k, const char *directory, const char *wanted, unsigned n_threads)
{
	struct verification v = {.k = k, .wanted = wanted, .progress = progress_start()};
	struct survey_options o = {.directory = directory, .n_threads = n_threads, .rows = true, .indexes = true, .visit = visit,
				   .progress = show_progress, .arg = &v};
	struct survey_totals t;
	struct error err = {0};
	struct count sum = {0};
	int rc = survey_run(&o, &t, &err);
	progress_stop(&v.progress);
	if (rc)
		return store_failure(k, &err);
	for (unsigned i = 0; i < SURVEY_MAX_THREADS; i++) {
		sum.n_records += v.counts[i].n_records;
		sum.n_rows += v.counts[i].n_rows;
		sum.n_bytes += v.counts[i].n_bytes;
	}
	print_summary(k, &sum, &t, n_threads);
	if (!t.n_shards)       // a new store, or the wrong directory: of that "0 damaged" says nothing
		(void)kdctl_fail(k, "note: there is no shard in %s", directory);
	if (wanted && !sum.n_records)
		return kdctl_fail(k, "%s: no record whose key begins so", wanted);
	return t.n_damaged > 0;
}

int store_verify(struct kdctl *k, int argc, char **argv)
{
	static const struct option options[] = {{"threads", required_argument, NULL, 't'}, STORE_OPTIONS, {0}};
	static const char help[] = "verify [--threads N] DIR [KEY]\n"
		"Reads every byte: checksums, records and their rows, index files against their shards. Names each damaged\n"
		"place; exit status 1 when there is one. --threads: shards read at once; default: processors.\n"
		"KEY: count only records whose key begins so.\n";
	const char *threads = NULL;
	unsigned n_threads;
	int status = 0;
	for (int c; (c = store_option(k, argc, argv, options, help, &status)) != -1;) {
		if (c != 't')
			return status;
		threads = optarg;
	}
	if (!store_threads(threads, &n_threads))
		return kdctl_usage(k, "--threads %s: 1 to %d is expected", threads, SURVEY_MAX_THREADS);
	if (argc - optind < 1 || argc - optind > 2)
		return kdctl_usage(k, "verify: a DIR is expected, perhaps a KEY (kdctl store verify --help)");
	if (store_expect_directory(k, argv[optind]))
		return 1;
	return verify(k, argv[optind], argc - optind == 2 ? argv[optind + 1] : NULL, n_threads);
}
