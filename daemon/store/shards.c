// SPDX-License-Identifier: Apache-2.0
// The shards of an open store. A clock hand closes a descriptor nobody uses when one too many would be open.
#include "daemon/store/shards.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/store/directory.h"
#include "daemon/store/packed.h"
#include "daemon/store/shard.h"

void shards_done(struct shards *s)
{
	for (size_t i = 0; i < s->n; i++)
		if (s->files[i].fd >= 0)
			close(s->files[i].fd);
	free(s->files);
	*s = (struct shards){.directory = -1};
}

int shards_append(struct shards *s, uint32_t id, uint32_t seed, bool readable)
{
	if (s->n == s->capacity) {
		size_t capacity = s->capacity ? s->capacity * 2 : 16;
		struct shards_file *more = reallocarray(s->files, capacity, sizeof *more);
		if (!more)
			return -ENOMEM;
		s->files = more;
		s->capacity = capacity;
	}
	s->files[s->n++] = (struct shards_file){.id = id, .seed = seed, .readable = readable, .fd = -1};
	return 0;
}

struct shards_file *shards_find(const struct shards *s, uint32_t id)
{
	size_t low = 0, high = s->n;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (s->files[middle].id < id)
			low = middle + 1;
		else
			high = middle;
	}
	return low < s->n ? &s->files[low] : NULL;
}

static void shards_close_one(struct shards *s)
{
	for (size_t tried = 0; tried < s->n; tried++) {
		struct shards_file *f = &s->files[s->hand++ % s->n];
		if (f->fd >= 0 && f->n_users == 0) {
			close(f->fd);
			f->fd = -1;
			s->n_open--;
			return;
		}
	}
}

int shards_acquire(struct shards *s, uint32_t id, int *ret_fd, uint32_t *ret_seed, struct error *err)
{
	struct shards_file *f = shards_find(s, id);
	if (!f || f->id != id || f->gone)
		return error_set(err, ERROR_NOT_FOUND, NULL, "no shard %08x", id);
	if (f->fd < 0) {
		char name[DIRECTORY_NAME_MAX];
		directory_shard_name(id, name);
		if (s->n_open >= SHARDS_OPEN_MAX)
			shards_close_one(s);
		f->fd = openat(s->directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
		if (f->fd < 0 && errno == ENOENT)
			return error_set(err, ERROR_NOT_FOUND, NULL, "shard %08x is gone", id);
		if (f->fd < 0)
			return error_system(err, errno, NULL, "shard %08x: cannot open", id);
		s->n_open++;
	}
	f->n_users++;
	*ret_fd = f->fd;
	*ret_seed = f->seed;
	return 0;
}

static void file_forget(struct shards *s, struct shards_file *f)
{
	if (f->fd >= 0) {
		close(f->fd);
		s->n_open--;
	}
	s->n--;
	memmove(f, f + 1, (size_t)(&s->files[s->n] - f) * sizeof *f);
}

void shards_release(struct shards *s, uint32_t id)
{
	struct shards_file *f = shards_find(s, id);
	if (f && f->id == id && f->n_users > 0 && --f->n_users == 0 && f->gone)
		file_forget(s, f);
}

void shards_remove(struct shards *s, uint32_t id)
{
	struct shards_file *f = shards_find(s, id);
	if (!f || f->id != id)
		return;
	f->gone = true;
	if (f->n_users == 0)
		file_forget(s, f);
}

int shards_check(const uint8_t *bytes, size_t n, uint32_t seed, const struct index_entry *place, const struct content_id *key,
		 struct record **ret_record, struct error *err)
{
	struct shard_frame f;
	if (n < shard_frame_size(place->record_bytes) || shard_frame_decode(seed, place->offset, bytes, &f) < 0 ||
	    f.record_bytes != place->record_bytes || shard_frame_check(seed, &f, bytes) < 0)
		return error_set(err, ERROR_CORRUPT, NULL, "shard %08x: damaged at %llu", place->shard, (unsigned long long)place->offset);
	if (key && memcmp(&f.key, key, sizeof *key) != 0)      // a part of the key agreed: another record's place
		return error_set(err, ERROR_NOT_FOUND, NULL, "no such record");
	struct error why = {0};
	int rc = packed_decode(bytes + SHARD_FRAME_BYTES, f.record_bytes, ret_record, &why);
	if (rc < 0)
		return error_set(err, why.code, why.field, "shard %08x: at %llu: %s", place->shard,
			(unsigned long long)place->offset, why.message);
	if (memcmp(record_key(*ret_record), &f.key, sizeof f.key) != 0) {
		*ret_record = record_unref(*ret_record);
		rc = error_set(err, ERROR_CORRUPT, NULL, "shard %08x: another record at %llu", place->shard,
			(unsigned long long)place->offset);
	}
	return rc;
}

int shards_read(int fd, uint32_t seed, const struct index_entry *place, const struct content_id *key, struct record **ret_record,
		struct error *err)
{
	size_t n = (size_t)shard_frame_size(place->record_bytes), done = 0;
	int rc = 0;
	uint8_t *bytes = malloc(n);
	if (!bytes)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a record of %zu bytes", n);
	while (done < n) {
		ssize_t k = pread(fd, bytes + done, n - done, (off_t)(place->offset + done));
		if (k < 0 && errno == EINTR)
			continue;
		if (k < 0)
			rc = error_system(err, errno, NULL, "shard %08x: cannot read at %llu", place->shard,
				(unsigned long long)place->offset);
		if (k <= 0)
			break;
		done += (size_t)k;
	}
	if (rc == 0)
		rc = shards_check(bytes, done, seed, place, key, ret_record, err);
	free(bytes);
	return rc;
}
