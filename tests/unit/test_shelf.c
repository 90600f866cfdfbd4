// SPDX-License-Identifier: Apache-2.0
// The file of weights: what comes back, in any order, and what happens when it cannot.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/teacher/shelf.h"

#define PIECE 20000          // no whole number of blocks
#define N_PIECES 23

static char directory[256];

static int make_directory(void **state)
{
	(void)state;
	const char *tmp = getenv("TMPDIR");
	snprintf(directory, sizeof directory, "%s/kdserved-shelf-XXXXXX", tmp ? tmp : "/tmp");
	return mkdtemp(directory) ? 0 : -1;
}

static int remove_directory(void **state)
{
	(void)state;
	return rmdir(directory);      // fails where anything was left behind
}

static size_t length_of(uint32_t piece)
{
	return PIECE - 100 * piece;
}

static void fill(uint8_t *to, uint32_t piece)
{
	for (size_t i = 0; i < length_of(piece); i++)
		to[i] = (uint8_t)(i * 31 + piece * 7 + (i >> 8));
}

static struct shelf *open_filled(const struct backend_shelf **ret_door)
{
	struct error err = {0};
	struct shelf *s;
	if (shelf_open(directory, 0, PIECE, &s, &err))
		fail_msg("%s", err.message);
	const struct backend_shelf *door = shelf_door(s);
	assert_true(door->piece_bytes >= PIECE && door->n_ahead >= 1 && door->n_ahead <= BACKEND_MAX_AHEAD);
	for (uint32_t i = 0; i < N_PIECES; i++) {
		uint8_t *to = door->begin(door->shelf, &err);
		if (!to)
			fail_msg("%s", err.message);
		assert_int_equal((uintptr_t)to % 64, 0);
		fill(to, i);
		if (door->append(door->shelf, length_of(i), &err))
			fail_msg("%s", err.message);
	}
	*ret_door = door;
	return s;
}

static void expect_piece(const struct backend_shelf *door, uint32_t piece, const uint32_t *next, uint32_t n_next)
{
	uint8_t want[PIECE];
	struct error err = {0};
	const uint8_t *got = door->find(door->shelf, piece, next, n_next, &err);
	if (!got)
		fail_msg("piece %u: %s", piece, err.message);
	fill(want, piece);
	assert_memory_equal(got, want, length_of(piece));
}

static void pieces_come_back_in_order_and_round_again(void **state)
{
	(void)state;
	const struct backend_shelf *door;
	struct shelf *s = open_filled(&door);
	struct shelf_stats stats;
	for (uint32_t i = 0; i < 3 * N_PIECES; i++) {
		uint32_t next[] = {(i + 1) % N_PIECES, (i + 2) % N_PIECES};
		expect_piece(door, i % N_PIECES, next, 2);
	}
	shelf_stats(s, &stats);
	assert_true(stats.file_bytes >= (uint64_t)N_PIECES * (PIECE - 100 * N_PIECES));
	// each once, a few ahead
	assert_in_range(stats.read_bytes, 3 * stats.file_bytes, 3 * stats.file_bytes + 3 * door->piece_bytes);
	shelf_close(s);
}

static void pieces_come_back_in_any_order_with_wrong_guesses(void **state)
{
	(void)state;
	const struct backend_shelf *door;
	struct shelf *s = open_filled(&door);
	uint32_t random = 1;
	for (int i = 0; i < 1000; i++) {
		random = random * 1664525 + 1013904223;
		uint32_t next[] = {random >> 8 & 15, random >> 12 & 15};
		expect_piece(door, (random >> 20) % N_PIECES, next, random >> 16 & 1 ? 2 : 0);
	}
	shelf_close(s);
}

static void a_shelf_without_pieces_makes_no_file(void **state)
{
	(void)state;
	struct shelf *s;
	assert_int_equal(shelf_open("/nonexistent", 1 << 20, PIECE, &s, NULL), 0);
	assert_int_equal(shelf_door(s)->piece_bytes % 4096, 0);
	shelf_close(s);
	assert_null(shelf_close(NULL));
}

static void a_missing_directory_is_named(void **state)
{
	(void)state;
	struct error err = {0};
	struct shelf *s;
	assert_int_equal(shelf_open("/nonexistent", 0, PIECE, &s, NULL), 0);
	assert_null(shelf_door(s)->begin(s, &err));
	assert_string_equal(err.field, "stream-directory");
	assert_non_null(strstr(err.message, "/nonexistent"));
	shelf_close(s);
}

// This process's descriptor of the file without a name.
static int find_file(void)
{
	char path[64], target[512];
	DIR *d = opendir("/proc/self/fd");
	int fd = -1;
	for (struct dirent *e; d && fd < 0 && (e = readdir(d));) {
		snprintf(path, sizeof path, "/proc/self/fd/%.20s", e->d_name);
		ssize_t n = readlink(path, target, sizeof target - 1);
		if (n > 0 && !strncmp(target, directory, strlen(directory)))
			fd = atoi(e->d_name);
	}
	closedir(d);
	assert_true(fd >= 0);
	return fd;
}

static void a_file_cut_short_is_an_error_not_bytes(void **state)
{
	(void)state;
	struct error err = {0};
	const struct backend_shelf *door;
	struct shelf *s = open_filled(&door);
	expect_piece(door, 0, NULL, 0);
	assert_int_equal(ftruncate(find_file(), 4 * PIECE), 0);
	assert_null(door->find(door->shelf, N_PIECES - 1, NULL, 0, &err));
	assert_string_equal(err.field, "stream-directory");
	assert_non_null(strstr(err.message, "cannot be read"));
	expect_piece(door, 1, (uint32_t[]){N_PIECES - 1}, 1);      // what is there still is
	assert_null(door->find(door->shelf, N_PIECES - 1, NULL, 0, &err));
	expect_piece(door, 2, NULL, 0);
	shelf_close(s);
}

static void a_full_disk_is_found_out_while_writing(void **state)
{
	(void)state;
	struct error err = {0};
	struct rlimit before, small;
	struct shelf *s;
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
	small = before;
	small.rlim_cur = 3 * 4096;
	assert_int_equal(shelf_open(directory, 0, PIECE, &s, NULL), 0);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	const struct backend_shelf *door = shelf_door(s);
	int r = 0;
	for (uint32_t i = 0; i < N_PIECES && r == 0; i++) {
		uint8_t *to = door->begin(door->shelf, &err);
		if (to)
			fill(to, i);
		r = to ? door->append(door->shelf, length_of(i), &err) : -1;
	}
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
	assert_true(r < 0);
	assert_string_equal(err.field, "stream-directory");
	shelf_close(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pieces_come_back_in_order_and_round_again),
		cmocka_unit_test(pieces_come_back_in_any_order_with_wrong_guesses), cmocka_unit_test(a_shelf_without_pieces_makes_no_file),
		cmocka_unit_test(a_missing_directory_is_named), cmocka_unit_test(a_file_cut_short_is_an_error_not_bytes),
		cmocka_unit_test(a_full_disk_is_found_out_while_writing),
	};
	return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
