// SPDX-License-Identifier: Apache-2.0
// How long a large store takes to open: bench_open fill DIR MEGABYTES [RECORD_TOKENS TOP_K] makes one and is then killed, so that its
// newest shard is left as a crash leaves it; bench_open open DIR opens it as a writer and prints one CSV row. Records share their rows and
// differ in a token: they are encoded once, their keys and checksums are their own. recovery.sh runs both, and a daemon.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"
#include "common/record_layout.h"
#include "tests/unit/store_fixture.h"

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void die(const char *what, const struct error *err)
{
	fprintf(stderr, "bench_open: %s: %s\n", what, err->message);
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

// The model record about another sequence: its second and third tokens are `n`.
static struct record *record_vary(const struct record *model, uint8_t *bytes, uint32_t n)
{
	struct record *record;
	struct sequence s;
	struct error err;
	size_t n_bytes;
	const void *from = record_bytes(model, &n_bytes);
	memcpy(bytes, from, n_bytes);
	if (record_sequence(model, &s) < 0)
		die("memory", &(struct error){.message = "none"});
	s.tokens[1] = n & 0x7fff;
	s.tokens[2] = n >> 15;
	for (uint32_t i = 1; i <= 2; i++) {
		uint32_t token = htole32(s.tokens[i]);
		memcpy(bytes + model->sections_at - 4 * (size_t)model->n_tokens + 4 * i, &token, 4);
	}
	struct content_id key = query_key(record_teacher(model), &s, record_query(model));
	memcpy(bytes + RECORD_KEY_AT, &key, sizeof key);
	uint32_t crc = htole32(record_checksum(bytes, n_bytes));
	memcpy(bytes + RECORD_CRC_AT, &crc, 4);
	if (record_from_bytes(bytes, n_bytes, &record, &err) < 0)
		die("record", &err);
	sequence_done(&s);
	return record;
}

static int fill(const char *directory, uint64_t n_bytes, uint32_t n_tokens, uint32_t top_k)
{
	struct record *model = fixture_record(1, n_tokens, top_k);
	struct store *s = open_store(directory);
	struct store_stats stats;
	struct error err;
	size_t k;
	record_bytes(model, &k);
	uint8_t *bytes = malloc(k);
	uint64_t n = n_bytes / k;
	for (uint64_t i = 0; bytes && i < n; i++) {
		struct record *record = record_vary(model, bytes, (uint32_t)i);
		int rc;
		while ((rc = store_append(s, record, STORE_FLUSHED, NULL, NULL, &err)) == -EAGAIN)
			usleep(200);
		if (rc < 0)
			die("append", &err);
		record_unref(record);
	}
	do {
		usleep(1000);
		store_stats(s, &stats);
	} while (stats.queued_bytes);
	printf("filled,%llu,records,%zu,bytes_each,%llu,shards\n", (unsigned long long)stats.n_appended, k,
		(unsigned long long)stats.n_shards);
	fflush(stdout);
	return raise(SIGKILL);
}

int main(int argc, char **argv)
{
	if ((argc == 4 || argc == 6) && strcmp(argv[1], "fill") == 0)
		return fill(argv[2], strtoull(argv[3], NULL, 0) * 1000 * 1000, argc == 6 ? (uint32_t)strtoul(argv[4], NULL, 0) : 512,
			    argc == 6 ? (uint32_t)strtoul(argv[5], NULL, 0) : 64);
	if (argc != 3 || strcmp(argv[1], "open") != 0) {
		fprintf(stderr, "usage: bench_open fill DIRECTORY MEGABYTES [RECORD_TOKENS TOP_K] | open DIRECTORY\n");
		return 2;
	}
	double start = now();
	struct store *s = open_store(argv[2]);
	double opened = now();
	struct store_stats stats;
	store_stats(s, &stats);
	printf("open,%.3f,s,%llu,records,%llu,shards,%llu,bytes,%llu,corrupt\n", opened - start, (unsigned long long)stats.n_records,
	       (unsigned long long)stats.n_shards, (unsigned long long)stats.n_bytes, (unsigned long long)stats.n_corrupt);
	store_close(s);
	return 0;
}
