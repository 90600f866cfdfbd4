// SPDX-License-Identifier: Apache-2.0
// Rows -> record bytes. Each row's entries are sorted by id once; the gaps' cost under every Rice parameter is summed on the way.
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

#include "common/cursor.h"
#include "common/error.h"
#include "common/half.h"
#include "common/record_layout.h"
#include "common/rice.h"

int record_rows_new(const struct content_id *teacher, uint32_t vocab_size, const struct sequence *s, const struct query *canonical,
		    struct record_rows **ret_rows, struct error *err)
{
	struct record_rows *rows = calloc(1, sizeof *rows);
	if (!rows)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for rows");
	size_t n = query_rows(canonical), k = canonical->top_k;
	rows->teacher = *teacher;
	rows->vocab_size = vocab_size;
	rows->query = *canonical;
	rows->n_rows = (uint32_t)n;
	rows->status = calloc(n, sizeof *rows->status);
	rows->max_logit = calloc(n, sizeof *rows->max_logit);
	rows->lse = calloc(n * canonical->n_temperatures, sizeof *rows->lse);
	if (k) {
		rows->ids = calloc(n * k, sizeof *rows->ids);        // n < 2^31, k <= 2^24: no overflow
		rows->logits = calloc(n * k, sizeof *rows->logits);
	}
	if (canonical->own)
		rows->own_logit = calloc(n, sizeof *rows->own_logit);
	if (canonical->entropy)
		rows->entropy = calloc(n, sizeof *rows->entropy);
	if (sequence_init(&rows->sequence, s->tokens, s->n_tokens) || !rows->status || !rows->max_logit || !rows->lse ||
	    (k && (!rows->ids || !rows->logits)) || (canonical->own && !rows->own_logit) || (canonical->entropy && !rows->entropy)) {
		record_rows_free(rows);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for %zu rows of top-%zu", n, k);
	}
	*ret_rows = rows;
	return 0;
}

struct record_rows *record_rows_free(struct record_rows *rows)
{
	if (!rows)
		return NULL;
	sequence_done(&rows->sequence);
	free(rows->status);
	free(rows->max_logit);
	free(rows->lse);
	free(rows->ids);
	free(rows->logits);
	free(rows->own_logit);
	free(rows->entropy);
	free(rows);
	return NULL;
}

// Sorts runs of 8 by insertion, then merges them pairwise.
void sort_keys(uint64_t *keys, uint64_t *scratch, size_t n)
{
	for (size_t begin = 0; begin < n; begin += 8) {
		size_t end = n - begin < 8 ? n : begin + 8;
		for (size_t i = begin + 1; i < end; i++) {
			uint64_t key = keys[i];
			size_t j = i;
			for (; j > begin && keys[j - 1] > key; j--)
				keys[j] = keys[j - 1];
			keys[j] = key;
		}
	}
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

// Numbers of one OK row besides its top-k.
static int check_row(const struct record_rows *rows, uint32_t row, struct error *err)
{
	uint32_t nt = rows->query.n_temperatures;
	bool finite = isfinite(rows->max_logit[row]);
	for (uint32_t t = 0; t < nt; t++)
		finite &= isfinite(rows->lse[(size_t)row * nt + t]) != 0;
	bool follows = (uint32_t)rows->query.first + row + 1 < rows->sequence.n_tokens;
	if (rows->own_logit && follows)
		finite &= isfinite(rows->own_logit[row]) != 0;
	if (rows->entropy)
		finite &= isfinite(rows->entropy[row]) != 0;
	if (!finite)
		return error_set(err, ERROR_INTERNAL, "record", "row %" PRIu32 " is called ok but holds a number that is not finite", row);
	return 0;
}

// Fills keys (top_k): id in the upper half, the value's bits in the lower, ascending by id.
static int sort_row(const struct record_rows *rows, uint32_t row, uint64_t *keys, uint64_t *scratch, struct error *err)
{
	size_t k = rows->query.top_k;
	const uint32_t *ids = rows->ids + row * k;
	const float *logits = rows->logits + row * k;
	bool good = logits[0] == rows->max_logit[row];
	for (size_t i = 0; i < k; i++) {
		good &= logits[i] <= logits[0] && isfinite(logits[i]) && ids[i] < rows->vocab_size;
		keys[i] = (uint64_t)ids[i] << 32 | float_bits(logits[i]);
	}
	sort_keys(keys, scratch, k);
	for (size_t i = 1; i < k; i++)
		good &= keys[i] >> 32 > keys[i - 1] >> 32;
	if (!good)
		return error_set(err, ERROR_INTERNAL, "record", "row %" PRIu32
				 ": top-k ids repeat or leave the vocabulary, or its first value is not a finite maximum", row);
	return 0;
}

// Checks every row; with top-k also sorts it into keys (n_rows, top_k) and counts its gaps.
static int prepare(const struct record_rows *rows, uint64_t *keys, struct rice_cost *cost, struct error *err)
{
	size_t k = rows->query.top_k;
	uint64_t *scratch = k ? malloc(k * sizeof *scratch) : NULL;
	int r = k && !scratch ? error_set(err, ERROR_MEMORY, NULL, "no memory to sort %zu entries", k) : 0;
	for (uint32_t row = 0; !r && row < rows->n_rows; row++) {
		if (rows->status[row] > ROW_NOT_FINITE)
			r = error_set(err, ERROR_INTERNAL, "record", "row %" PRIu32 " has the unknown status %d", row, rows->status[row]);
		if (r || rows->status[row] != ROW_OK)
			continue;
		r = check_row(rows, row, err);
		if (r || !k)
			continue;
		r = sort_row(rows, row, keys + row * k, scratch, err);
		if (!r)
			rice_cost_append(cost, keys + row * k, k);
	}
	free(scratch);
	return r;
}

static int check_shape(const struct record_rows *rows, struct error *err)
{
	struct error why = {0};
	if (!rows->vocab_size || rows->vocab_size > QUERY_MAX_VOCABULARY)
		return error_set(err, ERROR_UNSUPPORTED, "record", "a vocabulary of %" PRIu32 " ids", rows->vocab_size);
	if (check_canonical(&rows->query, &rows->sequence, rows->vocab_size, rows->n_rows, &why))
		return error_set(err, ERROR_INTERNAL, "record", "%s", why.message);
	return 0;
}

static void write_column(const struct record_rows *rows, uint8_t *to, const float *values, size_t width)
{
	for (size_t row = 0; row < rows->n_rows; row++)
		for (size_t i = 0; i < width; i++)
			store_u32(to, row * width + i, rows->status[row] == ROW_OK ? float_bits(values[row * width + i]) : 0);
}

static void write_own(const struct record_rows *rows, uint8_t *to)
{
	write_column(rows, to, rows->own_logit, 1);
	uint32_t row = rows->n_rows - 1;
	if ((uint32_t)rows->query.last + 1 == rows->sequence.n_tokens && rows->status[row] == ROW_OK)
		store_u32(to, row, OWN_ABSENT);
}

static void write_ids(const struct record_rows *rows, uint8_t *to, const uint64_t *keys, unsigned parameter)
{
	*to = (uint8_t)parameter;
	struct rice_writer w = rice_writer_init(to + 1, parameter);
	for (uint32_t row = 0; row < rows->n_rows; row++)
		if (rows->status[row] == ROW_OK)
			rice_writer_append(&w, keys + (size_t)row * rows->query.top_k, rows->query.top_k);
	rice_writer_done(&w);
}

static void write_values_f32(const struct record_rows *rows, uint8_t *to, const uint64_t *keys)
{
	size_t k = rows->query.top_k;
	for (size_t row = 0; row < rows->n_rows; row++)
		for (size_t i = 0; i < k; i++)
			store_u32(to, row * k + i, rows->status[row] == ROW_OK ? (uint32_t)keys[row * k + i] : 0);
}

static int write_values_f16(const struct record_rows *rows, uint8_t *to, const uint64_t *keys, struct error *err)
{
	size_t k = rows->query.top_k;
	for (size_t row = 0; row < rows->n_rows; row++) {
		bool ok = rows->status[row] == ROW_OK;
		for (size_t i = 0; i < k; i++) {
			uint16_t half = ok ? half_from_float(bits_float((uint32_t)keys[row * k + i]) - rows->max_logit[row]) : 0;
			if ((half & 0x7c00) == 0x7c00)
				return error_set(err, ERROR_UNSUPPORTED, "values",
						 "row %zu: a logit lies more than 65504 below the row's maximum; "
						 "ask for f32", row);
			half = htole16(half);
			memcpy(to + 2 * (row * k + i), &half, 2);
		}
	}
	return 0;
}

static int write_section(const struct record_rows *rows, const struct section *section, const uint64_t *keys, unsigned parameter,
			 struct error *err)
{
	switch (section->tag) {
	case SECTION_STATUS: memcpy(section->data, rows->status, rows->n_rows); break;
	case SECTION_MAX_LOGIT: write_column(rows, section->data, rows->max_logit, 1); break;
	case SECTION_LSE: write_column(rows, section->data, rows->lse, rows->query.n_temperatures); break;
	case SECTION_IDS: write_ids(rows, section->data, keys, parameter); break;
	case SECTION_VALUES_F32: write_values_f32(rows, section->data, keys); break;
	case SECTION_VALUES_F16: return write_values_f16(rows, section->data, keys, err);
	case SECTION_OWN: write_own(rows, section->data); break;
	case SECTION_ENTROPY: write_column(rows, section->data, rows->entropy, 1); break;
	}
	return 0;
}

static void write_header(const struct record_rows *rows, struct record *record, unsigned n_sections)
{
	struct writer query = writer_init(NULL, 0), w = writer_init(record->bytes, record->n_bytes);
	struct content_id key = query_key(&rows->teacher, &rows->sequence, &rows->query);
	query_encode(&rows->query, &query);
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
	writer_u16(&w, (uint16_t)query.position);
	writer_u16(&w, (uint16_t)n_sections);
	query_encode(&rows->query, &w);
	for (uint32_t i = 0; i < rows->sequence.n_tokens; i++)
		writer_u32(&w, rows->sequence.tokens[i]);
	record->n_tokens = rows->sequence.n_tokens;
	record->n_rows = rows->n_rows;
	record->vocab_size = rows->vocab_size;
	record->query = rows->query;
	record->sections_at = w.position;
}

// Headers and contents of all sections, then the checksum.
static int write_sections(const struct record_rows *rows, struct record *record, struct section *sections, unsigned n,
			  const uint64_t *keys, unsigned parameter, struct error *err)
{
	struct writer w = writer_init(record->bytes, record->n_bytes);
	w.position = record->sections_at;
	for (unsigned i = 0; i < n; i++) {
		writer_u16(&w, (uint16_t)sections[i].tag);
		writer_u16(&w, 0);
		writer_u32(&w, (uint32_t)sections[i].n_bytes);
		sections[i].data = record->bytes + w.position;
		w.position += sections[i].n_bytes;
		int r = write_section(rows, &sections[i], keys, parameter, err);
		if (r)
			return r;
	}
	store_u32(record->bytes + RECORD_CRC_AT, 0, record_checksum(record->bytes, record->n_bytes));
	return 0;
}

int record_encode(const struct record_rows *rows, struct record **ret_record, struct error *err)
{
	struct rice_cost cost = {{0}};
	struct section sections[N_SECTIONS_MAX];
	struct record *record = NULL;
	size_t n_entries = (size_t)rows->n_rows * rows->query.top_k;
	int r = check_shape(rows, err);
	if (r)
		return r;
	uint64_t *keys = n_entries ? calloc(n_entries, sizeof *keys) : NULL;
	if (n_entries && !keys)
		return error_set(err, ERROR_MEMORY, NULL, "no memory to encode %zu entries", n_entries);
	r = prepare(rows, keys, &cost, err);
	if (r)
		goto out;
	unsigned parameter = rice_cost_best(&cost), n = section_list(&rows->query, rows->n_rows, sections);
	struct writer query = writer_init(NULL, 0);
	query_encode(&rows->query, &query);
	uint64_t total = RECORD_HEADER_BYTES + query.position + 4 * (uint64_t)rows->sequence.n_tokens;
	for (unsigned i = 0; i < n; i++) {
		if (sections[i].tag == SECTION_IDS)
			sections[i].n_bytes = 1 + (cost.bits[parameter] + 7) / 8;
		total += SECTION_HEADER_BYTES + sections[i].n_bytes;    // each below 2^60: no overflow
	}
	if (total > RECORD_MAX_BYTES) {
		r = error_set(err, ERROR_TOO_LARGE, "record", "%" PRIu64 " bytes, the limit is %u", total, RECORD_MAX_BYTES);
		goto out;
	}
	record = record_new((size_t)total);
	if (!record) {
		r = error_set(err, ERROR_MEMORY, NULL, "no memory for a record of %" PRIu64 " bytes", total);
		goto out;
	}
	write_header(rows, record, n);
	r = write_sections(rows, record, sections, n, keys, parameter, err);
out:
	free(keys);
	if (r)
		record_unref(record);
	else
		*ret_record = record;
	return r;
}
