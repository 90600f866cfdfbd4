// SPDX-License-Identifier: Apache-2.0
// The growing end of a store.
//
// Writes go one at a time and in order, so after kill -9 a shard holds a prefix of what was written. They are large and, where the file
// system allows, bypass the page cache: the disk is as busy as with a deep queue, and memory stays for others. The kernel has the next
// ones before the first is through, while further buffers are filled and summed. Every write begins and ends at a block: what does not
// fill its last block is followed by zeros and written again, unchanged, at the start of the next write.
#include "daemon/store/tail.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/store/crash.h"
#include "daemon/store/ring.h"

// Space is set aside in steps, each twice the one before: little to waste in a store that hardly grows, few calls in one that grows fast.
#define SET_ASIDE_MIN (16u << 20)
#define SET_ASIDE_MAX (256u << 20)

struct tail_write {
	struct ring_op op;
	uint8_t *data;
	uint64_t offset;             // in the file, of data; a multiple of TAIL_BLOCK
	size_t n;                    // gathered
	bool fresh;                  // something of it has not been submitted
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
	uint8_t *data = aligned_alloc(TAIL_BLOCK, (size_t)TAIL_WRITES * TAIL_WRITE_BYTES);
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

static void direct_set(struct tail_shard *s, bool on)
{
	int flags = fcntl(s->fd, F_GETFL);
	s->direct = flags >= 0 && fcntl(s->fd, F_SETFL, on ? flags | O_DIRECT : flags & ~O_DIRECT) == 0 && on;
}

void tail_drop(struct tail *t, struct tail_shard *ret_shard)
{
	ring_register_file(t->ring, -1);
	if (ret_shard && t->shard.direct)
		direct_set(&t->shard, false);       // whoever takes it reads as he likes
	if (ret_shard)
		*ret_shard = t->shard;
	else
		tail_shard_done(&t->shard);
	t->shard = (struct tail_shard){.fd = -1};
}

// Begins gathering at the end of the shard, with what its last block holds already. Nothing is in flight.
static int tail_prime(struct tail *t)
{
	struct tail_write *w = &t->writes[t->filling];
	w->offset = t->shard.end - t->shard.end % TAIL_BLOCK;
	w->n = (size_t)(t->shard.end % TAIL_BLOCK);
	w->fresh = false;
	t->end = t->shard.end;
	t->next_number = t->shard.next_number;
	if (!w->n)
		return 0;
	struct ring_op op = {.kind = RING_READ, .fd = t->shard.fd, .data = w->data, .n = TAIL_BLOCK, .offset = w->offset, .align = TAIL_BLOCK};
	ring_submit(t->ring, &op);
	int rc = ring_complete(t->ring, &op);
	return rc == 0 && op.n_done < w->n ? -EIO : rc;
}

int tail_adopt(struct tail *t, struct tail_shard *shard)
{
	tail_drop(t, NULL);
	t->shard = *shard;
	*shard = (struct tail_shard){.fd = -1};
	if (t->shard.fd < 0)
		return 0;
	direct_set(&t->shard, true);
	ring_register_file(t->ring, t->shard.fd);
	return tail_prime(t);
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
	return tail_adopt(t, &shard);       // nothing to read: the header fills its block
}

static void write_complete(struct tail *t, struct tail_write *w)
{
	if (!w->submitted)
		return;
	w->submitted = false;
	int rc = ring_complete(t->ring, &w->op);
	crash(CRASH_WRITE_AFTER);
	if (rc == -EINVAL && t->shard.direct && w->op.n_done == 0) {       // this file system wants larger blocks: then with the page cache
		direct_set(&t->shard, false);
		ring_submit(t->ring, &w->op);
		rc = ring_complete(t->ring, &w->op);
	}
	if (rc < 0 && !t->failed) {
		uint64_t good = w->op.offset + w->op.n_done;
		t->failed = rc;
		t->end = good < t->end ? good : t->end;
	}
}

// Sends off what has been gathered and begins the next write with the block that is not full yet.
static void write_submit(struct tail *t)
{
	struct tail_write *w = &t->writes[t->filling], *other = &t->writes[(t->filling + 1) % TAIL_WRITES];
	write_complete(t, other);             // the oldest
	if (!w->fresh || t->failed)
		return;
	size_t part = w->n % TAIL_BLOCK, whole = w->n - part, padding = part ? TAIL_BLOCK - part : 0;
	memset(w->data + w->n, 0, padding);
	memcpy(other->data, w->data + whole, part);
	other->offset = w->offset + whole;
	other->n = part;
	other->fresh = false;
	w->op = (struct ring_op){.kind = RING_WRITE, .fd = t->shard.fd, .data = w->data, .n = w->n + padding, .offset = w->offset,
				 .in_order = true, .align = t->shard.direct ? TAIL_BLOCK : 0};
	w->fresh = false;
	w->submitted = true;
	crash(CRASH_WRITE_BEFORE);
	if (!t->registered && w->n == TAIL_WRITE_BYTES) {       // pins the memory: not for a store that writes little
		ring_register_memory(t->ring, t->writes[0].data, (size_t)TAIL_WRITES * TAIL_WRITE_BYTES);
		t->registered = true;
	}
	ring_submit(t->ring, &w->op);
	crash(CRASH_WRITE_SUBMITTED);
	t->filling = (t->filling + 1) % TAIL_WRITES;
}

static void put(struct tail *t, const void *data, size_t n)
{
	const uint8_t *p = data;
	while (n && !t->failed) {
		struct tail_write *w = &t->writes[t->filling];
		size_t k = TAIL_WRITE_BYTES - w->n < n ? TAIL_WRITE_BYTES - w->n : n;
		memcpy(w->data + w->n, p, k);
		w->n += k;
		w->fresh = true;
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
	uint64_t n = from < SET_ASIDE_MIN ? SET_ASIDE_MIN : from < SET_ASIDE_MAX ? from : SET_ASIDE_MAX;
	if (from < t->shard_bytes && n > t->shard_bytes - from)
		n = t->shard_bytes - from;
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
	for (size_t i = 0; i < TAIL_WRITES; i++)              // from the oldest on: the first error decides
		write_complete(t, &t->writes[(t->filling + i) % TAIL_WRITES]);
	int rc = t->failed;
	t->failed = 0;
	*ret_good = t->end;
	return rc;
}

const struct sidecar_entry *tail_commit(struct tail *t, const struct shard_frame *f, const struct record *record)
{
	struct sidecar *entries = &t->shard.entries;
	t->shard.end = f->offset + shard_frame_size(f->record_bytes);
	t->shard.next_number = f->number + 1;
	if (sidecar_append(entries, f, record) == 0)
		return &entries->entries[entries->n - 1];
	t->shard.entries_missing = true;
	return NULL;
}

int tail_cut(struct tail *t)
{
	t->shard.set_aside = 0;         // cutting also gives back what lies beyond
	int rc = ftruncate(t->shard.fd, (off_t)t->shard.end) < 0 ? -errno : 0;
	return rc < 0 ? rc : tail_prime(t);
}

int tail_sync(struct tail *t)
{
	struct ring_op op = {.kind = RING_FSYNC, .fd = t->shard.fd};
	crash(CRASH_FSYNC_BEFORE);
	ring_submit(t->ring, &op);
	int rc = ring_complete(t->ring, &op);
	crash(CRASH_FSYNC_AFTER);
	if (rc == 0)
		t->shard.synced = t->shard.end;
	return rc;
}

int tail_seal(struct tail *t)
{
	struct tail_shard *s = &t->shard;
	uint8_t seal[SHARD_SEAL_BYTES];
	uint64_t good;
	shard_seal_encode(s->seed, s->end, s->next_number, seal);
	crash(CRASH_SEAL_BEFORE);
	put(t, seal, sizeof seal);
	uint64_t size = s->end + (tail_flush(t, &good) == 0 ? sizeof seal : 0);
	crash(CRASH_SEAL_WRITTEN);
	if (ftruncate(s->fd, (off_t)size) < 0)      // a seal written in part, and space set aside
		return -errno;
	crash(CRASH_SEAL_CUT);
	int rc = tail_sync(t);
	crash(CRASH_SEAL_SYNCED);
	// Without a seal (disk full) the shard is only slower to open; the next start seals it.
	if (rc == 0 && size > s->end && !s->entries_missing)
		sidecar_write(&s->entries, t->directory, s->id, s->seed, size, NULL);
	return rc;
}
