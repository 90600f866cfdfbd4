// SPDX-License-Identifier: Apache-2.0
// A writer killed at random moments: it reports each acknowledgement through a pipe to its parent, who afterwards opens the store and
// holds it to every one of them. KD_KILLS sets the number of kills (60), KD_SEED the seed.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"
#include "tests/unit/store_fixture.h"

#define PER_CYCLE 100000u            // record numbers a writer may use
#define SHARD_BYTES (256u << 10)
#define MAX_OLD 20000

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

static void cycle(const char *directory, uint64_t first, unsigned mode, unsigned ms, struct acks *a)
{
	int ends[2], status;
	assert_int_equal(pipe(ends), 0);
	fcntl(ends[1], F_SETPIPE_SZ, 1 << 20);        // room for 131072 acknowledgements: the writer never waits for us
	pid_t child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		close(ends[0]);
		oracle = ends[1];
		writer(directory, first, mode);
	}
	close(ends[1]);
	nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L}, NULL);
	kill(child, SIGKILL);
	assert_int_equal(waitpid(child, &status, 0), child);
	if (!WIFSIGNALED(status))
		fail_msg("the writer left by itself with status 0x%x", (unsigned)status);
	read_acks(ends[0], a);
	close(ends[0]);
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
			fail_msg("record %llu (acknowledged up to %llu): %s", (unsigned long long)n, (unsigned long long)last_acked, strerror(-rc));
	}
	for (uint64_t k = n + 1; k < n + 50; k++) {
		struct record *r = numbered(k);
		assert_int_equal(fixture_expect(s, r), -ENOENT);        // no hole before it
		record_unref(r);
	}
	return n - first;
}

static void no_acknowledged_record_is_lost_to_kill_9(void **state)
{
	(void)state;
	uint64_t seed = from_environment("KD_SEED", (uint64_t)time(NULL) ^ ((uint64_t)getpid() << 32));
	unsigned n_kills = (unsigned)from_environment("KD_KILLS", 60);
	print_message("KD_SEED=%llu, %u kills\n", (unsigned long long)seed, n_kills);
	rng_state = seed;
	char *d = fixture_directory();
	static uint64_t old[MAX_OLD];
	size_t n_old = 0;
	uint64_t n_acked = 0, n_kept = 0, n_cut = 0;
	for (unsigned i = 0; i < n_kills; i++) {
		struct acks a = {0};
		uint64_t first = (uint64_t)i * PER_CYCLE;
		unsigned mode = rng() % 8, ms = 1 + rng() % (rng() % 3 ? 60 : 300);
		cycle(d, first, mode, ms, &a);
		struct store *s = fixture_open(d, SHARD_BYTES);
		n_kept += expect_prefix(s, first, &a);
		for (unsigned k = 0; k < 50 && n_old; k++) {
			struct record *r = numbered(old[rng() % n_old]);
			assert_int_equal(fixture_expect(s, r), 0);
			record_unref(r);
		}
		struct store_stats stats = fixture_stats(s);
		assert_int_equal(stats.n_corrupt, 0);
		assert_int_equal(stats.n_records, n_kept);
		n_cut += stats.recovered_bytes > 0;
		store_close(s);
		n_acked += a.n;
		for (size_t k = 0; k < a.n && n_old < MAX_OLD; k += 1 + a.n / 64)
			old[n_old++] = a.numbers[k];
		free(a.numbers);
	}
	print_message("%llu acknowledged, %llu kept, %llu torn tails\n", (unsigned long long)n_acked, (unsigned long long)n_kept,
		      (unsigned long long)n_cut);
	assert_true(n_acked > n_kills);        // the writers got to write
	fixture_remove(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(no_acknowledged_record_is_lost_to_kill_9)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
