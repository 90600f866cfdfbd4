// SPDX-License-Identifier: Apache-2.0
// Ids: how many, which, in what order, how often. A row's numbers are read in the order of the bits; nothing is believed beyond them.
#include "common/record_read.h"

#include <inttypes.h>
#include <math.h>

#include "common/error.h"
#include "common/record_values.h"
#include "common/golomb.h"

static int stream_open(const struct section *s, struct golomb_reader *ret_reader, struct error *err)
{
	if (!s->n_bytes || *s->data > GOLOMB_MAX_PARAMETER)
		return error_set(err, ERROR_CORRUPT, "record", "section %d has no parameter of its codes", s->tag);
	*ret_reader = golomb_reader_init(s->data + 1, s->n_bytes - 1, *s->data);
	return 0;
}

static int stream_close(const struct section *s, struct golomb_reader *reader, struct error *err)
{
	return golomb_reader_done(reader) ? error_set(err, ERROR_CORRUPT, "record", "bits too many in section %d", s->tag) : 0;
}

int read_top_counts(struct record_rows *rows, const struct section *counts, struct error *err)
{
	struct golomb_reader reader;
	int r = stream_open(counts, &reader, err);
	for (size_t row = 0; !r && row < rows->n_rows; row++) {
		uint32_t n = 0;
		if (rows->status[row] != ROW_OK)
			continue;
		if (golomb_reader_next(&reader, rows->query.top_k - 1, &n))
			r = read_corrupt(err, "bad number of top-k ids", row);
		rows->n_top[row] = n + 1;
	}
	return r ? r : stream_close(counts, &reader, err);
}

// Ascending order of the result is descending order of v; the two zeros are one.
static inline uint32_t descending_bits(float v)
{
	uint32_t bits = float_bits(v + 0.0f);
	return bits & 0x80000000 ? bits : ~(bits | 0x80000000);
}

struct top_reader {
	struct golomb_reader ids;
	struct values_reader values;
	uint64_t *keys, *swap;         // (top_k) each, as the two below
	uint32_t *positions;
	float *row_values;
	uint32_t end;                  // of positions
	bool have_gaps, have_values;   // of all rows: they lie in rows->ids and rows->logits already
	bool ordered;                  // false: rows are only checked, and stay as they lie
};

// Gaps become positions; false when they leave the vocabulary. Gaps are at most 2^24 and rows shorter than 2^24: the sum does not wrap.
static inline bool read_positions(const uint32_t *gaps, size_t n, uint32_t end, uint32_t *positions)
{
	uint64_t sum = 0;
	for (size_t i = 0; i < n; i++) {
		sum += gaps[i];
		positions[i] = (uint32_t)(sum + i);
	}
	return sum + n <= end;
}

// The same where nobody looks at the positions. In blocks of a fixed length, which the compiler makes vectors of.
#define GAPS_BLOCK 32
static bool check_positions(const uint32_t *gaps, size_t n, uint32_t end)
{
	uint64_t sum = n;
	size_t i = 0;
	for (; i + GAPS_BLOCK <= n; i += GAPS_BLOCK) {
		uint32_t part = 0;
		for (size_t j = 0; j < GAPS_BLOCK; j++)
			part += gaps[i + j];
		sum += part;
	}
	for (; i < n; i++)
		sum += gaps[i];
	return sum <= end;
}

// Two entries in order of size, the lower position first among equals; without a branch, which would be guessed wrong every other time.
static void order_two(const struct top_reader *t, uint32_t *ids, float *logits)
{
	bool swap = t->row_values[1] > t->row_values[0];
	ids[0] = t->positions[swap];
	ids[1] = t->positions[!swap];
	logits[0] = t->row_values[swap];
	logits[1] = t->row_values[!swap];
}

// Entries lie by ascending position; the key's lower half is the index there, which orders ties by id.
static void order_many(const struct top_reader *t, size_t n, uint32_t *ids, float *logits)
{
	uint64_t *keys = t->keys;
	for (size_t i = 0; i < n; i++)
		keys[i] = (uint64_t)descending_bits(t->row_values[i]) << 32 | i;
	sort_keys(keys, t->swap, n);
	for (size_t i = 0; i < n; i++) {
		uint32_t at = (uint32_t)keys[i];
		ids[i] = t->positions[at];
		logits[i] = t->row_values[at];
	}
}

// Of numbers that are not NaN. In lanes, because the compiler may not reorder comparisons by itself.
#define LANES 8
static float largest_of(const float *values, size_t n)
{
	float lanes[LANES], largest = -INFINITY;
	size_t i = 0;
	for (size_t j = 0; j < LANES; j++)
		lanes[j] = -INFINITY;
	for (; i + LANES <= n; i += LANES)
		for (size_t j = 0; j < LANES; j++)
			lanes[j] = values[i + j] > lanes[j] ? values[i + j] : lanes[j];
	for (; i < n; i++)
		largest = values[i] > largest ? values[i] : largest;
	for (size_t j = 0; j < LANES; j++)
		largest = lanes[j] > largest ? lanes[j] : largest;
	return largest;
}

// Nobody will look at the row: its entries stay by ascending position, or as gaps where draws from outside them do not call for more.
static bool check_top_row(struct record_rows *rows, size_t row, size_t n, struct top_reader *t)
{
	uint32_t *ids = rows->ids + row * rows->query.top_k;
	float *logits = rows->logits + row * rows->query.top_k;
	if (!t->have_gaps && golomb_reader_next_many(&t->ids, rows->vocab_size, ids, n))
		return false;
	if (!(rows->query.draws.tail ? read_positions(ids, n, t->end, ids) : check_positions(ids, n, t->end)))
		return false;
	for (size_t i = 0; rows->query.draws.tail && rows->query.n_keep && i < n; i++)
		ids[i] = keep_id(&rows->query, ids[i]);
	if (rows->query.values != QUERY_VALUES_F32 && values_reader_check(&t->values, rows->max_logit[row], n))
		return true;
	if (!t->have_values && !values_reader_next(&t->values, rows->max_logit[row], logits, n))
		return false;
	return largest_of(logits, n) == rows->max_logit[row];
}

static inline __attribute__((always_inline)) int read_top_row(struct record_rows *rows, size_t row, const size_t n, const size_t k,
							      struct top_reader *t, struct error *err)
{
	uint32_t *ids = rows->ids + row * k;
	float *logits = rows->logits + row * k;
	bool good = true;
	if ((!t->have_gaps && golomb_reader_next_many(&t->ids, rows->vocab_size, ids, n)) || !read_positions(ids, n, t->end, t->positions))
		return read_corrupt(err, "bad top-k ids", row);
	if (!t->have_values)
		good = values_reader_next(&t->values, rows->max_logit[row], t->row_values, n);
	for (size_t i = 0; t->have_values && i < n; i++)
		t->row_values[i] = logits[i];
	if (n == 2)
		order_two(t, ids, logits);
	else
		order_many(t, n, ids, logits);
	for (size_t i = 0; rows->query.n_keep && i < n; i++)
		ids[i] = keep_id(&rows->query, ids[i]);
	for (size_t i = n; i < k; i++)
		ids[i] = RECORD_NO_ID;
	if (!good || logits[0] != rows->max_logit[row])
		return read_corrupt(err, "top-k values that are not finite or whose first is not the maximum", row);
	return 0;
}

// Where every row has top_k ids, all are read at once.
static int read_all(struct record_rows *rows, struct top_reader *t, struct error *err)
{
	size_t n = (size_t)rows->n_rows * rows->query.top_k;
	if (!all_rows_ok(rows) || rows->n_top)
		return 0;
	t->have_gaps = true;
	if (golomb_reader_next_many(&t->ids, rows->vocab_size, rows->ids, n))
		return error_set(err, ERROR_CORRUPT, "record", "bad top-k ids");
	if (rows->query.values != QUERY_VALUES_F32)
		return 0;
	t->have_values = true;
	load_numbers(rows->logits, t->values.from, n);
	if (!numbers_within(rows->logits, n, -__FLT_MAX__, __FLT_MAX__))
		return error_set(err, ERROR_CORRUPT, "record", "top-k values that are not finite");
	return 0;
}

static int top_reader_init(struct top_reader *t, const struct record_rows *rows, const struct section *ids, const struct section *values,
			   struct error *err)
{
	size_t k = rows->query.top_k;
	*t = (struct top_reader){.values = values_reader_init(rows->query.values, values->data, rows->n_rows),
				 .end = query_vocabulary(&rows->query, rows->vocab_size)};
	int r = stream_open(ids, &t->ids, err);
	if (r)
		return r;
	t->keys = malloc(k * (2 * sizeof *t->keys + sizeof *t->positions + sizeof *t->row_values));
	if (!t->keys)
		return error_set(err, ERROR_MEMORY, NULL, "no memory to decode a row of %zu entries", k);
	t->swap = t->keys + k;
	t->positions = (uint32_t *)(t->swap + k);
	t->row_values = (float *)(t->positions + k);
	return 0;
}

// With top_mass the length of the values follows from the counts.
static int check_values_bytes(const struct record_rows *rows, const struct section *values, struct error *err)
{
	uint64_t n = 0;
	if (!rows->n_top)
		return 0;
	for (size_t row = 0; row < rows->n_rows; row++)
		n += rows->n_top[row];
	if (values->n_bytes == values_bytes(rows->query.values, rows->n_rows, n))
		return 0;
	return error_set(err, ERROR_CORRUPT, "record", "%" PRIu64 " bytes of top-k values for %" PRIu64 " ids", values->n_bytes, n);
}

// Inlined for a k that the compiler knows, and for any.
static inline __attribute__((always_inline)) int read_rows(struct record_rows *rows, const size_t k, const uint32_t *n_top,
							   struct top_reader *t, struct error *err)
{
	int r = 0;
	for (size_t row = 0; !r && row < rows->n_rows; row++) {
		const size_t n = n_top ? n_top[row] : k;
		if (rows->status[row] == ROW_OK && !t->ordered)
			r = check_top_row(rows, row, n, t) ? 0 : read_corrupt(err, "bad top-k", row);
		else if (rows->status[row] == ROW_OK)
			r = read_top_row(rows, row, n, k, t, err);
		else if (!values_reader_skip(&t->values, n))
			r = read_corrupt(err, "values in a row without numbers", row);
	}
	return r;
}

int read_top(struct record_rows *rows, const struct section *ids, const struct section *values, bool ordered, struct error *err)
{
	struct top_reader t = {.keys = NULL};
	int r = check_values_bytes(rows, values, err);
	if (!r)
		r = top_reader_init(&t, rows, ids, values, err);
	t.ordered = ordered;
	if (!r)
		r = read_all(rows, &t, err);
	if (!r)
		r = rows->query.top_k == 2 && !rows->n_top ? read_rows(rows, 2, NULL, &t, err)
							   : read_rows(rows, rows->query.top_k, rows->n_top, &t, err);
	if (!r)
		r = stream_close(ids, &t.ids, err);
	free(t.keys);
	return r;
}

// Ids and counts until the counts add up.
static int read_draws_row(struct record_rows *rows, size_t row, struct golomb_reader *reader, struct error *err)
{
	const struct query *q = &rows->query;
	uint32_t end = query_vocabulary(q, rows->vocab_size), next = 0, at = rows->draw_starts[row];
	uint32_t left = q->draws.tail && rows->tail[row] == -INFINITY ? 0 : q->draws.n;
	while (left) {
		uint32_t gap, count;
		if (next >= end || golomb_reader_next(reader, end - 1 - next, &gap) || golomb_reader_next_count(reader, left, &count))
			return read_corrupt(err, "bad drawn ids", row);
		int r = record_rows_reserve_draws(rows, at + 1, err);
		if (r)
			return r;
		rows->draw_ids[at] = keep_id(q, next + gap);
		rows->draw_counts[at++] = count;
		next += gap + 1;
		left -= count;
	}
	rows->draw_starts[row + 1] = at;
	return 0;
}

static int compare_ids(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return x < y ? -1 : x > y;
}

// With draws.tail no row's drawn ids meet its top-k.
static int check_tail_draws(const struct record_rows *rows, struct error *err)
{
	size_t k = rows->query.top_k;
	if (!k)
		return 0;
	int r = 0;
	uint32_t *top = malloc(k * sizeof *top);
	if (!top)
		return error_set(err, ERROR_MEMORY, NULL, "no memory to check %zu ids", k);
	for (size_t row = 0; !r && row < rows->n_rows; row++) {
		size_t n = rows->n_top ? rows->n_top[row] : k;
		if (rows->draw_starts[row] == rows->draw_starts[row + 1])
			continue;
		memcpy(top, rows->ids + row * k, n * sizeof *top);
		qsort(top, n, sizeof *top, compare_ids);
		for (uint32_t i = rows->draw_starts[row]; !r && i < rows->draw_starts[row + 1]; i++)
			if (bsearch(&rows->draw_ids[i], top, n, sizeof *top, compare_ids))
				r = read_corrupt(err, "an id of the top-k was drawn from outside it", row);
	}
	free(top);
	return r;
}

int read_draws(struct record_rows *rows, const struct section *draws, struct error *err)
{
	struct golomb_reader reader;
	int r = stream_open(draws, &reader, err);
	for (size_t row = 0; !r && row < rows->n_rows; row++) {
		rows->draw_starts[row + 1] = rows->draw_starts[row];
		if (rows->status[row] == ROW_OK)
			r = read_draws_row(rows, row, &reader, err);
	}
	if (!r)
		r = stream_close(draws, &reader, err);
	return r || !rows->query.draws.tail ? r : check_tail_draws(rows, err);
}

int read_draw_ratios(struct record_rows *rows, const struct section *ratios, struct error *err)
{
	size_t n = rows->draw_starts[rows->n_rows];
	if (ratios->n_bytes != 4 * (uint64_t)n)
		return error_set(err, ERROR_CORRUPT, "record", "%" PRIu64 " bytes of ratios for %zu drawn ids", ratios->n_bytes, n);
	for (size_t i = 0; i < n; i++) {
		rows->draw_log_ratios[i] = bits_float(load_u32(ratios->data, i));
		if (!isfinite(rows->draw_log_ratios[i]))
			return error_set(err, ERROR_CORRUPT, "record", "the ratio of drawn id %zu is not finite", i);
	}
	return 0;
}
