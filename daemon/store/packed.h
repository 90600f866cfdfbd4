// SPDX-License-Identifier: Apache-2.0
// What lies in a frame in a record's place: its bytes, or fewer of them by zstd (kdserved-shard.5, Compressed records). Whoever reads a
// frame gets the record byte for byte and need not know. The one door to libzstd, which a build may lack.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct error;
struct record;

#define PACKED_HEADER_BYTES 8
#define PACKED_MAX_RATIO 1024u       // of a record to its compressed form: what a hostile shard can make of a byte of its own is bounded
#define PACKED_MAX_LEVEL 19
#define PACKED_LEVEL 3               // of "zstd" alone

// "none" (0), "zstd" or "zstd:LEVEL" with 1 to PACKED_MAX_LEVEL. -EINVAL; -EOPNOTSUPP in a build without libzstd.
// The caller's err names it.
int packed_level(const char *text, int *ret_level, struct error *err);

// Used by one thread. A zeroed one packs nothing.
struct packer {
	int level;
	void *context;
	uint8_t *bytes;
	size_t capacity;
};
int packer_init(struct packer *p, int level, struct error *err);      // level 0: packs nothing
void packer_done(struct packer *p);

struct packed {
	const void *bytes;           // the record's, or the packer's until the next call
	size_t n;
	uint32_t crc;                // crc32c(0, bytes)
};
// The record itself where it would not become smaller, or there is no memory to try.
struct packed packer_encode(struct packer *p, const struct record *record);

// The record of a frame, whose bytes may be hostile. What record_from_bytes says; -EBADMSG for a compressed form that does not hold,
// -EOPNOTSUPP for any in a build without libzstd.
int packed_decode(const uint8_t *bytes, size_t n, struct record **ret_record, struct error *err);
