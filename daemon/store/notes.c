// SPDX-License-Identifier: Apache-2.0
// Who answered: small files beside the shards, one for each teacher (kdserved-shard.5).
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/error.h"
#include "common/provenance.h"
#include "daemon/store/store_internal.h"

#define NOTES_MAX 4096                 // in one directory; what is beyond is not looked at

// -ENOENT when there is none that proves its name.
static int note_read(const struct directory *d, const char *name, struct provenance *ret)
{
	char text[PROVENANCE_MAX_BYTES + 1], right[DIRECTORY_NAME_MAX];
	int fd = openat(d->fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0)
		return -ENOENT;
	ssize_t n = pread(fd, text, sizeof text, 0);
	close(fd);
	if (n < 0 || provenance_decode(text, (size_t)n, ret, NULL))
		return -ENOENT;
	directory_note_name(&ret->fingerprint, right);
	return strcmp(name, right) == 0 ? 0 : -ENOENT;
}

int store_describe(struct store *s, const struct provenance *p, struct error *err)
{
	const struct directory *d = &s->parts.directory;
	char name[DIRECTORY_NAME_MAX], text[PROVENANCE_MAX_BYTES];
	struct provenance there;
	int fd;
	if (s->read_only)
		return error_set(err, ERROR_UNAVAILABLE, NULL, "store %s is open for reading only", s->path);
	directory_note_name(&p->fingerprint, name);
	if (note_read(d, name, &there) == 0)
		return 0;
	int rc = directory_create(d, name, &fd, err);
	if (rc < 0)
		return rc;
	rc = directory_write(fd, text, provenance_encode(p, text), 0);
	rc = rc < 0 ? error_system(err, rc, NULL, "store %s: cannot write %s", s->path, name) : directory_commit(d, name, fd, err);
	if (rc < 0)
		directory_abandon(d, name);
	close(fd);
	return rc;
}

static int note_compare(const void *a, const void *b)
{
	const struct provenance *x = a, *y = b;
	return memcmp(&x->fingerprint, &y->fingerprint, sizeof x->fingerprint);
}

static bool is_note(const char *name)
{
	size_t n = strlen(name), k = strlen(DIRECTORY_NOTE_END);
	return n > k && n < DIRECTORY_NAME_MAX && strcmp(name + n - k, DIRECTORY_NOTE_END) == 0;
}

int store_teachers(struct store *s, struct provenance **ret_notes, size_t *ret_n, struct error *err)
{
	struct provenance *notes = NULL, one;
	size_t n = 0;
	int rc = 0, fd = openat(s->parts.directory.fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	if (!dir) {
		rc = error_system(err, errno, NULL, "store %s: cannot list", s->path);
		if (fd >= 0)
			close(fd);
		return rc;
	}
	for (struct dirent *e; n < NOTES_MAX && (e = readdir(dir));) {
		if (!is_note(e->d_name) || note_read(&s->parts.directory, e->d_name, &one) < 0)
			continue;
		struct provenance *more = reallocarray(notes, n + 1, sizeof *more);
		if (!more) {
			rc = error_set(err, ERROR_MEMORY, NULL, "no memory for %zu teachers", n + 1);
			break;
		}
		notes = more;
		notes[n++] = one;
	}
	closedir(dir);
	if (rc < 0) {
		free(notes);
		return rc;
	}
	if (n)
		qsort(notes, n, sizeof *notes, note_compare);
	*ret_notes = notes;
	*ret_n = n;
	return 0;
}
