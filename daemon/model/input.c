// SPDX-License-Identifier: Apache-2.0
#include "daemon/model/input.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/error.h"
#include "kernels/dtype.h"

int input_open(struct input *in, const char *path, struct error *err)
{
	struct stat st;
	const char *slash = strrchr(path, '/');
	*in = (struct input){.fd = -1};
	snprintf(in->name, sizeof in->name, "%s", slash && slash[1] ? slash + 1 : path);
	// O_NONBLOCK: opening a FIFO by mistake must not wait for a writer.
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return error_system(err, errno, in->name, "cannot open %s", path);
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
		close(fd);
		return error_set(err, ERROR_INVALID, in->name, "%s is not a regular file", path);
	}
	in->fd = fd;
	in->size = (uint64_t)st.st_size;
	in->modified = st.st_mtim;
	return 0;
}

void input_open_bytes(struct input *in, const void *bytes, size_t n, const char *name)
{
	*in = (struct input){.fd = -1, .bytes = bytes, .size = n};
	snprintf(in->name, sizeof in->name, "%s", name);
}

void input_close(struct input *in)
{
	if (in->fd >= 0)
		close(in->fd);
	*in = (struct input){.fd = -1};
}

static int read_fd(const struct input *in, uint64_t offset, uint8_t *to, size_t n, struct error *err)
{
	while (n) {
		ssize_t got = pread(in->fd, to, n, (off_t)offset);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return error_system(err, errno, in->name, "%s: cannot read", in->name);
		if (got == 0)
			return error_set(err, ERROR_CORRUPT, in->name, "%s: the file has become shorter while being read", in->name);
		to += got;
		offset += (uint64_t)got;
		n -= (size_t)got;
	}
	return 0;
}

int input_read(const struct input *in, uint64_t offset, void *to, size_t n, struct error *err)
{
	if (offset > in->size || n > in->size - offset)
		return error_set(err, ERROR_CORRUPT, in->name, "%s: %zu bytes at %llu lie beyond the end (%llu)", in->name, n,
				 (unsigned long long)offset, (unsigned long long)in->size);
	if (in->fd >= 0)
		return read_fd(in, offset, to, n, err);
	if (n)
		memcpy(to, in->bytes + offset, n);
	return 0;
}

bool input_is_changed(const struct input *in)
{
	struct stat st;
	if (in->fd < 0)
		return false;
	return fstat(in->fd, &st) < 0 || (uint64_t)st.st_size != in->size || st.st_mtim.tv_sec != in->modified.tv_sec ||
		st.st_mtim.tv_nsec != in->modified.tv_nsec;
}

int input_read_rows(const struct input *in, const struct tensor *t, uint64_t offset, uint64_t first, uint64_t n, void *to,
		    struct error *err)
{
	uint64_t n_rows = t->n_dims == 1 ? 1 : t->dims[0], row = t->n_bytes / n_rows;      // the file's loader saw to whole rows
	if (first > n_rows || n > n_rows - first)
		return error_set(err, ERROR_INVALID, NULL, "rows %llu to %llu of %llu", (unsigned long long)first,
				 (unsigned long long)first + n, (unsigned long long)n_rows);
	if (input_is_changed(in))
		return error_set(err, ERROR_CONFLICT, NULL, "%s was written to since it was loaded", in->name);
	return input_read(in, offset + first * row, to, (size_t)(n * row), err);
}

int input_read_file(const char *path, size_t max_bytes, char **ret_bytes, size_t *ret_n, struct error *err)
{
	struct input in;
	int r = input_open(&in, path, err);
	if (r < 0)
		return r;
	char *bytes = NULL;
	if (in.size > max_bytes)
		r = error_set(err, ERROR_TOO_LARGE, in.name, "%s has %llu bytes; at most %zu are read", in.name,
			      (unsigned long long)in.size, max_bytes);
	else if (!(bytes = malloc((size_t)in.size + 1)))
		r = error_set(err, ERROR_MEMORY, in.name, "no memory for %s", in.name);
	else
		r = input_read(&in, 0, bytes, (size_t)in.size, err);
	if (r < 0) {
		free(bytes);
	} else {
		bytes[in.size] = '\0';
		*ret_bytes = bytes;
		*ret_n = (size_t)in.size;
	}
	input_close(&in);
	return r;
}
