// SPDX-License-Identifier: Apache-2.0
#include "daemon/train/run.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"
#include "common/output.h"
#include "daemon/clock.h"
#include "daemon/jansson.h"

#define RUN_STATUS_MAX_BYTES (1 << 20)
#define RUN_MAX_PROGRESS_KEYS 64       // a worker has about twenty, and three of each loss
#define RUN_MAX_KEY 40
#define RUN_MAX_TEXT 256

static const char *const state_names[N_RUN_STATES] = {"queued", "running", "succeeded", "failed", "stopped", "restarting"};

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	long ms = t.tv_nsec / 1000000;
	return (double)t.tv_sec + (double)ms / 1000;
}

int run_init(struct run *r, const char *id)
{
	*r = (struct run){.created = now(), .progress = json_object()};
	snprintf(r->id, sizeof r->id, "%s", id);
	return r->progress ? 0 : -ENOMEM;
}

void run_done(struct run *r)
{
	json_decref(r->progress);
	r->progress = NULL;
}

bool run_id_valid(const char *id)
{
	size_t n = strspn(id, "abcdefghijklmnopqrstuvwxyz0123456789_-");
	return n >= 1 && n <= RUN_ID_MAX && id[n] == '\0';
}

const char *run_state_name(enum run_state state)
{
	return state_names[state];
}

int run_path(const char *root, const char *id, const char *leaf, char ret_path[RUN_PATH_MAX])
{
	int n = snprintf(ret_path, RUN_PATH_MAX, "%s/%s%s%s", root, id, *leaf ? "/" : "", leaf);
	return n >= 0 && n < RUN_PATH_MAX ? 0 : -ENAMETOOLONG;
}

static double seconds_until(uint64_t ms)
{
	uint64_t at = clock_ms();
	return ms > at ? (double)(ms - at) * 1e-3 : 0;
}

json_t *run_to_json(const struct run *r)
{
	json_t *j = json_pack("{s:s, s:s, s:f}", "id", r->id, "state", run_state_name(r->state), "created", r->created);
	int bad = !j;
	if (j && r->started > 0)
		bad |= json_object_set_new(j, "started", json_real(r->started));
	if (j && r->finished > 0)
		bad |= json_object_set_new(j, "finished", json_real(r->finished));
	if (j && *r->reason)
		bad |= json_object_set_new(j, "reason", json_string(r->reason));
	if (j && r->pid)
		bad |= json_object_set_new(j, "pid", json_integer(r->pid));
	if (j && r->state == RUN_RESTARTING)
		bad |= json_object_set_new(j, "restarting_in_s", json_real(seconds_until(r->restart_at_ms)));
	if (j && r->restarts)
		bad |= json_object_set_new(j, "restarts", json_integer(r->restarts));
	if (j && r->resume)
		bad |= json_object_set_new(j, "resumed", json_true());
	if (j)
		bad |= json_object_set_new(j, "progress", json_deep_copy(r->progress));
	if (bad) {
		json_decref(j);
		return NULL;
	}
	return j;
}

static bool key_valid(const char *key)
{
	size_t n = strspn(key, "abcdefghijklmnopqrstuvwxyz0123456789_");
	return n >= 1 && n <= RUN_MAX_KEY && key[n] == '\0';
}

static bool value_valid(const json_t *v)
{
	return json_is_number(v) || json_is_boolean(v) || json_is_null(v) || (json_is_string(v) && json_string_length(v) <= RUN_MAX_TEXT);
}

static void progress_merge(json_t *progress, json_t *from)
{
	const char *key;
	json_t *value;
	json_object_foreach(from, key, value) {
		bool room = json_object_size(progress) < RUN_MAX_PROGRESS_KEYS || json_object_get(progress, key);
		if (room && key_valid(key) && value_valid(value))
			json_object_set(progress, key, value);         // out of memory: the old value stays
	}
}

bool run_take_progress(struct run *r, const char *line, size_t n)
{
	json_t *j = jansson_load(line, n, JSON_REJECT_DUPLICATES, NULL, NULL);
	bool taken = json_is_object(j);
	if (taken)
		progress_merge(r->progress, j);
	json_decref(j);
	return taken;
}

static double number_of(const json_t *object, const char *key)
{
	const json_t *v = json_object_get(object, key);
	return json_is_number(v) ? json_number_value(v) : 0;
}

static int state_of(const json_t *object, enum run_state *ret)
{
	const char *name = json_string_value(json_object_get(object, "state"));
	for (int i = 0; name && i < N_RUN_STATES; i++)
		if (strcmp(name, state_names[i]) == 0) {
			*ret = (enum run_state)i;
			return 0;
		}
	return -EINVAL;
}

int run_load(const char *root, const char *id, struct run *ret, struct error *err)
{
	char path[RUN_PATH_MAX];
	struct stat st;
	int r = run_init(ret, id);
	if (r)
		return error_set(err, ERROR_MEMORY, id, "out of memory");
	r = run_path(root, id, "status.json", path);
	if (r)
		return error_system(err, r, id, "the path of the run is too long");
	if (stat(path, &st) < 0)
		return error_system(err, errno, id, "cannot read status.json");
	bool starved = false;
	json_t *j = st.st_size <= RUN_STATUS_MAX_BYTES ? jansson_load_file(path, JSON_REJECT_DUPLICATES, NULL, &starved) : NULL;
	if (starved)
		return error_set(err, ERROR_MEMORY, id, "no memory for status.json");
	if (!json_is_object(j) || state_of(j, &ret->state)) {
		r = error_set(err, ERROR_CORRUPT, id, "status.json is damaged");
		goto out;
	}
	ret->created = number_of(j, "created");
	ret->started = number_of(j, "started");
	ret->finished = number_of(j, "finished");
	ret->pid = json_integer_value(json_object_get(j, "pid"));      // 0 for anything else
	double restarts = number_of(j, "restarts");
	ret->restarts = restarts > 0 && restarts < UINT32_MAX ? (uint32_t)restarts : 0;
	ret->resume = json_is_true(json_object_get(j, "resumed"));
	const char *reason = json_string_value(json_object_get(j, "reason"));
	snprintf(ret->reason, sizeof ret->reason, "%s", reason ? reason : "");
	if (json_is_object(json_object_get(j, "progress")))
		progress_merge(ret->progress, json_object_get(j, "progress"));
out:
	json_decref(j);
	return r;
}

static int write_all(int fd, const char *bytes, size_t n)
{
	while (n) {
		ssize_t done = write(fd, bytes, n);
		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return -errno;
		bytes += done;
		n -= (size_t)done;
	}
	return 0;
}

// The file is synced in any case: else a power cut could take the old one along, though that was durable.
static int file_replace(const char *folder, const char *leaf, const void *bytes, size_t n, bool durable)
{
	char path[RUN_PATH_MAX], temporary[RUN_PATH_MAX];
	if (run_path(folder, leaf, "", path) || snprintf(temporary, sizeof temporary, "%s/.%s.new", folder, leaf) >= (int)sizeof temporary)
		return -ENAMETOOLONG;
	int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
	if (fd < 0)
		return -errno;
	int r = write_all(fd, bytes, n);
	if (r == 0 && fsync(fd) < 0)
		r = -errno;
	if (close(fd) < 0 && r == 0)
		r = -errno;
	if (r == 0 && rename(temporary, path) < 0)
		r = -errno;
	if (r)
		unlink(temporary);
	return r == 0 && durable ? output_sync_folder(folder) : r;
}

int run_write_file(const char *root, const char *id, const char *leaf, const void *bytes, size_t n, struct error *err)
{
	char folder[RUN_PATH_MAX];
	int r = run_path(root, id, "", folder);
	if (r == 0)
		r = file_replace(folder, leaf, bytes, n, true);
	return r ? error_system(err, r, id, "cannot write %s", leaf) : 0;
}

int run_save(const char *root, const struct run *r, bool durable, struct error *err)
{
	char folder[RUN_PATH_MAX];
	json_t *j = run_to_json(r);
	char *text = j ? jansson_dump(j, JSON_INDENT(1)) : NULL;
	json_decref(j);
	if (!text)
		return error_set(err, ERROR_MEMORY, r->id, "out of memory");
	int k = run_path(root, r->id, "", folder);
	if (k == 0)
		k = file_replace(folder, "status.json", text, strlen(text), durable);
	free(text);
	return k ? error_system(err, k, r->id, "cannot write status.json") : 0;
}

void run_last_line(const char *root, const char *id, int64_t from, char ret_line[RUN_REASON_MAX])
{
	char path[RUN_PATH_MAX], tail[4096];
	ret_line[0] = '\0';
	if (run_path(root, id, "log", path))
		return;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	int64_t size = lseek(fd, 0, SEEK_END), start = size - (int64_t)sizeof tail;
	if (start < from)
		start = from;
	ssize_t n = size > start ? pread(fd, tail, (size_t)(size - start), start) : 0;
	close(fd);
	while (n > 0 && (tail[n - 1] == '\n' || tail[n - 1] == '\r' || tail[n - 1] == ' '))
		n--;
	ssize_t begin = n;
	while (begin > 0 && tail[begin - 1] != '\n' && tail[begin - 1] != '\r')
		begin--;
	if (n - begin >= RUN_REASON_MAX)
		n = begin + RUN_REASON_MAX - 1;
	for (ssize_t i = begin; i < n; i++)    // JSON and terminals see it: printable ASCII only
		*ret_line++ = tail[i] >= 0x20 && tail[i] < 0x7f ? tail[i] : '?';
	*ret_line = '\0';
}
