// SPDX-License-Identifier: Apache-2.0
// Record bytes -> rows. Every section's length is checked before anything of that size is allocated; every number before it is handed out.
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

#include "common/cursor.h"
#include "common/error.h"
#include "common/half.h"
#include "common/record_layout.h"
#include "common/rice.h"

static int corrupt(struct error *err, const char *what, size_t row)
{
	return error_set(err, ERROR_CORRUPT, "record", "%s (row %zu)", what, row);
}

// Finds the sections the query calls for, in order and of the right lengths, with nothing after the last.
static int find_sections(const struct record *record, struct section *sections, unsigned n, struct error *err)
{
	struct reader r = reader_init(record->bytes, record->n_bytes);
	r.position = record->sections_at;
	for (unsigned i = 0; i < n; i++) {
		uint16_t tag = reader_u16(&r), reserved = reader_u16(&r);
		uint32_t n_bytes = reader_u32(&r);
		const uint8_t *data = reader_bytes(&r, n_bytes);
		bool is_ids = sections[i].tag == SECTION_IDS;
		if (r.failed || tag != sections[i].tag || reserved || (is_ids ? !n_bytes : n_bytes != sections[i].n_bytes))
			return error_set(err, ERROR_CORRUPT, "record",
					 "section %u (tag %d, %" PRIu32 " bytes) is not the one the query calls for", i,
					 tag, n_bytes);
		sections[i].n_bytes = n_bytes;
		sections[i].data = (uint8_t *)data;    // only read from here on
	}
	if (reader_left(&r))
		return error_set(err, ERROR_CORRUPT, "record", "%zu bytes too many", reader_left(&r));
	return 0;
}

static int read_status(struct record_rows *rows, const uint8_t *from, struct error *err)
{
	for (size_t row = 0; row < rows->n_rows; row++) {
		if (from[row] > ROW_NOT_FINITE)
			return corrupt(err, "unknown row status", row);
		rows->status[row] = from[row];
	}
	return 0;
}

// f32 numbers: finite where the row is OK, zero bits where it is not.
static int read_column(const struct record_rows *rows, const uint8_t *from, float *to, size_t width, const char *name, struct error *err)
{
	for (size_t row = 0; row < rows->n_rows; row++) {
		for (size_t i = row * width; i < (row + 1) * width; i++) {
			uint32_t bits = load_u32(from, i);
			if (rows->status[row] == ROW_OK ? (bits & 0x7f800000) == 0x7f800000 : bits != 0)
				return corrupt(err, name, row);
			to[i] = bits_float(bits);
		}
	}
	return 0;
}

// Like a column, but the row of the last token holds the one NaN that means "nothing follows".
static int read_own(const struct record_rows *rows, const uint8_t *from, struct error *err)
{
	for (size_t row = 0; row < rows->n_rows; row++) {
		uint32_t bits = load_u32(from, row);
		bool ok = rows->status[row] == ROW_OK, follows = (size_t)rows->query.first + row + 1 < rows->sequence.n_tokens;
		if (!ok ? bits != 0 : !follows ? bits != OWN_ABSENT : (bits & 0x7f800000) == 0x7f800000)
			return corrupt(err, "bad own logit", row);
		rows->own_logit[row] = bits_float(bits);
	}
	return 0;
}

// The value of entry i of the stream; NaN when it is not a number a row may hold.
static inline float value_at(const struct record_rows *rows, const uint8_t *from, size_t row, size_t i)
{
	if (rows->query.values == QUERY_VALUES_F32)
		return bits_float(load_u32(from, i));
	uint16_t half;
	memcpy(&half, from + 2 * i, 2);
	float difference = half_to_float(le16toh(half));
	return difference <= 0 ? rows->max_logit[row] + difference : NAN;
}

// Ascending order of the result is descending order of v; the two zeros are one.
static inline uint32_t descending_bits(float v)
{
	uint32_t bits = float_bits(v + 0.0f);
	return bits & 0x80000000 ? bits : ~(bits | 0x80000000);
}

struct row_scratch {
	uint64_t *keys, *swap;
	uint32_t *ids;
	float *values;
};

// Entries lie by ascending id; the key's lower half is the index there, which orders ties by id.
static int read_row(struct record_rows *rows, size_t row, struct rice_reader *ids, const uint8_t *values, struct row_scratch *s,
		    struct error *err)
{
	size_t k = rows->query.top_k;
	bool finite = true;
	if (rice_reader_next(ids, s->ids, k, rows->vocab_size))
		return corrupt(err, "bad top-k ids", row);
	for (size_t i = 0; i < k; i++) {
		s->values[i] = value_at(rows, values, row, row * k + i);
		finite &= isfinite(s->values[i]) != 0;
		s->keys[i] = (uint64_t)descending_bits(s->values[i]) << 32 | i;
	}
	sort_keys(s->keys, s->swap, k);
	for (size_t i = 0; i < k; i++) {
		uint32_t at = (uint32_t)s->keys[i];
		rows->ids[row * k + i] = s->ids[at];
		rows->logits[row * k + i] = s->values[at];
	}
	if (!finite || rows->logits[row * k] != rows->max_logit[row])
		return corrupt(err, "top-k values that are not finite or whose first is not the maximum", row);
	return 0;
}

// Rows that are not OK have no ids and zero values.
static int check_zeros(const uint8_t *from, size_t n, size_t row, struct error *err)
{
	uint8_t any = 0;
	for (size_t i = 0; i < n; i++)
		any |= from[i];
	return any ? corrupt(err, "values in a row without numbers", row) : 0;
}

static int read_top_k(struct record_rows *rows, const struct section *ids, const struct section *values, struct error *err)
{
	size_t k = rows->query.top_k, row_bytes = k * (rows->query.values == QUERY_VALUES_F16 ? 2 : 4);
	struct row_scratch s = {0};
	if (*ids->data > RICE_MAX_PARAMETER)
		return error_set(err, ERROR_CORRUPT, "record", "Rice parameter %d", *ids->data);
	struct rice_reader reader = rice_reader_init(ids->data + 1, ids->n_bytes - 1, *ids->data);
	s.keys = malloc(k * (2 * sizeof *s.keys + sizeof *s.ids + sizeof *s.values));
	if (!s.keys)
		return error_set(err, ERROR_MEMORY, NULL, "no memory to decode a row of %zu entries", k);
	s.swap = s.keys + k;
	s.ids = (uint32_t *)(s.swap + k);
	s.values = (float *)(s.ids + k);
	int r = 0;
	for (size_t row = 0; !r && row < rows->n_rows; row++)
		r = rows->status[row] == ROW_OK ? read_row(rows, row, &reader, values->data, &s, err)
						: check_zeros(values->data + row * row_bytes, row_bytes, row, err);
	if (!r && rice_reader_done(&reader))
		r = error_set(err, ERROR_CORRUPT, "record", "bits too many after the top-k ids");
	free(s.keys);
	return r;
}

static int read_section(struct record_rows *rows, const struct section *section, struct error *err)
{
	switch (section->tag) {
	case SECTION_STATUS: return read_status(rows, section->data, err);
	case SECTION_MAX_LOGIT: return read_column(rows, section->data, rows->max_logit, 1, "bad maximum", err);
	case SECTION_LSE: return read_column(rows, section->data, rows->lse, rows->query.n_temperatures, "bad lse", err);
	case SECTION_IDS: return read_top_k(rows, section, section + 1, err);    // the values are the next section
	case SECTION_VALUES_F32: case SECTION_VALUES_F16: return 0;
	case SECTION_OWN: return read_own(rows, section->data, err);
	case SECTION_ENTROPY: return read_column(rows, section->data, rows->entropy, 1, "bad entropy", err);
	}
	return 0;
}

int record_decode(const struct record *record, struct record_rows **ret_rows, struct error *err)
{
	struct section sections[N_SECTIONS_MAX];
	struct record_rows *rows = NULL;
	struct sequence s = {0};
	unsigned n = section_list(&record->query, record->n_rows, sections);
	int r = find_sections(record, sections, n, err);
	if (r)
		return r;
	s.n_tokens = record->n_tokens;
	s.tokens = malloc(4 * (size_t)s.n_tokens);
	if (!s.tokens)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for %" PRIu32 " tokens", s.n_tokens);
	const uint8_t *tokens = record->bytes + record->sections_at - 4 * (size_t)s.n_tokens;
	for (uint32_t i = 0; i < s.n_tokens; i++)
		s.tokens[i] = load_u32(tokens, i);
	r = record_rows_new(record_teacher(record), record->vocab_size, &s, &record->query, &rows, err);
	sequence_done(&s);
	for (unsigned i = 0; !r && i < n; i++)
		r = read_section(rows, &sections[i], err);
	if (r)
		record_rows_free(rows);
	else
		*ret_rows = rows;
	return r;
}
