// SPDX-License-Identifier: Apache-2.0
// Of a long file, lines at evenly spread places are read: the one after the line in which the place lies. A million steps cost as much as
// a thousand.
#include "daemon/train/history.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/jansson.h"
#include "daemon/train/run.h"

#define HISTORY_WHOLE_BYTES (1 << 20)  // up to here every line is read

struct history {
	int fd;
	int64_t n_bytes, next;         // next: the first byte behind the line read last
	json_t *points;
	char block[2 * RUN_LINE_MAX];  // a line's rest and a whole line
};

static double step_of(const json_t *point)
{
	return json_number_value(json_object_get(point, "step"));
}

int history_add(json_t *points, json_t *point)
{
	if (!json_is_number(json_object_get(point, "step"))) {
		json_decref(point);
		return 0;
	}
	for (size_t n; (n = json_array_size(points)) && step_of(json_array_get(points, n - 1)) >= step_of(point);)
		json_array_remove(points, n - 1);
	return json_array_append_new(points, point);
}

// Finds the whole line that begins at or after `at`: at a place within the file, after the line that the place lies in. False: there is
// none that is short enough.
static bool line_find(struct history *h, int64_t at, const char **ret_line, size_t *ret_n)
{
	int64_t from = at ? at - 1 : 0;
	ssize_t n = pread(h->fd, h->block, sizeof h->block, (off_t)from);
	if (n <= 0)
		return false;
	const char *before = at ? memchr(h->block, '\n', (size_t)n) : NULL, *begin = before ? before + 1 : h->block;
	const char *end = at && !before ? NULL : memchr(begin, '\n', (size_t)(h->block + n - begin));
	if (!end)
		return false;
	*ret_line = begin;
	*ret_n = (size_t)(end - begin);
	h->next = from + (end + 1 - h->block);
	return true;
}

static int lines_read(struct history *h)
{
	bool every = h->n_bytes <= HISTORY_WHOLE_BYTES;
	h->next = 0;
	for (int64_t i = 0; every ? h->next < h->n_bytes : i < HISTORY_POINTS; i++) {
		int64_t at = every ? h->next : h->n_bytes / HISTORY_POINTS * i;
		const char *line;
		size_t n;
		if (at < h->next)
			continue;
		if (!line_find(h, at, &line, &n)) {
			h->next = at + RUN_LINE_MAX;           // a line that no worker writes
			continue;
		}
		bool starved;
		json_t *point = jansson_load(line, n, 0, NULL, &starved);
		if (starved || (point && history_add(h->points, point)))
			return -ENOMEM;
	}
	return 0;
}

// The last whole line, wherever the spread ended.
static int last_read(struct history *h)
{
	int64_t from = h->n_bytes > RUN_LINE_MAX ? h->n_bytes - RUN_LINE_MAX : 0;
	ssize_t n = pread(h->fd, h->block, RUN_LINE_MAX, (off_t)from);
	while (n > 0 && h->block[n - 1] != '\n')
		n--;
	if (n <= 1)
		return 0;
	const char *begin = memrchr(h->block, '\n', (size_t)n - 1);
	begin = begin ? begin + 1 : h->block;
	bool starved;
	json_t *point = jansson_load(begin, (size_t)(h->block + n - 1 - begin), 0, NULL, &starved);
	return starved ? -ENOMEM : point ? history_add(h->points, point) : 0;
}

// Every second one until there are few enough, the last one stays.
static void thin(json_t *points)
{
	for (size_t n; (n = json_array_size(points)) > HISTORY_POINTS;)
		for (size_t back = 1; back < n; back += 2)
			json_array_remove(points, n - 1 - back);
}

int history_read(const char *path, json_t **ret_points, struct error *err)
{
	struct stat st;
	struct history h = {.fd = open(path, O_RDONLY | O_CLOEXEC), .points = json_array()};
	int r = 0;
	if (!h.points)
		r = error_set(err, ERROR_MEMORY, NULL, "out of memory");
	else if (h.fd < 0 && errno != ENOENT)
		r = error_system(err, errno, NULL, "cannot open %s", path);
	else if (h.fd >= 0 && fstat(h.fd, &st) < 0)
		r = error_system(err, errno, NULL, "cannot read %s", path);
	if (r == 0 && h.fd >= 0) {
		h.n_bytes = st.st_size;
		if (lines_read(&h) || last_read(&h))
			r = error_set(err, ERROR_MEMORY, NULL, "out of memory");
	}
	if (h.fd >= 0)
		close(h.fd);
	if (r) {
		json_decref(h.points);
		return r;
	}
	thin(h.points);
	*ret_points = h.points;
	return 0;
}
