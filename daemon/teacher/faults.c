// SPDX-License-Identifier: Apache-2.0
#include "daemon/teacher/faults.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/error.h"
#include "common/output.h"

#define FILE_NAME "gpu.faults"
#define MAX_TEXT 256

static int read_text(const char *path, char ret[MAX_TEXT], struct error *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0 && errno == ENOENT)
		return -ENOENT;
	ssize_t n = fd < 0 ? -1 : read(fd, ret, MAX_TEXT - 1);
	int r = n < 0 ? error_system(err, errno, path, "cannot read %s", path) : 0;
	if (fd >= 0)
		close(fd);
	ret[n < 0 ? 0 : n] = '\0';
	return r;
}

// A line of each: name, space, number. False when it is another's text.
static bool read_counts(const char *text, uint64_t ret[N_DEVICE_FAULTS])
{
	for (enum device_fault f = DEVICE_FAULT_NONE + 1; f < N_DEVICE_FAULTS; f++) {
		size_t n = strlen(device_fault_name(f));
		if (strncmp(text, device_fault_name(f), n) != 0 || text[n] != ' ' || text[n + 1] < '0' || text[n + 1] > '9')
			return false;
		char *end;
		ret[f] = strtoull(text + n + 1, &end, 10);
		if (*end != '\n')
			return false;
		text = end + 1;
	}
	return !*text;
}

static int write_counts(char *to, size_t n, const struct faults *faults)
{
	int at = 0;
	for (enum device_fault f = DEVICE_FAULT_NONE + 1; f < N_DEVICE_FAULTS; f++)
		at += snprintf(to + at, n - (size_t)at, "%s %" PRIuFAST64 "\n", device_fault_name(f), atomic_load(&faults->n[f]));
	return at;
}

int faults_open(struct faults *f, const char *directory, struct error *err)
{
	char text[MAX_TEXT];
	uint64_t n[N_DEVICE_FAULTS] = {0};
	if (!directory || !*directory)
		return 0;
	if (asprintf(&f->path, "%s/" FILE_NAME, directory) < 0) {
		f->path = NULL;
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a path");
	}
	int r = read_text(f->path, text, err);
	if (r < 0)
		return r == -ENOENT ? 0 : r;
	if (!read_counts(text, n))
		return error_set(err, ERROR_CORRUPT, f->path, "%s does not count faults", f->path);
	for (int i = 0; i < N_DEVICE_FAULTS; i++)
		atomic_store(&f->n[i], n[i]);
	return 0;
}

void faults_close(struct faults *f)
{
	free(f->path);
	f->path = NULL;
}

int faults_note(struct faults *f, enum device_fault fault, struct error *err)
{
	char text[MAX_TEXT];
	struct output o;
	atomic_fetch_add(&f->n[fault], 1);
	if (!f->path)
		return 0;
	int n = write_counts(text, sizeof text, f);
	int r = output_open(&o, f->path, err);
	if (!r)
		r = output_write(&o, text, (size_t)n);
	return output_close(&o, r);
}
