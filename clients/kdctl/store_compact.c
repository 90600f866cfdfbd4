// SPDX-License-Identifier: Apache-2.0
// kdctl store compact: rewrites shards without what says nothing new.
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "clients/kdctl/store.h"
#include "common/error.h"
#include "daemon/store/packed.h"
#include "daemon/store/survey.h"
#include "daemon/store/upkeep.h"

struct compaction {
	const struct kdctl *k;
	struct progress progress;
	uint64_t done;
};

static void show_damage(void *arg, const struct survey_item *item)
{
	struct compaction *c = arg;
	progress_stop(&c->progress);
	store_report_damage(c->k, item->place, item->offset, item->n_bytes, item->message);
}

static void show_progress(void *arg, uint64_t done, uint64_t all)
{
	struct compaction *c = arg;
	if (done < c->done)              // read; now it is rewritten
		c->progress = progress_start();
	c->done = done;
	store_progress(&c->progress, done, all);
}

static void print_json(const struct upkeep_compacted *t)
{
	const struct { const char *name; uint64_t value; } members[] = {
		{"records", t->n_records}, {"duplicates", t->n_duplicates}, {"contained", t->n_contained}, {"damaged", t->n_damaged},
		{"dropped", t->n_dropped}, {"shards", t->n_shards}, {"rewritten", t->n_rewritten}, {"left", t->n_left}, {"made", t->n_made},
		{"before_bytes", t->before_bytes}, {"after_bytes", t->after_bytes}};
	json_t *j = json_object();
	for (size_t i = 0; i < sizeof members / sizeof *members; i++)
		json_object_set_new(j, members[i].name, json_integer((json_int_t)members[i].value));
	j = json_pack("{s:o}", "summary", j);
	kdctl_print_json(j);
	json_decref(j);
}

static void print_text(const struct upkeep_compacted *t)
{
	char before[24], after[24];
	store_bytes_text(t->before_bytes, before);
	store_bytes_text(t->after_bytes, after);
	printf("%" PRIu64 " records: %" PRIu64 " second copies and %" PRIu64 " contained in larger ones removed\n", t->n_records,
	       t->n_duplicates, t->n_contained);
	printf("%" PRIu64 " of %" PRIu64 " shards replaced by %" PRIu64 ": %s, now %s\n", t->n_rewritten, t->n_shards,
		t->n_made, before, after);
	if (t->n_damaged)
		printf("%" PRIu64 " damaged places: %" PRIu64 " dropped, %" PRIu64 " shards left as they are\n", t->n_damaged, t->n_dropped,
		       t->n_left);
}

static int compact(struct kdctl *k, struct upkeep_compact *o)
{
	struct compaction c = {.k = k, .progress = progress_start()};
	struct upkeep_compacted t;
	struct error err = {0};
	o->damaged = show_damage;
	o->progress = show_progress;
	o->arg = &c;
	int rc = upkeep_compact(o, &t, &err);
	progress_stop(&c.progress);
	if ((rc == 0 || t.n_rewritten) && k->json)
		print_json(&t);
	else if (rc == 0 || t.n_rewritten)
		print_text(&t);
	return rc ? store_failure(k, &err) : t.n_damaged > t.n_dropped;
}

int store_compact(struct kdctl *k, int argc, char **argv)
{
	static const struct option options[] = {{"keep-contained", no_argument, NULL, 'c'}, {"drop-damaged", no_argument, NULL, 'd'},
						{"compression", required_argument, NULL, 'z'},
						{"shard", required_argument, NULL, 'b'}, {"threads", required_argument, NULL, 't'},
						STORE_OPTIONS, {0}};
	static const char help[] = "compact [--keep-contained] [--drop-damaged] [--compression C] [--shard SIZE] [--threads N] DIR\n"
		"Rewrites shards without second copies and without records that a larger one contains, and joins small ones.\n"
		"What a shard with damage holds stays as it is, and the exit status is 1; --drop-damaged rewrites it too, without\n"
		"what is damaged. --keep-contained: every key stays. --shard: size of new shards, 256M. --compression: none, zstd\n"
		"or zstd:LEVEL (1 to 19) rewrites every record so; without it each stays as it lies. Refused while a server has\n"
		"the store. May be interrupted at any time: what is answered stays the same.\n";
	struct upkeep_compact o = {0};
	const char *threads = NULL;
	struct error err = {0};
	int status = 0;
	for (int c; (c = store_option(k, argc, argv, options, help, &status)) != -1;) {
		switch (c) {
		case 'c': o.keep_contained = true; break;
		case 'd': o.drop_damaged = true; break;
		case 't': threads = optarg; break;
		case 'z':
			if (packed_level(optarg, &o.compression, &err))
				return kdctl_usage(k, "--compression %s", err.message);
			o.compression = o.compression ? o.compression : -1;
			break;
		case 'b':
			if (!store_size(optarg, &o.shard_bytes) || o.shard_bytes < 1u << 20)
				return kdctl_usage(k, "--shard %s: a size of at least 1M is expected", optarg);
			break;
		default: return status;
		}
	}
	if (!store_threads(threads, &o.n_threads))
		return kdctl_usage(k, "--threads %s: 1 to %d is expected", threads, SURVEY_MAX_THREADS);
	if (argc - optind != 1)
		return kdctl_usage(k, "compact: a DIR is expected (kdctl store compact --help)");
	o.directory = argv[optind];
	return store_expect_directory(k, o.directory) ? 1 : compact(k, &o);
}
