// SPDX-License-Identifier: Apache-2.0
// Speed of a store: bench_store DIR [RECORD_TOKENS TOP_K N_RECORDS [none|flushed|durable|asked]]. Appends records made beforehand at each
// durability (or this one, or with "asked" each that is read from standard input, a line at a time), from one thread, as fast as the queue
// takes them; then finds them, then reads the directory through. One CSV row per figure. peer_fio.sh holds the appends against fio.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"
#include "tests/unit/store_fixture.h"

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void die(const char *what, const struct error *err)
{
	fprintf(stderr, "bench_store: %s: %s\n", what, err->message);
	exit(1);
}

static struct store *open_store(const char *directory)
{
	struct store *s;
	struct error err;
	if (store_open(&(struct store_options){.directory = directory}, &s, &err) < 0)
		die(directory, &err);
	return s;
}

static const char *const durabilities[] = {"none", "flushed", "durable"};

// Not measured, as with fio: the first use of the buffers, which a daemon meets once.
#define N_WARM 128

static void bench_warm(struct store *s)
{
	struct store_stats stats;
	for (uint64_t i = 0; i < N_WARM; i++) {
		struct record *r = fixture_record(UINT64_MAX - i, 512, 64);
		struct error err;
		if (store_append(s, r, STORE_FLUSHED, NULL, NULL, &err) < 0)
			die("append", &err);
		record_unref(r);
	}
	do {
		usleep(200);
		store_stats(s, &stats);
	} while (stats.queued_bytes);
}

static void bench_append(const char *directory, struct record **records, size_t n, size_t n_bytes, enum store_durability durability)
{
	struct error err;
	struct store *s = open_store(directory);
	bench_warm(s);
	double start = now();
	for (size_t i = 0; i < n; i++) {
		int rc;
		while ((rc = store_append(s, records[i], durability, NULL, NULL, &err)) == -EAGAIN)
			usleep(50);
		if (rc < 0)
			die("append", &err);
	}
	struct store_stats stats;
	do {
		usleep(200);
		store_stats(s, &stats);
	} while (stats.queued_bytes);
	double written = now();
	store_close(s);
	double closed = now();
	if (stats.n_appended != n + N_WARM)
		fprintf(stderr, "bench_store: only %llu of %zu records were appended\n", (unsigned long long)stats.n_appended - N_WARM, n);
	printf("append_%s_%s%s,%.0f,MB/s,%.0f,records/s,with_fsync_at_close,%.0f,MB/s\n", durabilities[durability],
	       stats.uring ? "uring" : "pwrite", stats.direct ? "_direct" : "",
	       (double)n_bytes / (written - start) / 1e6, (double)n / (written - start), (double)n_bytes / (closed - start) / 1e6);
}

static void bench_find(const char *directory, struct record **records, size_t n, size_t n_bytes)
{
	double start = now();
	struct store *s = open_store(directory);
	double opened = now();
	struct record *found;
	struct error err;
	for (size_t i = 0; i < n; i++) {
		if (store_find(s, record_key(records[(i * 7919) % n]), &found, &err) < 0)
			die("find", &err);
		record_unref(found);
	}
	double over = now();
	printf("open,%.2f,ms\nfind,%.0f,finds/s,%.0f,MB/s\n", (opened - start) * 1e3, (double)n / (over - opened),
	       (double)n_bytes / (over - opened) / 1e6);
	struct store_cursor c = {0};
	char place[96];
	size_t n_walked = 0;
	start = now();
	while (store_next(s, &c, &found, place, &err) == 0) {
		record_unref(found);
		n_walked++;
	}
	over = now();
	printf("walk,%.0f,MB/s,%zu,records\n", (double)n_bytes / (over - start) / 1e6, n_walked);
	store_close(s);
}

// A store of its own for each figure, so that none finds another's records.
static int bench_run(const char *where, struct record **records, size_t n, size_t n_bytes, enum store_durability durability, bool find)
{
	char path[1024];
	snprintf(path, sizeof path, "%s/bench-XXXXXX", where);
	if (!mkdtemp(path)) {
		fprintf(stderr, "bench_store: %s: %s\n", path, strerror(errno));
		return 1;
	}
	bench_append(path, records, n, n_bytes, durability);
	if (find)
		bench_find(path, records, n, n_bytes);
	fixture_remove(strdup(path));
	return 0;
}

static int durability_of(const char *word)
{
	for (int i = 0; i < 3; i++)
		if (strcmp(word, durabilities[i]) == 0)
			return i;
	return -1;
}

int main(int argc, char **argv)
{
	bool asked = argc == 6 && strcmp(argv[5], "asked") == 0;
	int only = argc == 6 ? durability_of(argv[5]) : -1;
	char word[16];
	if ((argc != 2 && argc != 5 && argc != 6) || (argc == 6 && only < 0 && !asked)) {
		fprintf(stderr, "usage: bench_store DIRECTORY [RECORD_TOKENS TOP_K N_RECORDS [none|flushed|durable|asked]]\n");
		return 2;
	}
	uint32_t n_tokens = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 0) : 512,
		top_k = argc > 2 ? (uint32_t)strtoul(argv[3], NULL, 0) : 64;
	size_t n = argc > 2 ? strtoul(argv[4], NULL, 0) : 2000, n_bytes = 0;
	struct record **records = calloc(n ? n : 1, sizeof *records);
	if (!records || !n)
		return 1;
	for (size_t i = 0; i < n; i++) {
		size_t k;
		records[i] = fixture_record(i, n_tokens, top_k);
		record_bytes(records[i], &k);
		n_bytes += k;
	}
	printf("records,%zu,%zu,bytes_each\n", n, n_bytes / n);
	int rc = 0;
	fflush(stdout);
	while (asked && rc == 0 && scanf("%15s", word) == 1 && durability_of(word) >= 0) {
		rc = bench_run(argv[1], records, n, n_bytes, (enum store_durability)durability_of(word), false);
		fflush(stdout);
	}
	for (int d = STORE_NONE; d <= STORE_DURABLE && rc == 0 && !asked; d++)
		if (only < 0 || only == d)
			rc = bench_run(argv[1], records, n, n_bytes, (enum store_durability)d, only < 0 && d == STORE_DURABLE);
	for (size_t i = 0; i < n; i++)
		record_unref(records[i]);
	free(records);
	return rc;
}
