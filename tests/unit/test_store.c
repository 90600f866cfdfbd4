// SPDX-License-Identifier: Apache-2.0
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/store/shard.h"
#include "tests/unit/store_fixture.h"

static void finds_what_was_appended_also_after_reopening(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct store *s = fixture_open(d, 0);
	fixture_append_range(s, 0, 20, STORE_NONE);
	fixture_append_range(s, 20, 20, STORE_FLUSHED);
	fixture_append_range(s, 40, 20, STORE_DURABLE);
	assert_int_equal(fixture_count_found(s, 0, 100), 60);
	store_close(s);
	s = fixture_open(d, 0);
	assert_int_equal(fixture_count_found(s, 0, 100), 60);
	struct store_stats stats = fixture_stats(s);
	assert_int_equal(stats.n_records, 60);
	assert_int_equal(stats.n_shards, 1);
	assert_int_equal(stats.n_corrupt + stats.recovered_bytes, 0);
	assert_int_equal(stats.n_hits, 60);
	assert_int_equal(stats.n_misses, 40);
	fixture_append_range(s, 60, 10, STORE_DURABLE);      // goes on in the same shard
	store_close(s);
	s = fixture_open_reader(d);
	assert_int_equal(fixture_count_found(s, 0, 70), 70);
	assert_int_equal(fixture_stats(s).n_shards, 1);
	store_close(s);
	fixture_remove(d);
}

static void a_second_copy_is_acknowledged_and_not_written(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct store *s = fixture_open(d, 0);
	struct record *r = fixture_record(1, 8, 4);
	for (int i = 0; i < 3; i++)
		assert_int_equal(fixture_append(s, r, STORE_FLUSHED), 0);
	assert_int_equal(fixture_append(s, r, STORE_DURABLE), 0);
	assert_int_equal(store_append(s, r, STORE_FLUSHED, NULL, NULL, NULL), 0);
	struct store_stats stats = fixture_stats(s);
	assert_int_equal(stats.n_appended, 1);
	assert_int_equal(stats.n_duplicates, 4);
	assert_int_equal(stats.n_bytes, SHARD_HEADER_BYTES + shard_frame_size((uint32_t)stats.appended_bytes));
	record_unref(r);
	store_close(s);
	fixture_remove(d);
}

static void a_full_shard_is_sealed_and_indexed(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct store *s = fixture_open(d, 16384);
	fixture_append_range(s, 0, 200, STORE_FLUSHED);
	uint64_t n_shards = fixture_stats(s).n_shards;
	assert_true(n_shards >= 3);
	assert_true(fixture_exists(d, "00000000.index"));
	store_close(s);
	size_t n;
	free(fixture_read(d, "00000000.shard", &n));
	assert_true(n <= 16384 + SHARD_SEAL_BYTES);
	for (int round = 0; round < 2; round++) {
		s = fixture_open(d, 16384);
		assert_int_equal(fixture_count_found(s, 0, 200), 200);
		assert_int_equal(fixture_stats(s).n_shards, n_shards);
		store_close(s);
	}
	fixture_remove(d);
}

static void a_record_larger_than_a_shard_gets_one_of_its_own(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct store *s = fixture_open(d, 8192);
	fixture_append_range(s, 0, 2, STORE_FLUSHED);
	struct record *big = fixture_record(7, 2048, 256);
	size_t n;
	record_bytes(big, &n);
	assert_true(n > (1u << 20));        // also more than one write
	assert_int_equal(fixture_append(s, big, STORE_DURABLE), 0);
	fixture_append_range(s, 2, 2, STORE_FLUSHED);
	store_close(s);
	s = fixture_open(d, 8192);
	assert_int_equal(fixture_expect(s, big), 0);
	assert_int_equal(fixture_count_found(s, 0, 4), 4);
	assert_int_equal(fixture_stats(s).n_shards, 3);
	record_unref(big);
	store_close(s);
	fixture_remove(d);
}

struct gate { int n_done; };

static void count_done(void *arg, const struct error *err)
{
	assert_null(err);
	__atomic_fetch_add(&((struct gate *)arg)->n_done, 1, __ATOMIC_RELAXED);
}

static void a_queued_record_is_found_and_closing_drains(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct store *s = fixture_open(d, 0);
	struct gate gate = {0};
	struct record *records[200];
	for (int i = 0; i < 200; i++) {
		records[i] = fixture_record((uint64_t)i, 256, 32);
		assert_int_equal(store_append(s, records[i], STORE_DURABLE, count_done, &gate, NULL), 0);
		assert_int_equal(fixture_expect(s, records[i]), 0);        // whether it is on disk yet or not
	}
	store_close(s);
	assert_int_equal(gate.n_done, 200);
	s = fixture_open_reader(d);
	for (int i = 0; i < 200; i++) {
		assert_int_equal(fixture_expect(s, records[i]), 0);
		record_unref(records[i]);
	}
	store_close(s);
	fixture_remove(d);
}

static void a_full_queue_refuses_without_calling_back(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct store *s;
	struct error err;
	assert_int_equal(store_open(&(struct store_options){.directory = d, .queue_bytes = 64 << 10}, &s, &err), 0);
	struct record *big = fixture_record(1, 1024, 128), *r[64];
	assert_int_equal(store_append(s, big, STORE_NONE, NULL, NULL, &err), -E2BIG);
	assert_int_equal(err.code, ERROR_TOO_LARGE);
	struct gate gate = {0};
	int n_accepted = 0, n_refused = 0;
	for (int i = 0; i < 64; i++)
		r[i] = fixture_record((uint64_t)i, 128, 64);       // about 25 KiB each
	for (int round = 0; round < 100 && !n_refused; round++)
		for (int i = 0; i < 64; i++) {
			int rc = store_append(s, r[i], STORE_DURABLE, count_done, &gate, &err);
			assert_true(rc == 0 || (rc == -EAGAIN && err.code == ERROR_OVERLOADED));
			n_accepted += rc == 0;
			n_refused += rc < 0;
		}
	assert_true(n_refused > 0);
	store_close(s);
	assert_int_equal(gate.n_done, n_accepted);
	for (int i = 0; i < 64; i++)
		record_unref(r[i]);
	record_unref(big);
	fixture_remove(d);
}

static void a_second_writer_is_refused_and_a_reader_is_not(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct store *s = fixture_open(d, 16384), *other;
	struct error err;
	fixture_append_range(s, 0, 100, STORE_FLUSHED);
	assert_int_equal(store_open(&(struct store_options){.directory = d}, &other, &err), -EEXIST);
	assert_int_equal(err.code, ERROR_CONFLICT);
	assert_non_null(strstr(err.message, "another process, pid "));
	struct store *reader = fixture_open_reader(d);
	assert_int_equal(fixture_count_found(reader, 0, 100), 100);
	fixture_append_range(s, 100, 10, STORE_FLUSHED);
	struct record *r = fixture_record(1, 8, 4);
	assert_int_equal(store_append(reader, r, STORE_NONE, NULL, NULL, &err), -ESHUTDOWN);
	record_unref(r);
	store_close(reader);
	assert_int_equal(fixture_count_found(s, 0, 110), 110);
	store_close(s);
	store_close(fixture_open(d, 0));        // the lock went with the store
	fixture_remove(d);
}

static void a_reader_needs_an_existing_store(void **state)
{
	(void)state;
	struct store *s;
	struct error err;
	assert_int_equal(store_open(&(struct store_options){.directory = "/nonexistent/store", .read_only = true}, &s, &err), -ENOENT);
	assert_int_equal(store_open(&(struct store_options){.directory = "/nonexistent/store"}, &s, &err), -ENOENT);
	assert_non_null(strstr(err.message, "/nonexistent/store"));
}

static void an_open_store_walks_what_is_on_disk(void **state)
{
	(void)state;
	char *d = fixture_directory(), place[96];
	struct store *s = fixture_open(d, 8192);
	unsigned damaged;
	assert_int_equal(fixture_walk(s, &damaged, place), 0);
	fixture_append_range(s, 0, 100, STORE_FLUSHED);
	assert_int_equal(fixture_walk(s, &damaged, place), 100);
	assert_int_equal(damaged, 0);
	assert_int_equal(fixture_walk(s, &damaged, place), 100);
	store_close(s);
	fixture_remove(d);
}

#define N_THREADS 4
#define PER_THREAD 300
struct worker { struct store *s; unsigned index; pthread_t thread; };

// Appends its own records and looks for everybody's; nothing found is ever wrong. (Assertions belong to the main thread: abort here.)
static void *work(void *arg)
{
	struct worker *w = arg;
	struct store_cursor c = {0};
	char place[96];
	for (unsigned i = 0; i < PER_THREAD; i++) {
		struct record *mine = fixture_record(w->index * PER_THREAD + i, 8, 4), *found;
		struct record *other = fixture_record((i * 7919) % (N_THREADS * PER_THREAD), 8, 4);
		if (store_append(w->s, mine, i % 16 ? STORE_FLUSHED : STORE_DURABLE, NULL, NULL, NULL) < 0 ||
			fixture_expect(w->s, mine) != 0)
			abort();
		int rc = fixture_expect(w->s, other);
		if (rc != 0 && rc != -ENOENT)
			abort();
		rc = store_next(w->s, &c, &found, place, NULL);
		if (rc != 0 && rc != -ENOENT)
			abort();
		record_unref(found);
		record_unref(mine);
		record_unref(other);
	}
	return NULL;
}

static void threads_append_find_and_walk_together(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct store *s = fixture_open(d, 32768);
	struct worker workers[N_THREADS];
	for (unsigned i = 0; i < N_THREADS; i++) {
		workers[i] = (struct worker){.s = s, .index = i};
		assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
	}
	for (unsigned i = 0; i < N_THREADS; i++)
		pthread_join(workers[i].thread, NULL);
	assert_int_equal(fixture_count_found(s, 0, N_THREADS * PER_THREAD), N_THREADS * PER_THREAD);
	assert_int_equal(fixture_stats(s).n_corrupt, 0);
	store_close(s);
	s = fixture_open_reader(d);
	assert_int_equal(fixture_stats(s).n_records, N_THREADS * PER_THREAD);
	store_close(s);
	fixture_remove(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(finds_what_was_appended_also_after_reopening),
		cmocka_unit_test(a_second_copy_is_acknowledged_and_not_written),
		cmocka_unit_test(a_full_shard_is_sealed_and_indexed),
		cmocka_unit_test(a_record_larger_than_a_shard_gets_one_of_its_own),
		cmocka_unit_test(a_queued_record_is_found_and_closing_drains),
		cmocka_unit_test(a_full_queue_refuses_without_calling_back),
		cmocka_unit_test(a_second_writer_is_refused_and_a_reader_is_not),
		cmocka_unit_test(a_reader_needs_an_existing_store),
		cmocka_unit_test(an_open_store_walks_what_is_on_disk),
		cmocka_unit_test(threads_append_find_and_walk_together),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
