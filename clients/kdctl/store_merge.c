// SPDX-License-Identifier: Apache-2.0
// kdctl store merge: the records of other directories.
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>

#include "clients/kdctl/store.h"
#include "common/error.h"
#include "daemon/store/survey.h"
#include "daemon/store/upkeep.h"

struct merging {
	const struct kdctl *k;
	struct progress progress;
	uint64_t done;
};

static void show_damage(void *arg, const char *from, const struct survey_item *item)
{
	struct merging *m = arg;
	char place[512];
	progress_stop(&m->progress);
	snprintf(place, sizeof place, "%s/%s", from, item->place);
	store_report_damage(m->k, place, item->offset, item->n_bytes, item->message);
}

static void show_progress(void *arg, uint64_t done, uint64_t all)
{
	struct merging *m = arg;
	if (done < m->done)              // the next directory
		m->progress = progress_start();
	m->done = done;
	store_progress(&m->progress, done, all);
}

static void print_summary(const struct kdctl *k, const struct upkeep_merged *t, size_t n_from)
{
	uint64_t n_added = t->n_records - t->n_there;
	char added[24];
	store_bytes_text(t->n_bytes, added);
	if (k->json)
		printf("{\"summary\":{\"sources\":%zu,\"records\":%" PRIu64 ",\"added\":%" PRIu64 ",\"added_bytes\":%" PRIu64
		       ",\"there\":%" PRIu64 ",\"damaged\":%" PRIu64 "}}\n", n_from, t->n_records, n_added, t->n_bytes,
		       t->n_there, t->n_damaged);
	else
		printf("%" PRIu64 " records of %zu directories: %" PRIu64 " added (%s), %" PRIu64 " were there already, %" PRIu64
		       " damaged places\n", t->n_records, n_from, n_added, added, t->n_there, t->n_damaged);
}

static int merge(struct kdctl *k, struct upkeep_merge *o)
{
	struct merging m = {.k = k, .progress = progress_start()};
	struct upkeep_merged t;
	struct error err = {0};
	o->damaged = show_damage;
	o->progress = show_progress;
	o->arg = &m;
	int rc = upkeep_merge(o, &t, &err);
	progress_stop(&m.progress);
	if (rc)
		return store_failure(k, &err);
	print_summary(k, &t, o->n_from);
	return t.n_damaged > 0;
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
	struct upkeep_merge o = {0};
	int status = 0;
	for (int c; (c = store_option(k, argc, argv, options, help, &status)) != -1;) {
		if (c != 'b')
			return status;
		if (!store_size(optarg, &o.shard_bytes) || o.shard_bytes < 1u << 20)
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
	o.directory = argv[optind];
	o.from = argv + optind + 1;
	o.n_from = (size_t)(argc - optind - 1);
	return merge(k, &o);
}
