// SPDX-License-Identifier: Apache-2.0
// Verifying a store of real rows: bench_verify RECORDS DIRECTORY [MEGABYTES [ROUNDS]]. RECORDS is a file of records (kdctl score
// --records); each is stored as often as it takes to fill MEGABYTES (its first token changed, so that each copy has a key of its own), then
// the store is surveyed by one thread as `kdctl store verify` does. One CSV row: the best of the rounds, in bytes of shards for each second
// of processor time, which other programs disturb least: of user time, of user and system time, and by the clock.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/store/survey.h"
#include "tests/unit/store_fixture.h"

#define RECORD_HEAD 12

static void die(const char *what)
{
	fprintf(stderr, "bench_verify: %s\n", what);
	exit(1);
}

static struct record *read_record(FILE *file)
{
	uint8_t head[RECORD_HEAD], *bytes;
	struct record *record = NULL;
	struct error err = {0};
	if (fread(head, 1, sizeof head, file) != sizeof head)
		return NULL;
	size_t n = head[8] | (size_t)head[9] << 8 | (size_t)head[10] << 16 | (size_t)head[11] << 24;
	if (n < sizeof head || n > RECORD_MAX_BYTES || !(bytes = malloc(n)))
		die("not a file of records");
	memcpy(bytes, head, sizeof head);
	if (fread(bytes + sizeof head, 1, n - sizeof head, file) != n - sizeof head || record_from_bytes(bytes, n, &record, &err))
		die(*err.message ? err.message : "a record is cut short");
	free(bytes);
	return record;
}

static void append(struct store *s, struct record *record)
{
	struct error err;
	int rc;
	while ((rc = store_append(s, record, STORE_NONE, NULL, NULL, &err)) == -EAGAIN)
		usleep(1000);
	if (rc < 0)
		die(err.message);
	record_unref(record);
}

// Copies of the record whose sequences begin with another token.
static void append_copies(struct store *s, struct record *record, uint64_t wanted)
{
	struct record_rows *rows;
	struct record *copy;
	struct error err;
	uint64_t sum = 0;
	size_t n;
	if (record_decode(record, &rows, &err))
		die(err.message);
	for (uint32_t i = 0; sum < wanted; i++) {
		rows->sequence.tokens[0] = i % rows->vocab_size;
		if (record_encode(rows, &copy, &err))
			die(err.message);
		(void)record_bytes(copy, &n);
		sum += n;
		append(s, copy);
	}
	record_rows_free(rows);
}

static int visit(void *arg, const struct survey_item *item)
{
	(void)arg;
	if (!item->record)
		die(item->message);
	return 0;
}

static double seconds(struct timeval t)
{
	return (double)t.tv_sec + 1e-6 * (double)t.tv_usec;
}

struct figures { double user, system, wall; struct survey_totals totals; };

static struct figures survey(const char *directory)
{
	struct survey_options o = {.directory = directory, .n_threads = 1, .rows = true, .indexes = true, .visit = visit};
	struct figures f;
	struct rusage before, after;
	struct error err;
	getrusage(RUSAGE_SELF, &before);
	if (survey_run(&o, &f.totals, &err))
		die(err.message);
	getrusage(RUSAGE_SELF, &after);
	f.user = seconds(after.ru_utime) - seconds(before.ru_utime);
	f.system = seconds(after.ru_stime) - seconds(before.ru_stime);
	f.wall = f.totals.seconds;
	return f;
}

static void fill(const char *records, const char *directory, uint64_t megabytes)
{
	FILE *file = fopen(records, "re");
	struct store *s;
	struct error err;
	uint64_t n_records = 0, each;
	if (!file)
		die(strerror(errno));
	for (struct record *r; (r = read_record(file)); n_records++)
		record_unref(r);
	each = megabytes * 1000000 / (n_records ? n_records : 1);
	rewind(file);
	if (store_open(&(struct store_options){.directory = directory}, &s, &err))
		die(err.message);
	for (struct record *r; (r = read_record(file));) {
		append_copies(s, r, each);
		record_unref(r);
	}
	store_close(s);
	fclose(file);
}

int main(int argc, char **argv)
{
	if (argc < 3 || argc > 5) {
		fprintf(stderr, "usage: bench_verify RECORDS DIRECTORY [MEGABYTES [ROUNDS]]\n");
		return 2;
	}
	uint64_t megabytes = argc > 3 ? strtoull(argv[3], NULL, 0) : 256;
	int rounds = argc > 4 ? atoi(argv[4]) : 5;
	struct figures best = {.user = 1e9};
	char path[1024];
	snprintf(path, sizeof path, "%s/verify-XXXXXX", argv[2]);
	if (!mkdtemp(path))
		die(strerror(errno));
	fill(argv[1], path, megabytes);
	for (int i = 0; i < rounds; i++) {
		struct figures f = survey(path);
		if (f.user + f.system < best.user + best.system)
			best = f;
	}
	double mb = (double)best.totals.shard_bytes / 1e6;
	printf("%llu,%.1f,%.0f,%.0f,%.0f\n", (unsigned long long)best.totals.n_records, mb, mb / best.user, mb / (best.user + best.system),
	       mb / best.wall);
	fixture_remove(strdup(path));
	return 0;
}
