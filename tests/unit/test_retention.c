// SPDX-License-Identifier: Apache-2.0
// What a store lets go of, by itself and by upkeep_prune: whole shards, the oldest first, while others read.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/store/upkeep.h"
#include "tests/unit/store_fixture.h"

#define SHARD_BYTES (64u << 10)

static struct store *open_limited(const char *directory, uint64_t max_bytes, uint64_t max_age_s)
{
	struct store *s;
	struct error err;
	struct store_options o = {.directory = directory, .shard_bytes = SHARD_BYTES, .max_bytes = max_bytes, .max_age_s = max_age_s};
	if (store_open(&o, &s, &err))
		fail_msg("%s", err.message);
	return s;
}

static void append(struct store *s, uint64_t from, uint64_t to)
{
	for (uint64_t n = from; n < to; n++) {
		struct record *r = fixture_record(n, 32, 16);
		assert_int_equal(fixture_append(s, r, STORE_FLUSHED), 0);
		record_unref(r);
	}
}

// How many of the records [from, to) are found; those that are not are absent, never an error.
static uint64_t count(struct store *s, uint64_t from, uint64_t to)
{
	uint64_t n_found = 0;
	for (uint64_t n = from; n < to; n++) {
		struct record *r = fixture_record(n, 32, 16);
		int rc = fixture_expect(s, r);
		assert_true(rc == 0 || rc == -ENOENT);
		n_found += rc == 0;
		record_unref(r);
	}
	return n_found;
}

static void shard_age(const char *directory, unsigned id, int64_t seconds)
{
	char path[1024];
	snprintf(path, sizeof path, "%s/%08x.shard", directory, id);
	struct timespec times[2] = {{.tv_sec = time(NULL) - seconds}, {.tv_sec = time(NULL) - seconds}};
	assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static bool shard_exists(const char *directory, unsigned id)
{
	char name[32];
	snprintf(name, sizeof name, "%08x.shard", id);
	return fixture_exists(directory, name);
}

static void wait_removed(struct store *s, uint64_t n)
{
	for (int i = 0; i < 60000 && fixture_stats(s).n_removed_shards < n; i++)
		usleep(1000);
	assert_int_equal(fixture_stats(s).n_removed_shards, n);
}

// As many of the first n are found as the store says it has. Files go first, then their places, a few at a time.
static void check_count(struct store *s, uint64_t n)
{
	for (int i = 0; i < 60000 && count(s, 0, n) != fixture_stats(s).n_records; i++)
		usleep(1000);
	assert_int_equal(count(s, 0, n), fixture_stats(s).n_records);
}

static void a_store_keeps_within_its_size(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct store *s = open_limited(d, 4 * SHARD_BYTES, 0);
	for (uint64_t n = 0; n < 600; n += 20) {
		append(s, n, n + 20);
		assert_int_equal(count(s, n > 20 ? n - 20 : 0, n + 20), n > 20 ? 40 : n + 20);      // the newest are there
	}
	struct store_stats t = fixture_stats(s);
	assert_true(t.n_removed_shards > 5);
	assert_true(t.n_bytes <= 5 * SHARD_BYTES);
	assert_true(t.n_shards <= 6);
	uint64_t n = count(s, 0, 600);
	assert_true(n < 400 && n > 50);
	assert_int_equal(n, t.n_records);
	assert_false(shard_exists(d, 0));
	assert_false(fixture_exists(d, "00000000.index"));
	append(s, 0, 5);                                         // what is gone may come again
	assert_int_equal(count(s, 0, 5), 5);
	store_close(s);
	s = fixture_open_reader(d);
	assert_int_equal(fixture_stats(s).n_corrupt, 0);
	assert_int_equal(count(s, 0, 5), 5);
	store_close(s);
	fixture_remove(d);
}

static void a_store_lets_go_of_what_is_old(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct store *s = open_limited(d, 0, 0);
	append(s, 0, 200);
	store_close(s);
	unsigned n_shards = 0;
	while (shard_exists(d, n_shards))
		n_shards++;
	assert_true(n_shards > 4);
	shard_age(d, 1, 100);
	shard_age(d, 2, 90);
	shard_age(d, 0, 50);
	shard_age(d, n_shards - 1, 1000);                        // the newest stays, however old
	s = open_limited(d, 0, 80);
	wait_removed(s, 2);
	assert_false(shard_exists(d, 1));
	assert_false(shard_exists(d, 2));
	for (unsigned id = 0; id < n_shards; id++)
		assert_int_equal(shard_exists(d, id), id != 1 && id != 2);
	check_count(s, 200);
	assert_int_equal(fixture_stats(s).n_shards, n_shards - 2);
	store_close(s);
	fixture_remove(d);
}

static void limits_change_while_it_is_open(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct error err = {0};
	struct store *s = open_limited(d, 0, 0);
	append(s, 0, 200);
	uint64_t n_shards = fixture_stats(s).n_shards;
	assert_true(n_shards > 4);
	store_change(s, &(struct store_limits){64u << 20, 3 * SHARD_BYTES, 0});      // nobody appends: it is looked at now
	for (int i = 0; i < 60000 && fixture_stats(s).n_removed_shards + 4 < n_shards; i++)
		usleep(1000);
	assert_true(fixture_stats(s).n_removed_shards >= n_shards - 4);
	check_count(s, 200);
	store_change(s, &(struct store_limits){1024, 0, 0});
	struct record *r = fixture_record(300, 32, 16);
	assert_int_equal(store_append(s, r, STORE_NONE, NULL, NULL, &err), error_errno(ERROR_TOO_LARGE));
	assert_non_null(strstr(err.message, "1024"));
	store_change(s, &(struct store_limits){64u << 20, 0, 0});
	assert_int_equal(fixture_append(s, r, STORE_FLUSHED), 0);
	record_unref(r);
	n_shards = fixture_stats(s).n_removed_shards;
	append(s, 400, 600);                                     // no limit any more
	assert_int_equal(fixture_stats(s).n_removed_shards, n_shards);
	assert_int_equal(count(s, 400, 600), 200);
	store_close(s);
	fixture_remove(d);
}

struct readers {
	struct store *store;
	atomic_bool stop;
	_Atomic uint64_t n_found, n_absent;
};

static void *read_on(void *arg)
{
	struct readers *r = arg;
	struct store_reader *reader;
	assert_int_equal(store_reader_open(r->store, 8, &reader, NULL), 0);
	for (uint64_t n = 0; !atomic_load(&r->stop); n = (n + 1) % 600) {
		struct record *wanted = fixture_record(n, 32, 16), *found = NULL;
		struct sequence s;
		assert_int_equal(record_sequence(wanted, &s), 0);
		struct store_question q = {.teacher = record_teacher(wanted), .sequence = &s, .query = record_query(wanted)};
		int rc = store_answer(r->store, &q, &found, NULL);
		if (rc != 0 && rc != -ENOENT)
			fail_msg("record %u: %s", (unsigned)n, strerror(-rc));
		atomic_fetch_add(rc ? &r->n_absent : &r->n_found, 1);
		record_unref(found);
		found = NULL;
		assert_int_equal(store_reader_answer(reader, &q, 1, &found, NULL), 0);
		record_unref(found);
		sequence_done(&s);
		record_unref(wanted);
		if (n % 97 == 0) {
			struct store_cursor c = {0};
			char place[96];
			int more;
			struct error err = {0};
			while ((more = store_next(r->store, &c, &found, place, &err)) == 0)
				record_unref(found);
			if (more != -ENOENT)
				fail_msg("%s: %s", place, err.message);
		}
	}
	store_reader_close(reader);
	return NULL;
}

static void readers_go_on_while_shards_go(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct store *s = open_limited(d, 3 * SHARD_BYTES, 0);
	append(s, 0, 20);
	struct store *follower = fixture_open_reader(d);
	struct readers own = {.store = s}, other = {.store = follower};
	pthread_t threads[3];
	assert_int_equal(pthread_create(&threads[0], NULL, read_on, &own), 0);
	assert_int_equal(pthread_create(&threads[1], NULL, read_on, &own), 0);
	assert_int_equal(pthread_create(&threads[2], NULL, read_on, &other), 0);
	append(s, 20, 600);
	usleep(150 * 1000);                                      // a follower looks every 100 ms
	for (int i = 0; i < 60000 && !(own.n_found && own.n_absent && other.n_found); i++)
		usleep(1000);                                    // readers that had no turn yet
	atomic_store(&own.stop, true);
	atomic_store(&other.stop, true);
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	assert_true(own.n_found > 0 && own.n_absent > 0);
	struct store_stats t = fixture_stats(s);
	assert_int_equal(t.n_corrupt, 0);
	assert_true(t.n_removed_shards > 5);
	struct record *absent = fixture_record(100000, 32, 16), *found;
	assert_int_equal(store_find(follower, record_key(absent), &found, NULL), -ENOENT);
	record_unref(absent);
	assert_int_equal(count(follower, 580, 600), 20);
	assert_int_equal(fixture_stats(follower).n_corrupt, 0);
	assert_int_equal(count(follower, 0, 600), t.n_records);
	assert_int_equal(fixture_stats(follower).n_records, t.n_records);      // forgotten there too
	assert_int_equal(fixture_stats(follower).n_shards, t.n_shards);
	store_close(follower);
	store_close(s);
	fixture_remove(d);
}

// ---- upkeep_prune

struct removed { unsigned n; uint32_t ids[16]; };

static void on_removed(void *arg, const struct upkeep_shard *s)
{
	struct removed *r = arg;
	assert_true(s->n_bytes > 0);
	if (r->n < 16)
		r->ids[r->n++] = s->id;
}

static void pruning_removes_the_oldest(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct store *s = open_limited(d, 0, 0);
	append(s, 0, 200);
	unsigned n_shards = (unsigned)fixture_stats(s).n_shards;
	struct removed r = {0};
	struct upkeep_pruned t;
	struct error err;
	struct upkeep_prune o = {.directory = d, .max_age_s = 80, .removed = on_removed, .arg = &r};
	assert_int_equal(upkeep_prune(&o, &t, &err), -EEXIST);           // somebody has it
	assert_non_null(strstr(err.message, "another process"));
	store_close(s);
	shard_age(d, 2, 100);
	shard_age(d, 0, 90);
	o.dry_run = true;
	assert_int_equal(upkeep_prune(&o, &t, NULL), 0);
	assert_int_equal(t.n_shards, 2);
	assert_int_equal(t.n_left, n_shards - 2);
	assert_int_equal(r.ids[0], 2);
	assert_int_equal(r.ids[1], 0);
	assert_true(shard_exists(d, 0) && shard_exists(d, 2));
	o.dry_run = false;
	r.n = 0;
	assert_int_equal(upkeep_prune(&o, &t, NULL), 0);
	assert_int_equal(r.n, 2);
	assert_false(shard_exists(d, 0) || shard_exists(d, 2) || fixture_exists(d, "00000002.index"));
	o.max_bytes = 1;                                                 // all but the newest
	assert_int_equal(upkeep_prune(&o, &t, NULL), 0);
	assert_int_equal(t.n_left, 1);
	assert_true(shard_exists(d, n_shards - 1));
	assert_int_equal(t.n_shards, n_shards - 3);
	assert_int_equal(upkeep_prune(&o, &t, NULL), 0);
	assert_int_equal(t.n_shards, 0);
	s = fixture_open(d, SHARD_BYTES);                                // goes on where it was
	append(s, 200, 210);
	assert_int_equal(count(s, 200, 210), 10);
	assert_int_equal(fixture_stats(s).n_corrupt, 0);
	store_close(s);
	fixture_remove(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_store_keeps_within_its_size),
		cmocka_unit_test(a_store_lets_go_of_what_is_old),
		cmocka_unit_test(limits_change_while_it_is_open),
		cmocka_unit_test(readers_go_on_while_shards_go),
		cmocka_unit_test(pruning_removes_the_oldest),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
