// SPDX-License-Identifier: Apache-2.0
// Settings from texts and files. A reader stops at the first error, or goes on and collects them all, for people who mend a file.
#include "daemon/config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/error.h"

#define CONFIG_MAX_FILE_BYTES (1u << 20)    // settings, not data: a bigger file is the wrong file
#define SOURCE_SHOWN 100                    // bytes of its path, the last ones: messages have room for no longer one and the line

void config_errors_add(struct config_errors *all, const struct error *e)
{
	struct error *items = all->n < CONFIG_MAX_ERRORS ? reallocarray(all->items, all->n + 1, sizeof *items) : NULL;
	if (!items) {
		all->n_more++;
		return;
	}
	all->items = items;
	items[all->n++] = *e;
}

void config_errors_done(struct config_errors *all)
{
	free(all->items);
	*all = (struct config_errors){0};
}

bool config_errors_any(const struct config_errors *all)
{
	return all->n || all->n_more;
}

static char *trim(char *text)
{
	while (*text == ' ' || *text == '\t')
		text++;
	size_t n = strlen(text);
	while (n && strchr(" \t\r", text[n - 1]))
		n--;
	text[n] = '\0';
	return text;
}

static void cut_comment(char *line)
{
	for (char *p = line; *p; p++)
		if (*p == '#' && (p == line || p[-1] == ' ' || p[-1] == '\t')) {
			*p = '\0';
			return;
		}
}

// What reading one text needs; `seen`: the lines that set the rows already, 0 = none.
struct config_text { const struct config_option *table; size_t n; void *target; const char *source; size_t *seen; };

static int read_line(const struct config_text *t, char *line, size_t number, struct error *err)
{
	char where[SOURCE_SHOWN + 32];
	size_t n = strlen(t->source), hidden = n > SOURCE_SHOWN ? n - SOURCE_SHOWN : 0;
	snprintf(where, sizeof where, "%s%s:%zu", hidden ? "..." : "", t->source + hidden, number);
	cut_comment(line);
	line = trim(line);
	if (!*line)
		return 0;
	char *equals = strchr(line, '=');
	if (!equals)
		return error_set(err, ERROR_INVALID, NULL, "%s: expected \"key = value\", found \"%s\"", where, line);
	*equals = '\0';
	const char *name = trim(line), *value = trim(equals + 1);
	const struct config_option *o = config_find(t->table, t->n, name);
	if (o && o->type != CONFIG_LIST) {
		size_t *seen = &t->seen[o - t->table];
		if (*seen)
			return error_set(err, ERROR_INVALID, name, "%s: %s is set twice (before in line %zu)", where, name, *seen);
		*seen = number;
	}
	return config_set(t->table, t->n, t->target, name, value, where, err);
}

// all NULL: stops at the first error. Else every line is read; returns the first error all the same.
static int read_text(struct config_text *t, const char *text, size_t n_bytes, struct config_errors *all, struct error *err)
{
	int r = 0;
	char *copy = strndup(text, n_bytes);
	t->seen = calloc(t->n ? t->n : 1, sizeof *t->seen);
	if (!copy || !t->seen) {
		r = error_set(err, ERROR_MEMORY, NULL, "%s: out of memory", t->source);
		goto out;
	}
	char *rest = copy, *line;
	for (size_t number = 1; (r == 0 || all) && (line = strsep(&rest, "\n")); number++) {
		struct error e = {0};
		int k = read_line(t, line, number, &e);
		if (k && all)
			config_errors_add(all, &e);
		if (k && !r) {
			r = k;
			if (err)
				*err = e;
		}
	}
out:
	free(copy);
	free(t->seen);
	return r;
}

static int check_text(const struct config_option *table, size_t n, void *target, const char *text, size_t n_bytes, const char *source,
		      struct config_errors *all, struct error *err)
{
	struct config_text t = {table, n, target, source, NULL};
	if (memchr(text, '\0', n_bytes))
		return error_set(err, ERROR_INVALID, NULL, "%s: holds a zero byte: not a text file", source);
	return read_text(&t, text, n_bytes, all, err);
}

int config_read_text(const struct config_option *table, size_t n, void *target, const char *text, size_t n_bytes, const char *source,
		     struct error *err)
{
	return check_text(table, n, target, text, n_bytes, source, NULL, err);
}

static int read_all(int fd, size_t n, char *to, size_t *ret_n)
{
	size_t have = 0;
	while (have < n) {
		ssize_t k = read(fd, to + have, n - have);
		if (k < 0 && errno == EINTR)
			continue;
		if (k < 0)
			return -errno;
		if (k == 0)
			break;
		have += (size_t)k;
	}
	*ret_n = have;
	return 0;
}

static int read_file(const char *path, char **ret_text, size_t *ret_n, struct error *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return error_system(err, errno, path, "cannot open %s", path);
	char *text = malloc(CONFIG_MAX_FILE_BYTES + 1);
	int r = text ? read_all(fd, CONFIG_MAX_FILE_BYTES + 1, text, ret_n) : -ENOMEM;
	if (!text)
		error_set(err, ERROR_MEMORY, path, "out of memory");
	else if (r)
		r = error_system(err, r, path, "cannot read %s", path);
	else if (*ret_n > CONFIG_MAX_FILE_BYTES)
		r = error_set(err, ERROR_TOO_LARGE, path, "%s is over %u bytes: not a settings file", path, CONFIG_MAX_FILE_BYTES);
	close(fd);
	if (r)
		free(text);
	else
		*ret_text = text;
	return r;
}

static int check_file(const struct config_option *table, size_t n, void *target, const char *path, struct config_errors *all,
		      struct error *err)
{
	size_t n_bytes = 0;
	char *text = NULL;
	int r = read_file(path, &text, &n_bytes, err);
	r = r ? r : check_text(table, n, target, text, n_bytes, path, all, err);
	free(text);
	return r;
}

int config_read_file(const struct config_option *table, size_t n, void *target, const char *path, struct error *err)
{
	return check_file(table, n, target, path, NULL, err);
}

int config_check_file(const struct config_option *table, size_t n, void *target, const char *path, struct config_errors *all)
{
	struct error err = {0};
	size_t before = all->n + all->n_more;
	int r = check_file(table, n, target, path, all, &err);
	if (r && all->n + all->n_more == before)      // of the file, not of a line
		config_errors_add(all, &err);
	return r;
}
