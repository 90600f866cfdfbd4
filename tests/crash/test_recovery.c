// SPDX-License-Identifier: Apache-2.0
// What a scan makes of a shard cut at every length, with every bit flipped, with bursts, with frames exchanged: in memory, so that all
// of it can be tried (every bit of 64 KiB when KD_TORTURE is set, else of 16 KiB).
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/crc32c.h"
#include "daemon/store/scan.h"
#include "tests/unit/store_fixture.h"

#define SHARD_ID 42
#define MAX_RECORDS 2048

struct image {
	uint8_t *bytes;
	size_t n;
	unsigned n_records;
	struct shard_frame frames[MAX_RECORDS];
	bool sealed;
};

static uint64_t rng_state;

static uint32_t rng(void)
{
	rng_state = rng_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(rng_state >> 33);
}

// At least n_bytes of records of 1 to max_record bytes.
static struct image *image_new(size_t n_bytes, uint32_t max_record, bool sealed)
{
	struct image *m = calloc(1, sizeof *m);
	uint8_t *record = malloc(max_record);
	assert_non_null(m);
	assert_non_null(record);
	m->bytes = malloc(n_bytes + max_record + 1024);
	assert_non_null(m->bytes);
	struct shard_header h = {.id = SHARD_ID, .created = 1700000000, .salt = {9, 8, 7}};
	shard_header_encode(&h, m->bytes);
	m->n = SHARD_HEADER_BYTES;
	m->sealed = sealed;
	while (m->n < n_bytes) {
		struct shard_frame f = {.offset = m->n, .number = m->n_records, .record_bytes = 1 + rng() % max_record};
		for (size_t i = 0; i < sizeof f.key.bytes; i++)
			f.key.bytes[i] = (uint8_t)rng();
		for (uint32_t i = 0; i < f.record_bytes; i++)
			record[i] = (uint8_t)(rng() % 4 ? rng() : 0);
		size_t size = (size_t)shard_frame_size(f.record_bytes);
		memset(m->bytes + m->n, 0, size);
		shard_frame_encode(h.seed, &f, crc32c(0, record, f.record_bytes), m->bytes + m->n);
		memcpy(m->bytes + m->n + SHARD_FRAME_BYTES, record, f.record_bytes);
		assert_true(m->n_records < MAX_RECORDS);
		m->frames[m->n_records++] = f;
		m->n += size;
	}
	if (sealed) {
		shard_seal_encode(h.seed, m->n, m->n_records, m->bytes + m->n);
		m->n += SHARD_SEAL_BYTES;
	}
	free(record);
	return m;
}

static void image_free(struct image *m)
{
	free(m->bytes);
	free(m);
}

struct outcome {
	bool readable, header_damaged, sealed;
	unsigned n_found, n_damage;
	uint64_t n_lost, torn_bytes, end;
	bool found[MAX_RECORDS];
};

// Scans bytes that stem from the image; every record found must be one of its records, unchanged, in its place.
static void image_scan(const struct image *m, const uint8_t *bytes, size_t n, struct outcome *ret)
{
	struct scan s;
	struct scan_item item;
	memset(ret, 0, sizeof *ret);
	ret->readable = scan_init_bytes(&s, bytes, n, SHARD_ID, NULL) == 0;
	ret->header_damaged = s.header.damaged;
	unsigned i = 0;
	while (ret->readable) {
		assert_int_equal(scan_next(&s, &item, NULL), 0);
		if (item.kind == SCAN_END)
			break;
		ret->n_damage += item.kind == SCAN_DAMAGE;
		ret->n_lost += item.n_lost;
		ret->torn_bytes += item.kind == SCAN_TORN ? item.n_bytes : 0;
		if (item.kind != SCAN_RECORD)
			continue;
		while (i < m->n_records && m->frames[i].offset != item.offset)
			i++;
		assert_true(i < m->n_records);
		assert_int_equal(item.frame.number, i);
		assert_memory_equal(&item.frame.key, &m->frames[i].key, sizeof item.frame.key);
		assert_int_equal(item.frame.record_bytes, m->frames[i].record_bytes);
		if (memcmp(item.record, m->bytes + item.offset + SHARD_FRAME_BYTES, item.frame.record_bytes) != 0)
			fail_msg("record %u is not what was written", i);
		ret->found[i] = true;
		ret->n_found++;
	}
	ret->end = item.offset;
	ret->sealed = s.sealed;
	scan_done(&s);
}

static void every_truncation_keeps_exactly_the_whole_records(void **state)
{
	(void)state;
	rng_state = 1;
	for (int sealed = 0; sealed < 2; sealed++) {
		struct image *m = image_new(65536, 900, sealed);
		struct outcome o;
		unsigned whole = 0;
		uint64_t end = SHARD_HEADER_BYTES;
		for (size_t n = 0; n <= m->n; n++) {
			uint64_t next = whole < m->n_records
				? m->frames[whole].offset + shard_frame_size(m->frames[whole].record_bytes) : 0;
			if (next && n >= next) {
				whole++;
				end = next;
			}
			image_scan(m, m->bytes, n, &o);
			if (!o.readable) {
				assert_true(n < 64);
				continue;
			}
			assert_int_equal(o.header_damaged, n < SHARD_HEADER_BYTES);
			assert_int_equal(o.n_found, whole);
			assert_int_equal(o.n_damage, 0);
			bool is_sealed = sealed && n == m->n;
			assert_int_equal(o.sealed, is_sealed);
			assert_int_equal(o.end, is_sealed ? m->n : end);
			assert_int_equal(o.torn_bytes, is_sealed || n < end ? 0 : n - end);
		}
		image_free(m);
	}
}

// Which record covers the byte; n_records when it is the header or the seal.
static unsigned record_at(const struct image *m, size_t byte)
{
	unsigned i = 0;
	while (i < m->n_records &&
	       (byte < m->frames[i].offset || byte >= m->frames[i].offset + shard_frame_size(m->frames[i].record_bytes)))
		i++;
	return i;
}

static void expect_detected(const struct image *m, const struct outcome *o, size_t byte)
{
	bool noticed = !o->readable || o->header_damaged || o->n_damage || o->torn_bytes || o->sealed != m->sealed;
	if (!noticed)
		fail_msg("a change at byte %zu went unnoticed", byte);
}

static void every_bit_flip_is_detected_and_costs_one_record(void **state)
{
	(void)state;
	rng_state = 2;
	for (int sealed = 0; sealed < 2; sealed++) {
		struct image *m = image_new(getenv("KD_TORTURE") ? 65536 : 16384, 700, sealed);
		struct outcome o;
		uint8_t *copy = malloc(m->n);
		assert_non_null(copy);
		memcpy(copy, m->bytes, m->n);
		for (size_t bit = 0; bit < 8 * m->n; bit++) {
			size_t byte = bit / 8;
			copy[byte] ^= (uint8_t)(1u << (bit % 8));
			image_scan(m, copy, m->n, &o);
			copy[byte] = m->bytes[byte];
			expect_detected(m, &o, byte);
			unsigned hit = record_at(m, byte);
			assert_true(o.readable);                // the other copy of the header holds
			assert_int_equal(o.n_found, m->n_records - (hit < m->n_records));
			assert_true(hit == m->n_records || !o.found[hit]);
		}
		free(copy);
		image_free(m);
	}
}

static void every_burst_up_to_32_bits_is_detected(void **state)
{
	(void)state;
	rng_state = 3;
	struct image *m = image_new(16384, 700, true);
	struct outcome o;
	uint8_t *copy = malloc(m->n);
	assert_non_null(copy);
	memcpy(copy, m->bytes, m->n);
	for (int round = 0; round < 100000; round++) {
		size_t first = rng() % (8 * m->n - 32);
		uint32_t pattern = rng() | 1;
		for (unsigned i = 0; i < 32; i++)
			if (pattern >> i & 1)
				copy[(first + i) / 8] ^= (uint8_t)(1u << ((first + i) % 8));
		image_scan(m, copy, m->n, &o);
		expect_detected(m, &o, first / 8);
		assert_true(o.n_found + 2 >= m->n_records);
		memcpy(copy + first / 8, m->bytes + first / 8, 8 < m->n - first / 8 ? 8 : m->n - first / 8);
	}
	free(copy);
	image_free(m);
}

static void records_that_changed_places_are_detected(void **state)
{
	(void)state;
	rng_state = 4;
	struct image *m = image_new(32768, 40, true);       // short records: many of the same size
	struct outcome o;
	uint8_t *copy = malloc(m->n);
	assert_non_null(copy);
	unsigned n_tried = 0;
	for (unsigned i = 0; i + 1 < m->n_records; i++) {
		unsigned j = i + 1;
		size_t size = (size_t)shard_frame_size(m->frames[i].record_bytes);
		while (j < m->n_records && shard_frame_size(m->frames[j].record_bytes) != size)
			j++;
		if (j == m->n_records)
			continue;
		memcpy(copy, m->bytes, m->n);
		memcpy(copy + m->frames[i].offset, m->bytes + m->frames[j].offset, size);
		memcpy(copy + m->frames[j].offset, m->bytes + m->frames[i].offset, size);
		image_scan(m, copy, m->n, &o);
		assert_false(o.found[i] || o.found[j]);
		assert_int_equal(o.n_found, m->n_records - 2);
		assert_int_equal(o.n_lost, 2);
		n_tried++;
	}
	assert_true(n_tried > 100);
	free(copy);
	image_free(m);
}

static void lost_stretches_are_stepped_over_and_counted(void **state)
{
	(void)state;
	rng_state = 5;
	struct image *m = image_new(65536, 700, true);
	struct outcome o;
	uint8_t *copy = malloc(m->n);
	assert_non_null(copy);
	for (int round = 0; round < 2000; round++) {
		memcpy(copy, m->bytes, m->n);
		size_t first = SHARD_HEADER_BYTES + rng() % (m->n - SHARD_HEADER_BYTES - SHARD_SEAL_BYTES);
		size_t n = 1 + rng() % 8192;
		size_t left = m->n - SHARD_SEAL_BYTES - first;
		n = n < left ? n : left;
		memset(copy + first, round % 2 ? 0 : 0xa5, n);
		image_scan(m, copy, m->n, &o);
		unsigned a = record_at(m, first), b = record_at(m, first + n - 1);
		unsigned untouched = memcmp(copy, m->bytes, m->n) == 0;
		assert_true(o.sealed);
		assert_true(o.n_found + (b - a + 1) >= m->n_records);
		assert_int_equal(o.n_found + o.n_lost, m->n_records);
		assert_true(untouched || o.n_damage > 0);
	}
	free(copy);
	image_free(m);
}

static void bytes_inside_a_record_are_not_taken_for_a_frame(void **state)
{
	(void)state;
	rng_state = 6;
	// A record that contains a whole valid shard, its own bytes included; then the frame around it is damaged.
	struct image *inner = image_new(8192, 300, true), *outer = image_new(5000, 10, false);
	struct shard_header h;
	assert_int_equal(shard_header_decode(outer->bytes, outer->n, &h), 0);
	struct shard_frame f = {.offset = outer->n, .number = outer->n_records, .record_bytes = (uint32_t)inner->n};
	size_t size = (size_t)shard_frame_size(f.record_bytes), n = outer->n + 2 * size;
	uint8_t *bytes = calloc(1, n + 64);
	assert_non_null(bytes);
	memcpy(bytes, outer->bytes, outer->n);
	shard_frame_encode(h.seed, &f, crc32c(0, inner->bytes, f.record_bytes), bytes + f.offset);
	memcpy(bytes + f.offset + SHARD_FRAME_BYTES, inner->bytes, inner->n);
	struct shard_frame last = {.offset = outer->n + size, .number = f.number + 1, .record_bytes = 8};
	shard_frame_encode(h.seed, &last, crc32c(0, inner->bytes, last.record_bytes), bytes + last.offset);
	memcpy(bytes + last.offset + SHARD_FRAME_BYTES, inner->bytes, 8);
	n = (size_t)last.offset + 64;
	bytes[f.offset + 4] ^= 1;        // the length
	struct scan s;
	struct scan_item item;
	assert_int_equal(scan_init_bytes(&s, bytes, n, SHARD_ID, NULL), 0);
	for (unsigned i = 0; i < outer->n_records; i++) {
		assert_int_equal(scan_next(&s, &item, NULL), 0);
		assert_int_equal(item.kind, SCAN_RECORD);
	}
	assert_int_equal(scan_next(&s, &item, NULL), 0);
	assert_int_equal(item.kind, SCAN_DAMAGE);
	assert_int_equal(item.n_bytes, size);
	assert_int_equal(scan_next(&s, &item, NULL), 0);
	assert_int_equal(item.kind, SCAN_RECORD);
	assert_int_equal(item.frame.number, last.number);
	scan_done(&s);
	free(bytes);
	image_free(inner);
	image_free(outer);
}

static void a_shard_under_another_name_is_refused(void **state)
{
	(void)state;
	rng_state = 7;
	struct image *m = image_new(8192, 300, true);
	struct scan s;
	assert_int_equal(scan_init_bytes(&s, m->bytes, m->n, SHARD_ID + 1, NULL), -EBADMSG);
	image_free(m);
}

// The same through files: store_open cuts what the scan says, at lengths around every frame boundary of a real shard.
static void a_store_opens_on_a_shard_cut_anywhere(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct store *s = fixture_open(d, 0);
	struct record *r[12];
	uint64_t ends[12], end = SHARD_HEADER_BYTES;
	for (unsigned i = 0; i < 12; i++) {
		r[i] = fixture_record(i, 8 + i, 4);
		assert_int_equal(fixture_append(s, r[i], STORE_FLUSHED), 0);
		size_t n;
		record_bytes(r[i], &n);
		ends[i] = end += shard_frame_size((uint32_t)n);
	}
	store_close(s);
	size_t size;
	uint8_t *bytes = fixture_read(d, "00000000.shard", &size);
	assert_int_equal(size, end);
	for (unsigned i = 0; i < 12; i++)
		for (int delta = -9; delta <= 60; delta += 23) {
			uint64_t n = ends[i] + (uint64_t)delta < size ? ends[i] + (uint64_t)delta : size;
			unsigned whole = 0;
			while (whole < 12 && ends[whole] <= n)
				whole++;
			fixture_write(d, "00000000.shard", bytes, n);
			s = fixture_open(d, 0);
			for (unsigned k = 0; k < 12; k++)
				assert_int_equal(fixture_expect(s, r[k]), k < whole ? 0 : -ENOENT);
			assert_int_equal(fixture_stats(s).recovered_bytes, n - (whole ? ends[whole - 1] : SHARD_HEADER_BYTES));
			assert_int_equal(fixture_stats(s).n_corrupt, 0);
			store_close(s);
		}
	for (unsigned i = 0; i < 12; i++)
		record_unref(r[i]);
	free(bytes);
	fixture_remove(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_truncation_keeps_exactly_the_whole_records),
		cmocka_unit_test(every_bit_flip_is_detected_and_costs_one_record),
		cmocka_unit_test(every_burst_up_to_32_bits_is_detected),
		cmocka_unit_test(records_that_changed_places_are_detected),
		cmocka_unit_test(lost_stretches_are_stepped_over_and_counted),
		cmocka_unit_test(bytes_inside_a_record_are_not_taken_for_a_frame),
		cmocka_unit_test(a_shard_under_another_name_is_refused),
		cmocka_unit_test(a_store_opens_on_a_shard_cut_anywhere),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
