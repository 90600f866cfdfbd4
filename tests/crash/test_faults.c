// SPDX-License-Identifier: Apache-2.0
// One fault at every place it can happen: no hang, no false acknowledgement, no wrong bytes, and the store goes on.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"
#include "tests/crash/fault.h"
#include "tests/unit/leftovers.h"
#include "tests/unit/store_fixture.h"

#define N_RECORDS 48
#define SHARD_BYTES 8192        // about 12 records: a run rotates four times
#define N_LARGE 32              // of 720 KiB: writes follow one another while others are gathered, and one fsync does not cover all
#define MEMORY_BYTES (UINT64_C(64) << 20)       // the large ones, twice where a shard is left and its records follow, and some room

static struct record *small[N_RECORDS], *large[N_LARGE], **records = small;
static unsigned n_records = N_RECORDS;
static uint64_t shard_bytes = SHARD_BYTES;

static enum store_durability durability_of(unsigned i)
{
	return i % 3 == 0 ? STORE_NONE : i % 3 == 1 ? STORE_FLUSHED : STORE_DURABLE;
}

struct ack { int n_calls; bool failed; };

static struct error refusal;     // the first one of a run; appends are acknowledged by one thread, which is over when it is read

static void on_ack(void *arg, const struct error *err)
{
	struct ack *a = arg;
	a->failed = err != NULL;
	if (err && !refusal.code)
		refusal = *err;
	__atomic_fetch_add(&a->n_calls, 1, __ATOMIC_RELEASE);
}

// What acknowledged records owe: found with their bytes while open, and after opening anew.
static void expect_kept(const char *d, const struct ack *acks)
{
	struct store *s = fixture_open(d, shard_bytes);
	for (unsigned i = 0; i < n_records; i++) {
		int rc = fixture_expect(s, records[i]);
		if (!(rc == 0 || (rc == -ENOENT && (acks[i].failed || durability_of(i) == STORE_NONE))))
			fail_msg("record %u, %sacknowledged: %s", i, acks[i].failed ? "not " : "", strerror(-rc));
	}
	assert_int_equal(fixture_stats(s).n_corrupt, 0);
	store_close(s);
}

// A fault of the directory itself keeps the store from opening, as long as it lasts: NULL.
static struct store *open_again(const char *d)
{
	struct store *s = NULL;
	for (int i = 0; i < 2 && !s; i++)
		(void)store_open(&(struct store_options){.directory = d, .shard_bytes = shard_bytes}, &s, NULL);
	return s;
}

// Appends everything with the armed fault in the way, of small ones the first half one at a time, the rest in a burst. Returns how many
// were refused.
static unsigned run(const char *d, struct ack acks[])
{
	unsigned n_failed = 0, n_open = descriptors_count();
	memset(acks, 0, n_records * sizeof *acks);
	refusal = (struct error){0};
	struct store *s = open_again(d);
	for (unsigned i = 0; i < n_records && !s; i++)
		acks[i] = (struct ack){1, true};
	for (unsigned i = 0; i < n_records && s; i++) {
		assert_int_equal(store_append(s, records[i], durability_of(i), on_ack, &acks[i], NULL), 0);
		while (records == small && i < n_records / 2 && !__atomic_load_n(&acks[i].n_calls, __ATOMIC_ACQUIRE))
			usleep(20);
		if (records == small && i < n_records / 2 && !acks[i].failed && durability_of(i) != STORE_NONE)
			assert_int_equal(fixture_expect(s, records[i]), 0);
	}
	store_close(s);
	assert_int_equal(descriptors_count(), n_open);
	for (unsigned i = 0; i < n_records; i++) {
		assert_int_equal(acks[i].n_calls, 1);
		n_failed += acks[i].failed;
	}
	return n_failed;
}

// A real fault among ours, a full disk say, is to be told from a store that refuses too much.
static void fail_refused(const char *d, enum fault_kind kind, unsigned nth, int result, long part, unsigned n_failed)
{
	static const char *const names[N_FAULT_KINDS] = {"write", "fsync", "submit", "setup", "truncate"};
	struct statvfs there;
	assert_int_equal(statvfs(d, &there), 0);
	fail_msg("%s %u gave \"%s\", part %ld: %u of %u refused, though the fault passed, the first with \"%s\" (%s, %llu KiB free)",
		 names[kind], nth, strerror(-result), part, n_failed, n_records, refusal.message, d,
		 (unsigned long long)(there.f_bavail * there.f_frsize >> 10));
}

// A fault while a store is opened the first time: opened or refused, but nothing worse.
static void try_opening(enum fault_kind kind, uint64_t nth, int result, long part, uint64_t n_times)
{
	char *d = fixture_directory();
	struct store *s;
	fault_disarm();
	fault_arm(kind, nth, n_times, result, part);
	if (store_open(&(struct store_options){.directory = d}, &s, NULL) == 0)
		store_close(s);
	fault_disarm();
	fixture_remove(d);
}

// The fault at the first operation, the second (with stride 1, or when KD_TORTURE is set), ... until there are no more of them, at most
// n_max. Only a full disk may cost records.
static void try_everywhere(enum fault_kind kind, int result, long part, uint64_t n_times, unsigned n_max, unsigned stride)
{
	struct ack acks[N_RECORDS];      // N_LARGE are fewer
	bool reached = true;
	unsigned nth, n_reached = 0;
	if (getenv("KD_TORTURE"))
		stride = 1;
	for (nth = 1; nth <= n_max && reached; nth += stride) {
		if (nth <= 4)
			try_opening(kind, nth, result, part, n_times);
		char *d = fixture_directory();
		struct store *s = fixture_open(d, shard_bytes);
		store_close(s);
		fault_disarm();
		fault_arm(kind, nth, n_times, result, part);
		unsigned n_failed = run(d, acks);
		assert_int_equal(fault_n_syncs_after_failure(), 0);
		reached = fault_n_injected() > 0;
		n_reached += reached;
		fault_disarm();
		if (n_failed && result != -ENOSPC && result != -EDQUOT && n_times == 1)
			fail_refused(d, kind, nth, result, part, n_failed);
		expect_kept(d, acks);
		fixture_remove(d);
	}
	assert_true(n_reached > 1);
}

static void a_write_fails(void **state)
{
	(void)state;
	static const int results[] = {-EIO, -ENOSPC, -EFBIG, -ECANCELED, -EAGAIN, -EINTR, -EDQUOT};
	for (size_t i = 0; i < sizeof results / sizeof *results; i++)
		try_everywhere(FAULT_WRITE, results[i], 0, 1, 64, i < 2 ? 1 : 4);
}

static void a_write_fails_after_some_bytes(void **state)
{
	(void)state;
	static const int results[] = {-EIO, -ENOSPC};
	for (size_t i = 0; i < 2; i++) {
		try_everywhere(FAULT_WRITE, results[i], 1, 1, 64, 5);
		try_everywhere(FAULT_WRITE, results[i], 100, 1, 64, 3);
		try_everywhere(FAULT_WRITE, results[i], -1, 1, 64, 5);
	}
}

static void a_write_is_short(void **state)
{
	(void)state;
	try_everywhere(FAULT_WRITE, 0, 1, 1, 64, 2);
	try_everywhere(FAULT_WRITE, 0, -1, 1, 64, 2);
	try_everywhere(FAULT_WRITE, 0, 7, UINT64_MAX, 3, 1);
}

static void an_fsync_fails(void **state)
{
	(void)state;
	static const int results[] = {-EIO, -ENOSPC, -EDQUOT, -EINTR, -EAGAIN, -ECANCELED};
	for (size_t i = 0; i < sizeof results / sizeof *results; i++)
		try_everywhere(FAULT_FSYNC, results[i], 0, 1, 50, i ? 3 : 1);
}

static void every_fsync_fails(void **state)
{
	(void)state;
	try_everywhere(FAULT_FSYNC, -EIO, 0, UINT64_MAX, 50, 3);
}

static void a_cut_fails_after_a_failed_write(void **state)
{
	(void)state;
	struct ack acks[N_RECORDS];
	for (unsigned nth = 1; nth <= 40; nth += getenv("KD_TORTURE") ? 1 : 2) {
		char *d = fixture_directory();
		fault_disarm();
		fault_arm(FAULT_WRITE, nth, 1, -EIO, 100);
		fault_arm(FAULT_TRUNCATE, 2, UINT64_MAX, -EIO, 0);       // the first is the lock file's
		run(d, acks);
		fault_disarm();
		struct store *s = fixture_open(d, SHARD_BYTES);          // what was left behind may count as damage, but nothing is lost
		for (unsigned i = 0; i < N_RECORDS; i++)
			if (!acks[i].failed && durability_of(i) != STORE_NONE)
				assert_int_equal(fixture_expect(s, records[i]), 0);
		store_close(s);
		fixture_remove(d);
	}
}

// Writes and fsyncs while others are under way.
static void large_records(void **state)
{
	(void)state;
	records = large;
	n_records = N_LARGE;
	static const uint64_t sizes[] = {UINT64_C(1) << 30, 8 << 20};        // one shard, three of them
	for (size_t i = 0; i < 2; i++) {
		shard_bytes = sizes[i];
		try_everywhere(FAULT_WRITE, -EIO, 0, 1, 64, 2);
		try_everywhere(FAULT_WRITE, -ENOSPC, 5000, 1, 64, 3);
		try_everywhere(FAULT_WRITE, 0, -4096, 1, 64, 3);
		try_everywhere(FAULT_FSYNC, -EIO, 0, 1, 50, i ? 4 : 1);
		try_everywhere(FAULT_FSYNC, -EIO, 0, UINT64_MAX, 3, 1);
	}
	records = small;
	n_records = N_RECORDS;
	shard_bytes = SHARD_BYTES;
}

static bool ring_works;

static void submitting_fails(void **state)
{
	(void)state;
	if (!ring_works)
		skip();
	static const int passing[] = {-EAGAIN, -EINTR, -EBUSY}, lasting[] = {-EBADF, -ENXIO, -EOPNOTSUPP};
	for (size_t i = 0; i < 3; i++) {
		try_everywhere(FAULT_SUBMIT, passing[i], 0, 3, 8, 3);
		try_everywhere(FAULT_SUBMIT, lasting[i], 0, 1, 64, 6);
	}
}

static void without_io_uring_the_store_works_and_says_so(void **state)
{
	(void)state;
	static const int results[] = {-EPERM, -ENOSYS, -ENOMEM};
	for (size_t i = 0; i < 3; i++) {
		struct ack acks[N_RECORDS];
		char *d = fixture_directory();
		fault_disarm();
		struct store *s = fixture_open(d, SHARD_BYTES);
		assert_int_equal(fixture_stats(s).uring, ring_works);
		store_close(s);
		fault_arm(FAULT_SETUP, 1, 2, results[i], 0);
		s = fixture_open(d, SHARD_BYTES);
		assert_false(fixture_stats(s).uring);
		store_close(s);
		assert_int_equal(run(d, acks), 0);
		assert_int_equal(fault_count(FAULT_SETUP), 3);
		expect_kept(d, acks);
		fixture_remove(d);
	}
}

#define PATIENCE_MS 60000

static uint64_t now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

// A fault that lasts: appends fail quickly, finding goes on, and when it ends appends work again by themselves: within two
// seconds and what a few fsyncs take, which on a busy disk may be as many.
static void heals_from(enum fault_kind kind, int result)
{
	char *d = fixture_directory();
	fault_disarm();
	struct store *s = fixture_open(d, SHARD_BYTES);
	assert_int_equal(fixture_append(s, records[0], STORE_DURABLE), 0);
	fault_arm(kind, 1, UINT64_MAX, result, 0);
	assert_int_not_equal(fixture_append(s, records[1], STORE_DURABLE), 0);
	assert_true(fixture_stats(s).failing);
	for (unsigned i = 2; i < 20; i++)
		assert_int_not_equal(fixture_append(s, records[i], STORE_DURABLE), 0);
	assert_int_equal(store_append(s, records[20], STORE_NONE, NULL, NULL, NULL), 0);
	assert_int_equal(fixture_expect(s, records[0]), 0);
	fault_disarm();
	uint64_t start = now_ms();
	while (fixture_append(s, records[1], STORE_DURABLE) != 0) {
		assert_true(now_ms() - start < PATIENCE_MS);
		usleep(10000);
	}
	while (fixture_stats(s).failing)        // cleared just after the acknowledgement
		assert_true(now_ms() - start < PATIENCE_MS);
	assert_true(fixture_stats(s).n_failed_appends >= 19);
	store_close(s);
	s = fixture_open(d, SHARD_BYTES);
	assert_int_equal(fixture_expect(s, records[0]), 0);
	assert_int_equal(fixture_expect(s, records[1]), 0);
	store_close(s);
	fixture_remove(d);
}

static void the_store_heals_when_a_lasting_fault_ends(void **state)
{
	(void)state;
	heals_from(FAULT_WRITE, -ENOSPC);
	heals_from(FAULT_WRITE, -EIO);
	heals_from(FAULT_FSYNC, -EIO);
	heals_from(FAULT_WRITE, -EAGAIN);
}

// Nobody appends meanwhile: the store looks by itself whether the disk is well again, and not before it is.
static void heals_unasked_from(enum fault_kind kind, int result)
{
	char *d = fixture_directory();
	struct store *s = fixture_open(d, SHARD_BYTES);
	fault_disarm();
	fault_arm(kind, 1, UINT64_MAX, result, 0);
	assert_int_not_equal(fixture_append(s, records[0], STORE_DURABLE), 0);
	assert_true(fixture_stats(s).failing);
	uint64_t start = now_ms(), n = fault_n_injected();
	while (fault_n_injected() < n + 3) {          // it looks now and then
		assert_true(fixture_stats(s).failing);
		assert_true(now_ms() - start < PATIENCE_MS);
		usleep(1000);
	}
	fault_disarm();
	start = now_ms();
	while (fixture_stats(s).failing) {
		assert_true(now_ms() - start < PATIENCE_MS);
		usleep(1000);
	}
	assert_false(fixture_exists(d, "try.shard.tmp"));
	assert_int_equal(fixture_append(s, records[0], STORE_DURABLE), 0);      // at once
	store_close(s);
	fixture_remove(d);
}

static void the_store_heals_without_an_append(void **state)
{
	(void)state;
	heals_unasked_from(FAULT_WRITE, -ENOSPC);
	heals_unasked_from(FAULT_WRITE, -EIO);
	heals_unasked_from(FAULT_FSYNC, -EIO);
}

// Flushed records that no fsync had covered follow the durable ones to the new shard.
static void a_failed_fsync_moves_what_was_only_flushed(void **state)
{
	(void)state;
	char *d = fixture_directory();
	fault_disarm();
	struct store *s = fixture_open(d, 0);
	for (unsigned i = 0; i < 10; i++)
		assert_int_equal(fixture_append(s, records[i], STORE_FLUSHED), 0);
	fault_arm(FAULT_FSYNC, 1, 1, -EIO, 0);
	assert_int_equal(fixture_append(s, records[10], STORE_DURABLE), 0);
	assert_int_equal(fixture_stats(s).n_shards, 2);
	store_close(s);
	fault_disarm();
	size_t n;
	free(fixture_read(d, "00000000.shard", &n));
	assert_int_equal(n, 4096);            // cut back to what had been synchronised
	s = fixture_open(d, 0);
	for (unsigned i = 0; i <= 10; i++)
		assert_int_equal(fixture_expect(s, records[i]), 0);
	assert_int_equal(fixture_stats(s).n_corrupt, 0);
	store_close(s);
	fixture_remove(d);
}

// Only zeros behind the last record did not reach the disk: all there is to keep has.
static void a_write_that_lacks_only_its_padding(void **state)
{
	(void)state;
	static const int results[] = {-ENOSPC, -EDQUOT, -EIO};
	for (size_t i = 0; i < sizeof results / sizeof *results; i++) {
		char *d = fixture_directory();
		fault_disarm();
		struct store *s = fixture_open(d, 0);
		assert_int_equal(fixture_append(s, records[0], STORE_DURABLE), 0);
		fault_arm(FAULT_WRITE, 1, 1, 0, -1);
		fault_follow(FAULT_WRITE, results[i]);
		assert_int_equal(fixture_append(s, records[1], STORE_DURABLE), 0);
		assert_int_equal(fault_n_injected(), 2);
		assert_int_equal(fixture_append(s, records[2], STORE_DURABLE), 0);
		store_close(s);
		fault_disarm();
		s = fixture_open(d, 0);
		for (unsigned k = 0; k < 3; k++)
			assert_int_equal(fixture_expect(s, records[k]), 0);
		assert_int_equal(fixture_stats(s).n_corrupt, 0);
		store_close(s);
		fixture_remove(d);
	}
}

// What a killed writer left is found in the page cache, and the disk does not take it: nothing there may stand for a durable record.
static void what_no_fsync_covers_at_the_start_is_not_called_durable(void **state)
{
	(void)state;
	char *d = fixture_directory(), *left;
	fault_disarm();
	struct store *s = fixture_open(d, 0);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(fixture_append(s, records[i], STORE_FLUSHED), 0);
	left = fixture_copy(d);
	store_close(s);
	fault_arm(FAULT_FSYNC, 1, 1, -EIO, 0);          // the directory's
	assert_int_equal(store_open(&(struct store_options){.directory = left}, &s, NULL), -EIO);
	fault_arm(FAULT_FSYNC, 2, 1, -EIO, 0);          // the shard's
	s = fixture_open(left, 0);
	assert_int_equal(fault_n_injected(), 2);
	assert_int_equal(fixture_stats(s).n_corrupt, 4);
	assert_int_equal(fixture_append(s, records[0], STORE_DURABLE), 0);
	assert_int_equal(fixture_stats(s).n_duplicates, 0);
	assert_int_equal(fault_n_syncs_after_failure(), 0);
	store_close(s);
	fault_disarm();
	fixture_remove(left);
	fixture_remove(d);
}

int main(void)
{
	fixture_in_memory(MEMORY_BYTES);         // the faults are ours, the disk's speed would only be waited for
	ring_works = fault_ring_works();
	if (!ring_works)
		printf("no faults through io_uring here: pwrite and fsync only\n");
	for (unsigned i = 0; i < N_RECORDS; i++)
		small[i] = fixture_record(i, 8, 4 + i % 40);
	for (unsigned i = 0; i < N_LARGE; i++)
		large[i] = fixture_record(1000 + i, 2048, 64);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_write_fails),
		cmocka_unit_test(a_write_fails_after_some_bytes),
		cmocka_unit_test(a_write_is_short),
		cmocka_unit_test(an_fsync_fails),
		cmocka_unit_test(every_fsync_fails),
		cmocka_unit_test(a_cut_fails_after_a_failed_write),
		cmocka_unit_test(large_records),
		cmocka_unit_test(submitting_fails),
		cmocka_unit_test(the_store_heals_when_a_lasting_fault_ends),
		cmocka_unit_test(the_store_heals_without_an_append),
		cmocka_unit_test(a_failed_fsync_moves_what_was_only_flushed),
		cmocka_unit_test(a_write_that_lacks_only_its_padding),
		cmocka_unit_test(what_no_fsync_covers_at_the_start_is_not_called_durable),
		cmocka_unit_test(without_io_uring_the_store_works_and_says_so),
	};
	int rc = cmocka_run_group_tests(tests, NULL, NULL);
	for (unsigned i = 0; i < N_RECORDS; i++)
		record_unref(small[i]);
	for (unsigned i = 0; i < N_LARGE; i++)
		record_unref(large[i]);
	return rc;
}
