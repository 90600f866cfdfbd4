// SPDX-License-Identifier: Apache-2.0
// Merging directories, killed at every named place and at random times: what the directory answered stays answered, what came of the
// others is the first part of them, the others are as they were to the byte, and doing it again brings the rest. KD_POINT_KILLS sets how
// often at each place (2), KD_POINT takes one place alone, KD_KILLS the number of random kills (a tenth of 300), KD_SEED the seed.
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
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/crc32c.h"
#include "common/error.h"
#include "common/provenance.h"
#include "daemon/store/crash.h"
#include "daemon/store/survey.h"
#include "daemon/store/upkeep.h"
#include "tests/unit/store_fixture.h"

#define FROM_BYTES (64u << 10)           // a shard of the directories merged
#define MEMORY_BYTES (UINT64_C(16) << 20)
#define INTO_BYTES (16u << 10)           // and of what they are merged into: more than twenty are begun

// Numbers of the records: the directory's own, then those of the others in the order in which they come. Both have some of its own, and
// the second some of the first's.
#define OWN_END 40u
#define FIRST_BEGIN 30u
#define FIRST_END 150u
#define SECOND_BEGIN 120u
#define SECOND_END 240u

static char *from[2], *own;              // made once; `own` is copied

// at N_CRASH_POINTS: any of them; nth 0: none, only counted (in memory that a child shares).
static struct point { enum crash_point at; unsigned nth; atomic_uint n; } *point;

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

// ---- the directories

static struct provenance note(uint8_t which)
{
	struct provenance p = {.weights = {{which}}, .tokenizer = {{9}}, .numeric = "f32", .codec = PROVENANCE_CODEC, .name = "teacher"};
	p.fingerprint = provenance_fingerprint(&p);
	return p;
}

// Made once: they are compared thousands of times.
static struct record *numbered(unsigned n)
{
	static struct record *made[SECOND_END + 1];
	if (!made[n])
		made[n] = fixture_record(n, 8 + n % 64, 16);
	return record_ref(made[n]);
}

static char *store_make(unsigned begin, unsigned end, uint64_t shard_bytes, uint8_t which)
{
	char *d = fixture_directory();
	struct store *s = fixture_open(d, shard_bytes);
	struct provenance p = note(which);
	for (unsigned n = begin; n < end; n++) {
		struct record *r = numbered(n);
		assert_int_equal(fixture_append(s, r, STORE_FLUSHED), 0);
		record_unref(r);
	}
	assert_int_equal(store_describe(s, &p, NULL), 0);
	store_close(s);
	return d;
}

// A write that did not come to its end, behind the newest shard.
static void tail_tear(const char *directory)
{
	char name[32] = "", next[32];
	for (unsigned id = 0; snprintf(next, sizeof next, "%08x.shard", id), fixture_exists(directory, next); id++)
		memcpy(name, next, sizeof name);
	size_t n;
	uint8_t *bytes = fixture_read(directory, name, &n), *longer = realloc(bytes, n + 100);
	assert_non_null(longer);
	memset(longer + n, 0x55, 100);
	fixture_write(directory, name, longer, n + 100);
	free(longer);
}

static int make(void **state)
{
	(void)state;
	fixture_in_memory(MEMORY_BYTES);
	point = mmap(NULL, sizeof *point, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(point != MAP_FAILED);
	own = store_make(0, OWN_END, INTO_BYTES, 1);
	from[0] = store_make(FIRST_BEGIN, FIRST_END, FROM_BYTES, 2);
	from[1] = store_make(SECOND_BEGIN, SECOND_END, FROM_BYTES, 3);
	tail_tear(own);                          // to be mended, as whoever wrote it was killed
	tail_tear(from[1]);                      // of another process; not ours to mend
	return 0;
}

static int unmake(void **state)
{
	(void)state;
	fixture_remove(own);
	fixture_remove(from[0]);
	fixture_remove(from[1]);
	return 0;
}

// Of all names, times and bytes of a directory, in any order.
static uint64_t directory_sum(const char *directory)
{
	uint64_t sum = 0;
	DIR *dir = opendir(directory);
	assert_non_null(dir);
	for (struct dirent *e; (e = readdir(dir));) {
		struct stat st;
		size_t n;
		if (e->d_name[0] == '.')
			continue;
		assert_int_equal(fstatat(dirfd(dir), e->d_name, &st, 0), 0);
		uint8_t *bytes = fixture_read(directory, e->d_name, &n);
		uint32_t crc = crc32c(crc32c(crc32c(0, e->d_name, strlen(e->d_name)), &st.st_mtim, sizeof st.st_mtim), bytes, n);
		sum += crc * UINT64_C(0x9e3779b97f4a7c15) + n;
		free(bytes);
	}
	closedir(dir);
	return sum;
}

// ---- merging

static void on_damage(void *arg, const char *where, const struct survey_item *item)
{
	(void)arg;
	fprintf(stderr, "%s/%s: %s\n", where, item->place, item->message);
	abort();                                 // there is none
}

static int merge(const char *directory, struct upkeep_merged *ret, struct error *err)
{
	struct upkeep_merge o = {.directory = directory, .shard_bytes = INTO_BYTES, .from = from, .n_from = 2, .damaged = on_damage};
	return upkeep_merge(&o, ret, err);
}

static void on_point(enum crash_point at)
{
	if ((at == point->at || point->at == N_CRASH_POINTS) && atomic_fetch_add(&point->n, 1) + 1 == point->nth)
		kill(getpid(), SIGKILL);
}

static pid_t merge_start(const char *directory, enum crash_point at, unsigned nth)
{
	point->at = at;
	point->nth = nth;
	atomic_store(&point->n, 0);
	pid_t child = fork();
	assert_true(child >= 0);
	if (child)
		return child;
	struct upkeep_merged t;
	crash_hook = on_point;
	alarm(60);
	_exit(merge(directory, &t, NULL) ? 8 : 0);
}

// True when it was killed; false when it was through.
static bool merge_wait(pid_t child)
{
	int status;
	assert_int_equal(waitpid(child, &status, 0), child);
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
		return true;
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		fail_msg("merging ended with status 0x%x", (unsigned)status);
	return false;
}

// ---- what must hold

// All its own, then the others' up to some place and none behind it, all with their bytes. Where that place is.
static unsigned expect_prefix(struct store *s)
{
	unsigned end = 0;
	for (unsigned n = 0; n < SECOND_END; n++) {
		struct record *r = numbered(n);
		int rc = fixture_expect(s, r);
		record_unref(r);
		if (rc != 0 && (rc != -ENOENT || n < OWN_END))
			fail_msg("record %u: %s", n, strerror(-rc));
		if (rc == 0 && n != end)
			fail_msg("record %u is there, %u is not", n, end);
		end += rc == 0;
	}
	assert_int_equal(fixture_stats(s).n_corrupt, 0);
	assert_int_equal(fixture_stats(s).n_records, end);
	return end;
}

static unsigned expect_some(const char *directory)
{
	struct store *s = fixture_open_reader(directory);
	unsigned n = expect_prefix(s);
	store_close(s);
	return n;
}

static int refuse(void *arg, const struct survey_item *item)
{
	(void)arg;
	return item->record ? 0 : -EBADMSG;
}

static void expect_all(const char *directory)
{
	struct store *s = fixture_open_reader(directory);
	struct survey_options o = {.directory = directory, .rows = true, .indexes = true, .visit = refuse};
	struct survey_totals t;
	struct provenance *notes;
	size_t n_notes;
	assert_int_equal(expect_prefix(s), SECOND_END);
	assert_int_equal(store_teachers(s, &notes, &n_notes, NULL), 0);
	assert_int_equal(n_notes, 3);
	free(notes);
	store_close(s);
	assert_int_equal(survey_run(&o, &t, NULL), 0);
	assert_int_equal(t.n_records, SECOND_END);
	assert_int_equal(t.torn_bytes, 0);
	assert_int_equal(t.n_unindexed, 0);
}

// A writer opens what is left and finds the same; merging again brings what is missing, and then nothing.
static void expect_finished(const char *directory)
{
	struct upkeep_merged t;
	struct error err;
	unsigned n_there = expect_some(directory);
	struct store *s = fixture_open(directory, INTO_BYTES);
	assert_int_equal(expect_prefix(s), n_there);
	store_close(s);
	if (merge(directory, &t, &err))
		fail_msg("merging again: %s", err.message);
	assert_int_equal(t.n_records, FIRST_END - FIRST_BEGIN + SECOND_END - SECOND_BEGIN);
	assert_int_equal(t.n_records - t.n_there, SECOND_END - n_there);
	assert_int_equal(t.n_bytes == 0, n_there == SECOND_END);
	expect_all(directory);
	assert_int_equal(merge(directory, &t, &err), 0);
	assert_int_equal(t.n_records, t.n_there);
	assert_int_equal(t.n_bytes, 0);
	expect_all(directory);
}

// ---- the tests

static void all_is_brought_once(void **state)
{
	(void)state;
	uint64_t before[] = {directory_sum(from[0]), directory_sum(from[1])};
	char *d = fixture_copy(own);
	assert_int_equal(expect_some(d), OWN_END);
	expect_finished(d);
	for (int i = 0; i < 2; i++)
		assert_true(directory_sum(from[i]) == before[i]);
	struct store *s = fixture_open(d, INTO_BYTES);        // and it goes on as a store; nobody else merges into it meanwhile
	struct upkeep_merged t;
	struct error err;
	struct record *r = numbered(SECOND_END);
	assert_int_equal(merge(d, &t, &err), -EEXIST);
	assert_non_null(strstr(err.message, "another process"));
	assert_int_equal(fixture_append(s, r, STORE_DURABLE), 0);
	record_unref(r);
	store_close(s);
	fixture_remove(d);
}

static void nothing_is_lost_at_any_named_place(void **state)
{
	(void)state;
	unsigned n_kills = (unsigned)from_environment("KD_POINT_KILLS", 2), n_reached = 0, n_killed = 0;
	const char *only = getenv("KD_POINT");
	uint64_t before[] = {directory_sum(from[0]), directory_sum(from[1])};
	for (enum crash_point at = 0; at < N_CRASH_POINTS; at++) {
		if (only && strcmp(only, crash_name(at)) != 0)
			continue;
		bool killed = true;
		for (unsigned nth = 1; killed && nth <= n_kills; nth++) {
			char *d = fixture_copy(own);
			killed = merge_wait(merge_start(d, at, nth));
			n_reached += killed && nth == 1;
			n_killed += killed;
			expect_finished(d);
			fixture_remove(d);
		}
		for (int i = 0; i < 2; i++)
			assert_true(directory_sum(from[i]) == before[i]);
	}
	print_message("%u places were reached, %u were killed there\n", n_reached, n_killed);
	assert_true(only || n_reached >= 25);    // all but the two of compacting
}

// How long merging takes, and how many named places it comes by.
static uint64_t merge_us(unsigned *ret_points)
{
	struct timespec t[2];
	char *d = fixture_copy(own);
	clock_gettime(CLOCK_MONOTONIC, &t[0]);
	assert_false(merge_wait(merge_start(d, N_CRASH_POINTS, 0)));
	clock_gettime(CLOCK_MONOTONIC, &t[1]);
	*ret_points = atomic_load(&point->n);
	fixture_remove(d);
	return (uint64_t)(t[1].tv_sec - t[0].tv_sec) * 1000000 + (uint64_t)((t[1].tv_nsec - t[0].tv_nsec) / 1000);
}

// By the clock, and by how far it has come, which hits what is quickly over.
static void nothing_is_lost_to_kill_9(void **state)
{
	(void)state;
	unsigned n_kills = (unsigned)(from_environment("KD_KILLS", 300) / 10), n_killed = 0, n_part = 0, n_points;
	uint64_t before[] = {directory_sum(from[0]), directory_sum(from[1])}, us = merge_us(&n_points);
	rng_state = from_environment("KD_SEED", (uint64_t)time(NULL) ^ ((uint64_t)getpid() << 32));
	print_message("KD_SEED=%llu, %u kills at random times\n", (unsigned long long)rng_state, n_kills);
	char *d = fixture_copy(own);
	for (unsigned i = 0, least = OWN_END; i < n_kills; i++) {
		pid_t child = merge_start(d, N_CRASH_POINTS, i % 2 ? 1 + rng() % n_points : 0);
		if (i % 2 == 0) {
			usleep((useconds_t)(rng() % us));
			kill(child, SIGKILL);
		}
		bool killed = merge_wait(child);
		unsigned n = expect_some(d);
		assert_true(n >= least);                  // killed again and again, on what the last one left
		n_killed += killed;
		n_part += n > least && n < SECOND_END;
		least = n;
		if (killed && n < SECOND_END && rng() % 3)
			continue;
		expect_finished(d);
		fixture_remove(d);
		d = fixture_copy(own);
		least = OWN_END;
	}
	for (int i = 0; i < 2; i++)
		assert_true(directory_sum(from[i]) == before[i]);
	print_message("%u were killed before they were through, %u with a part done\n", n_killed, n_part);
	assert_true(n_killed >= n_kills / 3 && n_part >= n_kills / 8);
	fixture_remove(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(all_is_brought_once),
		cmocka_unit_test(nothing_is_lost_at_any_named_place),
		cmocka_unit_test(nothing_is_lost_to_kill_9),
	};
	return cmocka_run_group_tests(tests, make, unmake);
}
