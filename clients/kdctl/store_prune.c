// SPDX-License-Identifier: Apache-2.0
// kdctl store prune: removes the oldest shards.
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "clients/kdctl/store.h"
#include "common/error.h"
#include "daemon/store/upkeep.h"

struct pruning { const struct kdctl *k; bool dry_run; };

static void show_removed(void *arg, const struct upkeep_shard *s)
{
	const struct pruning *p = arg;
	char when[32] = "?", size[24];
	time_t written = (time_t)s->written;
	struct tm tm;
	if (p->k->json) {
		printf("{\"shard\":\"%08" PRIx32 "\",\"bytes\":%" PRIu64 ",\"written\":%lld,\"removed\":%s}\n", s->id, s->n_bytes,
		       (long long)s->written, p->dry_run ? "false" : "true");
		return;
	}
	if (localtime_r(&written, &tm))
		strftime(when, sizeof when, "%Y-%m-%d %H:%M:%S", &tm);
	store_bytes_text(s->n_bytes, size);
	printf("%s %08" PRIx32 ".shard, last written %s, %s\n", p->dry_run ? "would remove" : "removed", s->id, when, size);
}

static void print_summary(const struct kdctl *k, const struct upkeep_pruned *t, bool dry_run)
{
	char gone[24], left[24];
	store_bytes_text(t->n_bytes, gone);
	store_bytes_text(t->left_bytes, left);
	if (k->json)
		printf("{\"summary\":{\"shards\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"left_shards\":%" PRIu64 ",\"left_bytes\":%" PRIu64
		       ",\"dry_run\":%s}}\n", t->n_shards, t->n_bytes, t->n_left, t->left_bytes, dry_run ? "true" : "false");
	else
		printf("%" PRIu64 " shards (%s) %s, %" PRIu64 " (%s) %s\n", t->n_shards, gone, dry_run ? "would be removed" : "removed",
		       t->n_left, left, dry_run ? "would be left" : "left");
}

int store_prune(struct kdctl *k, int argc, char **argv)
{
	static const struct option options[] = {{"max-bytes", required_argument, NULL, 'b'}, {"older-than", required_argument, NULL, 'o'},
						{"dry-run", no_argument, NULL, 'n'}, STORE_OPTIONS, {0}};
	static const char help[] = "prune [--max-bytes SIZE] [--older-than TIME] [--dry-run] DIR\n"
		"Removes whole shards, the oldest first, never the newest, until the store is no larger than SIZE (digits, then\n"
		"K, M, G or T) and holds no shard that was last written more than TIME ago (digits, then s, min, h, d or w).\n"
		"--dry-run: only says which. Refused while a server has the store: see store-max-bytes in kdserved.conf(5).\n";
	struct upkeep_prune o = {.removed = show_removed};
	struct upkeep_pruned t;
	struct error err = {0};
	int status = 0;
	for (int c; (c = store_option(k, argc, argv, options, help, &status)) != -1;) {
		switch (c) {
		case 'b':
			if (!store_size(optarg, &o.max_bytes))
				return kdctl_usage(k, "--max-bytes %s: digits above 0 are expected, then K, M, G or T", optarg);
			break;
		case 'o':
			if (!store_duration(optarg, &o.max_age_s))
				return kdctl_usage(k, "--older-than %s: digits above 0 are expected, then s, min, h, d or w", optarg);
			break;
		case 'n': o.dry_run = true; break;
		default: return status;
		}
	}
	if (!o.max_bytes && !o.max_age_s)
		return kdctl_usage(k, "prune: --max-bytes, --older-than or both are expected");
	if (argc - optind != 1)
		return kdctl_usage(k, "prune: a DIR is expected (kdctl store prune --help)");
	o.directory = argv[optind];
	if (store_expect_directory(k, o.directory))
		return 1;
	o.arg = &(struct pruning){k, o.dry_run};
	int rc = upkeep_prune(&o, &t, &err);
	if (rc == 0 || t.n_shards)
		print_summary(k, &t, o.dry_run);
	return rc ? store_failure(k, &err) : 0;
}
