// SPDX-License-Identifier: Apache-2.0
// Walks a shard from front to back and says what lies there, whatever the bytes (they are hostile): records, damage, the seal, the end.
#pragma once

#include "daemon/store/shard.h"

struct stream;

enum scan_kind {
	SCAN_RECORD,         // `frame` and `record`
	SCAN_DAMAGE,         // bytes that are not as written, with something valid (or a whole frame of known length) after them
	SCAN_SEAL,           // SCAN_END or SCAN_TORN follows
	SCAN_TORN,           // from here to the end of the file nothing is valid; SCAN_END follows
	SCAN_END,            // clean; `offset` is where the next frame goes (zeros may follow: space set aside)
};

struct scan_item {
	enum scan_kind kind;
	uint64_t offset, n_bytes;            // the place
	uint64_t n_lost;                     // SCAN_DAMAGE: records missing, as far as their numbers tell; at least 1
	struct shard_frame frame;            // SCAN_RECORD
	const uint8_t *record;               // SCAN_RECORD: frame.record_bytes, until the next call
};

struct scan {
	struct shard_header header;
	uint64_t position, next_number;      // may be set by the caller to begin elsewhere at a frame
	uint64_t size;                       // what is torn off at the end does not count any more once it was seen
	uint64_t file_bytes;                 // as the scan began
	bool sealed;
	// where bytes come from: a file through a window or a stream, or memory
	int fd;
	const uint8_t *bytes;
	struct stream *stream;
	uint8_t *window;
	size_t window_bytes;
	uint64_t window_offset, window_n;
};

// Reads the header; -EBADMSG when it does not hold, or when `id` (of the file's name) is not the one in it. The fd stays the caller's;
// the size is the file's now. scan_init_bytes is the same over memory, scan_init_stream begins with the file in the stream,
// also the caller's.
int scan_init(struct scan *s, int fd, uint32_t id, struct error *err);
int scan_init_bytes(struct scan *s, const void *bytes, size_t n, uint32_t id, struct error *err);
int scan_init_stream(struct scan *s, int fd, struct stream *stream, uint32_t id, struct error *err);
void scan_done(struct scan *s);

// 0, or -EIO or -ENOMEM, after which the scan cannot go on.
int scan_next(struct scan *s, struct scan_item *ret_item, struct error *err);
