// SPDX-License-Identifier: Apache-2.0
// A compressed record begins with a magic of its own, which no record begins with: frames, their checksums and the index are the same for
// both, and a build that knows nothing of it finds a good frame with a record that it cannot read, not damage to be cut off.
#include "daemon/store/packed.h"

#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#ifdef HAVE_ZSTD
#include <zstd.h>
#endif

#include "common/crc32c.h"
#include "common/cursor.h"
#include "common/error.h"
#include "common/record.h"

#define PACKED_MAGIC 0x5a52444bu        // "KDRZ" as it lies in the bytes

int packed_level(const char *text, int *ret_level, struct error *err)
{
	char *end = NULL;
	long level = 0;
	if (strcmp(text, "zstd") == 0)
		level = PACKED_LEVEL;
	else if (strncmp(text, "zstd:", 5) == 0 && text[5] >= '1' && text[5] <= '9' && (level = strtol(text + 5, &end, 10)) && *end)
		level = 0;
	if ((!level && strcmp(text, "none") != 0) || level > PACKED_MAX_LEVEL)
		return error_set(err, ERROR_INVALID, NULL, "'%s': none, zstd or zstd:LEVEL (1 to %d) is expected", text, PACKED_MAX_LEVEL);
#ifndef HAVE_ZSTD
	if (level)
		return error_set(err, ERROR_UNSUPPORTED, NULL, "'%s': this build has no zstd", text);
#endif
	*ret_level = (int)level;
	return 0;
}

static struct packed plain(const struct record *record)
{
	struct packed p = {.crc = record_crc(record)};
	p.bytes = record_bytes(record, &p.n);
	return p;
}

#ifdef HAVE_ZSTD
int packer_init(struct packer *p, int level, struct error *err)
{
	*p = (struct packer){.level = level};
	if (level && !(p->context = ZSTD_createCCtx()))
		return error_set(err, ERROR_MEMORY, NULL, "no memory to compress records");
	return 0;
}

void packer_done(struct packer *p)
{
	ZSTD_freeCCtx(p->context);
	free(p->bytes);
	*p = (struct packer){0};
}

static int reserve(struct packer *p, size_t n)
{
	if (n <= p->capacity)
		return 0;
	free(p->bytes);
	p->bytes = malloc(n);
	p->capacity = p->bytes ? n : 0;
	return p->bytes ? 0 : -ENOMEM;
}

// Room for less than the record: the compressor gives up where it is not smaller.
struct packed packer_encode(struct packer *p, const struct record *record)
{
	struct packed whole = plain(record);
	if (!p->level || whole.n <= PACKED_HEADER_BYTES + 1 || reserve(p, whole.n) < 0)
		return whole;
	size_t room = whole.n - PACKED_HEADER_BYTES - 1;
	size_t n = ZSTD_compressCCtx(p->context, p->bytes + PACKED_HEADER_BYTES, room, whole.bytes, whole.n, p->level);
	if (ZSTD_isError(n) || whole.n / PACKED_MAX_RATIO > n)
		return whole;
	struct writer w = writer_init(p->bytes, PACKED_HEADER_BYTES);
	writer_u32(&w, PACKED_MAGIC);
	writer_u32(&w, (uint32_t)whole.n);
	n += PACKED_HEADER_BYTES;
	return (struct packed){p->bytes, n, crc32c(0, p->bytes, n)};
}

// Nothing is believed about the size before it is known to fit the bytes.
static int unpack(const uint8_t *bytes, size_t n, uint32_t n_record, struct record **ret_record, struct error *err)
{
	if (n_record <= n || n_record > RECORD_MAX_BYTES || n_record / PACKED_MAX_RATIO > n ||
	    ZSTD_getFrameContentSize(bytes + PACKED_HEADER_BYTES, n - PACKED_HEADER_BYTES) != n_record)
		return error_set(err, ERROR_CORRUPT, "record", "%zu bytes are no compressed record of %u", n, (unsigned)n_record);
	uint8_t *record = malloc(n_record);
	if (!record)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a record of %u bytes", (unsigned)n_record);
	size_t k = ZSTD_decompress(record, n_record, bytes + PACKED_HEADER_BYTES, n - PACKED_HEADER_BYTES);
	int rc = k == n_record ? record_from_bytes(record, k, ret_record, err)
		: error_set(err, ERROR_CORRUPT, "record", "a compressed record: %s",
			ZSTD_isError(k) ? ZSTD_getErrorName(k) : "its size is wrong");
	free(record);
	return rc;
}
#else
int packer_init(struct packer *p, int level, struct error *err)
{
	*p = (struct packer){0};
	return level ? error_set(err, ERROR_UNSUPPORTED, NULL, "records cannot be compressed: this build has no zstd") : 0;
}

void packer_done(struct packer *p)
{
	*p = (struct packer){0};
}

struct packed packer_encode(struct packer *p, const struct record *record)
{
	(void)p;
	return plain(record);
}

static int unpack(const uint8_t *bytes, size_t n, uint32_t n_record, struct record **ret_record, struct error *err)
{
	(void)bytes, (void)n, (void)n_record, (void)ret_record;
	return error_set(err, ERROR_UNSUPPORTED, "record", "compressed with zstd, which this build has not");
}
#endif

int packed_decode(const uint8_t *bytes, size_t n, struct record **ret_record, struct error *err)
{
	struct reader r = reader_init(bytes, n);
	uint32_t magic = reader_u32(&r), n_record = reader_u32(&r);
	if (r.failed || magic != PACKED_MAGIC)
		return record_from_bytes(bytes, n, ret_record, err);
	return unpack(bytes, n, n_record, ret_record, err);
}
