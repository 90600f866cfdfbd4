// SPDX-License-Identifier: Apache-2.0
// The growing end of a store.
//
// Writes go one at a time and in order, so after kill -9 a shard holds a prefix of what was written. They are large and, where the file
// system allows, bypass the page cache: the disk is as busy as with a deep queue, and memory stays for others. While one is at the disk
// further buffers are filled, and every few hundred KiB of that it is asked whether the next can go (IOSQE_IO_DRAIN, which would let the
// kernel keep the order, costs a tenth of the speed). Every write begins and ends at a block: what does not fill its last block is followed
// by zeros and written again, unchanged, at the start of the next write.
#include "daemon/store/tail.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/store/crash.h"
#include "daemon/ring.h"

// Space is set aside in steps, each twice the one before: little to waste in a store that hardly grows, few calls in one that grows fast,
// and one for a whole shard once it has filled one. The disk idles meanwhile: the call waits for the write under way.
#define SET_ASIDE_MIN (16u << 20)
#define SET_ASIDE_MAX (256u << 20)
#define HUGE_BYTES (2u << 20)            // buffers in one piece of memory: a virtio disk takes a write of 1000 loose pages in five turns
#define COPY_BYTES (256u << 10)          // at a time: the disk idles at most as long as this takes to copy

struct tail_write {
	struct ring_op op;
	uint8_t *data;
	uint64_t offset;             // in the file, of data; a multiple of TAIL_BLOCK
	size_t n;                    // gathered
	bool fresh;                  // something of it has not been handed in
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
	size_t n = (size_t)TAIL_WRITES * TAIL_WRITE_BYTES;
	uint8_t *data = aligned_alloc(HUGE_BYTES, n);
	t->writes = calloc(TAIL_WRITES, sizeof *t->writes);
	if (!data || !t->writes) {
		free(data);
		free(t->writes);
		t->writes = NULL;
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the store's buffers");
	}
	(void)madvise(data, n, MADV_HUGEPAGE);
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
	packer_done(&t->packer);
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
	t->end = t->good = t->shard.end;
	t->next_number = t->shard.next_number;
	if (!w->n)
		return 0;
	struct ring_op op = {.kind = RING_READ, .fd = t->shard.fd, .data = w->data, .n = TAIL_BLOCK, .offset = w->offset,
		.align = TAIL_BLOCK};
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

static unsigned next_of(unsigned i)
{
	return (i + 1) % TAIL_WRITES;
}

static void write_start(struct tail *t, struct tail_write *w)
{
	crash(CRASH_WRITE_BEFORE);
	if (!t->registered && w->n == TAIL_WRITE_BYTES) {       // pins the memory: not for a store that writes little
		ring_register_memory(t->ring, t->writes[0].data, (size_t)TAIL_WRITES * TAIL_WRITE_BYTES);
		t->registered = true;
	}
	w->submitted = true;
	ring_submit(t->ring, &w->op);
	crash(CRASH_WRITE_SUBMITTED);
}

static void write_complete(struct tail *t, struct tail_write *w)
{
	int rc = w->op.result;
	w->submitted = false;
	crash(CRASH_WRITE_AFTER);
	if (rc == -EINVAL && t->shard.direct && w->op.n_done == 0) {       // this file system wants larger blocks: then with the page cache
		direct_set(&t->shard, false);
		ring_submit(t->ring, &w->op);
		rc = ring_complete(t->ring, &w->op);
	}
	uint64_t good = w->op.offset + (rc < 0 && w->op.n_done < w->n ? w->op.n_done : w->n);
	if (!t->failed)
		t->good = good > t->good ? good : t->good;
	if (rc < 0 && !t->failed)
		t->failed = rc;
}

// Takes what is over and starts what is next. After a failure nothing more is started.
static void writes_advance(struct tail *t)
{
	ring_poll(t->ring);
	for (; t->oldest != t->filling; t->oldest = next_of(t->oldest)) {
		struct tail_write *w = &t->writes[t->oldest];
		if (!w->submitted && t->failed)
			continue;
		if (!w->submitted)
			write_start(t, w);
		if (w->op.busy)
			break;
		write_complete(t, w);
	}
}

bool tail_wait(struct tail *t)
{
	unsigned oldest = t->oldest;
	writes_advance(t);
	while (t->oldest == oldest && oldest != t->filling) {
		ring_reap(t->ring);
		writes_advance(t);
	}
	return t->oldest != oldest;
}

// Hands in what has been gathered and begins the next write with the block that is not full yet.
static void write_queue(struct tail *t)
{
	struct tail_write *w = &t->writes[t->filling], *other = &t->writes[next_of(t->filling)];
	while (w->fresh && next_of(t->filling) == t->oldest)
		tail_wait(t);
	if (!w->fresh || t->failed)
		return;
	size_t part = w->n % TAIL_BLOCK, whole = w->n - part, padding = part ? TAIL_BLOCK - part : 0;
	memset(w->data + w->n, 0, padding);
	memcpy(other->data, w->data + whole, part);
	other->offset = w->offset + whole;
	other->n = part;
	other->fresh = false;
	w->op = (struct ring_op){.kind = RING_WRITE, .fd = t->shard.fd, .data = w->data, .n = w->n + padding, .offset = w->offset,
				 .align = t->shard.direct ? TAIL_BLOCK : 0};
	w->fresh = false;
	t->filling = next_of(t->filling);
	writes_advance(t);
}

static void put(struct tail *t, const void *data, size_t n)
{
	const uint8_t *p = data;
	while (n && !t->failed) {
		struct tail_write *w = &t->writes[t->filling];
		size_t k = TAIL_WRITE_BYTES - w->n < n ? TAIL_WRITE_BYTES - w->n : n;
		k = k < COPY_BYTES ? k : COPY_BYTES;
		memcpy(w->data + w->n, p, k);
		w->n += k;
		w->fresh = true;
		p += k;
		n -= k;
		t->end += k;
		if (w->n == TAIL_WRITE_BYTES)
			write_queue(t);
		else
			writes_advance(t);
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
	n = n < t->step ? t->step : n;
	t->step = n;
	if (from < t->shard_bytes && n > t->shard_bytes - from)
		n = t->shard_bytes - from;
	if (n < upto - from)
		n = upto - from;
	int rc = fallocate(s->fd, FALLOC_FL_KEEP_SIZE, (off_t)from, (off_t)n);
	(void)rc;
	s->set_aside = from + n;
}

void tail_append(struct tail *t, const struct record *record, struct shard_frame *ret_frame)
{
	static const uint8_t zeros[8];
	uint8_t header[SHARD_FRAME_BYTES];
	struct packed p = packer_encode(&t->packer, record);
	struct shard_frame f = {.offset = t->end, .number = t->next_number++, .record_bytes = (uint32_t)p.n, .key = *record_key(record)};
	set_aside(t, t->end + shard_frame_size(f.record_bytes));
	shard_frame_encode(t->shard.seed, &f, p.crc, header);
	put(t, header, sizeof header);
	put(t, p.bytes, p.n);
	put(t, zeros, (size_t)(shard_frame_size(f.record_bytes) - SHARD_FRAME_BYTES - p.n));
	*ret_frame = f;
}

int tail_flush(struct tail *t)
{
	write_queue(t);
	while (tail_wait(t))
		;
	int rc = t->failed;
	t->failed = 0;
	return rc;
}

void tail_abandon(struct tail *t)
{
	t->failed = t->failed ? t->failed : -ECANCELED;
	while (tail_wait(t))
		;
	t->failed = 0;
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
	uint64_t end = t->shard.end;
	crash(CRASH_FSYNC_BEFORE);
	for (ring_submit(t->ring, &op); op.busy; writes_advance(t))
		ring_reap(t->ring);
	crash(CRASH_FSYNC_AFTER);
	if (op.result == 0)
		t->shard.synced = end;
	return op.result;
}

int tail_seal(struct tail *t)
{
	struct tail_shard *s = &t->shard;
	uint8_t seal[SHARD_SEAL_BYTES];
	shard_seal_encode(s->seed, s->end, s->next_number, seal);
	crash(CRASH_SEAL_BEFORE);
	put(t, seal, sizeof seal);
	uint64_t size = s->end + (tail_flush(t) == 0 ? sizeof seal : 0);
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
