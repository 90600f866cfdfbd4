// SPDX-License-Identifier: Apache-2.0
// Its one complication is the wish for one piece: chunks go round in a memory that is mapped twice in a row, so whatever lies in it
// is in one piece also across its end. What is longer than that memory is read on its own.
#include "daemon/store/stream.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/ring.h"

#define CHUNK_BYTES (UINT64_C(1) << 20)      // from here on larger reads gain nothing
#define N_CHUNKS 16u                         // eight frames of the usual 2 MiB at most, or 16 reads under way
#define MEMORY_BYTES (CHUNK_BYTES * N_CHUNKS)
#define BLOCK 4096u                          // of O_DIRECT
#define PIECE_BYTES (UINT64_C(64) << 20)     // of one read of something longer than the memory

struct stream {
	struct ring *ring;
	uint8_t *memory;                 // MEMORY_BYTES, twice
	int fd;                          // -1: none
	bool direct;
	uint64_t size;
	uint64_t first, next;            // chunks held or under way: first .. next - 1
	struct ring_op ops[N_CHUNKS];    // of chunk c: ops[c % N_CHUNKS]
	uint8_t *large;
	size_t large_bytes;
};

static uint8_t *memory_map(void)
{
	int fd = memfd_create("kdserved-stream", MFD_CLOEXEC);
	uint8_t *whole = MAP_FAILED;
	if (fd < 0)
		return NULL;
	if (ftruncate(fd, MEMORY_BYTES) == 0)
		whole = mmap(NULL, 2 * MEMORY_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (whole != MAP_FAILED &&
	    (mmap(whole, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED ||
	     mmap(whole + MEMORY_BYTES, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)) {
		munmap(whole, 2 * MEMORY_BYTES);
		whole = MAP_FAILED;
	}
	close(fd);
	return whole == MAP_FAILED ? NULL : whole;
}

int stream_open(struct stream **ret_stream, struct error *err)
{
	struct stream *s = calloc(1, sizeof *s);
	int rc = 0;
	if (!s)
		return error_set(err, ERROR_MEMORY, NULL, "no memory to read shards");
	s->fd = -1;
	s->memory = memory_map();
	if (!s->memory)
		rc = error_set(err, ERROR_MEMORY, NULL, "no memory to read shards");
	if (rc == 0)
		rc = ring_open(N_CHUNKS, &s->ring, err);
	if (rc < 0)
		stream_close(s);
	else
		*ret_stream = s;
	return rc;
}

struct stream *stream_close(struct stream *s)
{
	if (!s)
		return NULL;
	if (s->ring)
		stream_stop(s);
	ring_close(s->ring);
	if (s->memory)
		munmap(s->memory, 2 * MEMORY_BYTES);
	free(s->large);
	free(s);
	return NULL;
}

static void reads_wait(struct stream *s)
{
	for (unsigned i = 0; i < N_CHUNKS; i++)
		if (s->ops[i].busy)
			ring_complete(s->ring, &s->ops[i]);
}

static void direct_set(struct stream *s, bool on)
{
	int flags = fcntl(s->fd, F_GETFL);
	s->direct = flags >= 0 && fcntl(s->fd, F_SETFL, on ? flags | O_DIRECT : flags & ~O_DIRECT) == 0 && on;
}

void stream_stop(struct stream *s)
{
	reads_wait(s);
	if (s->direct)
		direct_set(s, false);
	s->fd = -1;
	s->first = s->next = 0;
}

void stream_start(struct stream *s, int fd, uint64_t size)
{
	stream_stop(s);
	s->fd = fd;
	s->size = size;
	direct_set(s, true);
	if (!s->direct)
		(void)posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
}

static uint8_t *chunk_at(const struct stream *s, uint64_t chunk)
{
	return s->memory + chunk % N_CHUNKS * CHUNK_BYTES;
}

static void chunk_submit(struct stream *s, uint64_t chunk)
{
	struct ring_op *op = &s->ops[chunk % N_CHUNKS];
	if (op->busy)
		ring_complete(s->ring, op);
	*op = (struct ring_op){.kind = RING_READ, .fd = s->fd, .data = chunk_at(s, chunk), .n = CHUNK_BYTES, .offset = chunk * CHUNK_BYTES,
			       .align = s->direct ? BLOCK : 0};
	ring_submit(s->ring, op);
}

// Waits for the chunk; what the file no longer has is zeros. A file system that wants larger blocks is read with the page cache.
static int chunk_wait(struct stream *s, uint64_t chunk)
{
	struct ring_op *op = &s->ops[chunk % N_CHUNKS];
	int rc = ring_complete(s->ring, op);
	if (rc == -EINVAL && s->direct) {
		reads_wait(s);
		direct_set(s, false);
	}
	if (rc == -EINVAL && !s->direct) {
		chunk_submit(s, chunk);
		rc = ring_complete(s->ring, op);
	}
	if (rc == 0 && op->n_done < CHUNK_BYTES) {
		memset(op->data + op->n_done, 0, CHUNK_BYTES - op->n_done);
		op->n_done = CHUNK_BYTES;
	}
	return rc;
}

// One read after the other, at whole blocks.
static int large_view(struct stream *s, uint64_t offset, size_t n, const uint8_t **ret_bytes)
{
	uint64_t begin = offset - offset % BLOCK, end = (offset + n + BLOCK - 1) / BLOCK * BLOCK;
	if (end - begin > s->large_bytes) {
		free(s->large);
		s->large_bytes = 0;
		s->large = aligned_alloc(BLOCK, (size_t)(end - begin));
		if (!s->large)
			return -ENOMEM;
		s->large_bytes = (size_t)(end - begin);
	}
	reads_wait(s);
	for (uint64_t at = begin; at < end; at += PIECE_BYTES) {
		size_t k = (size_t)(end - at < PIECE_BYTES ? end - at : PIECE_BYTES);
		struct ring_op op = {.kind = RING_READ, .fd = s->fd, .data = s->large + (at - begin), .n = k, .offset = at,
				     .align = s->direct ? BLOCK : 0};
		ring_submit(s->ring, &op);
		int rc = ring_complete(s->ring, &op);
		if (rc < 0)
			return rc;
		memset(op.data + op.n_done, 0, k - op.n_done);
	}
	*ret_bytes = s->large + (offset - begin);
	return 0;
}

int stream_view(struct stream *s, uint64_t offset, size_t n, const uint8_t **ret_bytes)
{
	uint64_t from = offset / CHUNK_BYTES, to = n ? (offset + n - 1) / CHUNK_BYTES : from;
	if (to - from >= N_CHUNKS)
		return large_view(s, offset, n, ret_bytes);
	if (from < s->first || from > s->next) {
		reads_wait(s);
		s->next = from;
	}
	s->first = from;
	while (s->next < from + N_CHUNKS && s->next * CHUNK_BYTES < s->size)
		chunk_submit(s, s->next++);
	for (uint64_t chunk = from; chunk <= to; chunk++) {
		int rc = chunk_wait(s, chunk);
		if (rc < 0)
			return rc;
	}
	*ret_bytes = s->memory + offset % MEMORY_BYTES;
	return 0;
}
