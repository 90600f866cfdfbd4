// SPDX-License-Identifier: Apache-2.0
// The bytes of a shard (kdserved-shard.5).
#include "daemon/store/shard.h"

#include <errno.h>
#include <string.h>

#include "common/crc32c.h"
#include "common/cursor.h"

#define HEADER_BYTES 64u
#define HEADER_MAGIC "KDSHARD\n"
#define HEADER_VERSION 1
#define FRAME_MAGIC 0x5246444bu         // "KDFR" as it lies in the file
#define SEAL_MAGIC 0x4553444bu          // "KDSE"

void shard_header_encode(struct shard_header *h, uint8_t ret_block[SHARD_HEADER_BYTES])
{
	memset(ret_block, 0, SHARD_HEADER_BYTES);
	struct writer w = writer_init(ret_block, HEADER_BYTES);
	writer_bytes(&w, HEADER_MAGIC, 8);
	writer_u32(&w, HEADER_VERSION);
	writer_u32(&w, SHARD_HEADER_BYTES);
	writer_u32(&w, h->id);
	writer_u32(&w, 0);
	writer_u64(&w, h->created);
	writer_bytes(&w, h->salt, sizeof h->salt);
	w.position = HEADER_BYTES - 4;
	h->seed = crc32c(0, ret_block, HEADER_BYTES - 4);
	writer_u32(&w, h->seed);
	memcpy(ret_block + SHARD_HEADER_COPY, ret_block, HEADER_BYTES);
}

static int header_decode_copy(const uint8_t *bytes, struct shard_header *ret)
{
	struct reader r = reader_init(bytes, HEADER_BYTES);
	const uint8_t *magic = reader_bytes(&r, 8);
	uint32_t version = reader_u32(&r), block = reader_u32(&r);
	struct shard_header h = {.id = reader_u32(&r)};
	(void)reader_u32(&r);
	h.created = reader_u64(&r);
	reader_copy(&r, h.salt, sizeof h.salt);
	(void)reader_bytes(&r, 12);
	h.seed = reader_u32(&r);
	if (r.failed || memcmp(magic, HEADER_MAGIC, 8) != 0 || version != HEADER_VERSION || block != SHARD_HEADER_BYTES ||
	    h.seed != crc32c(0, bytes, HEADER_BYTES - 4))
		return -EBADMSG;
	*ret = h;
	return 0;
}

int shard_header_decode(const uint8_t *block, size_t n, struct shard_header *ret_header)
{
	struct shard_header h;
	if ((n < HEADER_BYTES || header_decode_copy(block, &h) < 0) &&
	    (n < SHARD_HEADER_COPY + HEADER_BYTES || header_decode_copy(block + SHARD_HEADER_COPY, &h) < 0))
		return -EBADMSG;
	uint8_t whole[SHARD_HEADER_BYTES];
	uint32_t seed = h.seed;
	shard_header_encode(&h, whole);
	h.damaged = n < SHARD_HEADER_BYTES || h.seed != seed || memcmp(whole, block, SHARD_HEADER_BYTES) != 0;
	h.seed = seed;
	*ret_header = h;
	return 0;
}

uint64_t shard_frame_size(uint32_t record_bytes)
{
	return (SHARD_FRAME_BYTES + (uint64_t)record_bytes + 7) & ~UINT64_C(7);
}

static uint32_t crc_at(uint32_t seed, uint64_t offset)
{
	uint8_t place[8];
	struct writer w = writer_init(place, sizeof place);
	writer_u64(&w, offset);
	return crc32c(seed, place, sizeof place);
}

void shard_frame_encode(uint32_t seed, struct shard_frame *f, uint32_t record_crc, uint8_t ret_header[SHARD_FRAME_BYTES])
{
	struct writer w = writer_init(ret_header, SHARD_FRAME_BYTES);
	writer_u32(&w, FRAME_MAGIC);
	writer_u32(&w, f->record_bytes);
	writer_u64(&w, f->number);
	writer_bytes(&w, f->key.bytes, sizeof f->key.bytes);
	static const uint8_t zeros[8];
	uint32_t at = crc_at(seed, f->offset);
	uint32_t body = crc32c_join(crc32c(at, ret_header, w.position), record_crc, f->record_bytes);
	f->body_crc = crc32c(body, zeros, shard_frame_size(f->record_bytes) - SHARD_FRAME_BYTES - f->record_bytes);
	writer_u32(&w, f->body_crc);
	writer_u32(&w, crc32c(at, ret_header, w.position));
}

int shard_frame_decode(uint32_t seed, uint64_t offset, const uint8_t header[SHARD_FRAME_BYTES], struct shard_frame *ret_frame)
{
	struct reader r = reader_init(header, SHARD_FRAME_BYTES);
	if (reader_u32(&r) != FRAME_MAGIC)
		return -EBADMSG;
	struct shard_frame f = {.offset = offset};
	f.record_bytes = reader_u32(&r);
	f.number = reader_u64(&r);
	reader_copy(&r, f.key.bytes, sizeof f.key.bytes);
	f.body_crc = reader_u32(&r);
	if (reader_u32(&r) != crc32c(crc_at(seed, offset), header, SHARD_FRAME_BYTES - 4) || r.failed)
		return -EBADMSG;
	if (f.record_bytes == 0 || f.record_bytes > SHARD_RECORD_MAX || f.number == UINT64_MAX)
		return -EBADMSG;
	*ret_frame = f;
	return 0;
}

int shard_frame_check(uint32_t seed, const struct shard_frame *f, const uint8_t *bytes)
{
	uint32_t crc = crc32c(crc_at(seed, f->offset), bytes, SHARD_FRAME_BYTES - 8);
	crc = crc32c(crc, bytes + SHARD_FRAME_BYTES, shard_frame_size(f->record_bytes) - SHARD_FRAME_BYTES);
	return crc == f->body_crc ? 0 : -EBADMSG;
}

void shard_seal_encode(uint32_t seed, uint64_t offset, uint64_t next_number, uint8_t ret_seal[SHARD_SEAL_BYTES])
{
	struct writer w = writer_init(ret_seal, SHARD_SEAL_BYTES);
	writer_u32(&w, SEAL_MAGIC);
	writer_u32(&w, 0);
	writer_u64(&w, next_number);
	writer_u64(&w, offset);
	writer_u32(&w, 0);
	writer_u32(&w, crc32c(crc_at(seed, offset), ret_seal, SHARD_SEAL_BYTES - 4));
}

int shard_seal_decode(uint32_t seed, uint64_t offset, const uint8_t seal[SHARD_SEAL_BYTES], uint64_t *ret_next_number)
{
	struct reader r = reader_init(seal, SHARD_SEAL_BYTES);
	if (reader_u32(&r) != SEAL_MAGIC)
		return -EBADMSG;
	(void)reader_u32(&r);
	uint64_t number = reader_u64(&r), place = reader_u64(&r);
	(void)reader_u32(&r);
	if (reader_u32(&r) != crc32c(crc_at(seed, offset), seal, SHARD_SEAL_BYTES - 4) || place != offset)
		return -EBADMSG;
	*ret_next_number = number;
	return 0;
}
