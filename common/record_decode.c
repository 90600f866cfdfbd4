// SPDX-License-Identifier: Apache-2.0
// Record bytes -> rows. Every section's length is checked before anything of that size is allocated; every number before it is handed out.
#include <inttypes.h>
#include <math.h>

#include "common/cursor.h"
#include "common/error.h"
#include "common/half.h"
#include "common/record_layout.h"
#include "common/record_read.h"
#include "common/record_values.h"

int read_corrupt(struct error *err, const char *what, size_t row)
{
	return error_set(err, ERROR_CORRUPT, "record", "%s (row %zu)", what, row);
}

// Finds the sections the query calls for, in order and, where it says so, of the right lengths, with nothing after the last.
static int find_sections(const struct record *record, struct section *sections, unsigned n, struct error *err)
{
	struct reader r = reader_init(record->bytes, record->n_bytes);
	r.position = record->sections_at;
	for (unsigned i = 0; i < n; i++) {
		uint16_t tag = reader_u16(&r), reserved = reader_u16(&r);
		uint32_t n_bytes = reader_u32(&r);
		const uint8_t *data = reader_bytes(&r, n_bytes);
		if (r.failed || tag != sections[i].tag || reserved || (!sections[i].variable && n_bytes != sections[i].n_bytes))
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
	memcpy(rows->status, from, rows->n_rows);
	if (all_rows_ok(rows))
		return 0;
	for (size_t row = 0; row < rows->n_rows; row++)
		if (rows->status[row] > ROW_NOT_FINITE)
			return read_corrupt(err, "unknown row status", row);
	return 0;
}

// f32 numbers: what an OK row may hold, zero bits in any other.
static int read_column(const struct record_rows *rows, const uint8_t *from, float *to, const struct column *c, struct error *err)
{
	size_t width = column_width(&rows->query, c->tag);
	load_numbers(to, from, rows->n_rows * width);
	if (all_rows_ok(rows) && numbers_within(to, rows->n_rows * width, c->low, c->high))
		return 0;
	for (size_t row = 0; row < rows->n_rows; row++) {
		for (size_t i = row * width; i < (row + 1) * width; i++) {
			if (rows->status[row] == ROW_OK ? !(to[i] >= c->low && to[i] <= c->high) : float_bits(to[i]) != 0)
				return read_corrupt(err, c->name, row);
		}
	}
	return 0;
}

// Like a column, but a row whose next token has no logit holds the one NaN that says so.
static int read_own(struct record_rows *rows, const uint8_t *from, struct error *err)
{
	for (uint32_t row = 0; row < rows->n_rows; row++) {
		uint32_t bits = load_u32(from, row);
		bool ok = rows->status[row] == ROW_OK, exists = ok && own_exists(rows, row);
		if (!ok ? bits != 0 : !exists ? bits != NUMBER_ABSENT : (bits & 0x7f800000) == 0x7f800000)
			return read_corrupt(err, "bad own logit", row);
		rows->own_logit[row] = bits_float(bits);
	}
	return 0;
}

static int read_argmax(struct record_rows *rows, const uint8_t *from, struct error *err)
{
	for (size_t row = 0; row < rows->n_rows; row++) {
		uint32_t id = load_u32(from, row);
		bool ok = rows->status[row] == ROW_OK;
		if (ok ? id >= rows->vocab_size || query_keep_position(&rows->query, id) == UINT32_MAX : id != 0)
			return read_corrupt(err, "bad argmax", row);
		rows->argmax[row] = id;
	}
	return 0;
}

static int read_gathered(struct record_rows *rows, const uint8_t *from, struct error *err)
{
	struct values_reader values = values_reader_init(rows->query.values, from, rows->n_rows);
	for (uint32_t row = 0; row < rows->n_rows; row++) {
		uint64_t begin = record_gather_at(rows, row), n = record_gather_at(rows, row + 1) - begin;
		if (rows->status[row] == ROW_OK ? !values_reader_next(&values, rows->max_logit[row], rows->gathered + begin, n)
						: !values_reader_skip(&values, n))
			return read_corrupt(err, "bad gathered logits", row);
	}
	return 0;
}

static int read_dense(struct record_rows *rows, const uint8_t *from, struct error *err)
{
	struct values_reader values = values_reader_init(rows->query.values, from, rows->n_rows);
	size_t width = query_vocabulary(&rows->query, rows->vocab_size);
	for (size_t row = 0; row < rows->n_rows; row++) {
		float *to = rows->dense + row * width, largest = -INFINITY;
		bool ok = rows->status[row] == ROW_OK;
		if (ok ? !values_reader_next(&values, rows->max_logit[row], to, width) : !values_reader_skip(&values, width))
			return read_corrupt(err, "bad dense logits", row);
		for (size_t i = 0; ok && i < width; i++)
			largest = to[i] > largest ? to[i] : largest;
		if (ok && largest != rows->max_logit[row])
			return read_corrupt(err, "dense logits whose largest is not the maximum", row);
	}
	return 0;
}

static int read_spans(struct record_rows *rows, const uint8_t *from, struct error *err)
{
	for (uint32_t i = 0; i < rows->query.n_spans; i++) {
		uint32_t bits = load_u32(from, i);
		if (bits != NUMBER_ABSENT && (bits & 0x7f800000) == 0x7f800000)
			return error_set(err, ERROR_CORRUPT, "record", "bad sum of span %" PRIu32, i);
		rows->span_sums[i] = bits_float(bits);
	}
	return 0;
}

static float feature_number(enum query_feature_values format, const uint8_t *from, size_t i)
{
	uint16_t half;
	if (format == QUERY_FEATURE_F32)
		return bits_float(load_u32(from, i));
	memcpy(&half, from + 2 * i, 2);
	half = le16toh(half);
	return format == QUERY_FEATURE_F16 ? half_to_float(half) : bfloat_to_float(half);
}

// Zero bits, or (pooled) the NaN of the format, throughout.
static bool feature_row_is(enum query_feature_values format, const uint8_t *from, uint32_t width, float v)
{
	uint32_t bits = float_bits(v);
	uint16_t half = format == QUERY_FEATURE_F16 ? half_from_float(v) : bfloat_from_float(v);
	bool equal = true;
	for (size_t i = 0; i < width; i++) {
		uint16_t here;
		memcpy(&here, from + 2 * i, 2);
		equal &= format == QUERY_FEATURE_F32 ? load_u32(from, i) == bits : le16toh(here) == half;
	}
	return equal;
}

static bool read_feature_row(const struct record_rows *rows, uint32_t row, const uint8_t *from, float *to, uint32_t width)
{
	enum query_feature_values format = rows->query.feature_values;
	bool finite = true;
	for (uint32_t i = 0; i < width; i++) {
		to[i] = feature_number(format, from, i);
		finite &= isfinite(to[i]) != 0;
	}
	if (rows->query.pooling != QUERY_POOLING_NONE)
		return finite || feature_row_is(format, from, width, bits_float(NUMBER_ABSENT));
	return rows->status[row] == ROW_OK ? finite : feature_row_is(format, from, width, 0);
}

static int read_feature(struct record_rows *rows, const struct section *s, struct error *err)
{
	const struct query *q = &rows->query;
	uint32_t width = s->n_bytes >= 4 ? load_u32(s->data, 0) : 0, n = feature_rows(q, rows->n_rows);
	if (!width || s->n_bytes != feature_bytes(q, rows->n_rows, width))
		return error_set(err, ERROR_CORRUPT, "record", "feature %" PRIu32 ": %" PRIu64 " bytes for a width of %" PRIu32, s->feature,
				 s->n_bytes, width);
	int r = record_rows_add_feature(rows, s->feature, width, err);
	size_t row_bytes = n ? (s->n_bytes - 4) / n : 0;
	for (uint32_t row = 0; !r && row < n; row++)
		if (!read_feature_row(rows, row, s->data + 4 + row * row_bytes, rows->features[s->feature] + (size_t)row * width, width))
			r = read_corrupt(err, "bad feature", row);
	return r;
}

static int read_section(struct record_rows *rows, const struct section *s, bool ordered, struct error *err)
{
	const struct column *column = column_find(s->tag);
	if (column)
		return read_column(rows, s->data, *column_of(rows, column), column, err);
	switch (s->tag) {
	case SECTION_STATUS: return read_status(rows, s->data, err);
	case SECTION_TOP_COUNTS: return read_top_counts(rows, s, err);
	case SECTION_TOP_IDS: return read_top(rows, s, s + 1, ordered, err);    // the values are the next section
	case SECTION_DENSE: return read_dense(rows, s->data, err);
	case SECTION_OWN: return read_own(rows, s->data, err);
	case SECTION_ARGMAX: return read_argmax(rows, s->data, err);
	case SECTION_GATHERED: return read_gathered(rows, s->data, err);
	case SECTION_DRAWS: return read_draws(rows, s, err);
	case SECTION_DRAW_RATIOS: return read_draw_ratios(rows, s, err);
	case SECTION_SPANS: return read_spans(rows, s->data, err);
	case SECTION_FEATURE: return read_feature(rows, s, err);
	default: return 0;
	}
}

static int decode(const struct record *record, bool ordered, struct record_rows **ret_rows, struct error *err)
{
	struct section sections[N_SECTIONS_MAX];
	struct record_rows *rows = NULL;
	struct sequence s = {0};
	unsigned n = section_list(&record->query, record->n_rows, record->vocab_size, sections);
	int r = find_sections(record, sections, n, err);
	if (r)
		return r;
	s.n_tokens = record->n_tokens;
	s.tokens = malloc(4 * (size_t)s.n_tokens);
	if (!s.tokens)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for %" PRIu32 " tokens", s.n_tokens);
	const uint8_t *tokens = record->bytes + record->sections_at - 4 * (size_t)s.n_tokens;
	load_numbers(s.tokens, tokens, s.n_tokens);
	r = rows_new(record_teacher(record), record->vocab_size, &s, &record->query, ordered, &rows, err);
	for (unsigned i = 0; !r && i < n; i++)
		r = read_section(rows, &sections[i], ordered, err);
	if (r)
		record_rows_free(rows);
	else
		*ret_rows = rows;
	return r;
}

const char *record_part_name(unsigned part)
{
	static const char *const names[RECORD_N_PARTS] = {
		"header", "query", "tokens", "section_headers",
		[3 + SECTION_STATUS] = "status", [3 + SECTION_MAX_LOGIT] = "max_logit", [3 + SECTION_LSE] = "lse",
		[3 + SECTION_TOP_COUNTS] = "top_counts", [3 + SECTION_TOP_IDS] = "top_ids", [3 + SECTION_TOP_VALUES] = "top_values",
		[3 + SECTION_DENSE] = "dense", [3 + SECTION_OWN] = "own", [3 + SECTION_ENTROPY] = "entropy",
		[3 + SECTION_MAX_PROB] = "max_prob", [3 + SECTION_ARGMAX] = "argmax", [3 + SECTION_SUM_SQUARES] = "sum_squares",
		[3 + SECTION_TAIL] = "tail", [3 + SECTION_GATHERED] = "gathered", [3 + SECTION_DRAWS] = "draws",
		[3 + SECTION_DRAW_RATIOS] = "draw_ratios", [3 + SECTION_SPANS] = "spans", [3 + SECTION_FEATURE] = "features",
	};
	return part < RECORD_N_PARTS ? names[part] : NULL;
}

int record_parts(const struct record *record, uint64_t ret_bytes[RECORD_N_PARTS])
{
	struct section sections[N_SECTIONS_MAX];
	unsigned n = section_list(&record->query, record->n_rows, record->vocab_size, sections);
	uint64_t tokens = 4 * (uint64_t)record->n_tokens;
	int r = find_sections(record, sections, n, NULL);
	if (r)
		return r;
	memset(ret_bytes, 0, RECORD_N_PARTS * sizeof *ret_bytes);
	ret_bytes[0] = RECORD_HEADER_BYTES;
	ret_bytes[1] = record->sections_at - RECORD_HEADER_BYTES - tokens;
	ret_bytes[2] = tokens;
	ret_bytes[3] = (uint64_t)n * SECTION_HEADER_BYTES;
	for (unsigned i = 0; i < n; i++)
		ret_bytes[3 + sections[i].tag] += sections[i].n_bytes;
	return 0;
}

int record_decode(const struct record *record, struct record_rows **ret_rows, struct error *err)
{
	return decode(record, true, ret_rows, err);
}

int record_check(const struct record *record, struct error *err)
{
	struct record_rows *rows = NULL;
	int r = decode(record, false, &rows, err);
	record_rows_free(rows);
	return r;
}
