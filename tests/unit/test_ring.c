// SPDX-License-Identifier: Apache-2.0
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
#include <unistd.h>

#include "daemon/ring.h"
#include "tests/unit/store_fixture.h"

#define BLOCK 4096u
#define N_BLOCKS 64u

static char *directory;

static int file_open(const char *name, int flags)
{
	char path[600];
	snprintf(path, sizeof path, "%s/%s", directory, name);
	int fd = open(path, O_RDWR | O_CREAT | flags, 0600);
	assert_true(fd >= 0);
	return fd;
}

static uint8_t *blocks_new(unsigned seed)
{
	uint8_t *p = aligned_alloc(BLOCK, N_BLOCKS * BLOCK);
	assert_non_null(p);
	for (size_t i = 0; i < N_BLOCKS * BLOCK; i++)
		p[i] = (uint8_t)(i * 31 + i / BLOCK + seed);
	return p;
}

static void expect_file(int fd, const uint8_t *bytes)
{
	uint8_t *back = malloc(N_BLOCKS * BLOCK + 1);
	assert_non_null(back);
	assert_int_equal(pread(fd, back, N_BLOCKS * BLOCK + 1, 0), N_BLOCKS * BLOCK);
	assert_memory_equal(back, bytes, N_BLOCKS * BLOCK);
	free(back);
}

// 64 writes, then 64 reads in another order, through a ring of 4 entries: every result arrives, and nothing overflows.
static void many_operations_pass_through_a_small_ring(void **state)
{
	(void)state;
	struct ring *r;
	static struct ring_op ops[N_BLOCKS];
	assert_int_equal(ring_open(4, &r, NULL), 0);
	int fd = file_open("small", 0);
	uint8_t *bytes = blocks_new(1), *back = blocks_new(2);
	for (unsigned i = 0; i < N_BLOCKS; i++) {
		ops[i] = (struct ring_op){.kind = RING_WRITE, .fd = fd, .data = bytes + i * BLOCK, .n = BLOCK,
			.offset = (uint64_t)i * BLOCK};
		ring_queue(r, &ops[i]);
	}
	for (unsigned i = 0; i < N_BLOCKS; i++)
		assert_int_equal(ring_complete(r, &ops[i]), 0);
	expect_file(fd, bytes);
	for (unsigned i = 0; i < N_BLOCKS; i++) {
		unsigned at = i * 29 % N_BLOCKS;
		ops[i] = (struct ring_op){.kind = RING_READ, .fd = fd, .data = back + at * BLOCK, .n = BLOCK,
			.offset = (uint64_t)at * BLOCK};
		ring_queue(r, &ops[i]);
	}
	for (unsigned i = 0; i < N_BLOCKS; i++) {
		assert_int_equal(ring_complete(r, &ops[N_BLOCKS - 1 - i]), 0);
		assert_int_equal(ops[N_BLOCKS - 1 - i].n_done, BLOCK);
	}
	assert_memory_equal(back, bytes, N_BLOCKS * BLOCK);
	assert_int_equal(ring_n_overflows(r), 0);
	ring_close(r);
	close(fd);
	free(bytes);
	free(back);
}

static void registered_memory_and_files_write_the_same_bytes(void **state)
{
	(void)state;
	struct ring *r;
	assert_int_equal(ring_open(8, &r, NULL), 0);
	uint8_t *bytes = blocks_new(3);
	ring_register_memory(r, bytes, N_BLOCKS * BLOCK);
	int fds[2] = {file_open("first", 0), file_open("second", 0)};
	for (int k = 0; k < 2; k++) {            // the second takes the first one's place
		ring_register_file(r, fds[k]);
		bytes[5] = (uint8_t)(100 + k);
		struct ring_op write = {.kind = RING_WRITE, .fd = fds[k], .data = bytes, .n = N_BLOCKS * BLOCK};
		struct ring_op sync = {.kind = RING_FSYNC, .fd = fds[k]};
		ring_submit(r, &write);
		assert_int_equal(ring_complete(r, &write), 0);
		ring_submit(r, &sync);
		assert_int_equal(ring_complete(r, &sync), 0);
		expect_file(fds[k], bytes);
		ring_register_file(r, -1);
		assert_false(ring_is_registered(r));
		close(fds[k]);
	}
	ring_close(r);
	free(bytes);
}

static void a_read_ends_where_the_file_does(void **state)
{
	(void)state;
	struct ring *r;
	assert_int_equal(ring_open(2, &r, NULL), 0);
	int fd = file_open("short", 0);
	uint8_t *bytes = blocks_new(4), *back = blocks_new(5);
	assert_int_equal(pwrite(fd, bytes, 2 * BLOCK + 10, 0), 2 * BLOCK + 10);
	static const struct { size_t align, offset, n_done; } cases[] = {
		{0, 0, 2 * BLOCK + 10}, {BLOCK, 0, 2 * BLOCK + 10}, {BLOCK, 2 * BLOCK, 10}, {0, 3 * BLOCK, 0}, {BLOCK, 3 * BLOCK, 0}};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct ring_op op = {.kind = RING_READ, .fd = fd, .data = back, .n = 4 * BLOCK, .offset = cases[i].offset,
			.align = cases[i].align};
		ring_submit(r, &op);
		assert_int_equal(ring_complete(r, &op), 0);
		assert_int_equal(op.n_done, cases[i].n_done);
		assert_memory_equal(back, bytes + cases[i].offset, op.n_done);
	}
	ring_close(r);
	close(fd);
	free(bytes);
	free(back);
}

static void a_failure_is_the_operations_own(void **state)
{
	(void)state;
	struct ring *r;
	assert_int_equal(ring_open(4, &r, NULL), 0);
	uint8_t *bytes = blocks_new(6);
	int fd = file_open("good", 0), full = open("/dev/full", O_WRONLY);
	struct ring_op bad = {.kind = RING_WRITE, .fd = 1000000, .data = bytes, .n = BLOCK}, good = bad, none = bad;
	good.fd = fd;
	none.fd = full;
	ring_queue(r, &bad);
	ring_queue(r, &good);
	ring_queue(r, &none);
	assert_int_equal(ring_complete(r, &good), 0);
	assert_int_equal(ring_complete(r, &bad), -EBADF);
	assert_int_equal(ring_complete(r, &none), -ENOSPC);
	ring_close(r);
	close(fd);
	close(full);
	free(bytes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(many_operations_pass_through_a_small_ring),
		cmocka_unit_test(registered_memory_and_files_write_the_same_bytes),
		cmocka_unit_test(a_read_ends_where_the_file_does),
		cmocka_unit_test(a_failure_is_the_operations_own),
	};
	directory = fixture_directory();
	int rc = cmocka_run_group_tests(tests, NULL, NULL);
	fixture_remove(directory);
	return rc;
}
