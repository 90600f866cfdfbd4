// SPDX-License-Identifier: Apache-2.0
// A writer killed at random moments, and at every named place of the store's code: it reports each acknowledgement through a pipe to its
// parent, who afterwards opens the store and holds it to every one of them. KD_KILLS sets the number of random kills (300), KD_POINT_KILLS
// that at each place (2), KD_POINT takes one place alone, KD_SEED the seed.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/store/crash.h"
#include "tests/unit/store_fixture.h"

#define PER_CYCLE 100000u            // record numbers a writer may use
#define SHARD_BYTES (256u << 10)
#define MAX_OLD 20000
#define MAX_IDLE 8                   // writers in a row that wrote nothing
#define MAX_PATIENCE 8
#define MEMORY_BYTES (UINT64_C(1) << 30)

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

static struct record *numbered(uint64_t n)
{
	return fixture_record_sized(n);
}

// ---- the writer

static int oracle;
static struct { enum crash_point at; unsigned nth; atomic_uint n; } point;

static enum store_durability durability_of(unsigned mode, uint64_t n)
{
	static const enum store_durability mixes[4][3] = {
		{STORE_FLUSHED, STORE_FLUSHED, STORE_FLUSHED},
		{STORE_DURABLE, STORE_DURABLE, STORE_DURABLE},
		{STORE_NONE, STORE_FLUSHED, STORE_DURABLE},
		{STORE_FLUSHED, STORE_FLUSHED, STORE_DURABLE},
	};
	return mixes[mode % 4][n % 3];
}

static void on_ack(void *arg, const struct error *err)
{
	uint64_t n = (uint64_t)(uintptr_t)arg;
	if (err || write(oracle, &n, sizeof n) != sizeof n)
		_exit(3);
}

static void on_point(enum crash_point at)
{
	if (at == point.at && atomic_fetch_add(&point.n, 1) + 1 == point.nth)
		kill(getpid(), SIGKILL);
}

static void writer(const char *directory, uint64_t first, unsigned mode)
{
	struct store *s = fixture_open(directory, SHARD_BYTES);
	for (uint64_t n = first; n < first + PER_CYCLE; n++) {
		struct record *r = numbered(n);
		enum store_durability durability = durability_of(mode, n);
		int rc;
		do {
			rc = store_append(s, r, durability, durability == STORE_NONE ? NULL : on_ack, (void *)(uintptr_t)n, NULL);
			if (rc == -EAGAIN)
				usleep(100);
		} while (rc == -EAGAIN);
		if (rc < 0)
			_exit(4);
		record_unref(r);
		if (mode & 4)
			usleep(rng() % 500);
	}
	_exit(5);        // the parent should have been quicker
}

// ---- the parent

struct acks { uint64_t *numbers; size_t n, capacity; };

static void read_acks(int fd, struct acks *a)
{
	uint64_t n;
	ssize_t k;
	while ((k = read(fd, &n, sizeof n)) == sizeof n) {
		if (a->n == a->capacity) {
			a->capacity = a->capacity ? 2 * a->capacity : 4096;
			a->numbers = realloc(a->numbers, a->capacity * sizeof n);
			assert_non_null(a->numbers);
		}
		a->numbers[a->n++] = n;
	}
	assert_int_equal(k, 0);
}

static pid_t writer_start(const char *directory, uint64_t first, unsigned mode, bool at_point, int *ret_acks)
{
	int ends[2];
	assert_int_equal(pipe(ends), 0);
	fcntl(ends[1], F_SETPIPE_SZ, 1 << 20);        // room for 131072 acknowledgements: the writer never waits for us
	pid_t child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		close(ends[0]);
		oracle = ends[1];
		crash_hook = at_point ? on_point : NULL;
		alarm(60);
		writer(directory, first, mode);
	}
	close(ends[1]);
	*ret_acks = ends[0];
	return child;
}

static void writer_wait(pid_t child, int acks, struct acks *a)
{
	int status;
	assert_int_equal(waitpid(child, &status, 0), child);
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		fail_msg("the writer left by itself with status 0x%x", (unsigned)status);
	read_acks(acks, a);
	close(acks);
}

static void cycle(const char *directory, uint64_t first, unsigned mode, unsigned ms, struct acks *a)
{
	int acks;
	pid_t child = writer_start(directory, first, mode, false, &acks);
	nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L}, NULL);
	kill(child, SIGKILL);
	writer_wait(child, acks, a);
}

// Records of this writer that are in the store are the first ones it appended, all acknowledged ones among them. Returns how many.
static uint64_t expect_prefix(struct store *s, uint64_t first, const struct acks *a)
{
	uint64_t last_acked = first, n;
	for (size_t i = 0; i < a->n; i++)
		last_acked = a->numbers[i] + 1 > last_acked ? a->numbers[i] + 1 : last_acked;
	for (n = first; n < first + PER_CYCLE; n++) {
		struct record *r = numbered(n);
		int rc = fixture_expect(s, r);
		record_unref(r);
		if (rc == -ENOENT && n >= last_acked)
			break;
		if (rc != 0)
			fail_msg("record %llu (acknowledged up to %llu): %s", (unsigned long long)n,
				(unsigned long long)last_acked, strerror(-rc));
	}
	for (uint64_t k = n + 1; k < n + 50; k++) {
		struct record *r = numbered(k);
		assert_int_equal(fixture_expect(s, r), -ENOENT);        // no hole before it
		record_unref(r);
	}
	return n - first;
}

// Acknowledgements of former writers, a sample.
static struct { uint64_t *numbers; size_t n; } old;

static void old_remember(const struct acks *a)
{
	if (!old.numbers)
		old.numbers = calloc(MAX_OLD, sizeof *old.numbers);
	assert_non_null(old.numbers);
	for (size_t k = 0; k < a->n && old.n < MAX_OLD; k += 1 + a->n / 64)
		old.numbers[old.n++] = a->numbers[k];
}

static void old_expect(struct store *s, unsigned n)
{
	for (unsigned k = 0; k < n && old.n; k++) {
		struct record *r = numbered(old.numbers[rng() % old.n]);
		assert_int_equal(fixture_expect(s, r), 0);
		record_unref(r);
	}
}

struct tally { uint64_t n_acked, n_kept, n_cut; };

static void account(const char *directory, uint64_t first, const struct acks *a, struct tally *t)
{
	struct store *s = fixture_open(directory, SHARD_BYTES);
	t->n_kept += expect_prefix(s, first, a);
	old_expect(s, 50);
	struct store_stats stats = fixture_stats(s);
	assert_int_equal(stats.n_corrupt, 0);
	assert_int_equal(stats.n_records, t->n_kept);
	t->n_cut += stats.recovered_bytes > 0;
	t->n_acked += a->n;
	store_close(s);
	old_remember(a);
}

static void seed_set(unsigned n_kills, const char *what)
{
	rng_state = from_environment("KD_SEED", (uint64_t)time(NULL) ^ ((uint64_t)getpid() << 32));
	print_message("KD_SEED=%llu, %u kills %s\n", (unsigned long long)rng_state, n_kills, what);
	free(old.numbers);
	memset(&old, 0, sizeof old);
}

// On a busy machine writers begin late: while many in a row were killed before they wrote anything, the next are given longer.
static unsigned patience_after(unsigned patience, bool wrote)
{
	static unsigned n_idle;
	n_idle = wrote ? 0 : n_idle + 1;
	return n_idle < MAX_IDLE ? patience : patience < MAX_PATIENCE ? 2 * patience : patience;
}

// A third of the time on the disk, where writes bypass the page cache; else in memory, which is quicker.
static void no_acknowledged_record_is_lost_to_kill_9(void **state)
{
	(void)state;
	unsigned n_kills = (unsigned)from_environment("KD_KILLS", 300), done = 0;
	seed_set(n_kills, "at random times");
	for (int k = 0; k < 2; k++) {
		const char *before = getenv("TMPDIR");
		char *kept = before ? strdup(before) : NULL;
		if (k == 0)
			fixture_in_memory(MEMORY_BYTES);
		char *d = fixture_directory();
		if (!kept)
			unsetenv("TMPDIR");
		free(kept);
		struct tally t = {0};
		old.n = 0;
		unsigned until = k ? n_kills : n_kills - n_kills / 3, patience = 1;
		for (unsigned first = done; done < until; done++) {
			struct acks a = {0};
			uint64_t number = (uint64_t)(done - first) * PER_CYCLE;
			unsigned mode = rng() % 8, ms = 1 + rng() % (rng() % 16 ? 25 : 150);
			cycle(d, number, mode, ms * patience, &a);
			patience = patience_after(patience, a.n);
			account(d, number, &a, &t);
			free(a.numbers);
		}
		print_message("%llu acknowledged, %llu kept, %llu torn tails\n", (unsigned long long)t.n_acked,
			      (unsigned long long)t.n_kept, (unsigned long long)t.n_cut);
		assert_true(t.n_acked >= n_kills / 10);       // the writers got to write
		fixture_remove(d);
	}
}

// So that there is something to mend.
static void tail_tear(const char *directory)
{
	for (uint32_t id = 200000; id-- > 0;) {
		char name[32];
		snprintf(name, sizeof name, "%08x.shard", id);
		if (!fixture_exists(directory, name))
			continue;
		size_t n;
		uint8_t *bytes = fixture_read(directory, name, &n), *longer = realloc(bytes, n + 100);
		assert_non_null(longer);
		memset(longer + n, 0x55, 100);
		fixture_write(directory, name, longer, n + 100);
		free(longer);
		return;
	}
}

static void kills_at(enum crash_point at, unsigned n_kills)
{
	char *d = fixture_directory();
	struct tally t = {0};
	bool mending = at >= CRASH_MEND_BEFORE && at <= CRASH_MEND_SYNCED;
	bool rotates = at <= CRASH_INDEX_LISTED || (at >= CRASH_SEAL_BEFORE && at <= CRASH_SEAL_SYNCED);
	struct acks none = {0};
	old.n = 0;
	account(d, 0, &none, &t);
	for (unsigned i = 0; i < n_kills + mending; i++) {
		struct acks a = {0};
		uint64_t first = (uint64_t)i * PER_CYCLE;
		int acks;
		bool mends = mending && i > 0;        // the first only leaves something behind
		if (mends)
			tail_tear(d);
		point.at = mending && !mends ? CRASH_WRITE_AFTER : at;
		point.nth = 1 + (mends ? 0 : rng() % (rotates ? 3 : 40));
		atomic_store(&point.n, 0);
		pid_t child = writer_start(d, first, rng() % 4, true, &acks);
		writer_wait(child, acks, &a);
		account(d, first, &a, &t);
		free(a.numbers);
	}
	fixture_remove(d);
}

static void no_acknowledged_record_is_lost_at_any_named_place(void **state)
{
	(void)state;
	unsigned n_kills = (unsigned)from_environment("KD_POINT_KILLS", 2);
	seed_set(n_kills, "at each named place");
	fixture_in_memory(MEMORY_BYTES);
	for (enum crash_point at = 0; at < CRASH_REWRITE_MADE; at++) {
		const char *only = getenv("KD_POINT");
		if (only && strcmp(only, crash_name(at)) != 0)
			continue;
		print_message("%s\n", crash_name(at));
		kills_at(at, n_kills);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(no_acknowledged_record_is_lost_to_kill_9),
		cmocka_unit_test(no_acknowledged_record_is_lost_at_any_named_place),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
