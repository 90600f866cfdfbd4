// SPDX-License-Identifier: Apache-2.0
#include "daemon/store/rewrite.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/store/crash.h"

#define BUFFER_BYTES (4u << 20)          // of one write

int rewrite_open(struct rewrite *w, const struct directory *d, uint32_t id, uint64_t created, struct error *err)
{
	char name[DIRECTORY_NAME_MAX];
	*w = (struct rewrite){.directory = d, .fd = -1, .header = {.id = id, .created = created}};
	if (getrandom(w->header.salt, sizeof w->header.salt, 0) != sizeof w->header.salt)
		return error_system(err, errno, NULL, "no random bytes for a shard");
	w->buffer = malloc(BUFFER_BYTES);
	if (!w->buffer)
		return error_set(err, ERROR_MEMORY, NULL, "no memory to write a shard");
	directory_shard_name(id, name);
	int rc = directory_create(d, name, &w->fd, err);
	if (rc < 0) {
		rewrite_done(w);
		return rc;
	}
	shard_header_encode(&w->header, w->buffer);
	w->n_buffered = w->end = SHARD_HEADER_BYTES;
	return 0;
}

static int rewrite_flush(struct rewrite *w, struct error *err)
{
	crash(CRASH_WRITE_BEFORE);
	int rc = directory_write(w->fd, w->buffer, w->n_buffered, w->end - w->n_buffered);
	crash(CRASH_WRITE_AFTER);
	w->n_buffered = 0;
	return rc < 0 ? error_system(err, rc, NULL, "store %s: cannot write shard %08x", w->directory->path, w->header.id) : 0;
}

static int rewrite_put(struct rewrite *w, const void *data, size_t n, struct error *err)
{
	const uint8_t *p = data;
	int rc = 0;
	while (n && rc == 0) {
		size_t k = BUFFER_BYTES - w->n_buffered < n ? BUFFER_BYTES - w->n_buffered : n;
		memcpy(w->buffer + w->n_buffered, p, k);
		w->n_buffered += k;
		w->end += k;
		p += k;
		n -= k;
		if (w->n_buffered == BUFFER_BYTES)
			rc = rewrite_flush(w, err);
	}
	return rc;
}

int rewrite_append(struct rewrite *w, const struct record *record, struct packed stored, struct error *err)
{
	static const uint8_t zeros[8];
	uint8_t header[SHARD_FRAME_BYTES];
	struct shard_frame f = {.offset = w->end, .number = w->next_number++, .record_bytes = (uint32_t)stored.n,
		.key = *record_key(record)};
	shard_frame_encode(w->header.seed, &f, stored.crc, header);
	if (sidecar_append(&w->entries, &f, record) < 0)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the index of shard %08x", w->header.id);
	int rc = rewrite_put(w, header, sizeof header, err);
	rc = rc ? rc : rewrite_put(w, stored.bytes, stored.n, err);
	return rc ? rc : rewrite_put(w, zeros, (size_t)(shard_frame_size(f.record_bytes) - SHARD_FRAME_BYTES - stored.n), err);
}

int rewrite_commit(struct rewrite *w, uint64_t *ret_bytes, struct error *err)
{
	char name[DIRECTORY_NAME_MAX];
	uint8_t seal[SHARD_SEAL_BYTES];
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = (time_t)w->written}};
	directory_shard_name(w->header.id, name);
	shard_seal_encode(w->header.seed, w->end, w->next_number, seal);
	int rc = rewrite_put(w, seal, sizeof seal, err);
	if (rc == 0 && w->n_buffered)
		rc = rewrite_flush(w, err);
	if (rc == 0 && w->written)
		(void)!futimens(w->fd, times);       // else it is kept longer
	if (rc == 0)
		rc = directory_commit(w->directory, name, w->fd, err);
	if (rc < 0)
		return rc;
	close(w->fd);
	w->fd = -1;
	*ret_bytes = w->end;
	crash(CRASH_REWRITE_MADE);
	// Without it the shard is whole, and only slower to open.
	(void)sidecar_write(&w->entries, w->directory, w->header.id, w->header.seed, w->end, NULL);
	return 0;
}

void rewrite_done(struct rewrite *w)
{
	char name[DIRECTORY_NAME_MAX];
	if (w->fd >= 0) {
		directory_shard_name(w->header.id, name);
		directory_abandon(w->directory, name);
		close(w->fd);
	}
	sidecar_done(&w->entries);
	free(w->buffer);
	*w = (struct rewrite){.fd = -1};
}
