// SPDX-License-Identifier: Apache-2.0
// Stores whose files were cut, changed, exchanged or lost.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/store/shard.h"
#include "tests/unit/store_fixture.h"

static void a_torn_tail_is_cut(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct store *s = fixture_open(d, 0);
	fixture_append_range(s, 0, 10, STORE_FLUSHED);
	store_close(s);
	size_t n;
	uint8_t *bytes = fixture_read(d, "00000000.shard", &n);
	fixture_write(d, "00000000.shard", bytes, n - 5);
	s = fixture_open_reader(d);             // a reader leaves it as it is
	assert_int_equal(fixture_count_found(s, 0, 10), 9);
	assert_int_equal(fixture_stats(s).recovered_bytes, 0);
	unsigned n_damaged;
	char place[96];
	assert_int_equal(fixture_walk(s, &n_damaged, place), 9);       // and goes through it to its end
	assert_int_equal(n_damaged, 0);
	store_close(s);
	s = fixture_open(d, 0);
	assert_int_equal(fixture_count_found(s, 0, 10), 9);
	struct store_stats stats = fixture_stats(s);
	assert_int_equal(stats.recovered_bytes, n - 5 - stats.n_bytes);
	assert_int_equal(stats.n_corrupt, 0);
	size_t left;
	free(fixture_read(d, "00000000.shard", &left));
	assert_int_equal(left, stats.n_bytes);
	fixture_append_range(s, 9, 3, STORE_FLUSHED);
	store_close(s);
	s = fixture_open(d, 0);
	assert_int_equal(fixture_count_found(s, 0, 12), 12);
	assert_int_equal(fixture_stats(s).recovered_bytes + fixture_stats(s).n_corrupt, 0);
	store_close(s);
	free(bytes);
	fixture_remove(d);
}

static void zeros_at_the_end_are_space_set_aside(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct store *s = fixture_open(d, 0);
	fixture_append_range(s, 0, 10, STORE_FLUSHED);
	store_close(s);
	size_t n;
	uint8_t *bytes = fixture_read(d, "00000000.shard", &n);
	bytes = realloc(bytes, n + 100001);
	assert_non_null(bytes);
	memset(bytes + n, 0, 100001);
	fixture_write(d, "00000000.shard", bytes, n + 100001);
	s = fixture_open(d, 0);
	assert_int_equal(fixture_count_found(s, 0, 10), 10);
	assert_int_equal(fixture_stats(s).n_bytes, n);
	assert_int_equal(fixture_stats(s).recovered_bytes, 0);
	fixture_append_range(s, 10, 1, STORE_FLUSHED);
	store_close(s);
	s = fixture_open(d, 0);
	assert_int_equal(fixture_count_found(s, 0, 11), 11);
	store_close(s);
	free(bytes);
	fixture_remove(d);
}

// Walks the store; returns the records, counts damage, keeps the first place of damage.
static void damage_in_the_middle_is_reported_and_stepped_over(void **state)
{
	(void)state;
	char *d = fixture_directory(), place[96], expected[96];
	struct store *s = fixture_open(d, 0);
	fixture_append_range(s, 0, 10, STORE_FLUSHED);
	store_close(s);
	struct record *r = fixture_record(0, 8, 4);
	size_t n, size;
	record_bytes(r, &n);
	record_unref(r);
	uint64_t second = SHARD_HEADER_BYTES + shard_frame_size((uint32_t)n);
	fixture_flip(d, "00000000.shard", 8 * (second + SHARD_FRAME_BYTES + 20) + 3);
	free(fixture_read(d, "00000000.shard", &size));
	unsigned damaged;
	s = fixture_open_reader(d);
	assert_int_equal(fixture_walk(s, &damaged, place), 9);
	assert_int_equal(damaged, 1);
	snprintf(expected, sizeof expected, "00000000.shard:%llu", (unsigned long long)second);
	assert_string_equal(place, expected);
	store_close(s);
	s = fixture_open(d, 0);
	assert_int_equal(fixture_stats(s).n_corrupt, 1);
	assert_int_equal(fixture_stats(s).recovered_bytes, 0);
	assert_int_equal(fixture_count_found(s, 0, 10), 9);
	fixture_append_range(s, 1, 1, STORE_DURABLE);          // asked again, stored again
	assert_int_equal(fixture_count_found(s, 0, 10), 10);
	store_close(s);
	size_t after;
	free(fixture_read(d, "00000000.shard", &after));
	assert_true(after >= size);
	s = fixture_open(d, 0);
	assert_int_equal(fixture_count_found(s, 0, 10), 10);
	store_close(s);
	fixture_remove(d);
}

static void damage_in_a_sealed_shard_is_met_when_read_and_healed_by_appending(void **state)
{
	(void)state;
	char *d = fixture_directory(), place[96];
	struct store *s = fixture_open(d, 8192);
	fixture_append_range(s, 0, 100, STORE_FLUSHED);
	store_close(s);
	fixture_flip(d, "00000000.shard", 8 * (SHARD_HEADER_BYTES + SHARD_FRAME_BYTES + 30));
	s = fixture_open(d, 8192);
	assert_int_equal(fixture_stats(s).n_corrupt, 0);       // known from its index, not read yet
	struct record *r = fixture_record(0, 8, 4);
	assert_int_equal(fixture_expect(s, r), -EBADMSG);
	assert_int_equal(fixture_stats(s).n_corrupt, 1);
	assert_int_equal(fixture_expect(s, r), -ENOENT);
	assert_int_equal(fixture_append(s, r, STORE_DURABLE), 0);
	assert_int_equal(fixture_expect(s, r), 0);
	unsigned damaged;
	assert_int_equal(fixture_walk(s, &damaged, place), 100);
	assert_int_equal(damaged, 1);
	assert_string_equal(place, "00000000.shard:4096");
	store_close(s);
	s = fixture_open(d, 8192);
	assert_int_equal(fixture_expect(s, r), 0);
	store_close(s);
	record_unref(r);
	fixture_remove(d);
}

static void exchanged_shards_are_detected(void **state)
{
	(void)state;
	char *d = fixture_directory(), place[96];
	struct store *s = fixture_open(d, 8192);
	fixture_append_range(s, 0, 100, STORE_FLUSHED);
	uint64_t n_shards = fixture_stats(s).n_shards;
	store_close(s);
	size_t n0, n1;
	uint8_t *a = fixture_read(d, "00000000.shard", &n0), *b = fixture_read(d, "00000001.shard", &n1);
	fixture_write(d, "00000000.shard", b, n1);
	fixture_write(d, "00000001.shard", a, n0);
	s = fixture_open(d, 8192);
	assert_int_equal(fixture_stats(s).n_corrupt, 2);
	unsigned damaged, found = fixture_count_found(s, 0, 100);
	assert_true(found > 0 && found < 100);
	assert_int_equal(fixture_walk(s, &damaged, place), found);
	assert_int_equal(damaged, 2);
	store_close(s);
	fixture_write(d, "00000000.shard", a, n0);             // put back: nothing was lost
	fixture_write(d, "00000001.shard", b, n1);
	s = fixture_open(d, 8192);
	assert_int_equal(fixture_count_found(s, 0, 100), 100);
	assert_int_equal(fixture_stats(s).n_shards, n_shards);
	store_close(s);
	free(a);
	free(b);
	fixture_remove(d);
}

static void a_lost_or_damaged_index_is_rebuilt(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct store *s = fixture_open(d, 8192);
	fixture_append_range(s, 0, 100, STORE_FLUSHED);
	store_close(s);
	size_t n, k;
	uint8_t *index = fixture_read(d, "00000000.index", &n), *again;
	char path[600];
	snprintf(path, sizeof path, "%s/00000000.index", d);
	remove(path);
	store_close(fixture_open(d, 8192));
	again = fixture_read(d, "00000000.index", &k);
	assert_true(n == k && memcmp(index, again, n) == 0);
	free(again);
	for (size_t bit = 0; bit < 8 * n; bit += 61) {
		fixture_flip(d, "00000000.index", bit);
		s = fixture_open(d, 8192);
		assert_int_equal(fixture_stats(s).n_records, 100);
		assert_int_equal(fixture_stats(s).n_corrupt, 0);
		store_close(s);
		again = fixture_read(d, "00000000.index", &k);
		assert_true(n == k && memcmp(index, again, n) == 0);
		free(again);
	}
	uint8_t *other = fixture_read(d, "00000001.index", &k);
	fixture_write(d, "00000000.index", other, k);
	s = fixture_open(d, 8192);
	assert_int_equal(fixture_count_found(s, 0, 100), 100);
	store_close(s);
	free(other);
	free(index);
	fixture_remove(d);
}

static void one_damaged_header_is_survived_both_are_reported(void **state)
{
	(void)state;
	char *d = fixture_directory(), place[96];
	unsigned damaged;
	struct store *s = fixture_open(d, 8192);
	fixture_append_range(s, 0, 100, STORE_FLUSHED);
	store_close(s);
	fixture_flip(d, "00000000.shard", 8 * 33);
	s = fixture_open(d, 8192);
	assert_int_equal(fixture_stats(s).n_corrupt, 1);
	assert_int_equal(fixture_count_found(s, 0, 100), 100);
	assert_int_equal(fixture_walk(s, &damaged, place), 100);
	assert_int_equal(damaged, 1);
	assert_string_equal(place, "00000000.shard:0");
	store_close(s);
	fixture_flip(d, "00000000.shard", 8 * (SHARD_HEADER_COPY + 33));
	s = fixture_open(d, 8192);
	assert_true(fixture_count_found(s, 0, 100) < 100);
	assert_true(fixture_walk(s, &damaged, place) < 100);
	assert_int_equal(damaged, 1);
	store_close(s);
	fixture_remove(d);
}

static void nothing_readable_at_all_is_an_error(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct store *s;
	struct error err;
	fixture_write(d, "00000000.shard", "not a shard", 11);
	assert_int_equal(store_open(&(struct store_options){.directory = d}, &s, &err), -EBADMSG);
	assert_int_equal(err.code, ERROR_CORRUPT);
	fixture_remove(d);
}

static void temporary_files_go_and_foreign_files_stay(void **state)
{
	(void)state;
	char *d = fixture_directory();
	fixture_write(d, "00000005.shard.tmp", "x", 1);
	fixture_write(d, "00000005.index.tmp", "x", 1);
	fixture_write(d, "notes.txt", "x", 1);
	struct store *s = fixture_open(d, 0);
	fixture_append_range(s, 0, 1, STORE_DURABLE);
	store_close(s);
	assert_false(fixture_exists(d, "00000005.shard.tmp"));
	assert_false(fixture_exists(d, "00000005.index.tmp"));
	assert_true(fixture_exists(d, "notes.txt"));
	assert_true(fixture_exists(d, "00000000.shard"));
	fixture_remove(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_torn_tail_is_cut),
		cmocka_unit_test(zeros_at_the_end_are_space_set_aside),
		cmocka_unit_test(damage_in_the_middle_is_reported_and_stepped_over),
		cmocka_unit_test(damage_in_a_sealed_shard_is_met_when_read_and_healed_by_appending),
		cmocka_unit_test(exchanged_shards_are_detected),
		cmocka_unit_test(a_lost_or_damaged_index_is_rebuilt),
		cmocka_unit_test(one_damaged_header_is_survived_both_are_reported),
		cmocka_unit_test(nothing_readable_at_all_is_an_error),
		cmocka_unit_test(temporary_files_go_and_foreign_files_stay),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
