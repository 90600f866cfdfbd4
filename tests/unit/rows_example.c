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

static uint32_t next(uint64_t *seed)
{
	*seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(*seed >> 33);
}

static int compare_ids(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return x < y ? -1 : x > y;
}

// k distinct ids: an ascending walk with random steps that always leaves room for the rest.
static void random_ids(uint64_t *seed, uint32_t *ids, uint32_t k, uint32_t vocab_size)
{
	uint32_t at = 0;
	for (uint32_t i = 0; i < k; i++) {
		uint32_t room = vocab_size - at - (k - i);
		uint32_t step = room / (k - i) * 2;
		at += step ? next(seed) % (step + 1 < room + 1 ? step + 1 : room + 1) : room ? next(seed) % 2 : 0;
		ids[i] = at++;
	}
	qsort(ids, k, sizeof *ids, compare_ids);
}

struct entry { float value; uint32_t id; };

static int compare_entries(const void *a, const void *b)
{
	const struct entry *x = a, *y = b;
	if (x->value != y->value)
		return x->value > y->value ? -1 : 1;
	return x->id < y->id ? -1 : x->id > y->id;
}

static void random_top_k(uint64_t *seed, struct record_rows *rows, uint32_t row)
{
	uint32_t k = rows->query.top_k;
	struct entry *entries = malloc(k * sizeof *entries);
	assert_non_null(entries);
	random_ids(seed, rows->ids + (size_t)row * k, k, rows->vocab_size);
	for (uint32_t i = 0; i < k; i++)
		entries[i] = (struct entry){(float)((int)(next(seed) % 2000) - 1200) / 64, rows->ids[(size_t)row * k + i]};
	qsort(entries, k, sizeof *entries, compare_entries);
	for (uint32_t i = 0; i < k; i++) {
		rows->ids[(size_t)row * k + i] = entries[i].id;
		rows->logits[(size_t)row * k + i] = entries[i].value;
	}
	rows->max_logit[row] = entries[0].value;
	free(entries);
}

static void random_row(uint64_t *seed, struct record_rows *rows, uint32_t row)
{
	uint32_t nt = rows->query.n_temperatures;
	rows->max_logit[row] = 20 + (float)(next(seed) % 64) / 64;
	if (rows->query.top_k)
		random_top_k(seed, rows, row);
	for (uint32_t t = 0; t < nt; t++)
		rows->lse[row * nt + t] = rows->max_logit[row] / rows->query.temperatures[t] + (float)(next(seed) % 999) / 100;
	if (rows->own_logit)
		rows->own_logit[row] = (uint32_t)rows->query.first + row + 1 < rows->sequence.n_tokens ? rows->max_logit[row] - 1 : NAN;
	if (rows->entropy)
		rows->entropy[row] = (float)(next(seed) % 999) / 100;
}

struct record_rows *rows_random(uint64_t seed, const struct query *asked, uint32_t n_tokens, uint32_t vocab_size, bool broken)
{
	struct content_id teacher = content_id_of(&seed, sizeof seed);
	struct sequence s = {.tokens = malloc((size_t)n_tokens * 4), .n_tokens = n_tokens};
	struct query q = *asked;
	struct query_limits limits = {.max_tokens = n_tokens, .max_top_k = vocab_size, .vocab_size = vocab_size};
	struct record_rows *rows;
	assert_non_null(s.tokens);
	for (uint32_t i = 0; i < n_tokens; i++)
		s.tokens[i] = next(&seed) % vocab_size;
	assert_int_equal(query_check(&q, &s, &limits, "", NULL), 0);
	assert_int_equal(record_rows_new(&teacher, vocab_size, &s, &q, &rows, NULL), 0);
	sequence_done(&s);
	for (uint32_t row = 0; row < rows->n_rows; row++) {
		if (broken && row % 5 == 4)
			rows->status[row] = ROW_NOT_FINITE;
		else
			random_row(&seed, rows, row);
	}
	return rows;
}

static void assert_same(const void *a, const void *b, size_t n)
{
	assert_true((a == NULL) == (b == NULL));
	if (a)
		assert_memory_equal(a, b, n);
}

static void assert_values_near(const struct record_rows *a, const struct record_rows *b)
{
	size_t k = a->query.top_k;
	for (size_t i = 0; i < a->n_rows * k; i++) {
		float below = a->max_logit[i / k] - a->logits[i];
		assert_true(fabsf(a->logits[i] - b->logits[i]) <= below * 0x1p-11f + 0x1p-24f * (1 + fabsf(a->max_logit[i / k])));
	}
}

void assert_rows_equal(const struct record_rows *a, const struct record_rows *b)
{
	size_t n = a->n_rows, k = a->query.top_k;
	assert_int_equal(b->n_rows, n);
	assert_int_equal(b->vocab_size, a->vocab_size);
	assert_memory_equal(&a->teacher, &b->teacher, sizeof a->teacher);
	assert_int_equal(a->sequence.n_tokens, b->sequence.n_tokens);
	assert_memory_equal(a->sequence.tokens, b->sequence.tokens, 4 * (size_t)a->sequence.n_tokens);
	assert_memory_equal(a->status, b->status, n);
	assert_memory_equal(a->max_logit, b->max_logit, 4 * n);
	assert_memory_equal(a->lse, b->lse, 4 * n * a->query.n_temperatures);
	assert_same(a->own_logit, b->own_logit, 4 * n);
	assert_same(a->entropy, b->entropy, 4 * n);
	assert_same(a->ids, b->ids, 4 * n * k);
	if (a->query.values == QUERY_VALUES_F32)
		assert_same(a->logits, b->logits, 4 * n * k);
	else
		assert_values_near(a, b);
}
