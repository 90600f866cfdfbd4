// SPDX-License-Identifier: Apache-2.0
// Buffers are few and each holds a piece, or is on its way to hold one. Its one complication: a piece may have been read ahead in vain (a
// mixture's rows chose other experts, a pass ended), so a buffer is given to another piece only when its read is over.
#include "daemon/teacher/shelf.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/clock.h"
#include "daemon/ring.h"

#define BLOCK 4096u                          // what O_DIRECT asks of offsets, lengths and memory
#define BEST_BYTES ((size_t)16 << 20)        // of a piece: a disk's full speed, and little beside a layer
#define N_AHEAD 2
#define N_BUFFERS (N_AHEAD + 2)              // the piece in use, those ahead, and one whose read was in vain
#define STEP_BYTES (UINT64_C(256) << 20)     // the file grows by
#define NO_PIECE UINT32_MAX

struct buffer { uint8_t *data; struct ring_op op; uint32_t piece; };

struct shelf {
	struct backend_shelf door;
	char *directory;
	int fd;
	bool direct;
	struct ring *ring;
	struct buffer buffers[N_BUFFERS];
	uint64_t *offsets;                   // (n_pieces + 1)
	uint32_t n_pieces, capacity;
	bool written;                        // all that was appended: nothing is read before
	uint64_t reserved;                   // bytes of the file
	bool in_memory;
	uint64_t read_bytes;
	double seconds;
};

static size_t round_up(size_t n)
{
	return (n + BLOCK - 1) / BLOCK * BLOCK;
}

static int io_error(const struct shelf *s, int result, const char *what, struct error *err)
{
	return error_system(err, result ? result : EIO, "stream-directory", "weights in %s cannot be %s", s->directory, what);
}

// O_TMPFILE has no name from the start; where a file system has no such thing the name is taken away at once.
static int open_unnamed(const char *directory, int flags)
{
	char path[4096];
	int fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC | flags, 0600);
	if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR))
		return fd;
	int n = snprintf(path, sizeof path, "%s/kdserved.XXXXXX", directory);
	if (n < 0 || (size_t)n >= sizeof path) {
		errno = ENAMETOOLONG;
		return -1;
	}
	fd = mkostemp(path, O_CLOEXEC | flags);
	if (fd >= 0)
		unlink(path);
	return fd;
}

static int open_file(struct shelf *s, struct error *err)
{
	s->fd = open_unnamed(s->directory, O_DIRECT);
	s->direct = s->fd >= 0;
	if (s->fd < 0 && errno == EINVAL)
		s->fd = open_unnamed(s->directory, 0);
	if (s->fd < 0)
		return error_system(err, errno, "stream-directory", "no file for weights can be made in %s", s->directory);
	struct statfs fs;
	s->in_memory = fstatfs(s->fd, &fs) == 0 && (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC);
	return ring_open(N_BUFFERS, &s->ring, err);
}

static int open_buffers(struct shelf *s, struct error *err)
{
	for (int i = 0; i < N_BUFFERS; i++) {
		s->buffers[i].piece = NO_PIECE;
		s->buffers[i].data = mmap(NULL, s->door.piece_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (s->buffers[i].data == MAP_FAILED) {
			s->buffers[i].data = NULL;
			return error_set(err, ERROR_MEMORY, "memory", "no memory for pieces of %zu bytes", s->door.piece_bytes);
		}
		(void)madvise(s->buffers[i].data, s->door.piece_bytes, MADV_HUGEPAGE);    // advice
	}
	return 0;
}

// Waits for what is under way in a buffer; what it was read for is forgotten if it failed.
static int settle(struct shelf *s, struct buffer *b, const char *what, struct error *err)
{
	if (ring_complete(s->ring, &b->op) == 0 && b->op.n_done == b->op.n)
		return 0;
	b->piece = NO_PIECE;
	int result = b->op.result;
	b->op.n_done = b->op.n = 0;
	b->op.result = 0;
	return io_error(s, result, what, err);
}

static void *shelf_begin(void *arg, struct error *err)
{
	struct shelf *s = arg;
	if (s->fd < 0 && (open_file(s, err) < 0 || open_buffers(s, err) < 0))
		return NULL;
	struct buffer *b = &s->buffers[s->n_pieces % N_BUFFERS];
	return settle(s, b, "written", err) < 0 ? NULL : b->data;
}

static int reserve_offset(struct shelf *s, struct error *err)
{
	if (s->n_pieces + 2 <= s->capacity)
		return 0;
	uint32_t capacity = 2 * s->capacity + 64;
	uint64_t *offsets = realloc(s->offsets, capacity * sizeof *offsets);
	if (!offsets)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a list of %u pieces", capacity);
	if (!s->offsets)
		offsets[0] = 0;
	s->offsets = offsets;
	s->capacity = capacity;
	return 0;
}

// Space is taken before it is written: a full disk is found out here, and blocks lie side by side. A file system without fallocate grows
// by writing.
static int reserve_file(struct shelf *s, uint64_t end, struct error *err)
{
	while (s->reserved < end) {
		if (fallocate(s->fd, 0, (off_t)s->reserved, (off_t)STEP_BYTES) < 0 && errno != EOPNOTSUPP && errno != EINTR)
			return error_system(err, errno, "stream-directory", "weights need more room in %s than the %.1f GiB written so far",
					    s->directory, (double)s->offsets[s->n_pieces] * 0x1p-30);
		if (errno != EINTR)
			s->reserved += STEP_BYTES;
	}
	return 0;
}

static int shelf_append(void *arg, size_t n, struct error *err)
{
	struct shelf *s = arg;
	struct buffer *b = &s->buffers[s->n_pieces % N_BUFFERS];
	size_t padded = round_up(n);
	int r = reserve_offset(s, err);
	if (r == 0)
		r = reserve_file(s, s->offsets[s->n_pieces] + padded, err);
	if (r < 0)
		return r;
	memset(b->data + n, 0, padded - n);
	b->op = (struct ring_op){.kind = RING_WRITE, .fd = s->fd, .data = b->data, .n = padded, .offset = s->offsets[s->n_pieces],
		.align = BLOCK};
	b->piece = NO_PIECE;
	ring_submit(s->ring, &b->op);
	s->written = false;
	s->offsets[s->n_pieces + 1] = s->offsets[s->n_pieces] + padded;
	s->n_pieces++;
	return 0;
}

static struct buffer *buffer_of(struct shelf *s, uint32_t piece)
{
	for (int i = 0; i < N_BUFFERS; i++)
		if (s->buffers[i].piece == piece)
			return &s->buffers[i];
	return NULL;
}

static bool is_among(uint32_t piece, const uint32_t *list, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (list[i] == piece)
			return true;
	return false;
}

// A buffer whose piece nobody waits for: an idle one first. There always is one, N_BUFFERS being more than are wanted at a time.
static struct buffer *buffer_idle(struct shelf *s, const uint32_t *wanted, uint32_t n)
{
	struct buffer *best = NULL;
	for (int i = 0; i < N_BUFFERS; i++) {
		struct buffer *b = &s->buffers[i];
		bool is_free = b->piece == NO_PIECE || !is_among(b->piece, wanted, n);
		if (is_free && (!best || (best->op.busy && !b->op.busy)))
			best = b;
	}
	return best;
}

static void start_read(struct shelf *s, uint32_t piece, const uint32_t *wanted, uint32_t n)
{
	struct buffer *b = buffer_idle(s, wanted, n);
	(void)settle(s, b, "read", NULL);      // in vain: if it failed, nobody's loss
	size_t bytes = (size_t)(s->offsets[piece + 1] - s->offsets[piece]);
	b->op = (struct ring_op){.kind = RING_READ, .fd = s->fd, .data = b->data, .n = bytes, .offset = s->offsets[piece], .align = BLOCK};
	b->piece = piece;
	ring_submit(s->ring, &b->op);
	s->read_bytes += bytes;
}

static int settle_all(struct shelf *s, struct error *err)
{
	int r = 0;
	for (int i = 0; i < N_BUFFERS && r == 0; i++)
		r = settle(s, &s->buffers[i], "written", err);
	s->written = r == 0;
	return r;
}

static void *shelf_find(void *arg, uint32_t piece, const uint32_t *next, uint32_t n_next, struct error *err)
{
	struct shelf *s = arg;
	uint32_t wanted[N_AHEAD + 1] = {piece}, n = 1;
	if (!s->written && settle_all(s, err) < 0)
		return NULL;
	for (uint32_t i = 0; i < n_next && n <= N_AHEAD; i++)
		wanted[n++] = next[i];
	for (uint32_t i = 0; i < n; i++)
		if (!buffer_of(s, wanted[i]))
			start_read(s, wanted[i], wanted, n);
	struct buffer *b = buffer_of(s, piece);
	double began = clock_seconds();
	int r = settle(s, b, "read", err);
	s->seconds += clock_seconds() - began;
	return r < 0 ? NULL : b->data;
}

int shelf_open(const char *directory, uint64_t memory_bytes, size_t least_bytes, struct shelf **ret_shelf, struct error *err)
{
	struct shelf *s = calloc(1, sizeof *s);
	if (s)
		s->directory = strdup(directory);
	if (!s || !s->directory) {
		free(s);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a file of weights");
	}
	size_t bytes = memory_bytes / N_BUFFERS < BEST_BYTES ? (size_t)(memory_bytes / N_BUFFERS) : BEST_BYTES;
	bytes = round_up(bytes > least_bytes ? bytes : least_bytes);
	s->fd = -1;
	s->door = (struct backend_shelf){.shelf = s, .piece_bytes = bytes, .n_ahead = N_AHEAD, .memory_bytes = (uint64_t)bytes * N_BUFFERS,
					 .begin = shelf_begin, .append = shelf_append, .find = shelf_find};
	*ret_shelf = s;
	return 0;
}

struct shelf *shelf_close(struct shelf *s)
{
	if (!s)
		return NULL;
	for (int i = 0; i < N_BUFFERS; i++) {
		if (s->ring)
			(void)ring_complete(s->ring, &s->buffers[i].op);
		if (s->buffers[i].data)
			munmap(s->buffers[i].data, s->door.piece_bytes);
	}
	ring_close(s->ring);
	if (s->fd >= 0)
		close(s->fd);
	free(s->offsets);
	free(s->directory);
	free(s);
	return NULL;
}

const struct backend_shelf *shelf_door(const struct shelf *s)
{
	return &s->door;
}

void shelf_stats(const struct shelf *s, struct shelf_stats *ret_stats)
{
	*ret_stats = (struct shelf_stats){.file_bytes = s->n_pieces ? s->offsets[s->n_pieces] : 0, .read_bytes = s->read_bytes,
					  .seconds = s->seconds, .uring = s->ring && ring_is_uring(s->ring), .direct = s->direct,
					  .in_memory = s->in_memory};
}
