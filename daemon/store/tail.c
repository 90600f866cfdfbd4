// SPDX-License-Identifier: Apache-2.0
// The growing end of a store.
//
// Writes are buffered, up to 1 MiB, one at a time and in order: after kill -9 a shard holds a prefix of what was written, and the page
// cache takes them as fast as the disk does (O_DIRECT with deep queues gains nothing while a file grows). One buffer is filled and
// summed while the other is being written.
#include "daemon/store/tail.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/store/ring.h"

#define SET_ASIDE_BYTES (16u << 20)      // few extents and allocations, yet little to waste per store

struct tail_write {
	struct ring_op op;
	uint8_t *data;
	size_t n;                    // gathered, not yet submitted
	bool submitted;
};

void tail_shard_done(struct tail_shard *shard)
{
	if (shard->fd >= 0)
		close(shard->fd);
	sidecar_done(&shard->entries);
	*shard = (struct tail_shard){.fd = -1};
}

int tail_init(struct tail *t, const struct directory *directory, uint64_t shard_bytes, struct error *err)
{
	*t = (struct tail){.directory = directory, .shard_bytes = shard_bytes, .shard.fd = -1};
	uint8_t *data = aligned_alloc(4096, (size_t)TAIL_WRITES * TAIL_WRITE_BYTES);
	t->writes = calloc(TAIL_WRITES, sizeof *t->writes);
	if (!data || !t->writes) {
		free(data);
		free(t->writes);
		t->writes = NULL;
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the store's buffers");
	}
	for (size_t i = 0; i < TAIL_WRITES; i++)
		t->writes[i].data = data + i * TAIL_WRITE_BYTES;
	int rc = ring_open(8, &t->ring, err);
	if (rc < 0)
		tail_done(t);
	return rc;
}

void tail_done(struct tail *t)
{
	if (t->writes)
		free(t->writes[0].data);
	free(t->writes);
	t->writes = NULL;
	t->ring = ring_close(t->ring);
	tail_shard_done(&t->shard);
}

void tail_adopt(struct tail *t, struct tail_shard *shard)
{
	tail_shard_done(&t->shard);
	t->shard = *shard;
	*shard = (struct tail_shard){.fd = -1};
	t->end = t->shard.end;
	t->next_number = t->shard.next_number;
}

int tail_create(struct tail *t, uint32_t id, struct error *err)
{
	char name[DIRECTORY_NAME_MAX];
	uint8_t block[SHARD_HEADER_BYTES];
	struct shard_header h = {.id = id, .created = (uint64_t)time(NULL)};
	if (getrandom(h.salt, sizeof h.salt, 0) != sizeof h.salt)
		return error_system(err, errno, NULL, "no random bytes for a shard");
	shard_header_encode(&h, block);
	directory_shard_name(id, name);
	int fd, rc = directory_create(t->directory, name, &fd, err);
	if (rc < 0)
		return rc;
	rc = directory_write(fd, block, sizeof block, 0);
	rc = rc < 0 ? error_system(err, rc, NULL, "store %s: cannot write %s", t->directory->path, name)
		    : directory_commit(t->directory, name, fd, err);
	if (rc < 0) {
		directory_abandon(t->directory, name);
		close(fd);
		return rc;
	}
	struct tail_shard shard = {.id = id, .seed = h.seed, .fd = fd, .end = sizeof block, .synced = sizeof block};
	tail_adopt(t, &shard);
	return 0;
}

static void write_complete(struct tail *t, struct tail_write *w)
{
	if (!w->submitted)
		return;
	w->submitted = false;
	int rc = ring_complete(t->ring, &w->op);
	if (rc < 0 && !t->failed) {
		t->failed = rc;
		t->end = w->op.offset + w->op.n_written;
	}
}

// Sends off what has been gathered once the write before it is through.
static void write_submit(struct tail *t)
{
	struct tail_write *w = &t->writes[t->filling], *other = &t->writes[(t->filling + 1) % TAIL_WRITES];
	write_complete(t, other);
	if (w->n && !t->failed) {
		w->op = (struct ring_op){.kind = RING_WRITE, .fd = t->shard.fd, .data = w->data, .n = w->n, .offset = t->end - w->n};
		w->submitted = true;
		ring_submit(t->ring, &w->op);
		t->filling = (t->filling + 1) % TAIL_WRITES;
	}
	w->n = 0;
}

static void put(struct tail *t, const void *data, size_t n)
{
	const uint8_t *p = data;
	while (n && !t->failed) {
		struct tail_write *w = &t->writes[t->filling];
		size_t k = TAIL_WRITE_BYTES - w->n < n ? TAIL_WRITE_BYTES - w->n : n;
		memcpy(w->data + w->n, p, k);
		w->n += k;
		p += k;
		n -= k;
		t->end += k;
		if (w->n == TAIL_WRITE_BYTES)
			write_submit(t);
	}
}

// Only asks: where the file system cannot or will not, the write itself decides.
static void set_aside(struct tail *t, uint64_t upto)
{
	struct tail_shard *s = &t->shard;
	if (upto <= s->set_aside)
		return;
	uint64_t from = s->set_aside > t->end ? s->set_aside : t->end;
	uint64_t n = from < t->shard_bytes && t->shard_bytes - from < SET_ASIDE_BYTES ? t->shard_bytes - from : SET_ASIDE_BYTES;
	if (n < upto - from)
		n = upto - from;
	int rc = fallocate(s->fd, FALLOC_FL_KEEP_SIZE, (off_t)from, (off_t)n);
	(void)rc;
	s->set_aside = from + n;
}

void tail_append(struct tail *t, const struct content_id *key, const void *record, uint32_t n, struct shard_frame *ret_frame)
{
	static const uint8_t zeros[8];
	uint8_t header[SHARD_FRAME_BYTES];
	struct shard_frame f = {.offset = t->end, .number = t->next_number++, .record_bytes = n, .key = *key};
	set_aside(t, t->end + shard_frame_size(n));
	shard_frame_encode(t->shard.seed, &f, record, header);
	put(t, header, sizeof header);
	put(t, record, n);
	put(t, zeros, (size_t)(shard_frame_size(n) - SHARD_FRAME_BYTES - n));
	*ret_frame = f;
}

int tail_flush(struct tail *t, uint64_t *ret_good)
{
	write_submit(t);
	for (size_t i = 0; i < TAIL_WRITES; i++)
		write_complete(t, &t->writes[i]);
	int rc = t->failed;
	t->failed = 0;
	*ret_good = t->end;
	return rc;
}

void tail_commit(struct tail *t, const struct shard_frame *f)
{
	t->shard.end = f->offset + shard_frame_size(f->record_bytes);
	t->shard.next_number = f->number + 1;
	if (sidecar_append(&t->shard.entries, f) < 0)
		t->shard.entries_missing = true;
}

int tail_cut(struct tail *t)
{
	t->end = t->shard.end;
	t->next_number = t->shard.next_number;
	t->shard.set_aside = 0;         // cutting also gives back what lies beyond
	return ftruncate(t->shard.fd, (off_t)t->shard.end) < 0 ? -errno : 0;
}

int tail_sync(struct tail *t)
{
	struct ring_op op = {.kind = RING_FSYNC, .fd = t->shard.fd};
	ring_submit(t->ring, &op);
	int rc = ring_complete(t->ring, &op);
	if (rc == 0)
		t->shard.synced = t->shard.end;
	return rc;
}

int tail_seal(struct tail *t)
{
	struct tail_shard *s = &t->shard;
	uint8_t seal[SHARD_SEAL_BYTES];
	shard_seal_encode(s->seed, s->end, s->next_number, seal);
	struct ring_op op = {.kind = RING_WRITE, .fd = s->fd, .data = seal, .n = sizeof seal, .offset = s->end};
	ring_submit(t->ring, &op);
	uint64_t size = s->end + (ring_complete(t->ring, &op) == 0 ? sizeof seal : 0);
	if (ftruncate(s->fd, (off_t)size) < 0)      // a seal written in part, and space set aside
		return -errno;
	int rc = tail_sync(t);
	// Without a seal (disk full) the shard is only slower to open; the next start seals it.
	if (rc == 0 && size > s->end && !s->entries_missing)
		sidecar_write(&s->entries, t->directory, s->id, s->seed, size, NULL);
	return rc;
}
