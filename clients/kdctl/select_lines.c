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

static bool is_empty(const char *line)
{
	return line[strspn(line, " \t\r\n")] == '\0';
}

int lines_fail(struct kdctl *k, uint64_t number, const char *what)
{
	return kdctl_fail(k, "line %" PRIu64 ": %s", number + 1, what);
}

static FILE *lines_open(struct kdctl *k, const char *path)
{
	FILE *f = fopen(path, "re");
	if (!f)
		kdctl_fail(k, "%s: %s", path, strerror(errno));
	return f;
}

int lines_each(struct kdctl *k, const char *path, line_fn *take, void *arg)
{
	FILE *f = lines_open(k, path);
	char *line = NULL;
	size_t size = 0;
	uint64_t number = 0;
	int status = f ? 0 : 1;
	for (ssize_t n; !status && (n = getline(&line, &size, f)) > 0;) {
		json_error_t error;
		if (is_empty(line))
			continue;
		json_t *j = json_loadb(line, (size_t)n, JSON_REJECT_DUPLICATES, &error);
		if (!json_is_object(j))
			status = kdctl_fail(k, "%s: item %" PRIu64 ": a JSON object is expected%s%s", path, number + 1, j ? "" : ": ",
					    j ? "" : error.text);
		else if (!json_object_get(j, "summary"))
			status = take(arg, number++, j);
		json_decref(j);
	}
	if (f && !status && ferror(f))
		status = kdctl_fail(k, "%s: %s", path, strerror(errno));
	if (!status && !number)
		status = kdctl_fail(k, "%s: there is nothing in it", path);
	free(line);
	if (f)
		fclose(f);
	return status;
}

static bool is_summary(const char *line)
{
	return strncmp(line, "{\"summary\":", 11) == 0;
}

// One line on: to the file, else to stdout, whose failure is told at the end of the program.
static int line_write(struct kdctl *k, struct output *to, const char *line, size_t n)
{
	if (!to)
		return fwrite(line, 1, n, stdout) == n ? 0 : 1;
	return output_write(to, line, n) ? kdctl_fail_with(k, to->err->field, to->err->message) : 0;
}

static int copy(struct kdctl *k, const char *path, const bool *chosen, uint64_t n, struct output *to)
{
	FILE *f = lines_open(k, path);
	char *line = NULL;
	size_t size = 0;
	uint64_t number = 0;
	int status = f ? 0 : 1;
	for (ssize_t bytes; !status && (bytes = getline(&line, &size, f)) > 0;) {
		if (is_empty(line) || is_summary(line))
			continue;
		if (number == n)
			status = kdctl_fail(k, "%s: it has more items than there are values (%" PRIu64 ")", path, n);
		else if (chosen[number++])
			status = line_write(k, to, line, (size_t)bytes);
	}
	if (!status && f && ferror(f))
		status = kdctl_fail(k, "%s: %s", path, strerror(errno));
	if (!status && number < n)
		status = kdctl_fail(k, "%s: it has %" PRIu64 " items, but there are %" PRIu64 " values", path, number, n);
	free(line);
	if (f)
		fclose(f);
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
