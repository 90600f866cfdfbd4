// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/rows_example.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "common/record_layout.h"

struct record_rows *rows_example(void)
{
	struct content_id teacher;
	for (int i = 0; i < CONTENT_ID_BYTES; i++)
		teacher.bytes[i] = (uint8_t)i;
	struct sequence s = {.tokens = (uint32_t[]){3, 1, 4}, .n_tokens = 3};
	struct query q = {.top_k = 2, .own = true, .first = 1, .last = -1, .values = QUERY_VALUES_F16};
	struct query_limits limits = {.max_tokens = 8, .max_top_k = 8, .vocab_size = 10};
	struct record_rows *rows;
	assert_int_equal(query_check(&q, &s, &limits, "", NULL), 0);
	assert_int_equal(record_rows_new(&teacher, 10, &s, &q, &rows, NULL), 0);
	memcpy(rows->max_logit, (float[]){2, 1.5f}, 8);
	memcpy(rows->lse, (float[]){2.5f, 2}, 8);
	memcpy(rows->ids, (uint32_t[]){7, 4, 0, 9}, 16);
	memcpy(rows->logits, (float[]){2, 1, 1.5f, -0.5f}, 16);
	memcpy(rows->own_logit, (float[]){1, NAN}, 8);
	return rows;
}

struct record_rows *rows_second_example(void)
{
	struct content_id teacher;
	for (int i = 0; i < CONTENT_ID_BYTES; i++)
		teacher.bytes[i] = (uint8_t)i;
	struct sequence s = {.tokens = (uint32_t[]){3, 1, 4}, .n_tokens = 3};
	struct query q = {.last = -2, .values = QUERY_VALUES_U8, .n_temperatures = 2, .temperatures = {1, 2}, .argmax = true,
		.gather = {2, (uint32_t[]){0, 3, 4}, (uint32_t[]){200, 5, 5, 299}}, .draws = {.n = 10, .tau = 1, .seed = 7},
		.n_spans = 1, .spans = &(struct query_span){1, 3}};
	struct query copy;
	struct query_limits limits = {.max_tokens = 8, .max_top_k = 8, .max_gather = 8, .max_draws = 50, .max_spans = 1, .vocab_size = 300};
	struct record_rows *rows;
	assert_int_equal(query_copy(&copy, &q), 0);
	assert_int_equal(query_check(&copy, &s, &limits, "", NULL), 0);
	assert_int_equal(record_rows_new(&teacher, 300, &s, &copy, &rows, NULL), 0);
	query_done(&copy);
	rows->status[1] = ROW_NOT_FINITE;
	rows->max_logit[0] = 2;
	memcpy(rows->lse, (float[]){2.5f, 4}, 8);
	rows->argmax[0] = 200;
	memcpy(rows->gathered, (float[]){2, -0.5f, -0.5f}, 12);
	assert_int_equal(record_rows_reserve_draws(rows, 3, NULL), 0);
	memcpy(rows->draw_starts, (uint32_t[]){0, 3, 3}, 12);
	memcpy(rows->draw_ids, (uint32_t[]){5, 130, 200}, 12);
	memcpy(rows->draw_counts, (uint32_t[]){1, 2, 7}, 12);
	rows->span_sums[0] = NAN;
	return rows;
}

static uint32_t next(uint64_t *seed)
{
	*seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(*seed >> 33);
}

// k distinct positions: an ascending walk with random steps that always leaves room for the rest.
static void random_positions(uint64_t *seed, uint32_t *positions, uint32_t k, uint32_t n)
{
	uint32_t at = 0;
	for (uint32_t i = 0; i < k; i++) {
		uint32_t room = n - at - (k - i);
		uint32_t step = room / (k - i) * 2;
		at += step ? next(seed) % (step + 1 < room + 1 ? step + 1 : room + 1) : room ? next(seed) % 2 : 0;
		positions[i] = at++;
	}
}

static float random_below(uint64_t *seed, float max)
{
	return max - (float)(next(seed) % 2000) / 64;
}

struct entry { float value; uint32_t id; };

static int compare_entries(const void *a, const void *b)
{
	const struct entry *x = a, *y = b;
	if (x->value != y->value)
		return x->value > y->value ? -1 : 1;
	return x->id < y->id ? -1 : x->id > y->id;
}

static int compare_entry_ids(const void *a, const void *b)
{
	const struct entry *x = a, *y = b;
	return x->id < y->id ? -1 : x->id > y->id;
}

static void random_top_k(uint64_t *seed, struct record_rows *rows, uint32_t row)
{
	const struct query *q = &rows->query;
	uint32_t k = q->top_k;
	uint32_t n = q->top_mass != 0 ? 1 + next(seed) % k : k, *ids = rows->ids + (size_t)row * k;
	struct entry *entries = malloc(n * sizeof *entries);
	assert_non_null(entries);
	random_positions(seed, ids, n, query_vocabulary(q, rows->vocab_size));
	for (uint32_t i = 0; i < n; i++)
		entries[i] = (struct entry){(float)((int)(next(seed) % 2000) - 1200) / 64, keep_id(q, ids[i])};
	qsort(entries, n, sizeof *entries, compare_entries);
	for (uint32_t i = 0; i < k; i++) {
		ids[i] = i < n ? entries[i].id : RECORD_NO_ID;
		rows->logits[(size_t)row * k + i] = i < n ? entries[i].value : 0;
	}
	if (rows->n_top)
		rows->n_top[row] = n;
	rows->max_logit[row] = entries[0].value;
	free(entries);
}

static bool in_top(const struct record_rows *rows, uint32_t row, uint32_t id)
{
	uint32_t k = rows->query.top_k;
	for (uint32_t i = 0; i < k; i++)
		if (rows->ids[(size_t)row * k + i] == id)
			return true;
	return false;
}

// Ascending ids until the counts add up; the last takes what is left when the vocabulary ends.
static void random_draws(uint64_t *seed, struct record_rows *rows, uint32_t row)
{
	const struct query *q = &rows->query;
	uint32_t n = query_vocabulary(q, rows->vocab_size), left = q->draws.n, at = rows->draw_starts[row];
	if (q->draws.tail && rows->tail[row] == -INFINITY)
		left = 0;
	for (uint32_t position = next(seed) % (n / 8 + 1); left && position < n; position += 1 + next(seed) % (n / q->draws.n + 1)) {
		uint32_t id = keep_id(q, position), count = 1 + next(seed) % 3;
		if (q->draws.tail && in_top(rows, row, id))
			continue;
		assert_int_equal(record_rows_reserve_draws(rows, at + 1, NULL), 0);
		rows->draw_ids[at] = id;
		rows->draw_counts[at] = count < left ? count : left;
		if (q->draws.tau != 1)
			rows->draw_log_ratios[at] = (float)(next(seed) % 999) / 256 - 2;
		left -= rows->draw_counts[at++];
	}
	if (left) {
		assert_true(at > rows->draw_starts[row]);
		rows->draw_counts[at - 1] += left;
	}
	rows->draw_starts[row + 1] = at;
}

static void random_scalars(uint64_t *seed, struct record_rows *rows, uint32_t row)
{
	uint32_t nt = rows->query.n_temperatures;
	for (uint32_t t = 0; t < nt; t++)
		rows->lse[row * nt + t] = rows->max_logit[row] / rows->query.temperatures[t] + (float)(next(seed) % 999) / 100;
	if (rows->own_logit)
		rows->own_logit[row] = own_exists(rows, row) ? rows->max_logit[row] - 1 : NAN;
	if (rows->entropy)
		rows->entropy[row] = (float)(next(seed) % 999) / 100;
	if (rows->max_prob)
		rows->max_prob[row] = (float)(next(seed) % 1000) / 999;
	if (rows->sum_squares)
		rows->sum_squares[row] = (float)(next(seed) % 1000) / 999;
	if (rows->argmax)
		rows->argmax[row] = keep_id(&rows->query, next(seed) % query_vocabulary(&rows->query, rows->vocab_size));
	if (rows->tail)
		rows->tail[row] = row % 7 == 3 ? -INFINITY : -(float)(next(seed) % 999) / 100;
}

static void random_row(uint64_t *seed, struct record_rows *rows, uint32_t row)
{
	size_t width = query_vocabulary(&rows->query, rows->vocab_size);
	rows->max_logit[row] = 20 + (float)(next(seed) % 64) / 64;
	if (rows->query.top_k)
		random_top_k(seed, rows, row);
	random_scalars(seed, rows, row);
	for (size_t i = 0; rows->dense && i < width; i++)
		rows->dense[row * width + i] = random_below(seed, rows->max_logit[row]);
	if (rows->dense)
		rows->dense[row * width + next(seed) % width] = rows->max_logit[row];
	for (uint64_t i = record_gather_at(rows, row); i < record_gather_at(rows, row + 1); i++)
		rows->gathered[i] = random_below(seed, rows->max_logit[row]);
	if (rows->query.draws.n)
		random_draws(seed, rows, row);
}

// Of width 3, 4, ...; numbers that bfloat16 holds. A pooled one of odd number is absent.
static void random_feature(uint64_t *seed, struct record_rows *rows, uint32_t i)
{
	uint32_t width = 3 + i, n = feature_rows(&rows->query, rows->n_rows);
	bool pooled = rows->query.pooling != QUERY_POOLING_NONE;
	assert_int_equal(record_rows_add_feature(rows, i, width, NULL), 0);
	for (uint32_t row = 0; row < n; row++)
		for (uint32_t j = 0; j < width; j++)
			if (pooled || rows->status[row] == ROW_OK)
				rows->features[i][row * width + j] = pooled && i % 2 ? NAN : (float)(next(seed) % 256) / 64 - 2;
}

struct record_rows *rows_random(uint64_t seed, const struct query *asked, uint32_t n_tokens, uint32_t vocab_size, bool broken)
{
	struct content_id teacher = content_id_of(&seed, sizeof seed);
	struct sequence s = {.tokens = malloc((size_t)n_tokens * 4), .n_tokens = n_tokens};
	struct query q;
	struct query_limits limits = {.max_tokens = n_tokens, .max_top_k = vocab_size, .max_gather = 1000, .max_draws = 1000,
				      .max_spans = 1000, .vocab_size = vocab_size, .n_layers = 8};
	struct record_rows *rows;
	struct error err;
	assert_non_null(s.tokens);
	for (uint32_t i = 0; i < n_tokens; i++)
		s.tokens[i] = next(&seed) % vocab_size;
	assert_int_equal(query_copy(&q, asked), 0);
	if (query_check(&q, &s, &limits, "", &err))
		fail_msg("%s: %s", err.field, err.message);
	assert_int_equal(record_rows_new(&teacher, vocab_size, &s, &q, &rows, NULL), 0);
	sequence_done(&s);
	query_done(&q);
	for (uint32_t row = 0; rows->status && row < rows->n_rows; row++) {
		if (rows->draw_starts)
			rows->draw_starts[row + 1] = rows->draw_starts[row];
		if (broken && row % 5 == 4)
			rows->status[row] = ROW_NOT_FINITE;
		else if (rows->max_logit)
			random_row(&seed, rows, row);
	}
	for (uint32_t i = 0; i < rows->query.n_spans; i++)
		rows->span_sums[i] = i % 3 == 2 ? NAN : -(float)(next(&seed) % 999) / 10;
	for (uint32_t i = 0; i < rows->query.n_features; i++)
		random_feature(&seed, rows, i);
	return rows;
}

// The largest of everything at once; the caller's tables.
void rows_everything(struct query *q)
{
	static uint32_t keep[300], offsets[10], ids[30];
	static struct query_span spans[] = {{1, 9}, {2, 3}, {1, 2}, {4, 9}};
	for (uint32_t i = 0; i < 300; i++)
		keep[i] = i * 3 / 2 + i / 100;
	for (uint32_t i = 0; i < 30; i++)
		ids[i] = keep[i * 7];
	for (uint32_t i = 0; i < 10; i++)
		offsets[i] = i * i / 3;
	*q = (struct query){
		.last = -1, .top_k = 6, .top_mass = 0.9f, .dense = true, .n_temperatures = 2, .temperatures = {1, 2}, .own = true,
		.entropy = true, .max_prob = true, .argmax = true, .sum_squares = true, .tail = true, .values = QUERY_VALUES_U8,
		.draws = {.n = 20, .tau = 0.5f, .seed = 11, .tail = true}, .gather = {9, offsets, ids}, .n_keep = 300, .keep = keep,
		.n_spans = 4, .spans = spans, .n_features = 3, .features = {
		{QUERY_FEATURE_HIDDEN, 8}, {QUERY_FEATURE_FINAL, 0}, {QUERY_FEATURE_V, 7}}, .feature_values = QUERY_FEATURE_BF16,
	};
}

static void assert_same(const void *a, const void *b, size_t n)
{
	assert_true((a == NULL) == (b == NULL));
	if (a && n)
		assert_memory_equal(a, b, n);
}

// How far a value may come back from where it was: below = distance from the row's maximum, range = the largest such.
static float tolerance(enum query_values values, float max, float below, float range)
{
	float rounding = 0x1p-24f * (1 + fabsf(max) + range);
	return values == QUERY_VALUES_F32 ? 0 : values == QUERY_VALUES_F16 ? below * 0x1p-11f + rounding : range / 510 + rounding;
}

static void assert_values_near(const struct record_rows *rows, uint32_t row, const float *a, const float *b, size_t n)
{
	float max = rows->max_logit[row], range = 0;
	for (size_t i = 0; i < n; i++)
		range = max - a[i] > range ? max - a[i] : range;
	for (size_t i = 0; i < n; i++) {
		assert_true(fabsf(a[i] - b[i]) <= tolerance(rows->query.values, max, max - a[i], range));
		assert_true(a[i] != max || b[i] == max);
	}
}

// By id: rounding may have changed their order.
static void assert_top_equal(const struct record_rows *a, const struct record_rows *b, uint32_t row)
{
	uint32_t k = a->query.top_k, n = a->n_top ? a->n_top[row] : k;
	struct entry *x = malloc((k + 1) * sizeof *x), *y = malloc((k + 1) * sizeof *y);
	float *left = malloc((k + 1) * sizeof *left), *right = malloc((k + 1) * sizeof *right);
	assert_true(x && y && left && right);
	for (uint32_t i = 0; i < n; i++) {
		x[i] = (struct entry){a->logits[(size_t)row * k + i], a->ids[(size_t)row * k + i]};
		y[i] = (struct entry){b->logits[(size_t)row * k + i], b->ids[(size_t)row * k + i]};
		assert_true(!i || compare_entries(&y[i - 1], &y[i]) < 0);
	}
	qsort(x, n, sizeof *x, compare_entry_ids);
	qsort(y, n, sizeof *y, compare_entry_ids);
	for (uint32_t i = 0; i < n; i++) {
		assert_int_equal(x[i].id, y[i].id);
		left[i] = x[i].value;
		right[i] = y[i].value;
	}
	assert_values_near(a, row, left, right, n);
	for (uint32_t i = n; i < k; i++)
		assert_true(b->ids[(size_t)row * k + i] == RECORD_NO_ID && b->logits[(size_t)row * k + i] == 0);
	free(x), free(y), free(left), free(right);
}

static void assert_logits_equal(const struct record_rows *a, const struct record_rows *b)
{
	size_t n = a->n_rows, k = a->query.top_k, width = query_vocabulary(&a->query, a->vocab_size);
	if (k && a->query.values != QUERY_VALUES_U8)
		assert_memory_equal(a->ids, b->ids, 4 * n * k);
	for (uint32_t row = 0; row < n && a->max_logit; row++) {
		uint64_t at = record_gather_at(a, row), end = record_gather_at(a, row + 1);
		if (a->status[row] != ROW_OK)
			continue;
		if (k)
			assert_top_equal(a, b, row);
		if (end > at)
			assert_values_near(a, row, a->gathered + at, b->gathered + at, end - at);
		if (a->dense)
			assert_values_near(a, row, a->dense + row * width, b->dense + row * width, width);
	}
}

static void assert_draws_equal(const struct record_rows *a, const struct record_rows *b)
{
	size_t n = a->n_rows, n_draws = a->query.draws.n ? a->draw_starts[n] : 0;
	assert_same(a->draw_starts, b->draw_starts, 4 * (n + 1));
	if (!n_draws)
		return;
	assert_memory_equal(a->draw_ids, b->draw_ids, 4 * n_draws);
	assert_memory_equal(a->draw_counts, b->draw_counts, 4 * n_draws);
	assert_same(a->draw_log_ratios, b->draw_log_ratios, 4 * n_draws);
}

static void assert_features_equal(const struct record_rows *a, const struct record_rows *b)
{
	for (uint32_t i = 0; i < a->query.n_features; i++) {
		assert_int_equal(a->feature_widths[i], b->feature_widths[i]);
		size_t n = (size_t)feature_rows(&a->query, a->n_rows) * a->feature_widths[i];
		for (size_t j = 0; j < n; j++)
			assert_true(isnan(a->features[i][j]) ? isnan(b->features[i][j]) : a->features[i][j] == b->features[i][j]);
	}
}

void assert_rows_equal(const struct record_rows *a, const struct record_rows *b)
{
	size_t n = a->n_rows;
	assert_int_equal(b->n_rows, n);
	assert_int_equal(b->vocab_size, a->vocab_size);
	assert_true(query_equal(&a->query, &b->query));
	assert_memory_equal(&a->teacher, &b->teacher, sizeof a->teacher);
	assert_int_equal(a->sequence.n_tokens, b->sequence.n_tokens);
	assert_memory_equal(a->sequence.tokens, b->sequence.tokens, 4 * (size_t)a->sequence.n_tokens);
	assert_same(a->status, b->status, n);
	for (size_t i = 0; i < N_COLUMNS; i++)
		assert_same(column_values(a, &columns[i]), column_values(b, &columns[i]), 4 * n * column_width(&a->query, columns[i].tag));
	assert_same(a->own_logit, b->own_logit, 4 * n);
	assert_same(a->argmax, b->argmax, 4 * n);
	assert_same(a->n_top, b->n_top, 4 * n);
	assert_logits_equal(a, b);
	assert_draws_equal(a, b);
	for (uint32_t i = 0; i < a->query.n_spans; i++)
		assert_true(isnan(a->span_sums[i]) ? isnan(b->span_sums[i]) : a->span_sums[i] == b->span_sums[i]);
	assert_features_equal(a, b);
}

struct record *rows_encode(const struct record_rows *rows)
{
	struct record *record = NULL;
	struct error err = {0};
	int r = record_encode(rows, &record, &err);
	if (r)
		fail_msg("%s: %s", err.field, err.message);
	return record;
}
