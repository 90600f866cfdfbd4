// SPDX-License-Identifier: Apache-2.0
// Private to the record codec: the fixed header, the sections a question calls for, little-endian columns.
#pragma once

#include <endian.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#include "common/record.h"

#define RECORD_MAGIC 0x4352444bu       // "KDRC" as it lies in the bytes
#define RECORD_VERSION 1
#define RECORD_HEADER_BYTES 96
#define RECORD_CRC_AT 12               // the checksum covers all other bytes
#define RECORD_TEACHER_AT 16
#define RECORD_KEY_AT 48
#define SECTION_HEADER_BYTES 8
#define OWN_ABSENT 0x7fc00000u         // the one NaN allowed: own at the last token

enum section_tag {
	SECTION_STATUS = 1,
	SECTION_MAX_LOGIT = 2,
	SECTION_LSE = 3,
	SECTION_IDS = 4,
	SECTION_VALUES_F32 = 5,
	SECTION_VALUES_F16 = 6,
	SECTION_OWN = 7,
	SECTION_ENTROPY = 8,
};
#define N_SECTIONS_MAX 8

struct section {
	enum section_tag tag;
	uint64_t n_bytes;              // of the contents; IDS: set by whoever knows
	uint8_t *data;
};

struct record {
	atomic_uint n_references;
	uint32_t n_tokens, n_rows, vocab_size;
	struct query query;
	size_t sections_at;            // offset of the first section
	size_t n_bytes;
	uint8_t bytes[];
};

// Sections of a canonical query in their order; returns how many. n_bytes of IDS is 0.
unsigned section_list(const struct query *q, uint32_t n_rows, struct section ret_sections[N_SECTIONS_MAX]);
struct record *record_new(size_t n_bytes);       // one reference, zeroed fields, bytes not; NULL: no memory
// A valid question in canonical form that asks for n_rows rows; else -EBADMSG.
int check_canonical(const struct query *q, const struct sequence *s, uint32_t vocab_size, uint32_t n_rows, struct error *err);
uint32_t record_checksum(const uint8_t *bytes, size_t n);

static inline void store_u32(uint8_t *to, size_t i, uint32_t v)
{
	v = htole32(v);
	memcpy(to + 4 * i, &v, 4);
}

static inline uint32_t load_u32(const uint8_t *from, size_t i)
{
	uint32_t v;
	memcpy(&v, from + 4 * i, 4);
	return le32toh(v);
}

static inline uint32_t float_bits(float v)
{
	uint32_t bits;
	memcpy(&bits, &v, 4);
	return bits;
}

static inline float bits_float(uint32_t bits)
{
	float v;
	memcpy(&v, &bits, 4);
	return v;
}

// Ascending merge sort, bottom up; scratch holds n. Stable order is not needed: keys are unique.
void sort_keys(uint64_t *keys, uint64_t *scratch, size_t n);
