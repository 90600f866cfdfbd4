// SPDX-License-Identifier: Apache-2.0
// Compressed records: byte for byte what went in, wherever a store is read; any other bytes are refused.
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/crc32c.h"
#include "common/error.h"
#include "daemon/store/packed.h"
#include "daemon/store/survey.h"
#include "daemon/store/upkeep.h"
#include "tests/unit/store_fixture.h"

#define N 40

static void levels_are_read(void **state)
{
	(void)state;
	static const char *const bad[] = {"", "gzip", "zstd:", "zstd:0", "zstd:20", "zstd:3x", "zstd:-1", "zstd: 3", "ZSTD",
					  "zstd:99999999999999999999"};
	int level = 7;
	struct error err;
	assert_int_equal(packed_level("none", &level, &err), 0);
	assert_int_equal(level, 0);
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		assert_int_equal(packed_level(bad[i], &level, &err), -EINVAL);
	assert_int_equal(level, 0);
#ifdef HAVE_ZSTD
	assert_int_equal(packed_level("zstd", &level, &err), 0);
	assert_int_equal(level, PACKED_LEVEL);
	assert_int_equal(packed_level("zstd:19", &level, &err), 0);
	assert_int_equal(level, 19);
#else
	assert_int_equal(packed_level("zstd", &level, &err), -EOPNOTSUPP);
#endif
}

// Long enough sequences of few different tokens: those bytes compress.
static struct record *large(uint64_t n)
{
	return fixture_record(n, 300, 8);
}

#ifdef HAVE_ZSTD
static uint32_t below(uint32_t n)
{
	static uint64_t state = 9;
	state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(state >> 33) % n;
}

static int decode(const uint8_t *bytes, size_t n, const struct record *wanted)
{
	struct record *r;
	struct error err = {0};
	size_t n_record, n_wanted;
	uint8_t *copy = malloc(n ? n : 1);       // at the end of its memory
	assert_non_null(copy);
	memcpy(copy, bytes, n);
	int rc = packed_decode(copy, n, &r, &err);
	free(copy);
	if (rc < 0) {
		assert_true(rc == -EBADMSG || rc == -EOPNOTSUPP);
		assert_string_not_equal(err.message, "");
		return rc;
	}
	const void *a = record_bytes(r, &n_record), *b = record_bytes(wanted, &n_wanted);
	assert_int_equal(n_record, n_wanted);
	assert_memory_equal(a, b, n_wanted);
	record_unref(r);
	return 0;
}

static void a_record_comes_back_and_anything_else_is_refused(void **state)
{
	(void)state;
	struct packer p;
	struct record *r = large(1);
	size_t n;
	(void)record_bytes(r, &n);
	for (int level = 1; level <= PACKED_MAX_LEVEL; level += 6) {
		assert_int_equal(packer_init(&p, level, NULL), 0);
		struct packed s = packer_encode(&p, r);
		assert_true(s.n < n);
		assert_memory_equal(s.bytes, "KDRZ", 4);
		assert_int_equal(s.crc, crc32c(0, s.bytes, s.n));
		assert_int_equal(decode(s.bytes, s.n, r), 0);
		for (size_t cut = 0; cut < s.n; cut++)
			assert_true(decode(s.bytes, cut, r) < 0);
		uint8_t *bytes = malloc(s.n);
		assert_non_null(bytes);
		for (size_t bit = 0; bit < 8 * s.n; bit++) {
			memcpy(bytes, s.bytes, s.n);
			bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
			decode(bytes, s.n, r);             // refused, or a bit that says nothing: the record has a checksum of its own
		}
		for (int i = 0; i < 3000; i++) {
			memcpy(bytes, s.bytes, s.n);
			for (uint32_t k = 1 + below(6); k; k--)
				bytes[below(2) ? below(24) : below((uint32_t)s.n)] = (uint8_t)below(256);
			decode(bytes, s.n, r);
		}
		free(bytes);
		packer_done(&p);
	}
	record_unref(r);
}

// The size is held against the bytes and against what the compressed form itself says before anything is allocated.
static void sizes_that_do_not_fit_are_refused(void **state)
{
	(void)state;
	struct packer p;
	struct record *r = large(2);
	size_t n;
	(void)record_bytes(r, &n);
	assert_int_equal(packer_init(&p, 1, NULL), 0);
	struct packed s = packer_encode(&p, r);
	const uint32_t sizes[] = {0, 1, (uint32_t)s.n, (uint32_t)n - 1, (uint32_t)n + 1, 1u << 30, (1u << 30) + 1, UINT32_MAX};
	uint8_t *bytes = malloc(s.n);
	assert_non_null(bytes);
	for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
		memcpy(bytes, s.bytes, s.n);
		memcpy(bytes + 4, &sizes[i], 4);
		assert_int_equal(decode(bytes, s.n, r), -EBADMSG);
	}
	free(bytes);
	packer_done(&p);
	record_unref(r);
}

static void without_a_level_nothing_is_packed(void **state)
{
	(void)state;
	struct packer p;
	struct record *r = fixture_record(3, 1, 1);
	size_t n;
	const void *whole = record_bytes(r, &n);
	assert_int_equal(packer_init(&p, 0, NULL), 0);
	struct packed s = packer_encode(&p, r);
	assert_ptr_equal(s.bytes, whole);
	assert_int_equal(s.n, n);
	assert_int_equal(s.crc, crc32c(0, whole, n));
	packer_done(&p);
	record_unref(r);
}

static struct store *open_store(const char *d, int level)
{
	struct store *s;
	struct error err;
	assert_int_equal(store_open(&(struct store_options){.directory = d, .compression = level}, &s, &err), 0);
	return s;
}

static void append_all(const char *d, int level, uint64_t from)
{
	struct store *s = open_store(d, level);
	for (uint64_t i = from; i < from + N; i++) {
		struct record *r = i % 4 ? large(i) : fixture_record(i, 8, 2);
		assert_int_equal(fixture_append(s, r, i % 8 ? STORE_FLUSHED : STORE_DURABLE), 0);
		record_unref(r);
	}
	store_close(s);
}

static int visit(void *arg, const struct survey_item *item)
{
	unsigned *n = arg;
	assert_non_null(item->record);
	*n += 1;
	return 0;
}

// By key, in order, in a survey; returns the bytes of the shards.
static uint64_t expect_all(const char *d, uint64_t n)
{
	struct store *s = fixture_open_reader(d);
	unsigned n_damaged, n_seen = 0;
	char place[96];
	struct survey_totals t;
	for (uint64_t i = 0; i < n; i++) {
		struct record *r = i % 4 ? large(i) : fixture_record(i, 8, 2);
		assert_int_equal(fixture_expect(s, r), 0);
		record_unref(r);
	}
	assert_int_equal(fixture_walk(s, &n_damaged, place), n);
	assert_int_equal(n_damaged, 0);
	store_close(s);
	struct survey_options o = {.directory = d, .rows = true, .indexes = true, .visit = visit, .arg = &n_seen};
	assert_int_equal(survey_run(&o, &t, NULL), 0);
	assert_int_equal(t.n_damaged, 0);
	assert_int_equal(n_seen, n);
	return t.shard_bytes;
}

static void on_damage(void *arg, const struct survey_item *item)
{
	(void)arg;
	fail_msg("damage: %s", item->message);
}

static uint64_t compact(const char *d, int compression)
{
	struct upkeep_compact o = {.directory = d, .compression = compression, .damaged = on_damage};
	struct upkeep_compacted c;
	struct error err = {0};
	assert_int_equal(upkeep_compact(&o, &c, &err), 0);
	return expect_all(d, 2 * N);
}

// Compressed, not, and again: every way of reading gives the same records, whoever wrote them.
static void a_store_of_both_kinds_is_read_alike(void **state)
{
	(void)state;
	char *d = fixture_directory(), *other = fixture_directory();
	append_all(d, 3, 0);
	append_all(other, 0, 0);
	assert_true(expect_all(d, N) < expect_all(other, N));
	append_all(d, 0, N);
	uint64_t mixed = expect_all(d, 2 * N);
	assert_int_equal(compact(d, 0), mixed + 32);      // sealed, and else as it was
	uint64_t small = compact(d, 19);
	assert_true(small < mixed);
	assert_true(compact(d, -1) > mixed);
	fixture_remove(d);
	fixture_remove(other);
}

static void damage_of_a_compressed_record_is_reported(void **state)
{
	(void)state;
	char *d = fixture_directory();
	append_all(d, 3, 0);
	fixture_flip(d, "00000000.shard", 8 * (4096 + 1000));
	struct store *s = fixture_open(d, 0);
	unsigned n_damaged;
	char place[96];
	assert_int_equal(fixture_walk(s, &n_damaged, place), N - 1);
	assert_int_equal(n_damaged, 1);
	store_close(s);
	fixture_remove(d);
}
#else
static void a_build_without_zstd_says_so(void **state)
{
	(void)state;
	static const uint8_t bytes[24] = {'K', 'D', 'R', 'Z', 100, 0, 0, 0, 0x28, 0xb5, 0x2f, 0xfd};
	struct record *r = NULL;
	struct error err = {0};
	struct store *s;
	char *d = fixture_directory();
	assert_int_equal(packed_decode(bytes, sizeof bytes, &r, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.message, "zstd"));
	assert_int_equal(store_open(&(struct store_options){.directory = d, .compression = 3}, &s, &err), -EOPNOTSUPP);
	record_unref(large(1));
	fixture_remove(d);
}
#endif

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(levels_are_read),
#ifdef HAVE_ZSTD
		cmocka_unit_test(a_record_comes_back_and_anything_else_is_refused),
		cmocka_unit_test(sizes_that_do_not_fit_are_refused),
		cmocka_unit_test(without_a_level_nothing_is_packed),
		cmocka_unit_test(a_store_of_both_kinds_is_read_alike),
		cmocka_unit_test(damage_of_a_compressed_record_is_reported),
#else
		cmocka_unit_test(a_build_without_zstd_says_so),
#endif
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
