// SPDX-License-Identifier: Apache-2.0
// Shards with changed bytes whose checksums were put right again, as an attacker would: whatever they say is either refused or sound.
// KD_MUTANTS sets how many (2000), KD_SEED the first. Worth most in a build with sanitizers.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/crc32c.h"
#include "daemon/store/packed.h"
#include "daemon/store/part.h"
#include "daemon/store/scan.h"
#include "daemon/store/sidecar.h"
#include "tests/unit/part_oracle.h"
#include "tests/unit/store_fixture.h"

#define SHARD_ID 3
#define N_RECORDS 6
#define RECORD_CRC_AT 12             // kdserved-record.5: covers the bytes before and after itself

struct image {
	uint8_t *bytes;
	size_t n;
	uint32_t seed;
	size_t at[N_RECORDS];            // frames
	uint32_t n_record[N_RECORDS];
};

static struct query asked;
static uint64_t state;

static uint32_t below(uint32_t n)
{
	return (uint32_t)(oracle_random(&state) % n);
}

static struct image *image_new(void)
{
	struct image *m = calloc(1, sizeof *m);
	struct shard_header h = {.id = SHARD_ID};
	assert_non_null(m);
	m->bytes = calloc(1, 1 << 20);
	assert_non_null(m->bytes);
	shard_header_encode(&h, m->bytes);
	m->seed = h.seed;
	m->n = SHARD_HEADER_BYTES;
	for (unsigned i = 0; i < N_RECORDS; i++) {
		struct sequence s;
		struct query q;
		size_t n;
		oracle_sequence(oracle_random(&state), &s);
		oracle_query(&state, &s, true, &q);
		struct record *r = oracle_answer(&s, &q);
		const void *bytes = record_bytes(r, &n);
		memcpy(m->bytes + m->n + SHARD_FRAME_BYTES, bytes, n);
		m->at[i] = m->n;
		m->n_record[i] = (uint32_t)n;
		m->n += (size_t)shard_frame_size((uint32_t)n);
		assert_true(m->n < 1 << 20);
		record_unref(r);
		query_done(&q);
		sequence_done(&s);
	}
	return m;
}

// One to four changes of the kinds that parsers trip over.
static void mutate(uint8_t *bytes, size_t n)
{
	static const uint64_t numbers[] = {0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, UINT64_MAX};
	for (unsigned k = 1 + below(4); k; k--) {
		size_t at = below(4) ? below(n < 200 ? (uint32_t)n : 200) : below((uint32_t)n);
		size_t size = (size_t)1 << below(4);
		uint64_t v = below(2) ? numbers[below(11)] : oracle_random(&state);
		if (below(3) == 0)
			bytes[at] ^= (uint8_t)(1u << below(8));
		else
			memcpy(bytes + at, &v, size < n - at ? size : n - at);
	}
}

// The record's own checksum and length, then the frame's.
static void put_right(struct image *m, unsigned i)
{
	uint8_t *record = m->bytes + m->at[i] + SHARD_FRAME_BYTES;
	uint32_t n = m->n_record[i], crc;
	struct shard_frame f = {.offset = m->at[i], .number = i, .record_bytes = n};
	if (below(4))
		memcpy(record + 8, &n, 4);
	crc = crc32c(crc32c(0, record, RECORD_CRC_AT), record + RECORD_CRC_AT + 4, n - RECORD_CRC_AT - 4);
	memcpy(record + RECORD_CRC_AT, &crc, 4);
	memcpy(f.key.bytes, record + 48, sizeof f.key.bytes);
	memset(record + n, 0, (size_t)shard_frame_size(n) - SHARD_FRAME_BYTES - n);
	shard_frame_encode(m->seed, &f, crc32c(0, record, f.record_bytes), m->bytes + f.offset);
}

static unsigned read_everything(const struct image *m)
{
	struct scan s;
	struct scan_item item;
	struct sidecar entries = {0};
	unsigned n_sound = 0;
	assert_int_equal(scan_init_bytes(&s, m->bytes, m->n, SHARD_ID, NULL), 0);
	do {
		struct record *r = NULL, *part = NULL;
		struct record_rows *rows = NULL;
		assert_int_equal(scan_next(&s, &item, NULL), 0);
		if (item.kind != SCAN_RECORD || packed_decode(item.record, item.frame.record_bytes, &r, NULL) < 0)
			continue;
		assert_int_equal(sidecar_append(&entries, &item.frame, r), 0);
		if (record_decode(r, &rows, NULL) == 0)
			n_sound++;
		if (part_extract(r, &asked, &part, NULL) == 0)
			record_unref(part);
		record_rows_free(rows);
		record_unref(r);
	} while (item.kind != SCAN_END);
	sidecar_done(&entries);
	scan_done(&s);
	return n_sound;
}

static void changed_records_are_refused_or_sound(void **unused)
{
	(void)unused;
	const char *text = getenv("KD_MUTANTS"), *seed_text = getenv("KD_SEED");
	unsigned long n = text ? strtoul(text, NULL, 0) : 2000, n_sound = 0;
	uint64_t seed = seed_text ? strtoull(seed_text, NULL, 0) : (uint64_t)time(NULL) << 20;
	print_message("KD_SEED=%llu, %lu mutants\n", (unsigned long long)seed, n);
	state = seed;
	struct image *m = image_new();
	uint8_t *original = malloc(m->n);
	assert_non_null(original);
	memcpy(original, m->bytes, m->n);
	for (unsigned i = 0; i < N_RECORDS; i++)
		put_right(m, i);
	assert_int_equal(read_everything(m), N_RECORDS);
	for (unsigned long k = 0; k < n; k++) {
		unsigned i = below(N_RECORDS);
		state = seed + k;                 // each mutant by its own seed
		memcpy(m->bytes, original, m->n);
		for (unsigned j = 0; j < N_RECORDS; j++)
			if (j != i)
				put_right(m, j);
		mutate(m->bytes + m->at[i] + SHARD_FRAME_BYTES, m->n_record[i]);
		put_right(m, i);
		n_sound += read_everything(m);
	}
	assert_true(n_sound >= n * (N_RECORDS - 1));
	free(original);
	free(m->bytes);
	free(m);
}

int main(void)
{
	struct sequence s;
	oracle_sequence(1, &s);
	query_init(&asked);
	asked.top_k = 4;
	oracle_check(&asked, &s);
	sequence_done(&s);
	const struct CMUnitTest tests[] = {cmocka_unit_test(changed_records_are_refused_or_sound)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
