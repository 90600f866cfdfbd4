// SPDX-License-Identifier: Apache-2.0
// The bytes of a shard: header, frames, seal (kdserved-shard.5). No files here.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/sequence.h"

struct error;

#define SHARD_HEADER_BYTES 4096u
#define SHARD_HEADER_COPY 2048u             // where the header lies a second time
#define SHARD_FRAME_BYTES 56u               // before the record
#define SHARD_SEAL_BYTES 32u
#define SHARD_RECORD_MAX (1u << 30)

struct shard_header {
	uint32_t id;
	uint64_t created;                       // seconds since 1970
	uint8_t salt[16];
	uint32_t seed;                          // set by encode and decode: every other checksum continues from it
	bool damaged;                           // set by decode: one copy, or the space around them, is not as written
};

struct shard_frame {
	uint64_t offset;                        // in the file; part of both checksums
	uint64_t number;
	uint32_t record_bytes;
	struct content_id key;
	uint32_t body_crc;
};

void shard_header_encode(struct shard_header *h, uint8_t ret_block[SHARD_HEADER_BYTES]);
// -EBADMSG when neither copy holds. n may be short of a whole block.
int shard_header_decode(const uint8_t *block, size_t n, struct shard_header *ret_header);

uint64_t shard_frame_size(uint32_t record_bytes);       // header, record and padding
// record_crc: crc32c(0, the record). Sets f->body_crc.
void shard_frame_encode(uint32_t seed, struct shard_frame *f, uint32_t record_crc, uint8_t ret_header[SHARD_FRAME_BYTES]);
int shard_frame_decode(uint32_t seed, uint64_t offset, const uint8_t header[SHARD_FRAME_BYTES], struct shard_frame *ret_frame);
// `bytes`: the whole frame, shard_frame_size() of them, whose header has been decoded. -EBADMSG.
int shard_frame_check(uint32_t seed, const struct shard_frame *f, const uint8_t *bytes);

void shard_seal_encode(uint32_t seed, uint64_t offset, uint64_t next_number, uint8_t ret_seal[SHARD_SEAL_BYTES]);
int shard_seal_decode(uint32_t seed, uint64_t offset, const uint8_t seal[SHARD_SEAL_BYTES], uint64_t *ret_next_number);
