// SPDX-License-Identifier: Apache-2.0
// Record bytes as they come, and again with length, checksum and key mended, so that mutations reach the codec behind the checks.
// What decodes must encode again, and decode to the same numbers. And the bytes as a stream of codes, read fast and bit by bit.
#include <stdlib.h>
#include <string.h>

#include "common/record.h"
#include "common/record_short.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/record_mend.h"
#include "tests/unit/golomb_reference.h"

// Numbers that came through a format once may move again by its rounding, but by no more: sizes and exact columns stay.
static void expect_same(const struct record_rows *a, const struct record_rows *b)
{
	size_t entries = (size_t)a->n_rows * a->query.top_k;
	if (!query_equal(&a->query, &b->query) || (a->max_logit && memcmp(a->max_logit, b->max_logit, 4 * (size_t)a->n_rows) != 0) ||
	    (a->lse && memcmp(a->lse, b->lse, 4 * (size_t)a->n_rows * a->query.n_temperatures) != 0) ||
	    (entries && a->query.values == QUERY_VALUES_F32 && memcmp(a->ids, b->ids, 4 * entries) != 0) ||
	    (a->n_top && memcmp(a->n_top, b->n_top, 4 * (size_t)a->n_rows) != 0) ||
	    (a->draw_starts && memcmp(a->draw_starts, b->draw_starts, 4 * ((size_t)a->n_rows + 1)) != 0))
		abort();
	if (a->draw_starts && a->draw_starts[a->n_rows] &&
	    (memcmp(a->draw_ids, b->draw_ids, 4 * (size_t)a->draw_starts[a->n_rows]) != 0 ||
	     memcmp(a->draw_counts, b->draw_counts, 4 * (size_t)a->draw_starts[a->n_rows]) != 0))
		abort();
}

// Whoever knows the question gets the same bytes out of the short form.
static void try_short(const struct record *record, const struct record_rows *rows)
{
	struct record_question q = {
		.teacher = &rows->teacher, .key = record_key(record), .sequence = &rows->sequence, .query = &rows->query,
		.vocab_size = rows->vocab_size};
	size_t n = record_short_bytes(record), n_whole, n_back;
	const void *whole = record_bytes(record, &n_whole);
	struct record *back = NULL;
	uint8_t *brief = malloc(n);
	if (!brief)
		return;
	record_shorten(record, brief);
	if (record_restore(brief, n, &q, &back, NULL) != 0 || memcmp(record_bytes(back, &n_back), whole, n_whole) != 0 || n_back != n_whole)
		abort();
	free(brief);
	record_unref(back);
}

// What kdctl store stat says of its bytes adds up to them.
static void try_parts(const struct record *record)
{
	uint64_t parts[RECORD_N_PARTS], sum = 0;
	size_t n;
	(void)record_bytes(record, &n);
	if (record_parts(record, parts) != 0)
		abort();
	for (unsigned i = 0; i < RECORD_N_PARTS; i++)
		sum += parts[i];
	if (sum != n)
		abort();
}

static void try_record(const uint8_t *bytes, size_t n)
{
	struct record *record = NULL, *again = NULL;
	struct record_rows *rows = NULL, *same = NULL;
	if (record_from_bytes(bytes, n, &record, NULL) != 0)
		return;
	int r = record_decode(record, &rows, NULL);
	if (record_check(record, NULL) != r)
		abort();
	if (r == 0) {
		try_parts(record);
		if (record_encode(rows, &again, NULL) != 0 || record_decode(again, &same, NULL) != 0)
			abort();
		expect_same(rows, same);
		try_short(record, rows);
	}
	record_rows_free(rows);
	record_rows_free(same);
	record_unref(record);
	record_unref(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	try_record(data, size);
	if (size >= 3)
		golomb_reference_compare(data + 3, size - 3, data[0] % (GOLOMB_MAX_PARAMETER + 1), (2u << data[1] % 31) - 1, size, data[2]);
	uint8_t *copy = malloc(size + 1);
	if (!copy)
		return 0;
	memcpy(copy, data, size);
	record_mend(copy, size);
	try_record(copy, size);
	free(copy);
	return 0;
}
