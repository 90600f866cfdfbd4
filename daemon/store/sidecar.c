// SPDX-License-Identifier: Apache-2.0
// The index file beside a sealed shard. Never more than a copy of what the shard says: when anything is wrong, that is read instead.
#include "daemon/store/sidecar.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/crc32c.h"
#include "common/cursor.h"
#include "common/error.h"
#include "common/record.h"
#include "daemon/store/groups.h"
#include "daemon/store/index.h"
#include "daemon/store/part.h"

#define SIDECAR_MAGIC "KDINDEX\n"
#define SIDECAR_VERSION 2
#define HEADER_BYTES 64u
#define ENTRY_BYTES 56u

static int entry_push(struct sidecar *s, const struct sidecar_entry *e)
{
	if (s->n == s->capacity) {
		size_t capacity = s->capacity ? s->capacity * 2 : 64;
		struct sidecar_entry *more = reallocarray(s->entries, capacity, sizeof *more);
		if (!more)
			return -ENOMEM;
		s->entries = more;
		s->capacity = capacity;
	}
	s->entries[s->n++] = *e;
	return 0;
}

int sidecar_append(struct sidecar *s, const struct shard_frame *f, const struct record *record)
{
	return entry_push(s, &(struct sidecar_entry){.key = f->key, .offset = f->offset, .record_bytes = f->record_bytes,
						     .shape = record ? part_shape(record_query(record)) : 0,
						     .group = record ? group_of_record(record) : 0});
}

struct index_entry sidecar_place(const struct sidecar_entry *e, uint32_t shard)
{
	return (struct index_entry){.shard = shard, .record_bytes = e->record_bytes, .offset = e->offset, .shape = e->shape,
		.group = e->group};
}

void sidecar_done(struct sidecar *s)
{
	free(s->entries);
	*s = (struct sidecar){0};
}

static uint32_t sidecar_crc(const uint8_t *bytes, size_t n)
{
	return crc32c(crc32c(0, bytes, HEADER_BYTES - 4), bytes + HEADER_BYTES, n - HEADER_BYTES);
}

int sidecar_encode(const struct sidecar *s, uint32_t id, uint32_t seed, uint64_t shard_bytes, uint8_t **ret_bytes, size_t *ret_n)
{
	size_t n;
	uint8_t *bytes;
	if (__builtin_mul_overflow(s->n, ENTRY_BYTES, &n) || __builtin_add_overflow(n, HEADER_BYTES, &n) || !(bytes = calloc(1, n)))
		return -ENOMEM;
	struct writer w = writer_init(bytes, n);
	writer_bytes(&w, SIDECAR_MAGIC, 8);
	writer_u32(&w, SIDECAR_VERSION);
	writer_u32(&w, ENTRY_BYTES);
	writer_u32(&w, id);
	writer_u32(&w, seed);
	writer_u64(&w, shard_bytes);
	writer_u64(&w, s->n);
	w.position = HEADER_BYTES;
	for (size_t i = 0; i < s->n; i++) {
		writer_bytes(&w, s->entries[i].key.bytes, CONTENT_ID_BYTES);
		writer_u64(&w, s->entries[i].offset);
		writer_u32(&w, s->entries[i].record_bytes);
		writer_u32(&w, s->entries[i].shape);
		writer_u64(&w, s->entries[i].group);
	}
	w.position = HEADER_BYTES - 4;
	writer_u32(&w, sidecar_crc(bytes, n));
	*ret_bytes = bytes;
	*ret_n = n;
	return 0;
}

// One entry per frame, each inside the shard and after the one before.
static int entries_decode(struct reader *r, uint64_t n_entries, uint64_t shard_bytes, struct sidecar *ret)
{
	uint64_t end = SHARD_HEADER_BYTES;
	for (uint64_t i = 0; i < n_entries; i++) {
		struct sidecar_entry f = {0};
		reader_copy(r, f.key.bytes, sizeof f.key.bytes);
		f.offset = reader_u64(r);
		f.record_bytes = reader_u32(r);
		f.shape = reader_u32(r);
		f.group = reader_u64(r);
		if (r->failed || f.offset < end || f.offset % 8 || f.record_bytes == 0 || f.record_bytes > SHARD_RECORD_MAX ||
		    f.offset > shard_bytes || shard_frame_size(f.record_bytes) > shard_bytes - f.offset)
			return -EBADMSG;
		end = f.offset + shard_frame_size(f.record_bytes);
		if (entry_push(ret, &f) < 0)
			return -ENOMEM;
	}
	return 0;
}

int sidecar_decode(const void *bytes, size_t n, uint32_t id, uint32_t seed, uint64_t shard_bytes, struct sidecar *ret, struct error *err)
{
	struct reader r = reader_init(bytes, n);
	const uint8_t *magic = reader_bytes(&r, 8);
	uint32_t version = reader_u32(&r), entry_bytes = reader_u32(&r), its_id = reader_u32(&r), its_seed = reader_u32(&r);
	uint64_t its_bytes = reader_u64(&r), n_entries = reader_u64(&r);
	(void)reader_bytes(&r, 20);
	uint32_t crc = reader_u32(&r);
	*ret = (struct sidecar){0};
	if (r.failed || memcmp(magic, SIDECAR_MAGIC, 8) != 0 || version != SIDECAR_VERSION || entry_bytes != ENTRY_BYTES)
		return error_set(err, ERROR_CORRUPT, NULL, "shard %08x: its index is not one of ours", id);
	if (n_entries != reader_left(&r) / ENTRY_BYTES || reader_left(&r) % ENTRY_BYTES || crc != sidecar_crc(bytes, n))
		return error_set(err, ERROR_CORRUPT, NULL, "shard %08x: its index is damaged", id);
	if (its_id != id || its_seed != seed || its_bytes != shard_bytes)
		return error_set(err, ERROR_CORRUPT, NULL, "shard %08x: its index is of another file", id);
	int rc = entries_decode(&r, n_entries, shard_bytes, ret);
	if (rc < 0) {
		sidecar_done(ret);
		return rc == -ENOMEM ? error_set(err, ERROR_MEMORY, NULL, "no memory for the index of shard %08x", id)
				     : error_set(err, ERROR_CORRUPT, NULL, "shard %08x: its index is damaged", id);
	}
	return 0;
}

int sidecar_write(const struct sidecar *s, const struct directory *d, uint32_t id, uint32_t seed, uint64_t shard_bytes, struct error *err)
{
	char name[DIRECTORY_NAME_MAX];
	directory_index_name(id, name);
	uint8_t *bytes;
	size_t n;
	if (sidecar_encode(s, id, seed, shard_bytes, &bytes, &n) < 0)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the index of shard %08x", id);
	int fd, rc = directory_create(d, name, &fd, err);
	if (rc < 0)
		goto out;
	rc = directory_write(fd, bytes, n, 0);
	rc = rc < 0 ? error_system(err, rc, NULL, "store %s: cannot write %s", d->path, name) : directory_commit(d, name, fd, err);
	if (rc < 0)
		directory_abandon(d, name);
	close(fd);
out:
	free(bytes);
	return rc;
}

int sidecar_read(const struct directory *d, uint32_t id, uint32_t seed, uint64_t shard_bytes, struct sidecar *ret, struct error *err)
{
	char name[DIRECTORY_NAME_MAX];
	directory_index_name(id, name);
	uint8_t *bytes = NULL;
	struct stat st;
	int rc;
	int fd = openat(d->fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return error_system(err, errno, NULL, "store %s: cannot open %s", d->path, name);
	if (fstat(fd, &st) < 0) {
		rc = error_system(err, errno, NULL, "store %s: %s", d->path, name);
		goto out;
	}
	// A frame is larger than its entry, so an index larger than its shard is none; this also bounds the memory.
	size_t n = (size_t)st.st_size, done = 0;
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size > shard_bytes || !(bytes = malloc(n + 1))) {
		rc = error_set(err, ERROR_CORRUPT, NULL, "shard %08x: its index is damaged", id);
		goto out;
	}
	while (done < n) {
		ssize_t k = pread(fd, bytes + done, n - done, (off_t)done);
		if (k <= 0)
			break;
		done += (size_t)k;
	}
	rc = sidecar_decode(bytes, done, id, seed, shard_bytes, ret, err);
out:
	free(bytes);
	close(fd);
	return rc;
}
