// SPDX-License-Identifier: Apache-2.0
// Rows -> record bytes. First everything whose size is not the question's is worked out (sorted top-k, gaps, draws), then it is written.
#include <inttypes.h>
#include <math.h>

#include "common/cursor.h"
#include "common/error.h"
#include "common/half.h"
#include "common/record_check.h"
#include "common/record_layout.h"
#include "common/record_values.h"
#include "common/golomb.h"

struct encoder {
	const struct record_rows *rows;
	uint32_t *gaps;                // of the positions of OK rows' top-k, one row after the other, ascending in a row
	float *values;                 // their logits
	uint64_t n_top;                // how many
	uint32_t *counts;              // ids of each OK row - 1, with top_mass
	uint64_t n_counts;
	uint32_t *draw_gaps;           // as gaps, of drawn ids
	uint64_t n_draws, draw_count_bits;
	unsigned top_parameter, counts_parameter, draw_parameter;
	uint64_t top_bits, counts_bits, draw_bits;
	uint64_t *keys;                // (2, top_k) to sort a row: id's position << 32 | value
};

static bool row_is_ok(const struct record_rows *rows, uint32_t row)
{
	return !rows->status || rows->status[row] == ROW_OK;
}

static uint32_t row_n_top(const struct record_rows *rows, uint32_t row)
{
	return rows->status[row] != ROW_OK ? 0 : rows->n_top ? rows->n_top[row] : rows->query.top_k;
}

// Sorts runs of 8 by insertion, then merges them pairwise.
void sort_many_keys(uint64_t *keys, uint64_t *scratch, size_t n)
{
	for (size_t begin = 0; begin < n; begin += 8)
		sort_few_keys(keys + begin, n - begin < 8 ? n - begin : 8);
	for (size_t width = 8; width < n; width *= 2) {
		memcpy(scratch, keys, n * sizeof *keys);
		for (size_t begin = 0; begin < n; begin += 2 * width) {
			size_t middle = n - begin < width ? n : begin + width, end = n - begin < 2 * width ? n : begin + 2 * width;
			size_t a = begin, b = middle;
			for (size_t i = begin; i < end; i++)
				keys[i] = b >= end || (a < middle && scratch[a] < scratch[b]) ? scratch[a++] : scratch[b++];
		}
	}
}

// Position << 32 | value of a row's n entries, in the caller's order; false when a value is not finite or above the first.
static inline bool make_keys(const struct query *q, const uint32_t *ids, const float *logits, size_t n, uint64_t *keys)
{
	float first = logits[0];
	bool good = true;
	for (size_t i = 0; i < n; i++) {
		good &= (logits[i] <= first) & (logits[i] >= -__FLT_MAX__);
		keys[i] = (uint64_t)ids[i] << 32 | float_bits(logits[i]);
	}
	for (size_t i = 0; q->n_keep && i < n; i++)
		keys[i] = (uint64_t)query_keep_position(q, ids[i]) << 32 | (uint32_t)keys[i];
	return good;
}

// Gaps and values of the sorted keys; false when positions repeat or reach `end`.
static inline bool split_keys(const uint64_t *keys, size_t n, uint32_t end, uint32_t *gaps, float *values)
{
	uint32_t next = 0;
	bool good = true;
	for (size_t i = 0; i < n; i++) {
		uint32_t position = (uint32_t)(keys[i] >> 32);
		good &= (position >= next) & (position < end);
		gaps[i] = position - next;
		values[i] = bits_float((uint32_t)keys[i]);
		next = position + 1;
	}
	return good;
}

// Every OK row's top-k, checked and sorted by position, one behind the other. Inlined for a k that the compiler knows, and for any.
static inline __attribute__((always_inline)) int prepare_rows(struct encoder *e, const size_t k, const uint32_t *n_top,
							       struct error *err)
{
	const struct record_rows *rows = e->rows;
	const uint32_t *ids = rows->ids, end = query_vocabulary(&rows->query, rows->vocab_size);
	const float *logits = rows->logits, *max_logit = rows->max_logit;
	size_t n_rows = rows->n_rows;
	uint64_t *keys = e->keys, *scratch = e->keys + k;
	uint32_t *gaps = e->gaps;
	float *values = e->values;
	for (size_t row = 0; row < n_rows; row++, ids += k, logits += k) {
		if (rows->status[row] != ROW_OK)
			continue;
		const size_t n = n_top ? n_top[row] : k;
		bool good = logits[0] == max_logit[row] && make_keys(&rows->query, ids, logits, n, keys);
		sort_keys(keys, scratch, good ? n : 0);
		if (!good || !split_keys(keys, n, end, gaps, values))
			return error_set(err, ERROR_INTERNAL, "record", "row %zu: top-k ids repeat or leave the vocabulary, or its first "
					 "value is not a finite maximum", row);
		gaps += n;
		values += n;
		if (n_top)
			e->counts[e->n_counts++] = (uint32_t)n - 1;
	}
	e->n_top = (uint64_t)(gaps - e->gaps);
	return 0;
}

static int prepare_top(struct encoder *e, struct error *err)
{
	const struct record_rows *rows = e->rows;
	if (rows->query.top_k == 2 && !rows->n_top)
		return prepare_rows(e, 2, NULL, err);
	return prepare_rows(e, rows->query.top_k, rows->n_top, err);
}

// With draws.tail no id of the row's top-k (whose n gaps these are) was drawn: both ascend.
static bool draws_avoid_top(const struct record_rows *rows, uint32_t row, const uint32_t *gaps, size_t n)
{
	size_t i = 0;
	uint32_t top = n ? gaps[0] : 0;
	for (uint32_t d = rows->draw_starts[row]; i < n && d < rows->draw_starts[row + 1]; d++) {
		uint32_t position = query_keep_position(&rows->query, rows->draw_ids[d]);
		while (i < n && top < position)
			top += ++i < n ? gaps[i] + 1 : 0;
		if (i < n && top == position)
			return false;
	}
	return true;
}

static int prepare_draws(struct encoder *e, struct error *err)
{
	const struct record_rows *rows = e->rows;
	size_t top_at = 0;             // in gaps
	for (uint32_t row = 0; row < rows->n_rows; row++) {
		uint32_t next = 0, n_top = rows->query.draws.tail ? row_n_top(rows, row) : 0;
		if (!row_is_ok(rows, row))
			continue;
		if (n_top && !draws_avoid_top(rows, row, e->gaps + top_at, n_top))
			return error_set(err, ERROR_INTERNAL, "record",
				"row %" PRIu32 ": an id of its top-k was drawn from outside it", row);
		for (uint32_t i = rows->draw_starts[row]; i < rows->draw_starts[row + 1]; i++) {
			uint32_t position = query_keep_position(&rows->query, rows->draw_ids[i]);
			e->draw_gaps[e->n_draws++] = position - next;
			e->draw_count_bits += golomb_count_bits(rows->draw_counts[i]);
			next = position + 1;
		}
		top_at += n_top;
	}
	return 0;
}

static int encoder_init(struct encoder *e, const struct record_rows *rows, struct error *err)
{
	const struct query *q = &rows->query;
	size_t n = (size_t)rows->n_rows * q->top_k, n_draws = q->draws.n ? rows->draw_starts[rows->n_rows] : 0;
	*e = (struct encoder){.rows = rows};
	if (q->top_k) {
		e->gaps = malloc(n * sizeof *e->gaps);        // n_rows < 2^31, top_k <= 2^24
		e->values = malloc(n * sizeof *e->values);
		e->counts = malloc(rows->n_rows * sizeof *e->counts);
		e->keys = malloc(2 * (size_t)q->top_k * sizeof *e->keys);
	}
	if (q->draws.n)
		e->draw_gaps = malloc((n_draws + 1) * sizeof *e->draw_gaps);
	if ((q->top_k && (!e->gaps || !e->values || !e->counts || !e->keys)) || (q->draws.n && !e->draw_gaps))
		return error_set(err, ERROR_MEMORY, NULL, "no memory to encode %zu entries", n + n_draws);
	int r = q->top_k ? prepare_top(e, err) : 0;
	if (!r && q->draws.n)
		r = prepare_draws(e, err);
	e->top_parameter = golomb_best(e->gaps, e->n_top, &e->top_bits);
	e->counts_parameter = golomb_best(e->counts, e->n_counts, &e->counts_bits);
	e->draw_parameter = golomb_best(e->draw_gaps, e->n_draws, &e->draw_bits);
	return r;
}

static void encoder_done(struct encoder *e)
{
	free(e->gaps);
	free(e->values);
	free(e->counts);
	free(e->keys);
	free(e->draw_gaps);
}

static void write_column(const struct record_rows *rows, uint8_t *to, const float *values, size_t width)
{
	store_numbers(to, values, rows->n_rows * width);
	if (all_rows_ok(rows))
		return;
	for (size_t row = 0; row < rows->n_rows; row++)
		if (rows->status[row] != ROW_OK)
			memset(to + 4 * row * width, 0, 4 * width);
}

static void write_own(const struct record_rows *rows, uint8_t *to)
{
	write_column(rows, to, rows->own_logit, 1);
	for (uint32_t row = 0; row < rows->n_rows; row++)
		if (rows->status[row] == ROW_OK && !own_exists(rows, row))
			store_u32(to, row, NUMBER_ABSENT);
}

static void write_argmax(const struct record_rows *rows, uint8_t *to)
{
	for (uint32_t row = 0; row < rows->n_rows; row++)
		store_u32(to, row, rows->status[row] == ROW_OK ? rows->argmax[row] : 0);
}

static void write_stream(uint8_t *to, unsigned parameter, const uint32_t *numbers, size_t n)
{
	*to = (uint8_t)parameter;
	struct golomb_writer w = golomb_writer_init(to + 1, parameter);
	golomb_writer_append(&w, numbers, n);
	golomb_writer_done(&w);
}

static int too_far(struct error *err, uint32_t row)
{
	return error_set(err, ERROR_UNSUPPORTED, "values", "row %" PRIu32 ": a logit lies further below the row's maximum than the format "
			 "holds; ask for f32", row);
}

static int write_top_values(const struct encoder *e, uint8_t *to, struct error *err)
{
	const struct record_rows *rows = e->rows;
	struct values_writer w = values_writer_init(rows->query.values, to, rows->n_rows);
	const float *values = e->values;
	if (rows->query.values == QUERY_VALUES_F32 && all_rows_ok(rows)) {
		store_numbers(to, values, e->n_top);
		return 0;
	}
	for (uint32_t row = 0; row < rows->n_rows; row++) {
		size_t n = row_n_top(rows, row);
		if (rows->status[row] != ROW_OK)
			values_writer_skip(&w, rows->n_top ? 0 : rows->query.top_k);
		else if (!values_writer_append(&w, rows->max_logit[row], values, n))
			return too_far(err, row);
		values += n;
	}
	return 0;
}

// Rows of `values`, row r's from at(rows, r) on.
static int write_values(const struct record_rows *rows, uint8_t *to, const float *values,
			uint64_t (*at)(const struct record_rows *rows, uint32_t row), struct error *err)
{
	struct values_writer w = values_writer_init(rows->query.values, to, rows->n_rows);
	for (uint32_t row = 0; row < rows->n_rows; row++) {
		uint64_t begin = at(rows, row), n = at(rows, row + 1) - begin;
		if (rows->status[row] != ROW_OK)
			values_writer_skip(&w, n);
		else if (!values_writer_append(&w, rows->max_logit[row], values + begin, n))
			return too_far(err, row);
	}
	return 0;
}

static uint64_t dense_at(const struct record_rows *rows, uint32_t row)
{
	return (uint64_t)row * query_vocabulary(&rows->query, rows->vocab_size);
}

static void write_draws(const struct encoder *e, uint8_t *to)
{
	const struct record_rows *rows = e->rows;
	const uint32_t *gaps = e->draw_gaps;
	*to = (uint8_t)e->draw_parameter;
	struct golomb_writer w = golomb_writer_init(to + 1, e->draw_parameter);
	for (uint32_t row = 0; row < rows->n_rows; row++) {
		if (rows->status[row] != ROW_OK)
			continue;
		for (uint32_t i = rows->draw_starts[row]; i < rows->draw_starts[row + 1]; i++) {
			golomb_writer_append(&w, gaps++, 1);
			golomb_writer_append_count(&w, rows->draw_counts[i]);
		}
	}
	golomb_writer_done(&w);
}

static void write_draw_ratios(const struct record_rows *rows, uint8_t *to)
{
	size_t n = 0;
	for (uint32_t row = 0; row < rows->n_rows; row++)
		for (uint32_t i = rows->draw_starts[row]; rows->status[row] == ROW_OK && i < rows->draw_starts[row + 1]; i++)
			store_u32(to, n++, float_bits(rows->draw_log_ratios[i]));
}

static int write_spans(const struct record_rows *rows, uint8_t *to, struct error *err)
{
	for (uint32_t i = 0; i < rows->query.n_spans; i++) {
		float sum = rows->span_sums[i];
		if (isinf(sum))
			return error_set(err, ERROR_INTERNAL, "record", "the sum of span %" PRIu32 " is infinite", i);
		store_u32(to, i, isnan(sum) ? NUMBER_ABSENT : float_bits(sum));
	}
	return 0;
}

static uint16_t half_number(enum query_feature_values format, float v)
{
	return format == QUERY_FEATURE_F16 ? half_from_float(v) : bfloat_from_float(v);
}

// One row of a feature. Pooled ones may be NaN throughout.
static int write_feature_row(enum query_feature_values format, uint8_t *to, const float *values, uint32_t width, bool may_be_absent,
			     struct error *err)
{
	bool absent = may_be_absent && isnan(values[0]), good = true;
	for (uint32_t i = 0; i < width; i++) {
		float v = absent ? bits_float(NUMBER_ABSENT) : values[i];
		uint16_t half = format == QUERY_FEATURE_F32 ? 0 : htole16(half_number(format, v));
		uint16_t infinite = format == QUERY_FEATURE_F16 ? 0x7c00 : 0x7f80;
		if (!absent && !isfinite(v))
			return error_set(err, ERROR_INTERNAL, "record", "a feature is not finite");
		good &= absent || (le16toh(half) & infinite) != infinite;
		if (format == QUERY_FEATURE_F32)
			store_u32(to, i, float_bits(v));
		else
			memcpy(to + 2 * (size_t)i, &half, 2);
	}
	return good ? 0 : error_set(err, ERROR_UNSUPPORTED, "feature_values",
		"a number is beyond what the format holds; ask for f32 or bf16");
}

static int write_feature(const struct record_rows *rows, uint32_t feature, uint8_t *to, struct error *err)
{
	const struct query *q = &rows->query;
	uint32_t width = rows->feature_widths[feature], n = feature_rows(q, rows->n_rows);
	size_t row_bytes = (size_t)width * (q->feature_values == QUERY_FEATURE_F32 ? 4 : 2);
	bool pooled = q->pooling != QUERY_POOLING_NONE;
	int r = 0;
	store_u32(to, 0, width);
	for (uint32_t row = 0; !r && row < n; row++) {
		uint8_t *at = to + 4 + row * row_bytes;
		if (pooled || row_is_ok(rows, row))
			r = write_feature_row(q->feature_values, at, rows->features[feature] + (size_t)row * width, width, pooled, err);
		else
			memset(at, 0, row_bytes);
	}
	return r;
}

static int write_section(const struct encoder *e, const struct section *section, struct error *err)
{
	const struct record_rows *rows = e->rows;
	const struct column *column = column_find(section->tag);
	uint8_t *to = section->data;
	if (column)
		write_column(rows, to, column_values(rows, column), column_width(&rows->query, section->tag));
	switch (section->tag) {
	case SECTION_STATUS: memcpy(to, rows->status, rows->n_rows); break;
	case SECTION_TOP_COUNTS: write_stream(to, e->counts_parameter, e->counts, e->n_counts); break;
	case SECTION_TOP_IDS: write_stream(to, e->top_parameter, e->gaps, e->n_top); break;
	case SECTION_TOP_VALUES: return write_top_values(e, to, err);
	case SECTION_DENSE: return write_values(rows, to, rows->dense, dense_at, err);
	case SECTION_OWN: write_own(rows, to); break;
	case SECTION_ARGMAX: write_argmax(rows, to); break;
	case SECTION_GATHERED: return write_values(rows, to, rows->gathered, record_gather_at, err);
	case SECTION_DRAWS: write_draws(e, to); break;
	case SECTION_DRAW_RATIOS: write_draw_ratios(rows, to); break;
	case SECTION_SPANS: return write_spans(rows, to, err);
	case SECTION_FEATURE: return write_feature(rows, section->feature, to, err);
	default: break;
	}
	return 0;
}

static uint64_t variable_bytes(const struct encoder *e, const struct section *section)
{
	const struct record_rows *rows = e->rows;
	switch (section->tag) {
	case SECTION_TOP_COUNTS: return 1 + (e->counts_bits + 7) / 8;
	case SECTION_TOP_IDS: return 1 + (e->top_bits + 7) / 8;
	case SECTION_TOP_VALUES: return values_bytes(rows->query.values, rows->n_rows, e->n_top);
	case SECTION_DRAWS: return 1 + (e->draw_bits + e->draw_count_bits + 7) / 8;
	case SECTION_DRAW_RATIOS: return 4 * e->n_draws;
	default: return feature_bytes(&rows->query, rows->n_rows, rows->feature_widths[section->feature]);
	}
}

static void write_header(const struct record_rows *rows, struct record *record, size_t n_query, unsigned n_sections)
{
	struct writer w = writer_init(record->bytes, record->n_bytes);
	struct content_id key = query_key(&rows->teacher, &rows->sequence, &rows->query);
	writer_u32(&w, RECORD_MAGIC);
	writer_u16(&w, RECORD_VERSION);
	writer_u16(&w, 0);
	writer_u32(&w, (uint32_t)record->n_bytes);
	writer_u32(&w, 0);    // the checksum, last of all
	writer_bytes(&w, rows->teacher.bytes, sizeof rows->teacher.bytes);
	writer_bytes(&w, key.bytes, sizeof key.bytes);
	writer_u32(&w, rows->vocab_size);
	writer_u32(&w, rows->sequence.n_tokens);
	writer_u32(&w, rows->n_rows);
	writer_u32(&w, (uint32_t)n_query);
	writer_u16(&w, (uint16_t)n_sections);
	writer_u16(&w, 0);
	query_encode(&rows->query, &w);
	store_numbers(record->bytes + w.position, rows->sequence.tokens, rows->sequence.n_tokens);
	record->n_tokens = rows->sequence.n_tokens;
	record->n_rows = rows->n_rows;
	record->vocab_size = rows->vocab_size;
	record->sections_at = w.position + 4 * (size_t)rows->sequence.n_tokens;
}

// Headers and contents of all sections, then the checksum.
static int write_sections(const struct encoder *e, struct record *record, struct section *sections, unsigned n, struct error *err)
{
	struct writer w = writer_init(record->bytes, record->n_bytes);
	w.position = record->sections_at;
	for (unsigned i = 0; i < n; i++) {
		writer_u16(&w, (uint16_t)sections[i].tag);
		writer_u16(&w, 0);
		writer_u32(&w, (uint32_t)sections[i].n_bytes);
		sections[i].data = record->bytes + w.position;
		w.position += sections[i].n_bytes;
		int r = write_section(e, &sections[i], err);
		if (r)
			return r;
	}
	store_u32(record->bytes + RECORD_CRC_AT, 0, record_checksum(record->bytes, record->n_bytes));
	return 0;
}

static int write_record(const struct encoder *e, struct record **ret_record, struct error *err)
{
	const struct record_rows *rows = e->rows;
	struct section sections[N_SECTIONS_MAX];
	size_t n_query = query_bytes(&rows->query);
	unsigned n = section_list(&rows->query, rows->n_rows, rows->vocab_size, sections);
	uint64_t total = RECORD_HEADER_BYTES + n_query + 4 * (uint64_t)rows->sequence.n_tokens;
	for (unsigned i = 0; i < n; i++) {
		if (sections[i].variable)
			sections[i].n_bytes = variable_bytes(e, &sections[i]);
		total = size_plus(total, size_plus(SECTION_HEADER_BYTES, sections[i].n_bytes));
	}
	if (total > RECORD_MAX_BYTES)
		return error_set(err, ERROR_TOO_LARGE, "record", "%" PRIu64 " bytes, the limit is %u", total, RECORD_MAX_BYTES);
	struct record *record = record_new((size_t)total);
	if (!record || query_copy(&record->query, &rows->query)) {
		free(record);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a record of %" PRIu64 " bytes", total);
	}
	write_header(rows, record, n_query, n);
	int r = write_sections(e, record, sections, n, err);
	if (r)
		record_unref(record);
	else
		*ret_record = record;
	return r;
}

int record_encode(const struct record_rows *rows, struct record **ret_record, struct error *err)
{
	struct encoder e;
	int r = check_shape(rows, err);
	if (!r)
		r = check_numbers(rows, err);
	if (r)
		return r;
	r = encoder_init(&e, rows, err);
	if (!r)
		r = write_record(&e, ret_record, err);
	encoder_done(&e);
	return r;
}
