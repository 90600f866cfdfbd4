// SPDX-License-Identifier: Apache-2.0
// Compacting a store: what is answered stays the same, byte for byte, whenever the process is killed: at every named place and at random
// times. KD_POINT_KILLS sets how often at each place (2), KD_KILLS the number of random kills (a tenth of 300), KD_SEED the seed.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/store/crash.h"
#include "daemon/store/survey.h"
#include "daemon/store/upkeep.h"
#include "tests/unit/part_oracle.h"
#include "tests/unit/store_fixture.h"

#define N_PLAIN 90u
#define N_GROUPS 30u
#define SHARD_BYTES (48u << 10)
#define MEMORY_BYTES (UINT64_C(16) << 20)
#define NEW_BYTES (64u << 10)            // of the shards made: several, so that old ones go one after the other

static const uint32_t depths[] = {4, 8, 40};     // of a group's questions: the last contains the others

static uint64_t rng_state;

static uint32_t rng(void)
{
	rng_state = rng_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(rng_state >> 33);
}

static uint64_t from_environment(const char *name, uint64_t otherwise)
{
	const char *value = getenv(name);
	return value ? strtoull(value, NULL, 0) : otherwise;
}

// ---- a store with copies and contained records

static void group_query(const struct sequence *s, uint32_t top_k, struct query *q)
{
	query_init(q);
	q->top_k = top_k;
	oracle_check(q, s);
}

static void append(struct store *s, struct record *r)
{
	assert_int_equal(fixture_append(s, r, STORE_FLUSHED), 0);
	record_unref(r);
}

// Made once: they are compared thousands of times.
static struct record *plain(unsigned n)
{
	static struct record *made[N_PLAIN];
	if (!made[n])
		made[n] = fixture_record(n, 48, 16);
	return record_ref(made[n]);
}

static void append_group(struct store *st, unsigned n)
{
	struct sequence s;
	oracle_sequence(n, &s);
	for (size_t i = 0; i < sizeof depths / sizeof *depths; i++) {
		struct query q;
		group_query(&s, depths[i], &q);
		append(st, oracle_answer(&s, &q));
	}
	sequence_done(&s);
}

// A record that is found damaged is written again; when its bytes come back there are two good copies.
static void copy_first(const char *directory, struct store *s, unsigned shard, unsigned n_record)
{
	char name[32];
	struct record *r = plain(n_record), *found;
	snprintf(name, sizeof name, "%08x.shard", shard);
	fixture_flip(directory, name, 8 * 4300);
	assert_int_equal(store_find(s, record_key(r), &found, NULL), -EBADMSG);
	assert_int_equal(fixture_append(s, r, STORE_FLUSHED), 0);
	fixture_flip(directory, name, 8 * 4300);
	record_unref(r);
}

static char *store_make(void)
{
	char *d = fixture_directory();
	struct store *s = fixture_open(d, SHARD_BYTES);
	for (unsigned i = 0; i < N_PLAIN; i++) {
		append(s, plain(i));
		if (i % 3 == 0)
			append_group(s, i / 3);
	}
	copy_first(d, s, 0, 0);
	store_close(s);
	return d;
}

static unsigned count_files(const char *directory, const char *end)
{
	unsigned n = 0;
	DIR *dir = opendir(directory);
	assert_non_null(dir);
	for (struct dirent *e; (e = readdir(dir));) {
		size_t k = strlen(e->d_name), m = strlen(end);
		n += k >= m && strcmp(e->d_name + k - m, end) == 0;
	}
	closedir(dir);
	return n;
}

// Everything that was ever appended is answered with its bytes; except the plain record `lost`.
static void expect_answers(struct store *st, unsigned lost)
{
	for (unsigned i = 0; i < N_PLAIN; i++) {
		struct record *r = plain(i);
		int rc = fixture_expect(st, r);
		if (i != lost && rc)
			fail_msg("record %u: %s", i, strerror(-rc));
		record_unref(r);
	}
	for (unsigned n = 0; n < N_GROUPS; n++) {
		struct sequence s;
		oracle_sequence(n, &s);
		for (size_t i = 0; i < sizeof depths / sizeof *depths; i++) {
			struct query q;
			group_query(&s, depths[i], &q);
			struct record *told = oracle_answer(&s, &q), *found = NULL;
			int rc = store_answer(st, &(struct store_question){&oracle_teacher, &s, &q}, &found, NULL);
			if (rc)
				fail_msg("group %u top-%u: %s", n, (unsigned)depths[i], strerror(-rc));
			size_t a, b;
			const void *x = record_bytes(told, &a), *y = record_bytes(found, &b);
			assert_int_equal(a, b);
			assert_memory_equal(x, y, a);
			record_unref(told);
			record_unref(found);
		}
		sequence_done(&s);
	}
}

static void expect_store(const char *directory, unsigned lost)
{
	struct store *s = fixture_open_reader(directory);
	expect_answers(s, lost);
	store_close(s);
}

static unsigned n_told;

static void on_damage(void *arg, const struct survey_item *item)
{
	(void)arg;
	(void)item;
	n_told++;
}

static struct upkeep_compacted compact(const char *directory, bool keep_contained, bool drop_damaged)
{
	struct upkeep_compacted t;
	struct error err;
	struct upkeep_compact o = {.directory = directory, .shard_bytes = NEW_BYTES, .n_threads = 2, .keep_contained = keep_contained,
				   .drop_damaged = drop_damaged, .damaged = on_damage};
	n_told = 0;
	if (upkeep_compact(&o, &t, &err))
		fail_msg("upkeep_compact: %s", err.message);
	assert_int_equal(n_told, t.n_damaged);
	return t;
}

// ---- without kills

static void what_says_nothing_new_goes(void **state)
{
	(void)state;
	char *d = store_make();
	struct upkeep_compacted t = compact(d, true, false);
	assert_int_equal(t.n_records, N_PLAIN + 3 * N_GROUPS + 1);
	assert_int_equal(t.n_duplicates, 1);
	assert_int_equal(t.n_contained, 0);
	assert_int_equal(t.n_damaged, 0);
	expect_store(d, N_PLAIN);
	t = compact(d, false, false);
	assert_int_equal(t.n_duplicates, 0);
	assert_int_equal(t.n_contained, 2 * N_GROUPS);
	assert_true(t.after_bytes < t.before_bytes);
	assert_int_equal(t.n_made, count_files(d, ".shard"));
	assert_int_equal(t.n_made, count_files(d, ".index"));
	assert_int_equal(count_files(d, ".tmp"), 0);
	expect_store(d, N_PLAIN);
	t = compact(d, false, false);                    // there is nothing left to do
	assert_int_equal(t.n_rewritten, 0);
	assert_int_equal(t.n_records, N_PLAIN + N_GROUPS);
	assert_int_equal(t.before_bytes, t.after_bytes);
	struct store *s = fixture_open(d, SHARD_BYTES);
	append(s, fixture_record(5000, 48, 16));          // and it goes on as a store
	expect_answers(s, N_PLAIN);
	assert_int_equal(fixture_stats(s).n_corrupt, 0);
	struct upkeep_compact o = {.directory = d, .damaged = on_damage};
	struct error err;
	assert_int_equal(upkeep_compact(&o, &t, &err), -EEXIST);
	assert_non_null(strstr(err.message, "another process"));
	store_close(s);
	fixture_remove(d);
}

static void damage_stays_where_it_is_until_it_is_dropped(void **state)
{
	(void)state;
	char *d = store_make();
	size_t n, k;
	fixture_flip(d, "00000000.shard", 8 * 4300);      // the first copy of record 0: the second stays good
	fixture_flip(d, "00000002.shard", 8 * 4300);
	uint8_t *before = fixture_read(d, "00000002.shard", &n);
	struct upkeep_compacted t = compact(d, false, false);
	assert_int_equal(t.n_damaged, 2);
	assert_int_equal(t.n_left, 2);
	assert_int_equal(t.n_dropped, 0);
	assert_true(t.n_contained > 0);
	uint8_t *after = fixture_read(d, "00000002.shard", &k);
	assert_int_equal(n, k);
	assert_memory_equal(before, after, n);
	free(before);
	free(after);
	struct store *s = fixture_open_reader(d);
	unsigned lost = N_PLAIN;
	for (unsigned i = 0; i < N_PLAIN; i++) {          // which record it was
		struct record *r = plain(i);
		lost = fixture_expect(s, r) ? i : lost;
		record_unref(r);
	}
	store_close(s);
	assert_true(lost > 0 && lost < N_PLAIN);
	expect_store(d, lost);
	t = compact(d, false, true);
	assert_int_equal(t.n_damaged, 2);
	assert_int_equal(t.n_dropped, 2);
	assert_int_equal(t.n_left, 0);
	assert_false(fixture_exists(d, "00000000.shard") || fixture_exists(d, "00000002.shard"));
	expect_store(d, lost);
	assert_int_equal(compact(d, false, false).n_damaged, 0);
	fixture_remove(d);
}

static void a_shard_without_a_header_is_never_dropped(void **state)
{
	(void)state;
	char *d = store_make();
	size_t n, k;
	fixture_flip(d, "00000001.shard", 8 * 20);
	fixture_flip(d, "00000001.shard", 8 * 2068);
	uint8_t *before = fixture_read(d, "00000001.shard", &n);
	struct upkeep_compacted t = compact(d, false, true);
	assert_int_equal(t.n_damaged, 1);
	assert_int_equal(t.n_dropped, 0);
	assert_int_equal(t.n_left, 1);
	uint8_t *after = fixture_read(d, "00000001.shard", &k);
	assert_int_equal(n, k);
	assert_memory_equal(before, after, n);
	free(before);
	free(after);
	fixture_flip(d, "00000001.shard", 8 * 20);        // it can be read again
	fixture_flip(d, "00000001.shard", 8 * 2068);
	expect_store(d, N_PLAIN);
	fixture_remove(d);
}

// ---- with kills

static struct { enum crash_point at; unsigned nth; atomic_uint n; } point;

static void on_point(enum crash_point at)
{
	if (at == point.at && atomic_fetch_add(&point.n, 1) + 1 == point.nth)
		kill(getpid(), SIGKILL);
}

static void ignore_damage(void *arg, const struct survey_item *item)
{
	(void)arg;
	(void)item;
	_exit(7);        // there is none
}

static pid_t compact_start(const char *directory, bool at_point)
{
	pid_t child = fork();
	assert_true(child >= 0);
	if (child)
		return child;
	struct upkeep_compacted t;
	struct upkeep_compact o = {.directory = directory, .shard_bytes = NEW_BYTES, .n_threads = 1, .damaged = ignore_damage};
	crash_hook = at_point ? on_point : NULL;
	alarm(60);
	_exit(upkeep_compact(&o, &t, NULL) ? 8 : 0);
}

// True when it was killed; false when it was through.
static bool compact_wait(pid_t child)
{
	int status;
	assert_int_equal(waitpid(child, &status, 0), child);
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
		return true;
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		fail_msg("compacting ended with status 0x%x", (unsigned)status);
	return false;
}

// A reader, then a writer find all there was; then it is gone on with and comes to the same end.
static void expect_whole(const char *directory)
{
	expect_store(directory, N_PLAIN);
	struct store *s = fixture_open(directory, SHARD_BYTES);
	expect_answers(s, N_PLAIN);
	assert_int_equal(fixture_stats(s).n_corrupt, 0);
	store_close(s);
	struct upkeep_compacted t = compact(directory, false, false);
	assert_int_equal(t.n_damaged, 0);
	assert_int_equal(count_files(directory, ".tmp"), 0);
	expect_store(directory, N_PLAIN);
	t = compact(directory, false, false);
	assert_int_equal(t.n_rewritten, 0);
	assert_int_equal(t.n_records, N_PLAIN + N_GROUPS);
}

static void no_answer_is_lost_at_any_named_place(void **state)
{
	(void)state;
	unsigned n_kills = (unsigned)from_environment("KD_POINT_KILLS", 2), n_reached = 0;
	const char *only = getenv("KD_POINT");
	fixture_in_memory(MEMORY_BYTES);
	char *whole = store_make();
	for (enum crash_point at = 0; at < N_CRASH_POINTS; at++) {
		bool reached = false;
		if (only && strcmp(only, crash_name(at)) != 0)
			continue;
		for (unsigned nth = 1; nth <= n_kills; nth++) {
			char *d = fixture_copy(whole);
			point.at = at;
			point.nth = nth;
			atomic_store(&point.n, 0);
			bool killed = compact_wait(compact_start(d, true));
			reached |= killed;
			if (killed)
				expect_whole(d);
			fixture_remove(d);
			if (!killed)
				break;
		}
		n_reached += reached;
	}
	print_message("%u places were reached\n", n_reached);
	assert_true(only || n_reached >= 15);
	fixture_remove(whole);
}

static void no_answer_is_lost_to_kill_9(void **state)
{
	(void)state;
	unsigned n_kills = (unsigned)(from_environment("KD_KILLS", 300) / 10), n_killed = 0;
	rng_state = from_environment("KD_SEED", (uint64_t)time(NULL) ^ ((uint64_t)getpid() << 32));
	print_message("KD_SEED=%llu, %u kills at random times\n", (unsigned long long)rng_state, n_kills);
	char *whole = store_make(), *d = fixture_copy(whole);
	for (unsigned i = 0; i < n_kills; i++) {
		pid_t child = compact_start(d, false);
		usleep(rng() % 30000);
		kill(child, SIGKILL);
		bool killed = compact_wait(child);
		n_killed += killed;
		expect_store(d, N_PLAIN);                 // killed again and again, on what the last one left
		if (killed && rng() % 4)
			continue;
		expect_whole(d);
		fixture_remove(d);
		d = fixture_copy(whole);
	}
	print_message("%u were killed before they were through\n", n_killed);
	fixture_remove(d);
	fixture_remove(whole);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_says_nothing_new_goes),
		cmocka_unit_test(damage_stays_where_it_is_until_it_is_dropped),
		cmocka_unit_test(a_shard_without_a_header_is_never_dropped),
		cmocka_unit_test(no_answer_is_lost_at_any_named_place),
		cmocka_unit_test(no_answer_is_lost_to_kill_9),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
