// SPDX-License-Identifier: Apache-2.0
// Walks a shard. Its one complication is work bounded by the size of the file whatever the bytes: a header that holds is believed about
// its length and stepped over with its body, good or bad, so no byte is summed twice for bodies.
#include "daemon/store/scan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/store/stream.h"

#define WINDOW_BYTES (256u * 1024)      // a read of this size costs little more than one of 4 KiB, and 1000 small frames fit

#define SEAL_BLOCK 4096u               // of the write with which a shard is sealed

static int file_read(int fd, uint8_t *to, size_t n, uint64_t offset)
{
	size_t done = 0;
	while (done < n) {
		ssize_t k = pread(fd, to + done, n - done, (off_t)(offset + done));
		if (k < 0 && errno == EINTR)
			continue;
		if (k < 0)
			return -errno;
		if (k == 0) {                   // cut shorter by its writer meanwhile: as if nothing had been written
			memset(to + done, 0, n - done);
			return 0;
		}
		done += (size_t)k;
	}
	return 0;
}

static const uint8_t *scan_view_stream(const struct scan *s, uint64_t offset, size_t n, struct error *err)
{
	const uint8_t *bytes;
	int rc = stream_view(s->stream, offset, n, &bytes);
	if (rc == -ENOMEM)
		error_set(err, ERROR_MEMORY, NULL, "no memory for %zu bytes of a shard", n);
	else if (rc < 0)
		error_set(err, ERROR_IO, NULL, "shard %08x: cannot read at %llu: %s", s->header.id,
			(unsigned long long)offset, strerror(-rc));
	return rc < 0 ? NULL : bytes;
}

// n bytes at `offset`, all inside the file; valid until the next call. NULL with err set.
static const uint8_t *scan_view(struct scan *s, uint64_t offset, size_t n, struct error *err)
{
	if (s->bytes)
		return s->bytes + offset;
	if (s->stream)
		return scan_view_stream(s, offset, n, err);
	if (s->window && offset >= s->window_offset && offset + n <= s->window_offset + s->window_n)
		return s->window + (offset - s->window_offset);
	if (n > s->window_bytes || !s->window) {
		size_t larger = n > WINDOW_BYTES ? n : WINDOW_BYTES;
		uint8_t *window = malloc(larger);
		if (!window) {
			error_set(err, ERROR_MEMORY, NULL, "no memory for %zu bytes of a shard", larger);
			return NULL;
		}
		free(s->window);
		s->window = window;
		s->window_bytes = larger;
	}
	s->window_n = 0;
	size_t want = s->window_bytes < s->size - offset ? s->window_bytes : (size_t)(s->size - offset);
	int rc = file_read(s->fd, s->window, want, offset);
	if (rc < 0) {
		error_set(err, ERROR_IO, NULL, "shard %08x: cannot read at %llu: %s", s->header.id,
			(unsigned long long)offset, strerror(-rc));
		return NULL;
	}
	s->window_offset = offset;
	s->window_n = want;
	return s->window;
}

static int scan_check_header(struct scan *s, const uint8_t *block, size_t n, uint32_t id, struct error *err)
{
	if (shard_header_decode(block, n, &s->header) < 0)
		return error_set(err, ERROR_CORRUPT, NULL, "shard %08x: the header is damaged or not one of ours", id);
	if (s->header.id != id)
		return error_set(err, ERROR_CORRUPT, NULL, "shard %08x: the file holds shard %08x; was it renamed?", id, s->header.id);
	s->position = SHARD_HEADER_BYTES;
	return 0;
}

int scan_init(struct scan *s, int fd, uint32_t id, struct error *err)
{
	*s = (struct scan){.fd = fd};
	struct stat st;
	if (fstat(fd, &st) < 0)
		return error_system(err, errno, NULL, "shard %08x", id);
	s->size = s->file_bytes = (uint64_t)st.st_size;
	uint8_t block[SHARD_HEADER_BYTES];
	size_t n = s->size < sizeof block ? (size_t)s->size : sizeof block;
	int rc = file_read(fd, block, n, 0);
	if (rc < 0)
		return error_system(err, rc, NULL, "shard %08x: cannot read the header", id);
	return scan_check_header(s, block, n, id, err);
}

int scan_init_stream(struct scan *s, int fd, struct stream *stream, uint32_t id, struct error *err)
{
	int rc = scan_init(s, fd, id, err);
	stream_start(stream, fd, s->size);
	s->stream = stream;
	return rc;
}

int scan_init_bytes(struct scan *s, const void *bytes, size_t n, uint32_t id, struct error *err)
{
	*s = (struct scan){.fd = -1, .bytes = bytes, .size = n, .file_bytes = n};
	return scan_check_header(s, bytes, n, id, err);
}

void scan_done(struct scan *s)
{
	free(s->window);
	s->window = NULL;
	s->window_n = 0;
}

// What holds at `offset`: SCAN_RECORD with the frame's header, SCAN_SEAL with *ret_number, or SCAN_DAMAGE for neither. A record that
// would reach beyond the file counts as neither. Negative on errors.
static int scan_probe(struct scan *s, uint64_t offset, struct shard_frame *ret_frame, uint64_t *ret_number, struct error *err)
{
	uint64_t left = s->size - offset;
	if (left < SHARD_SEAL_BYTES)
		return SCAN_DAMAGE;
	const uint8_t *p = scan_view(s, offset, left < SHARD_FRAME_BYTES ? SHARD_SEAL_BYTES : SHARD_FRAME_BYTES, err);
	if (!p)
		return err->code == ERROR_MEMORY ? -ENOMEM : -EIO;
	if (left >= SHARD_FRAME_BYTES && shard_frame_decode(s->header.seed, offset, p, ret_frame) == 0 &&
	    shard_frame_size(ret_frame->record_bytes) <= left && ret_frame->number >= s->next_number)
		return SCAN_RECORD;
	if (shard_seal_decode(s->header.seed, offset, p, ret_number) == 0 && *ret_number >= s->next_number)
		return SCAN_SEAL;
	return SCAN_DAMAGE;
}

// Finds the first place at or after `from` where a header or seal holds: *ret_offset, or the size of the file. *ret_zero: only zeros
// until there.
static int scan_search(struct scan *s, uint64_t from, uint64_t *ret_offset, uint64_t *ret_number, bool *ret_zero, struct error *err)
{
	static const uint8_t zeros[8];
	*ret_zero = true;
	*ret_number = s->next_number;
	uint64_t at = from;
	for (; at < s->size; at += 8) {
		size_t n = s->size - at < 8 ? (size_t)(s->size - at) : 8;
		const uint8_t *p = scan_view(s, at, n, err);
		if (!p)
			return -EIO;
		if (memcmp(p, zeros, n) == 0)
			continue;
		struct shard_frame f;
		int kind = scan_probe(s, at, &f, ret_number, err);
		if (kind < 0)
			return kind;
		if (kind == SCAN_RECORD)
			*ret_number = f.number;
		if (kind == SCAN_RECORD || kind == SCAN_SEAL)
			break;
		*ret_zero = false;
	}
	*ret_offset = at < s->size ? at : s->size;
	return 0;
}

static int scan_skip(struct scan *s, struct scan_item *item, struct error *err)
{
	uint64_t found, number;
	bool zero;
	int rc = scan_search(s, s->position, &found, &number, &zero, err);
	if (rc < 0)
		return rc;
	item->n_bytes = found - s->position;
	if (found < s->size) {
		item->kind = SCAN_DAMAGE;
		item->n_lost = number > s->next_number ? number - s->next_number : 1;
		s->next_number = number;
		s->position = found;
		return 0;
	}
	item->kind = zero ? SCAN_END : SCAN_TORN;
	s->size = s->position;          // what follows is not there for us any more
	return 0;
}

static int scan_record(struct scan *s, const struct shard_frame *f, struct scan_item *item, struct error *err)
{
	uint64_t n = shard_frame_size(f->record_bytes), after, number;
	const uint8_t *p = scan_view(s, s->position, (size_t)n, err);
	if (!p)
		return err->code == ERROR_MEMORY ? -ENOMEM : -EIO;
	item->n_bytes = n;
	if (shard_frame_check(s->header.seed, f, p) == 0) {
		item->kind = SCAN_RECORD;
		item->frame = *f;
		item->record = p + SHARD_FRAME_BYTES;
	} else {
		bool zero;
		s->next_number = f->number + 1;
		int rc = scan_search(s, s->position + n, &after, &number, &zero, err);
		if (rc < 0)
			return rc;
		if (after >= s->size) {         // the last thing in the file: written in part
			item->kind = SCAN_TORN;
			item->n_bytes = s->size - s->position;
			s->size = s->position;
			return 0;
		}
		item->kind = SCAN_DAMAGE;
		item->n_lost = 1;
	}
	s->position += n;
	s->next_number = f->number + 1;
	return 0;
}

// Behind the seal: a writer writes whole blocks and cuts the file at the seal a moment later, so the zeros of its block are no damage.
static int scan_sealed(struct scan *s, struct scan_item *item, struct error *err)
{
	static const uint8_t zeros[SEAL_BLOCK];
	uint64_t n = s->size - s->position;
	if (n < SEAL_BLOCK) {
		const uint8_t *p = scan_view(s, s->position, (size_t)n, err);
		if (!p)
			return err->code == ERROR_MEMORY ? -ENOMEM : -EIO;
		if (memcmp(p, zeros, (size_t)n) == 0)
			n = 0;
	}
	item->kind = n ? SCAN_TORN : SCAN_END;
	item->n_bytes = n;
	s->size = s->position;
	return 0;
}

int scan_next(struct scan *s, struct scan_item *ret_item, struct error *err)
{
	struct error local;
	if (!err)
		err = &local;
	*ret_item = (struct scan_item){.kind = SCAN_END, .offset = s->position};
	if (s->position >= s->size)
		return 0;
	if (s->sealed)
		return scan_sealed(s, ret_item, err);
	struct shard_frame f;
	uint64_t number = 0;
	int kind = scan_probe(s, s->position, &f, &number, err);
	if (kind < 0)
		return kind;
	if (kind == SCAN_RECORD && f.number == s->next_number)
		return scan_record(s, &f, ret_item, err);
	if (kind == SCAN_RECORD) {          // numbers are missing although no byte is damaged: say so, then go on with the frame
		ret_item->kind = SCAN_DAMAGE;
		ret_item->n_lost = f.number - s->next_number;
		s->next_number = f.number;
		return 0;
	}
	if (kind == SCAN_SEAL && number != s->next_number) {
		ret_item->kind = SCAN_DAMAGE;
		ret_item->n_lost = number - s->next_number;
		s->next_number = number;
		return 0;
	}
	if (kind == SCAN_SEAL) {
		ret_item->kind = SCAN_SEAL;
		ret_item->n_bytes = SHARD_SEAL_BYTES;
		s->position += SHARD_SEAL_BYTES;
		s->sealed = true;
		return 0;
	}
	return scan_skip(s, ret_item, err);
}
