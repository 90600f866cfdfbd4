// SPDX-License-Identifier: Apache-2.0
// This implementation against records.txt: what it accepts, what it finds, what it refuses, and that it makes the same bytes again.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/record_layout.h"
#include "common/record_short.h"
#include "tests/conformance/suite.h"

static void expect_numbers(const struct suite_case *c, const char *name, int base, const void *found, size_t n)
{
	const char *words = suite_words(c, name);
	uint32_t want, got;
	if (!words || !found) {
		if (n && !words != !found)
			suite_fail(c, "%s: %s", name, words ? "missing" : "not in the suite");
		return;
	}
	for (size_t i = 0; i < n; i++) {
		memcpy(&got, (const char *)found + 4 * i, 4);
		if (!suite_next(&words, base, &want)) {
			suite_fail(c, "%s: the suite has only %zu numbers of %zu", name, i, n);
			return;
		}
		if (want != got) {
			suite_fail(c, "%s[%zu] is %08" PRIx32 ", want %08" PRIx32, name, i, got, want);
			return;
		}
	}
	if (suite_next(&words, base, &want))
		suite_fail(c, "%s: the suite has more than %zu numbers", name, n);
}

static void expect_bytes(const struct suite_case *c, const char *name, const uint8_t *found, size_t n)
{
	uint32_t *wide = calloc(n + 1, sizeof *wide);
	for (size_t i = 0; wide && found && i < n; i++)
		wide[i] = found[i];
	expect_numbers(c, name, 10, found ? wide : NULL, n);
	free(wide);
}

// Rows as the suite lists them: only entries that there are.
static void expect_top(const struct suite_case *c, const struct record_rows *r)
{
	size_t k = r->query.top_k, n = 0;
	uint32_t *ids = calloc(r->n_rows * k + 1, 4), *counts = calloc(r->n_rows, 4);
	float *logits = calloc(r->n_rows * k + 1, 4);
	for (uint32_t row = 0; ids && counts && logits && row < r->n_rows; row++) {
		counts[row] = r->status[row] != ROW_OK ? 0 : r->n_top ? r->n_top[row] : r->query.top_k;
		for (uint32_t i = 0; i < k; i++) {
			if (i < counts[row]) {
				ids[n] = r->ids[row * k + i];
				logits[n++] = r->logits[row * k + i];
			} else if (r->status[row] == ROW_OK && r->ids[row * k + i] != RECORD_NO_ID) {
				suite_fail(c, "row %" PRIu32 " goes on after its last id", row);
			}
		}
	}
	expect_numbers(c, "n_top", 10, counts, r->n_rows);
	expect_numbers(c, "ids", 10, ids, n);
	expect_numbers(c, "logits", 16, logits, n);
	free(ids);
	free(counts);
	free(logits);
}

static void expect_dense(const struct suite_case *c, const struct record_rows *r)
{
	size_t width = query_vocabulary(&r->query, r->vocab_size), n = 0;
	float *dense = calloc(r->n_rows * width, 4);
	for (uint32_t row = 0; dense && row < r->n_rows; row++)
		if (r->status[row] == ROW_OK) {
			memcpy(dense + n, r->dense + row * width, 4 * width);
			n += width;
		}
	expect_numbers(c, "dense", 16, dense, n);
	free(dense);
}

static void expect_rows(const struct suite_case *c, const struct record_rows *r)
{
	const struct query *q = &r->query;
	const uint32_t rows[] = {(uint32_t)q->first, (uint32_t)q->last};
	size_t n = r->n_rows;
	expect_numbers(c, "vocabulary", 10, &r->vocab_size, 1);
	expect_numbers(c, "tokens", 10, r->sequence.tokens, r->sequence.n_tokens);
	expect_numbers(c, "rows", 10, rows, 2);
	expect_bytes(c, "status", r->status, n);
	for (size_t i = 0; i < N_COLUMNS; i++)
		expect_numbers(c, columns[i].name, 16, column_values(r, &columns[i]), n * column_width(q, columns[i].tag));
	if (q->top_k)
		expect_top(c, r);
	if (q->dense)
		expect_dense(c, r);
	expect_numbers(c, "own_logit", 16, r->own_logit, n);
	expect_numbers(c, "argmax", 10, r->argmax, n);
	expect_numbers(c, "gathered", 16, r->gathered, record_gather_at(r, r->n_rows));
	expect_numbers(c, "draw_starts", 10, r->draw_starts, n + 1);
	if (q->draws.n) {
		expect_numbers(c, "draw_ids", 10, r->draw_ids, r->draw_starts[n]);
		expect_numbers(c, "draw_counts", 10, r->draw_counts, r->draw_starts[n]);
		expect_numbers(c, "draw_log_ratios", 16, r->draw_log_ratios, q->draws.tau != 1 ? r->draw_starts[n] : 0);
	}
	expect_numbers(c, "span_sums", 16, r->span_sums, q->n_spans);
	for (uint32_t i = 0; i < q->n_features; i++) {
		char name[32];
		snprintf(name, sizeof name, "feature_%" PRIu32, i);
		expect_numbers(c, name, 16, r->features[i], (size_t)feature_rows(q, r->n_rows) * r->feature_widths[i]);
	}
}

static void expect_same(const struct suite_case *c, const struct record *record, const uint8_t *bytes, size_t n)
{
	size_t got;
	const void *made = record_bytes(record, &got);
	if (got != n || memcmp(made, bytes, n) != 0)
		suite_fail(c, "comes back as %zu other bytes (of %zu)", got, n);
}

static void expect_refusal(const struct suite_case *c, int r, const struct error *err)
{
	if (!r)
		suite_fail(c, "was accepted");
	else if (strcmp(error_name(err->code), c->code) != 0)
		suite_fail(c, "was refused as %s (%s), not %s", error_name(err->code), err->message, c->code);
}

static void run_record(const struct suite_case *c)
{
	struct record *record = NULL, *again = NULL;
	struct record_rows *rows = NULL;
	struct error err = {0};
	char hex[CONTENT_ID_HEX];
	int r = record_from_bytes(c->bytes, c->n, &record, &err);
	if (!r)
		r = record_decode(record, &rows, &err);
	if (!c->accept) {
		expect_refusal(c, r, &err);
	} else if (r) {
		suite_fail(c, "was refused: %s", err.message);
	} else {
		content_id_to_hex(record_key(record), hex);
		if (strcmp(hex, suite_words(c, "key")) != 0)
			suite_fail(c, "key %s", hex);
		expect_rows(c, rows);
		if (record_encode(rows, &again, &err))
			suite_fail(c, "cannot be encoded again: %s", err.message);
		else
			expect_same(c, again, c->bytes, c->n);
	}
	record_rows_free(rows);
	record_unref(record);
	record_unref(again);
}

static void run_short(const struct suite *s, const struct suite_case *c)
{
	const struct suite_case *whole = suite_find(s, suite_words(c, "of"));
	struct record *record = NULL, *back = NULL;
	struct record_rows *rows = NULL;
	struct error err = {0};
	if (!whole || record_from_bytes(whole->bytes, whole->n, &record, &err) || record_decode(record, &rows, &err)) {
		suite_fail(c, "its whole record is not in the suite");
		record_unref(record);
		return;
	}
	struct record_question q = {
		.teacher = &rows->teacher, .key = record_key(record), .sequence = &rows->sequence,
		.query = &rows->query, .vocab_size = rows->vocab_size};
	int r = record_restore(c->bytes, c->n, &q, &back, &err);
	if (!c->accept)
		expect_refusal(c, r, &err);
	else if (r)
		suite_fail(c, "was refused: %s", err.message);
	else
		expect_same(c, back, whole->bytes, whole->n);
	uint8_t *brief = malloc(record_short_bytes(record));
	if (c->accept && brief) {
		record_shorten(record, brief);
		if (record_short_bytes(record) != c->n || memcmp(brief, c->bytes, c->n) != 0)
			suite_fail(c, "is shortened to other bytes");
	}
	free(brief);
	record_rows_free(rows);
	record_unref(record);
	record_unref(back);
}

static void run_manual(const struct suite *s)
{
	for (size_t i = 0; i < 2; i++) {
		char name[32];
		uint8_t bytes[1024];
		snprintf(name, sizeof name, "manual-%zu", i + 1);
		const struct suite_case *c = suite_find(s, name);
		size_t n = manual_dump("man/kdserved-record.5", i, bytes, sizeof bytes);
		if (n != c->n || memcmp(bytes, c->bytes, n) != 0)
			suite_fail(c, "the manual has %zu other bytes", n);
	}
}

int main(void)
{
	struct suite s = suite_load("tests/conformance/records.txt");
	for (size_t i = 0; i < s.n; i++) {
		if (strcmp(s.cases[i].kind, "short") == 0)
			run_short(&s, &s.cases[i]);
		else
			run_record(&s.cases[i]);
	}
	run_manual(&s);
	size_t n = s.n;
	suite_done(&s);
	return suite_result(n);
}
