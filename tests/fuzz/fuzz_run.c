// SPDX-License-Identifier: Apache-2.0
// What the daemon reads of a run: first byte 0 the lines a worker sends, in pieces, 1 status.json, 2 metrics.jsonl, 3 the end of its log. A
// worker may have been killed in the middle of any of them, or be another program altogether.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/train/entry.h"
#include "daemon/train/history.h"
#include "tests/fuzz/fuzz.h"

#define MAX_KEYS 64
#define MAX_TEXT 256

static void require(bool holds)
{
	if (!holds)
		abort();
}

static void progress_check(const json_t *progress)
{
	const char *key;
	json_t *value;
	require(json_is_object(progress) && json_object_size(progress) <= MAX_KEYS);
	json_object_foreach((json_t *)progress, key, value)
		require(!json_is_object(value) && !json_is_array(value) && json_string_length(value) <= MAX_TEXT && *key);
}

static void run_check(const struct run *r)
{
	json_t *j = run_to_json(r);
	char *text = j ? json_dumps(j, 0) : NULL;
	progress_check(r->progress);
	require(text && r->state < N_RUN_STATES && strlen(r->reason) < sizeof r->reason);
	free(text);
	json_decref(j);
}

static void try_lines(const uint8_t *data, size_t size)
{
	struct entry *e = NULL;
	struct histogram seconds = {0};
	int ends[2];
	size_t piece = size && data[0] ? data[0] : 4096;
	require(entry_new("run", &e) == 0 && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
	e->process.progress_fd = ends[0];
	e->step_seconds = &seconds;
	for (size_t at = size ? 1 : 0; at < size;) {
		size_t n = piece < size - at ? piece : size - at;
		ssize_t sent = send(ends[1], data + at, n, MSG_NOSIGNAL);
		at += sent > 0 ? (size_t)sent : 0;
		require(entry_listen(e));
	}
	close(ends[1]);
	require(!entry_listen(e));
	run_check(&e->run);
	entry_free(e);
}

// A folder of our own with one run; the program leaves it empty.
static char root[] = "/tmp/fuzz_run.XXXXXX";

static void root_remove(void)
{
	char path[64];
	for (int i = 0; i < 2; i++) {
		snprintf(path, sizeof path, "%s/run/%s", root, i ? "log" : "status.json");
		unlink(path);
	}
	snprintf(path, sizeof path, "%s/run", root);
	rmdir(path);
	rmdir(root);
}

static void file_write(const char *leaf, const uint8_t *data, size_t size)
{
	static bool made;
	char path[64];
	if (!made) {
		require(mkdtemp(root) != NULL);
		snprintf(path, sizeof path, "%s/run", root);
		require(mkdir(path, 0700) == 0 && atexit(root_remove) == 0);
		made = true;
	}
	snprintf(path, sizeof path, "%s/run/%s", root, leaf);
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	require(fd >= 0 && write(fd, data, size) == (ssize_t)size);
	close(fd);
}

static void try_status(const uint8_t *data, size_t size)
{
	struct run r, again;
	struct error err = {0};
	file_write("status.json", data, size);
	if (run_load(root, "run", &r, &err) == 0) {
		run_check(&r);
		require(run_save(root, &r, false, NULL) == 0 && run_load(root, "run", &again, NULL) == 0);
		require(again.state == r.state && again.pid == r.pid && again.resume == r.resume && strcmp(again.reason, r.reason) == 0);
		require(json_object_size(again.progress) == json_object_size(r.progress));
		run_done(&again);
	} else {
		require(err.code == ERROR_CORRUPT);
	}
	run_done(&r);
}

static void try_history(const uint8_t *data, size_t size)
{
	static int fd = -1;
	char path[32];
	json_t *points = NULL;
	if (fd < 0)
		require((fd = memfd_create("metrics", MFD_CLOEXEC)) >= 0);
	require(ftruncate(fd, 0) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size);
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	require(history_read(path, &points, NULL) == 0 && json_array_size(points) <= HISTORY_POINTS + 1);
	for (size_t i = 0; i < json_array_size(points); i++) {
		double step = json_number_value(json_object_get(json_array_get(points, i), "step"));
		require(i == 0 || json_number_value(json_object_get(json_array_get(points, i - 1), "step")) < step);
	}
	json_decref(points);
}

static void try_log(const uint8_t *data, size_t size)
{
	char line[RUN_REASON_MAX];
	file_write("log", data, size);
	run_last_line(root, "run", size ? data[0] : 0, line);
	require(strlen(line) < sizeof line);
	for (const char *p = line; *p; p++)
		require(*p >= 0x20 && *p < 0x7f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static void (*const tries[])(const uint8_t *, size_t) = {try_lines, try_status, try_history, try_log};
	if (size)
		tries[data[0] & 3](data + 1, size - 1);
	return 0;
}
