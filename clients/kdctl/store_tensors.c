// SPDX-License-Identifier: Apache-2.0
// The layout of exported arrays, and a record cut into it. kdclient for Python has the same in flat.py.
#include "clients/kdctl/store_tensors.h"

#include <endian.h>
#include <math.h>
#include <string.h>

#include "clients/kdctl/store_transfer.h"
#include "common/error.h"

const char *const column_type_names[4] = {[COLUMN_U8] = "U8", [COLUMN_I32] = "I32", [COLUMN_I64] = "I64", [COLUMN_F32] = "F32"};
const unsigned column_type_bytes[4] = {[COLUMN_U8] = 1, [COLUMN_I32] = 4, [COLUMN_I64] = 8, [COLUMN_F32] = 4};

#define ALWAYS COLUMN_VERSION
const struct column_kind column_kinds[N_COLUMNS] = {
	[COLUMN_VERSION] = {"version", COLUMN_I32, PER_RECORD, ALWAYS, 1},
	[COLUMN_KEY] = {"key", COLUMN_U8, PER_RECORD, ALWAYS, CONTENT_ID_BYTES},
	[COLUMN_TEACHER] = {"teacher", COLUMN_U8, PER_RECORD, ALWAYS, CONTENT_ID_BYTES},
	[COLUMN_VOCAB_SIZE] = {"vocab_size", COLUMN_I32, PER_RECORD, ALWAYS, 1},
	[COLUMN_CHECKSUM] = {"checksum", COLUMN_I64, PER_RECORD, ALWAYS, 1},
	[COLUMN_TOKEN_AT] = {"token_at", COLUMN_I64, PER_RECORD_AT, ALWAYS, 1},
	[COLUMN_ROW_AT] = {"row_at", COLUMN_I64, PER_RECORD_AT, ALWAYS, 1},
	[COLUMN_QUESTION_AT] = {"question_at", COLUMN_I64, PER_RECORD_AT, ALWAYS, 1},
	[COLUMN_LSE_AT] = {"lse_at", COLUMN_I64, PER_RECORD_AT, COLUMN_LSE, 1},
	[COLUMN_DENSE_AT] = {"dense_at", COLUMN_I64, PER_RECORD_AT, COLUMN_DENSE, 1},
	[COLUMN_SPAN_AT] = {"span_at", COLUMN_I64, PER_RECORD_AT, COLUMN_SPAN_SUMS, 1},
	[COLUMN_WIDTH_AT] = {"width_at", COLUMN_I64, PER_RECORD_AT, COLUMN_FEATURE_WIDTHS, 1},
	[COLUMN_FEATURE_AT] = {"feature_at", COLUMN_I64, PER_RECORD_AT, COLUMN_FEATURE_WIDTHS, 1},
	[COLUMN_RECORD_AT] = {"record_at", COLUMN_I64, PER_RECORD_AT, COLUMN_RECORD, 1},
	[COLUMN_STATUS] = {"status", COLUMN_U8, PER_ROW, ALWAYS, 1},
	[COLUMN_MAX_LOGIT] = {"max_logit", COLUMN_F32, PER_ROW, COLUMN_MAX_LOGIT, 1},
	[COLUMN_OWN_LOGIT] = {"own_logit", COLUMN_F32, PER_ROW, COLUMN_OWN_LOGIT, 1},
	[COLUMN_ENTROPY] = {"entropy", COLUMN_F32, PER_ROW, COLUMN_ENTROPY, 1},
	[COLUMN_MAX_PROB] = {"max_prob", COLUMN_F32, PER_ROW, COLUMN_MAX_PROB, 1},
	[COLUMN_ARGMAX] = {"argmax", COLUMN_I32, PER_ROW, COLUMN_ARGMAX, 1},
	[COLUMN_SUM_SQUARES] = {"sum_squares", COLUMN_F32, PER_ROW, COLUMN_SUM_SQUARES, 1},
	[COLUMN_TAIL] = {"tail", COLUMN_F32, PER_ROW, COLUMN_TAIL, 1},
	[COLUMN_TOP_AT] = {"top_at", COLUMN_I64, PER_ROW_AT, COLUMN_IDS, 1},
	[COLUMN_GATHER_AT] = {"gather_at", COLUMN_I64, PER_ROW_AT, COLUMN_GATHER, 1},
	[COLUMN_DRAW_AT] = {"draw_at", COLUMN_I64, PER_ROW_AT, COLUMN_DRAW_IDS, 1},
	[COLUMN_TOKENS] = {"tokens", COLUMN_I32, COLUMN_FLAT, ALWAYS, 1},
	[COLUMN_QUESTION] = {"question", COLUMN_U8, COLUMN_FLAT, ALWAYS, 1},
	[COLUMN_LSE] = {"lse", COLUMN_F32, COLUMN_FLAT, COLUMN_LSE, 1},
	[COLUMN_IDS] = {"ids", COLUMN_I32, COLUMN_FLAT, COLUMN_IDS, 1},
	[COLUMN_LOGITS] = {"logits", COLUMN_F32, COLUMN_FLAT, COLUMN_IDS, 1},
	[COLUMN_DENSE] = {"dense", COLUMN_F32, COLUMN_FLAT, COLUMN_DENSE, 1},
	[COLUMN_GATHER_IDS] = {"gather_ids", COLUMN_I32, COLUMN_FLAT, COLUMN_GATHER, 1},
	[COLUMN_GATHER] = {"gather", COLUMN_F32, COLUMN_FLAT, COLUMN_GATHER, 1},
	[COLUMN_DRAW_IDS] = {"draw_ids", COLUMN_I32, COLUMN_FLAT, COLUMN_DRAW_IDS, 1},
	[COLUMN_DRAW_COUNTS] = {"draw_counts", COLUMN_I32, COLUMN_FLAT, COLUMN_DRAW_IDS, 1},
	[COLUMN_DRAW_LOG_RATIOS] = {"draw_log_ratios", COLUMN_F32, COLUMN_FLAT, COLUMN_DRAW_LOG_RATIOS, 1},
	[COLUMN_SPAN_SUMS] = {"span_sums", COLUMN_F32, COLUMN_FLAT, COLUMN_SPAN_SUMS, 1},
	[COLUMN_FEATURE_WIDTHS] = {"feature_widths", COLUMN_I32, COLUMN_FLAT, COLUMN_FEATURE_WIDTHS, 1},
	[COLUMN_FEATURES] = {"features", COLUMN_F32, COLUMN_FLAT, COLUMN_FEATURE_WIDTHS, 1},
	[COLUMN_RECORD] = {"record", COLUMN_U8, COLUMN_FLAT, COLUMN_RECORD, 1},
};

void pieces_done(struct pieces *p)
{
	for (size_t i = 0; i < N_COLUMNS; i++)
		buffer_done(&p->columns[i]);
}

// Numbers of 4 bytes.
static void add_words(struct buffer *b, const void *words, size_t n)
{
#if __BYTE_ORDER == __LITTLE_ENDIAN
	buffer_add(b, words, 4 * n);
#else
	for (size_t i = 0; i < n; i++) {
		uint32_t word = htole32(((const uint32_t *)words)[i]);
		buffer_add(b, &word, 4);
	}
#endif
}

static void add_word(struct buffer *b, uint32_t word)
{
	add_words(b, &word, 1);
}

static void add_count(struct buffer *b, uint64_t n)
{
	n = htole64(n);
	buffer_add(b, &n, 8);
}

static void fill_record(struct pieces *p, const struct record *record, const struct record_rows *rows)
{
	struct buffer *c = p->columns, *question = &c[COLUMN_QUESTION];
	add_word(&c[COLUMN_VERSION], RECORD_VERSION);
	buffer_add(&c[COLUMN_KEY], record_key(record), CONTENT_ID_BYTES);
	buffer_add(&c[COLUMN_TEACHER], record_teacher(record), CONTENT_ID_BYTES);
	add_word(&c[COLUMN_VOCAB_SIZE], rows->vocab_size);
	add_count(&c[COLUMN_CHECKSUM], claims_checksum(record));
	add_words(&c[COLUMN_TOKENS], rows->sequence.tokens, rows->sequence.n_tokens);
	add_count(&c[COLUMN_TOKEN_AT], rows->sequence.n_tokens);
	line_encode_question(question, &rows->query);
	add_count(&c[COLUMN_QUESTION_AT], question->n);
	add_count(&c[COLUMN_ROW_AT], rows->status ? rows->n_rows : 0);
	p->had[COLUMN_VERSION] = true;
}

// A number of each row; `absent` in all where there is none.
static void fill_scalar(struct pieces *p, enum column c, const void *values, uint32_t n_rows, uint32_t absent)
{
	p->had[c] = values;
	if (values)
		add_words(&p->columns[c], values, n_rows);
	else
		for (uint32_t i = 0; i < n_rows; i++)
			add_word(&p->columns[c], absent);
}

static void fill_scalars(struct pieces *p, const struct record_rows *rows)
{
	const uint32_t nan = 0x7fc00000;
	uint32_t n = rows->status ? rows->n_rows : 0;
	buffer_add(&p->columns[COLUMN_STATUS], rows->status, n);
	fill_scalar(p, COLUMN_MAX_LOGIT, rows->max_logit, n, 0);
	fill_scalar(p, COLUMN_OWN_LOGIT, rows->own_logit, n, nan);
	fill_scalar(p, COLUMN_ENTROPY, rows->entropy, n, nan);
	fill_scalar(p, COLUMN_MAX_PROB, rows->max_prob, n, nan);
	fill_scalar(p, COLUMN_ARGMAX, rows->argmax, n, UINT32_MAX);
	fill_scalar(p, COLUMN_SUM_SQUARES, rows->sum_squares, n, nan);
	fill_scalar(p, COLUMN_TAIL, rows->tail, n, nan);
}

static void fill_numbers(struct pieces *p, enum column c, enum column at, const float *values, uint64_t n)
{
	p->had[c] = values;
	add_count(&p->columns[at], values ? n : 0);
	if (values)
		add_words(&p->columns[c], values, n);
}

static void fill_top(struct pieces *p, const struct record_rows *rows)
{
	size_t k = rows->query.top_k;
	p->had[COLUMN_IDS] = rows->ids;
	for (size_t row = 0; rows->status && row < rows->n_rows; row++) {
		size_t n = !rows->ids || rows->status[row] != ROW_OK ? 0 : rows->n_top ? rows->n_top[row] : k;
		add_count(&p->columns[COLUMN_TOP_AT], n);
		if (n) {
			add_words(&p->columns[COLUMN_IDS], rows->ids + row * k, n);
			add_words(&p->columns[COLUMN_LOGITS], rows->logits + row * k, n);
		}
	}
}

static void fill_gather(struct pieces *p, const struct record_rows *rows)
{
	p->had[COLUMN_GATHER] = rows->query.gather.n_lists;
	for (uint32_t row = 0; rows->status && row < rows->n_rows; row++) {
		uint32_t n = 0;
		const uint32_t *ids = rows->query.gather.n_lists ? record_gather_ids(rows, row, &n) : NULL;
		add_count(&p->columns[COLUMN_GATHER_AT], n);
		if (n) {
			add_words(&p->columns[COLUMN_GATHER_IDS], ids, n);
			add_words(&p->columns[COLUMN_GATHER], rows->gathered + record_gather_at(rows, row), n);
		}
	}
}

static void fill_draws(struct pieces *p, const struct record_rows *rows)
{
	const uint32_t *starts = rows->draw_starts;
	uint32_t n = starts ? starts[rows->n_rows] : 0;
	p->had[COLUMN_DRAW_IDS] = starts;
	p->had[COLUMN_DRAW_LOG_RATIOS] = rows->draw_log_ratios || (starts && rows->query.draws.tau != 1);
	for (uint32_t row = 0; rows->status && row < rows->n_rows; row++)
		add_count(&p->columns[COLUMN_DRAW_AT], starts ? starts[row + 1] - starts[row] : 0);
	if (!n)
		return;
	add_words(&p->columns[COLUMN_DRAW_IDS], rows->draw_ids, n);
	add_words(&p->columns[COLUMN_DRAW_COUNTS], rows->draw_counts, n);
	if (rows->draw_log_ratios)
		add_words(&p->columns[COLUMN_DRAW_LOG_RATIOS], rows->draw_log_ratios, n);
	for (uint32_t i = 0; !rows->draw_log_ratios && i < n; i++)
		add_word(&p->columns[COLUMN_DRAW_LOG_RATIOS], 0);
}

static void fill_features(struct pieces *p, const struct record_rows *rows)
{
	const struct query *q = &rows->query;
	struct buffer *b = &p->columns[COLUMN_FEATURES];
	size_t n = q->pooling == QUERY_POOLING_NONE ? rows->n_rows : 1;
	p->had[COLUMN_FEATURE_WIDTHS] = q->n_features;
	add_count(&p->columns[COLUMN_WIDTH_AT], q->n_features);
	add_words(&p->columns[COLUMN_FEATURE_WIDTHS], rows->feature_widths, q->n_features);
	for (uint32_t i = 0; i < q->n_features; i++)
		add_words(b, rows->features[i], n * rows->feature_widths[i]);
	add_count(&p->columns[COLUMN_FEATURE_AT], b->n / 4);
}

int pieces_fill(struct pieces *p, const struct record *record, const struct record_rows *rows, bool exact, struct error *err)
{
	const struct query *q = &rows->query;
	size_t n_bytes, width = q->n_keep ? q->n_keep : rows->vocab_size;
	const void *bytes = record_bytes(record, &n_bytes);
	bool failed = false;
	for (size_t i = 0; i < N_COLUMNS; i++)
		p->columns[i].n = 0;
	fill_record(p, record, rows);
	fill_scalars(p, rows);
	fill_numbers(p, COLUMN_LSE, COLUMN_LSE_AT, rows->lse, (uint64_t)rows->n_rows * q->n_temperatures);
	fill_numbers(p, COLUMN_DENSE, COLUMN_DENSE_AT, rows->dense, rows->n_rows * (uint64_t)width);
	fill_numbers(p, COLUMN_SPAN_SUMS, COLUMN_SPAN_AT, rows->span_sums, q->n_spans);
	fill_top(p, rows);
	fill_gather(p, rows);
	fill_draws(p, rows);
	fill_features(p, rows);
	p->had[COLUMN_RECORD] = exact;
	add_count(&p->columns[COLUMN_RECORD_AT], exact ? n_bytes : 0);
	if (exact)
		buffer_add(&p->columns[COLUMN_RECORD], bytes, n_bytes);
	for (size_t i = 0; i < N_COLUMNS; i++)
		failed |= p->columns[i].failed;
	return failed ? error_set(err, ERROR_MEMORY, NULL, "no memory for the arrays of a record") : 0;
}
