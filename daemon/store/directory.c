// SPDX-License-Identifier: Apache-2.0
// The store's directory. A file gets its final name only once its bytes are on the disk, and the name is on the disk before it is used.
#include "daemon/store/directory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/error.h"
#include "common/output.h"
#include "common/sequence.h"
#include "common/text.h"
#include "daemon/store/crash.h"

void directory_shard_name(uint32_t id, char ret_name[DIRECTORY_NAME_MAX])
{
	snprintf(ret_name, DIRECTORY_NAME_MAX, "%08" PRIx32 ".shard", id);
}

void directory_index_name(uint32_t id, char ret_name[DIRECTORY_NAME_MAX])
{
	snprintf(ret_name, DIRECTORY_NAME_MAX, "%08" PRIx32 ".index", id);
}

void directory_note_name(const struct content_id *teacher, char ret_name[DIRECTORY_NAME_MAX])
{
	char hex[CONTENT_ID_HEX];
	content_id_to_hex(teacher, hex);
	snprintf(ret_name, DIRECTORY_NAME_MAX, "%.16s" DIRECTORY_NOTE_END, hex);
}

// flock and not a POSIX record lock: the latter is lost when any descriptor of the file is closed in the process.
static int directory_lock(struct directory *d, struct error *err)
{
	char pid[24] = "";
	d->lock = openat(d->fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0640);
	if (d->lock < 0)
		return error_system(err, errno, NULL, "store %s: cannot open its lock", d->path);
	if (flock(d->lock, LOCK_EX | LOCK_NB) < 0) {
		if (errno != EWOULDBLOCK)
			return error_system(err, errno, NULL, "store %s: cannot lock", d->path);
		ssize_t n = pread(d->lock, pid, sizeof pid - 1, 0);
		pid[n > 0 ? strcspn(pid, "\n") : 0] = '\0';
		return error_set(err, ERROR_CONFLICT, NULL, "store %s: another process%s%s is writing to it", d->path,
			*pid ? ", pid " : "", pid);
	}
	// The id is for people only: a full disk must not keep the store from opening.
	int n = snprintf(pid, sizeof pid, "%ld\n", (long)getpid());
	if (ftruncate(d->lock, 0) == 0 && pwrite(d->lock, pid, (size_t)n, 0) < 0)
		return 0;
	return 0;
}

int directory_open(struct directory *d, const char *path, bool read_only, struct error *err)
{
	*d = (struct directory){.fd = -1, .lock = -1, .path = path};
	struct error why = {0};
	int rc = read_only ? 0 : output_folder(path, 0750, NULL, &why);
	if (rc < 0) {
		error_set(err, why.code, NULL, "store %s: %s", path, why.message);
		return rc;
	}
	d->fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (d->fd < 0)
		return error_system(err, errno, NULL, "store %s: cannot open the directory", path);
	rc = read_only ? 0 : directory_lock(d, err);
	// A writer that was killed may have left names that the disk does not know.
	if (rc == 0 && !read_only && fsync(d->fd) < 0)
		rc = error_system(err, errno, NULL, "store %s: cannot synchronise the directory", path);
	if (rc < 0)
		directory_close(d);
	return rc;
}

void directory_close(struct directory *d)
{
	if (d->fd >= 0)
		close(d->fd);
	if (d->lock >= 0)
		close(d->lock);
	d->fd = d->lock = -1;
}

static bool shard_id(const char *name, uint32_t *ret_id)
{
	if (strlen(name) != 14 || strspn(name, "0123456789abcdef") != 8 || strcmp(name + 8, ".shard") != 0)
		return false;
	*ret_id = (uint32_t)strtoul(name, NULL, 16);
	return true;
}

static int compare_ids(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return (x > y) - (x < y);
}

static int ids_push(uint32_t **ids, size_t *n, uint32_t id)
{
	if ((*n & (*n - 1)) == 0) {          // full at every power of two
		uint32_t *more = reallocarray(*ids, *n ? *n * 2 : 1, sizeof *more);
		if (!more)
			return -ENOMEM;
		*ids = more;
	}
	(*ids)[(*n)++] = id;
	return 0;
}

int directory_list(const struct directory *d, uint32_t **ret_ids, size_t *ret_n, struct error *err)
{
	uint32_t *ids = NULL, id;
	size_t n = 0;
	int rc = 0;
	int fd = openat(d->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	if (!dir) {
		rc = error_system(err, errno, NULL, "store %s: cannot list", d->path);
		if (fd >= 0)
			close(fd);
		return rc;
	}
	errno = 0;
	for (struct dirent *entry; rc == 0 && (entry = readdir(dir)); errno = 0) {
		if (shard_id(entry->d_name, &id) && ids_push(&ids, &n, id) < 0)
			rc = error_set(err, ERROR_MEMORY, NULL, "no memory for the names of %zu shards", n);
		else if (d->lock >= 0 && (text_ends(entry->d_name, ".shard.tmp") || text_ends(entry->d_name, ".index.tmp") ||
					  text_ends(entry->d_name, DIRECTORY_NOTE_END ".tmp")))
			unlinkat(d->fd, entry->d_name, 0);
	}
	if (rc == 0 && errno)
		rc = error_system(err, errno, NULL, "store %s: cannot list", d->path);
	closedir(dir);
	if (rc < 0) {
		free(ids);
		return rc;
	}
	if (n)
		qsort(ids, n, sizeof *ids, compare_ids);
	*ret_ids = ids;
	*ret_n = n;
	return 0;
}

static void crash_file(const char *name, enum crash_point shard, enum crash_point index)
{
	crash(text_ends(name, ".shard") ? shard : index);
}

static void temporary_name(const char *name, char ret[DIRECTORY_NAME_MAX])
{
	snprintf(ret, DIRECTORY_NAME_MAX, "%.27s.tmp", name);
}

int directory_create(const struct directory *d, const char *name, int *ret_fd, struct error *err)
{
	char temporary[DIRECTORY_NAME_MAX];
	temporary_name(name, temporary);
	int fd = openat(d->fd, temporary, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0640);
	if (fd < 0)
		return error_system(err, errno, NULL, "store %s: cannot make %s", d->path, temporary);
	*ret_fd = fd;
	crash_file(name, CRASH_SHARD_CREATED, CRASH_INDEX_CREATED);
	return 0;
}

int directory_commit(const struct directory *d, const char *name, int fd, struct error *err)
{
	char temporary[DIRECTORY_NAME_MAX];
	temporary_name(name, temporary);
	crash_file(name, CRASH_SHARD_WRITTEN, CRASH_INDEX_WRITTEN);
	int rc = fsync(fd);
	crash_file(name, CRASH_SHARD_SYNCED, CRASH_INDEX_SYNCED);
	if (rc == 0)
		rc = renameat(d->fd, temporary, d->fd, name);
	crash_file(name, CRASH_SHARD_RENAMED, CRASH_INDEX_RENAMED);
	if (rc == 0)
		rc = fsync(d->fd);
	crash_file(name, CRASH_SHARD_LISTED, CRASH_INDEX_LISTED);
	return rc < 0 ? error_system(err, errno, NULL, "store %s: cannot put %s in place", d->path, name) : 0;
}

void directory_abandon(const struct directory *d, const char *name)
{
	char temporary[DIRECTORY_NAME_MAX];
	temporary_name(name, temporary);
	unlinkat(d->fd, temporary, 0);
}

int directory_write(int fd, const void *data, size_t n, uint64_t offset)
{
	const uint8_t *p = data;
	for (size_t done = 0; done < n;) {
		ssize_t k = pwrite(fd, p + done, n - done, (off_t)(offset + done));
		if (k < 0 && errno == EINTR)
			continue;
		if (k <= 0)
			return k < 0 ? -errno : -EIO;
		done += (size_t)k;
	}
	return 0;
}

// A file system says how much it has (one without a limit says 0 of 0): a full one is left alone.
static bool has_space(const struct directory *d, uint64_t n)
{
	struct statvfs f;
	return fstatvfs(d->fd, &f) < 0 || !f.f_blocks || f.f_bavail >= n / f.f_frsize + 1;
}

// A temporary name of a shard, so that the next start removes what a process killed here leaves. posix_fallocate writes where the file
// system cannot set space aside.
int directory_try(const struct directory *d, uint64_t n)
{
	static const char name[] = "try.shard.tmp", block[4096];
	if (!has_space(d, n))
		return -ENOSPC;
	int fd = openat(d->fd, name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0640);
	if (fd < 0)
		return -errno;
	int rc = -posix_fallocate(fd, 0, (off_t)n);
	if (rc == 0)
		rc = directory_write(fd, block, sizeof block, 0);
	if (rc == 0 && fsync(fd) < 0)
		rc = -errno;
	if (unlinkat(d->fd, name, 0) < 0 && rc == 0)
		rc = -errno;
	close(fd);
	return rc;
}
