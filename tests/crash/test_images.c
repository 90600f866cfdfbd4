// SPDX-License-Identifier: Apache-2.0
// A power cut at any moment: from a recording of what the store did to its files many possible remains are made, and every durable record
// acknowledged by then must be in each of them. KD_IMAGES: how many (100); KD_SEED: the first run's seed, printed.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"
#include "tests/crash/recorder.h"
#include "tests/unit/store_fixture.h"

#define N_RECORDS 60
#define IMAGES_PER_RUN 25
#define MEMORY_BYTES (UINT64_C(16) << 20)

static struct record *records[N_RECORDS];
static bool owed[N_RECORDS];

static uint64_t mix(uint64_t *state)
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

static void on_durable(void *arg, const struct error *err)
{
	if (!err)
		recorder_mark((uint64_t)(uintptr_t)arg);
}

static void on_other(void *arg, const struct error *err)
{
	(void)err;
	__atomic_fetch_add((unsigned *)arg, 1, __ATOMIC_RELEASE);
}

static uint64_t shard_bytes_of(uint64_t seed)
{
	static const uint64_t sizes[] = {8192, 16384, 65536};
	return sizes[seed % 3];
}

// Appends in bursts of a size decided by the seed; each burst becomes one batch. Opens anew now and then.
static void run(const char *directory, uint64_t seed)
{
	uint64_t state = seed;
	struct store *s = fixture_open(directory, shard_bytes_of(seed));
	for (unsigned i = 0; i < N_RECORDS;) {
		unsigned n = 1 + (unsigned)(mix(&state) % 6), n_over = 0, n_other = 0;
		recorder_hold(true);
		for (unsigned k = 0; k < n && i < N_RECORDS; k++, i++) {
			bool durable = mix(&state) % 3 > 0;
			void *arg = durable ? (void *)(uintptr_t)i : (void *)&n_over;
			n_other += !durable;
			assert_int_equal(store_append(s, records[i], durable ? STORE_DURABLE : STORE_FLUSHED,
						      durable ? on_durable : on_other, arg, NULL), 0);
			// the first alone, the others together
			while (k == 0 && fixture_stats(s).queued_bytes && !recorder_waiting())
				usleep(20);
		}
		recorder_hold(false);
		while (fixture_stats(s).queued_bytes)
			usleep(20);
		assert_int_equal(__atomic_load_n(&n_over, __ATOMIC_ACQUIRE), n_other);
		if (mix(&state) % 12 == 0) {
			store_close(s);
			s = fixture_open(directory, shard_bytes_of(seed));
		}
	}
	store_close(s);
}

static void owe(void *arg, uint64_t i)
{
	(void)arg;
	owed[i] = true;
}

// Everything in the store must be one of ours, unchanged.
static void expect_nothing_foreign(struct store *s)
{
	struct store_cursor c = {0};
	struct record *r;
	char place[96];
	int rc;
	while ((rc = store_next(s, &c, &r, place, NULL)) != -ENOENT) {
		if (rc < 0)
			continue;
		unsigned i = 0;
		while (i < N_RECORDS && memcmp(record_key(records[i]), record_key(r), sizeof(struct content_id)) != 0)
			i++;
		assert_true(i < N_RECORDS);
		size_t n, k;
		const void *a = record_bytes(records[i], &n), *b = record_bytes(r, &k);
		assert_int_equal(n, k);
		assert_memory_equal(a, b, n);
		record_unref(r);
	}
}

static void expect_image(size_t at, uint64_t seed, uint64_t run_seed)
{
	char *d = fixture_directory();
	memset(owed, 0, sizeof owed);
	recorder_image(at, seed, d);
	recorder_marks(at, owe, NULL);
	struct store *s;
	struct error err = {0};
	int rc = store_open(&(struct store_options){.directory = d, .shard_bytes = 16384}, &s, &err);
	unsigned n_owed = 0;
	for (unsigned i = 0; i < N_RECORDS; i++)
		n_owed += owed[i];
	if (rc < 0 && (n_owed || rc != -EBADMSG))
		fail_msg("KD_SEED=%llu, cut at %zu, image %llu: %s", (unsigned long long)run_seed, at,
			(unsigned long long)seed, err.message);
	for (unsigned i = 0; rc == 0 && i < N_RECORDS; i++) {
		int found = fixture_expect(s, records[i]);
		if (found == -EILSEQ || (owed[i] && found))
			fail_msg("KD_SEED=%llu, cut at %zu, image %llu: record %u: %s", (unsigned long long)run_seed, at,
				 (unsigned long long)seed, i, strerror(-found));
	}
	if (rc == 0) {
		expect_nothing_foreign(s);
		assert_int_equal(fixture_append(s, records[0], STORE_DURABLE), 0);       // and it goes on
		store_close(s);
	}
	fixture_remove(d);
}

static void images(uint64_t seed, unsigned n, unsigned fsync_percent, unsigned write_percent)
{
	char *d = fixture_directory();
	uint64_t state = seed;
	recorder_start(d, seed);
	recorder_faults(fsync_percent, write_percent, write_percent);
	run(d, seed);
	recorder_stop();
	for (unsigned i = 0; i < n; i++) {
		size_t at = i ? mix(&state) % (recorder_length() + 1) : recorder_length();
		expect_image(at, mix(&state), seed);
	}
	recorder_done();
	fixture_remove(d);
}

static uint64_t from_environment(const char *name, uint64_t otherwise)
{
	const char *value = getenv(name);
	return value ? strtoull(value, NULL, 0) : otherwise;
}

static void all_images(unsigned fsync_percent, unsigned write_percent)
{
	uint64_t seed = from_environment("KD_SEED", (uint64_t)time(NULL) * 1000);
	unsigned n = (unsigned)from_environment("KD_IMAGES", 100);
	print_message("KD_SEED=%llu, %u images\n", (unsigned long long)seed, n);
	for (unsigned done = 0; done < n; done += IMAGES_PER_RUN, seed++)
		images(seed, n - done < IMAGES_PER_RUN ? n - done : IMAGES_PER_RUN, fsync_percent, write_percent);
}

static void what_was_acknowledged_survives_a_power_cut(void **state)
{
	(void)state;
	all_images(0, 0);
}

static void also_when_the_disk_failed_before(void **state)
{
	(void)state;
	all_images(10, 5);
}

// Killed between the name of a shard and the fsync of its directory, and started again: what is acknowledged then is in a file that the
// disk must know by its name.
static void a_shard_whose_name_was_not_on_the_disk_is_kept(void **state)
{
	(void)state;
	char *made = fixture_directory(), *d = fixture_directory();
	struct store *s = fixture_open(made, 0);
	assert_int_equal(fixture_append(s, records[1], STORE_DURABLE), 0);
	store_close(s);
	size_t n;
	uint8_t *header = fixture_read(made, "00000000.shard", &n);
	recorder_start(d, 1);
	int directory = open(d, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int fd = openat(directory, "00000000.shard.tmp", O_RDWR | O_CREAT | O_CLOEXEC, 0640);
	assert_true(directory >= 0 && fd >= 0 && pwrite(fd, header, 4096, 0) == 4096 && fsync(fd) == 0);
	assert_int_equal(renameat(directory, "00000000.shard.tmp", directory, "00000000.shard"), 0);
	close(fd);
	close(directory);
	free(header);
	s = fixture_open(d, 0);
	assert_int_equal(fixture_append(s, records[0], STORE_DURABLE), 0);
	recorder_mark(0);
	store_close(s);
	recorder_stop();
	for (uint64_t seed = 0; seed < 20; seed++)
		expect_image(recorder_length(), seed, 1);
	recorder_done();
	fixture_remove(made);
	fixture_remove(d);
}

int main(void)
{
	fixture_in_memory(MEMORY_BYTES);
	for (unsigned i = 0; i < N_RECORDS; i++)
		records[i] = fixture_record(i, 8, 4 + i * 7 % 60);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_acknowledged_survives_a_power_cut),
		cmocka_unit_test(a_shard_whose_name_was_not_on_the_disk_is_kept),
		cmocka_unit_test(also_when_the_disk_failed_before),
	};
	int rc = cmocka_run_group_tests(tests, NULL, NULL);
	for (unsigned i = 0; i < N_RECORDS; i++)
		record_unref(records[i]);
	return rc;
}
