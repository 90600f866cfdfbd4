// SPDX-License-Identifier: Apache-2.0
#include "common/output.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/error.h"

int output_open(struct output *o, const char *path, struct error *err)
{
	*o = (struct output){.path = path, .fd = -1, .err = err};
	if (asprintf(&o->temporary, "%s" OUTPUT_TEMPORARY, path) < 0) {
		o->temporary = NULL;
		return error_set(err, ERROR_MEMORY, path, "no memory");
	}
	o->fd = open(o->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
	return o->fd < 0 ? error_system(err, errno, path, "cannot create %s", o->temporary) : 0;
}

static int failed(const struct output *o)
{
	return error_system(o->err, errno, o->path, "cannot write %s", o->temporary);
}

int output_write(struct output *o, const void *bytes, size_t n)
{
	const uint8_t *p = bytes;
	while (n) {
		ssize_t put = write(o->fd, p, n);
		if (put < 0 && errno == EINTR)
			continue;
		if (put < 0)
			return failed(o);
		p += put;
		n -= (size_t)put;
	}
	return 0;
}

int output_write_at(struct output *o, const void *bytes, size_t n, uint64_t offset)
{
	const uint8_t *p = bytes;
	while (n) {
		ssize_t put = pwrite(o->fd, p, n, (off_t)offset);
		if (put < 0 && errno == EINTR)
			continue;
		if (put < 0)
			return failed(o);
		p += put;
		n -= (size_t)put;
		offset += (uint64_t)put;
	}
	return 0;
}

int output_reserve(struct output *o, uint64_t n_bytes)
{
	int r = n_bytes > INT64_MAX ? EFBIG : n_bytes ? posix_fallocate(o->fd, 0, (off_t)n_bytes) : 0;
	return r ? error_system(o->err, r, o->path, "no room for the %llu bytes of %s", (unsigned long long)n_bytes, o->temporary) : 0;
}

int output_sync_folder(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	int r = fsync(fd) < 0 ? -errno : 0;
	close(fd);
	return r;
}

int output_sync_name(const char *path, struct error *err)
{
	char *directory = strdup(path);
	if (!directory)
		return error_set(err, ERROR_MEMORY, path, "no memory");
	for (size_t n = strlen(directory); n > 1 && directory[n - 1] == '/';)
		directory[--n] = '\0';
	char *slash = strrchr(directory, '/');
	if (slash)
		slash[slash == directory] = '\0';      // "/x" -> "/"
	int r = output_sync_folder(slash ? directory : ".");
	free(directory);
	return r < 0 ? error_system(err, r, path, "cannot sync the directory of %s", path) : 0;
}

int output_folder(const char *path, mode_t mode, const char *field, struct error *err)
{
	if (mkdir(path, mode) == 0)
		return output_sync_name(path, err);
	return errno == EEXIST ? 0 : error_system(err, errno, field, "cannot make the folder %s", path);
}

int output_close(struct output *o, int r)
{
	if (r == 0 && fsync(o->fd) < 0)
		r = error_system(o->err, errno, o->path, "cannot sync %s", o->temporary);
	if (o->fd >= 0 && close(o->fd) < 0 && r == 0)
		r = error_system(o->err, errno, o->path, "cannot close %s", o->temporary);
	if (r == 0 && rename(o->temporary, o->path) < 0)
		r = error_system(o->err, errno, o->path, "cannot rename %s", o->temporary);
	if (r < 0 && o->fd >= 0)
		unlink(o->temporary);
	free(o->temporary);
	return r < 0 ? r : output_sync_name(o->path, o->err);
}
