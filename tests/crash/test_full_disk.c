// SPDX-License-Identifier: Apache-2.0
// A file system of 4 MiB that fills up: appends fail, finding goes on, and both work again once there is space, which is noticed also when
// nobody appends. Needs the right to
// mount a tmpfs in a namespace of its own; exits 77 (skipped) without it.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <time.h>
#include <unistd.h>

#include "tests/unit/store_fixture.h"

#define SIZE (4u << 20)

static char *mount_point;

static uint64_t now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void fill(size_t n)
{
	uint8_t *filler = calloc(1, n);
	assert_non_null(filler);
	fixture_write(mount_point, "filler", filler, n);
	free(filler);
}

static void a_full_disk_refuses_appends_and_heals(void **state)
{
	(void)state;
	char d[600];
	snprintf(d, sizeof d, "%s/store", mount_point);
	fill(SIZE / 2);
	struct store *s = fixture_open(d, 1 << 20);
	static bool acked[100000];
	uint64_t n = 0;
	int rc = 0;
	for (; n < 100000 && rc == 0; n++) {
		struct record *r = fixture_record_sized(n);
		rc = fixture_append(s, r, n % 2 ? STORE_FLUSHED : STORE_DURABLE);
		acked[n] = rc == 0;
		record_unref(r);
	}
	assert_int_equal(rc, -ENOSPC);
	assert_true(fixture_stats(s).failing);
	assert_true(n > 50);
	uint64_t n_full = n;
	for (uint64_t i = 0; i < n_full; i++) {
		struct record *r = fixture_record_sized(i);
		assert_int_equal(fixture_expect(s, r), acked[i] ? 0 : -ENOENT);
		record_unref(r);
	}
	char path[700];
	snprintf(path, sizeof path, "%s/filler", mount_point);
	assert_int_equal(unlink(path), 0);
	uint64_t start = now_ms();
	for (rc = -1; rc != 0; n++) {
		struct record *r = fixture_record_sized(n);
		rc = fixture_append(s, r, STORE_DURABLE);
		acked[n] = rc == 0;
		record_unref(r);
		assert_true(now_ms() - start < 60000);
		usleep(5000);
	}
	print_message("full after %llu records, healed %llu ms after space came back\n", (unsigned long long)n_full,
		      (unsigned long long)(now_ms() - start));
	store_close(s);
	s = fixture_open(d, 1 << 20);
	for (uint64_t i = 0; i < n; i++) {
		struct record *r = fixture_record_sized(i);
		rc = fixture_expect(s, r);
		assert_true(rc == 0 || (rc == -ENOENT && !acked[i]));
		record_unref(r);
	}
	assert_int_equal(fixture_stats(s).n_corrupt, 0);
	store_close(s);
}

// Away with the store of the test before.
static int empty(void **state)
{
	(void)state;
	char d[600];
	snprintf(d, sizeof d, "%s/store", mount_point);
	fixture_remove(strdup(d));
	return 0;
}

static atomic_uint n_refused, n_taken;

static void on_failing(void *arg, const struct error *why)
{
	(void)arg;
	atomic_fetch_add(why ? &n_refused : &n_taken, 1);
}

static uint64_t failing_ms(struct store *s, uint64_t at_most)
{
	uint64_t start = now_ms();
	while (fixture_stats(s).failing && now_ms() - start < at_most)
		usleep(2000);
	return now_ms() - start;
}

static void space_given_back_is_noticed_without_an_append(void **state)
{
	(void)state;
	char d[600];
	struct store *s;
	snprintf(d, sizeof d, "%s/quiet", mount_point);
	struct store_options o = {.directory = d, .shard_bytes = 1 << 20, .failing = on_failing};
	fill(SIZE / 4);
	assert_int_equal(store_open(&o, &s, NULL), 0);
	int rc = 0;
	uint64_t n = 0;
	for (; n < 100000 && rc == 0; n++) {
		struct record *r = fixture_record_sized(n);
		rc = fixture_append(s, r, STORE_DURABLE);
		record_unref(r);
	}
	assert_int_equal(rc, -ENOSPC);
	assert_true(failing_ms(s, 3500) >= 3500);                // a smaller file would fit: that is not being well
	assert_int_equal(atomic_load(&n_refused), 1);
	assert_int_equal(atomic_load(&n_taken), 0);
	char path[700];
	snprintf(path, sizeof path, "%s/filler", mount_point);
	assert_int_equal(unlink(path), 0);
	uint64_t start = now_ms(), ms = failing_ms(s, 60000);
	assert_true(ms < 60000);
	print_message("noticed after %llu ms\n", (unsigned long long)ms);
	while (!atomic_load(&n_taken) && now_ms() - start < 60000)       // told just after that
		usleep(2000);
	assert_int_equal(atomic_load(&n_taken), 1);
	assert_false(fixture_exists(d, "try.shard.tmp"));
	struct record *r = fixture_record_sized(n - 1);          // what was refused is taken at once
	assert_int_equal(fixture_append(s, r, STORE_DURABLE), 0);
	record_unref(r);
	store_close(s);
}

int main(void)
{
	mount_point = fixture_directory();
	char options[64];
	snprintf(options, sizeof options, "size=%u,mode=0755", SIZE);
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("tmpfs", mount_point, "tmpfs", 0, options) < 0) {
		fprintf(stderr, "cannot mount a tmpfs here: %s\n", strerror(errno));
		rmdir(mount_point);
		free(mount_point);
		return 77;
	}
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_full_disk_refuses_appends_and_heals),
		cmocka_unit_test_setup(space_given_back_is_noticed_without_an_append, empty),
	};
	int rc = cmocka_run_group_tests(tests, NULL, NULL);
	umount2(mount_point, MNT_DETACH);
	rmdir(mount_point);
	free(mount_point);
	return rc;
}
