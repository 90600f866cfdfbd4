// SPDX-License-Identifier: Apache-2.0
// Files of JSON lines: read one after the other, copied in part.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/select.h"
#include "common/error.h"
#include "common/output.h"
#include "daemon/jansson.h"

static bool is_empty(const char *line)
{
	return line[strspn(line, " \t\r\n")] == '\0';
}

int lines_fail(struct kdctl *k, uint64_t number, const char *what)
{
	return kdctl_fail(k, "line %" PRIu64 ": %s", number + 1, what);
}

// kdctl score's last line, {"summary":{..}}. Items may have a member of that name beside others, or a text in it.
static bool is_summary(const char *line, size_t n, bool *ret_starved)
{
	*ret_starved = false;
	if (strncmp(line, "{\"summary\":", 11) != 0)
		return false;
	json_t *j = jansson_load(line, n, 0, NULL, ret_starved);
	bool is = json_object_size(j) == 1 && json_is_object(json_object_get(j, "summary"));
	json_decref(j);
	return is;
}

// Calls `take` for the text of each item; empty lines and summaries are none. *ret_n: how many there were.
typedef int text_fn(void *arg, uint64_t number, const char *line, size_t n);
static int texts_each(struct kdctl *k, const char *path, text_fn *take, void *arg, uint64_t *ret_n)
{
	FILE *f = fopen(path, "re");
	char *line = NULL;
	size_t size = 0;
	int status = f ? 0 : kdctl_fail(k, "%s: %s", path, strerror(errno));
	*ret_n = 0;
	for (ssize_t n; !status && (n = getline(&line, &size, f)) > 0;) {
		bool starved;
		if (is_empty(line) || is_summary(line, (size_t)n, &starved))
			continue;
		status = starved ? kdctl_fail(k, "%s: no memory", path) : take(arg, (*ret_n)++, line, (size_t)n);
	}
	if (!status && ferror(f))
		status = kdctl_fail(k, "%s: %s", path, strerror(errno));
	free(line);
	if (f)
		fclose(f);
	return status;
}

struct parsing { struct kdctl *k; const char *path; line_fn *take; void *arg; };

static int take_json(void *arg, uint64_t number, const char *line, size_t n)
{
	const struct parsing *p = arg;
	json_error_t error;
	json_t *j = jansson_load(line, n, JSON_REJECT_DUPLICATES, &error, NULL);
	int status = json_is_object(j) ? p->take(p->arg, number, j)
		: kdctl_fail(p->k, "%s: item %" PRIu64 ": a JSON object is expected%s%s", p->path, number + 1,
			j ? "" : ": ", j ? "" : error.text);
	json_decref(j);
	return status;
}

int lines_each(struct kdctl *k, const char *path, line_fn *take, void *arg)
{
	struct parsing p = {k, path, take, arg};
	uint64_t n;
	int status = texts_each(k, path, take_json, &p, &n);
	return status || n ? status : kdctl_fail(k, "%s: there is nothing in it", path);
}

struct copying { struct kdctl *k; const char *path; const bool *chosen; uint64_t n; struct output *to; };

// One line on: to the file, else to stdout, whose failure is told at the end of the program.
static int line_write(struct kdctl *k, struct output *to, const char *line, size_t n)
{
	if (!to)
		return fwrite(line, 1, n, stdout) == n ? 0 : 1;
	return output_write(to, line, n) ? kdctl_fail_with(k, to->err->field, to->err->message) : 0;
}

static int take_copy(void *arg, uint64_t number, const char *line, size_t n)
{
	const struct copying *c = arg;
	if (number == c->n)
		return kdctl_fail(c->k, "%s: it has more items than there are values (%" PRIu64 ")", c->path, c->n);
	return c->chosen[number] ? line_write(c->k, c->to, line, n) : 0;
}

static int copy(struct kdctl *k, const char *path, const bool *chosen, uint64_t n, struct output *to)
{
	struct copying c = {k, path, chosen, n, to};
	uint64_t there;
	int status = texts_each(k, path, take_copy, &c, &there);
	if (!status && there < n)
		status = kdctl_fail(k, "%s: it has %" PRIu64 " items, but there are %" PRIu64 " values", path, there, n);
	return status;
}

int lines_copy(struct kdctl *k, const char *path, const bool *chosen, uint64_t n, const char *output_path)
{
	struct error err = {0};
	struct output to;
	if (!output_path)
		return copy(k, path, chosen, n, NULL);
	int r = output_open(&to, output_path, &err);
	int status = r ? kdctl_fail_with(k, err.field, err.message) : copy(k, path, chosen, n, &to);
	r = output_close(&to, r ? r : status ? -ECANCELED : 0);
	return !status && r ? kdctl_fail_with(k, err.field, err.message) : status;
}
