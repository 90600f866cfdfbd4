// SPDX-License-Identifier: Apache-2.0
// Private to the record codec: the fixed header, the sections a question calls for, little-endian columns.
#pragma once

#include <endian.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/record.h"
#include "common/saturate.h"

#define RECORD_MAGIC 0x4352444bu       // "KDRC" as it lies in the bytes
#define RECORD_HEADER_BYTES 100
#define RECORD_FLAGS_AT 6
#define RECORD_FLAG_SHORT 1            // in the flags of a short record; a whole one has none
#define RECORD_CRC_AT 12               // the checksum covers all other bytes
#define RECORD_TEACHER_AT 16
#define RECORD_KEY_AT 48
#define SECTION_HEADER_BYTES 8
#define NUMBER_ABSENT 0x7fc00000u      // the one NaN allowed: own where nothing follows, the sum of a span that has none

enum section_tag {
	SECTION_STATUS = 1,
	SECTION_MAX_LOGIT = 2,
	SECTION_LSE = 3,
	SECTION_TOP_COUNTS = 4,
	SECTION_TOP_IDS = 5,
	SECTION_TOP_VALUES = 6,
	SECTION_DENSE = 7,
	SECTION_OWN = 8,
	SECTION_ENTROPY = 9,
	SECTION_MAX_PROB = 10,
	SECTION_ARGMAX = 11,
	SECTION_SUM_SQUARES = 12,
	SECTION_TAIL = 13,
	SECTION_GATHERED = 14,
	SECTION_DRAWS = 15,
	SECTION_DRAW_RATIOS = 16,
	SECTION_SPANS = 17,
	SECTION_FEATURE = 18,          // once for each feature
};
#define N_SECTIONS_MAX (17 + QUERY_MAX_FEATURES)

struct section {
	enum section_tag tag;
	uint32_t feature;              // of SECTION_FEATURE: which
	bool variable;                 // its length depends on the answer
	uint64_t n_bytes;              // of the contents; UINT64_MAX when it overflows; where variable, set by whoever knows
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

// A column of f32 numbers, one or (lse) several a row.
struct column {
	enum section_tag tag;
	size_t at;                     // of its float pointer in struct record_rows
	float low, high;               // what an OK row may hold
	const char *name;
};
#define N_COLUMNS 6
extern const struct column columns[N_COLUMNS];
const struct column *column_find(enum section_tag tag);         // NULL: not a column
bool column_asked(const struct query *q, enum section_tag tag);
static inline size_t column_width(const struct query *q, enum section_tag tag)
{
	return tag == SECTION_LSE ? q->n_temperatures : 1;
}
static inline float **column_of(struct record_rows *rows, const struct column *c)
{
	return (float **)(void *)((char *)rows + c->at);
}
static inline const float *column_values(const struct record_rows *rows, const struct column *c)
{
	return *(float *const *)(const void *)((const char *)rows + c->at);
}

// Sections of a canonical query in their order; returns how many.
unsigned section_list(const struct query *q, uint32_t n_rows, uint32_t vocab_size, struct section ret_sections[N_SECTIONS_MAX]);
// record_rows_new() that takes the sequence instead of copying it, also when it fails. Unless zeroed, the top-k holds anything.
int rows_new(const struct content_id *teacher, uint32_t vocab_size, struct sequence *take, const struct query *canonical, bool zeroed,
	     struct record_rows **ret_rows, struct error *err);
bool query_has_status(const struct query *q);    // anything for each row
uint32_t query_vocabulary(const struct query *q, uint32_t vocab_size);    // n_keep where ids are kept
uint64_t feature_bytes(const struct query *q, uint32_t n_rows, uint32_t width);    // contents of its section; saturates
uint32_t feature_rows(const struct query *q, uint32_t n_rows);
struct record *record_new(size_t n_bytes);       // one reference, zeroed fields, bytes not; NULL: no memory
// A valid question in canonical form that asks for n_rows rows; else -EBADMSG (or -ENOMEM).
int check_canonical(const struct query *q, const struct sequence *s, uint32_t vocab_size, uint32_t n_rows, struct error *err);
int record_check_sections(const struct record *record, struct error *err);     // their number in the header
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

static inline uint32_t keep_id(const struct query *q, uint32_t position)
{
	return q->n_keep ? q->keep[position] : position;
}

// The token after row `row` has a logit in it.
static inline bool own_exists(const struct record_rows *rows, uint32_t row)
{
	size_t next = (size_t)rows->query.first + row + 1;
	return next < rows->sequence.n_tokens && query_keep_position(&rows->query, rows->sequence.tokens[next]) != UINT32_MAX;
}

// n numbers of 4 bytes to little-endian bytes, and back.
static inline void store_numbers(uint8_t *to, const void *numbers, size_t n)
{
#if __BYTE_ORDER == __LITTLE_ENDIAN
	memcpy(to, numbers, 4 * n);
#else
	for (size_t i = 0; i < n; i++)
		store_u32(to, i, ((const uint32_t *)numbers)[i]);
#endif
}

static inline void load_numbers(void *numbers, const uint8_t *from, size_t n)
{
#if __BYTE_ORDER == __LITTLE_ENDIAN
	memcpy(numbers, from, 4 * n);
#else
	for (size_t i = 0; i < n; i++)
		((uint32_t *)numbers)[i] = load_u32(from, i);
#endif
}

// Every value from low to high; NaN is not. Blocks of a fixed length: the compiler makes them four or eight numbers wide.
static inline bool numbers_within(const float *values, size_t n, float low, float high)
{
	uint32_t outside = 0;
	size_t i = 0;
	for (; i + 32 <= n; i += 32)
		for (size_t j = 0; j < 32; j++)
			outside |= (uint32_t)!(values[i + j] >= low) | (uint32_t)!(values[i + j] <= high);
	for (; i < n; i++)
		outside |= (uint32_t)!(values[i] >= low) | (uint32_t)!(values[i] <= high);
	return !outside;
}

// Whether every row is ROW_OK: then whole columns can be taken at once.
static inline bool all_rows_ok(const struct record_rows *rows)
{
	size_t n = rows->n_rows;
	return rows->status && rows->status[0] == ROW_OK && memcmp(rows->status, rows->status + 1, n - 1) == 0;
}

// Ascending merge sort, bottom up; scratch holds n. Stable order is not needed: keys are unique.
void sort_many_keys(uint64_t *keys, uint64_t *scratch, size_t n);

static inline void sort_few_keys(uint64_t *keys, size_t n)
{
	for (size_t i = 1; i < n; i++) {
		uint64_t key = keys[i];
		size_t j = i;
		for (; j && keys[j - 1] > key; j--)
			keys[j] = keys[j - 1];
		keys[j] = key;
	}
}

static inline void sort_keys(uint64_t *keys, uint64_t *scratch, size_t n)
{
	if (n == 2) {                      // without a branch, which would be guessed wrong every other time
		uint64_t a = keys[0], b = keys[1];
		keys[0] = a < b ? a : b;
		keys[1] = a < b ? b : a;
	} else if (n <= 8) {
		sort_few_keys(keys, n);
	} else {
		sort_many_keys(keys, scratch, n);
	}
}
