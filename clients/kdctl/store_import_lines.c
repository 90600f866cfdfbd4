// SPDX-License-Identifier: Apache-2.0
// A line of JSON (store_line.c) becomes a record. The text is hostile: where each member lies is noted first, then they are read in
// the order in which one bounds the next, so that nothing is allocated that the text has not paid for.
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/pull.h"
#include "clients/kdctl/store_transfer.h"
#include "common/error.h"

enum member { M_VERSION, M_KEY, M_TEACHER, M_VOCAB_SIZE, M_CHECKSUM, M_TOKENS, M_QUESTION, M_WIDTHS, M_MAX_LOGIT, M_ROWS, M_SPANS,
	M_POOLED, M_RECORD, N_MEMBERS };
static const char *const member_names[N_MEMBERS] = {"version", "key", "teacher", "vocab_size", "checksum", "tokens", "question",
	"feature_widths", "max_logit", "rows", "spans", "pooled", "record"};

struct line {
	struct pull text;                       // of the whole line; its failure is everyone's
	const char *places[N_MEMBERS];               // NULL: not there
	uint32_t vocab_size;
	struct content_id teacher;
	struct pull_ids tokens;
	struct query query;
	struct claims claims;
	uint8_t *exact;
	struct record_rows *rows;
};

static bool go_to(struct line *l, enum member m)
{
	if (l->places[m] && !l->text.failed)
		l->text.at = l->places[m];
	return l->places[m] && !l->text.failed;
}

static bool must_go_to(struct line *l, enum member m)
{
	if (!l->places[m])
		pull_fail(&l->text, "teacher, vocab_size, tokens, question, max_logit, rows, spans, pooled or feature_widths is missing");
	return go_to(l, m);
}

static void find_members(struct line *l)
{
	struct pull *t = &l->text;
	char name[24];
	pull_open(t, '{');
	while (pull_next_member(t, name, sizeof name)) {
		enum member m = 0;
		while (m < N_MEMBERS && strcmp(member_names[m], name) != 0)
			m++;
		if (m < N_MEMBERS && l->places[m])
			pull_fail(t, "a member that occurs twice");
		if (m < N_MEMBERS)
			l->places[m] = t->at;
		pull_skip(t);
	}
	pull_end(t);
}

static void read_id(struct pull *t, struct content_id *ret)
{
	char hex[CONTENT_ID_HEX];
	pull_string(t, hex, sizeof hex);
	if (!t->failed && content_id_from_hex(hex, ret))
		pull_fail(t, "64 hexadecimal digits are expected");
}

// ---- what is before the rows

static void read_header(struct line *l)
{
	struct pull *t = &l->text;
	if (must_go_to(l, M_TEACHER))
		read_id(t, &l->teacher);
	if (must_go_to(l, M_VOCAB_SIZE))
		l->vocab_size = (uint32_t)pull_u64(t, QUERY_MAX_VOCABULARY);
	l->claims.version = go_to(l, M_VERSION) ? (uint32_t)pull_u64(t, UINT16_MAX) : RECORD_VERSION;
	if (go_to(l, M_KEY)) {
		read_id(t, &l->claims.key);
		l->claims.has_key = true;
	}
	if (go_to(l, M_CHECKSUM)) {
		l->claims.checksum = (uint32_t)pull_u64(t, UINT32_MAX);
		l->claims.has_checksum = true;
	}
	if (must_go_to(l, M_TOKENS))
		pull_id_list(t, &l->tokens, INT32_MAX);
	if (must_go_to(l, M_QUESTION))
		line_decode_question(t, &l->query);
}

static unsigned digit_of(char c)
{
	return c >= 'A' && c <= 'Z' ? (unsigned)(c - 'A') : c >= 'a' && c <= 'z' ? (unsigned)(c - 'a' + 26) :
	       c >= '0' && c <= '9' ? (unsigned)(c - '0' + 52) : c == '+' ? 62 : c == '/' ? 63 : 64;
}

static void read_exact(struct line *l)
{
	size_t n;
	if (!go_to(l, M_RECORD))
		return;
	const char *text = pull_string_view(&l->text, &n);
	if (l->text.failed || n % 4 || !n || n / 4 * 3 > (size_t)RECORD_MAX_BYTES + 2 || !(l->exact = malloc(n / 4 * 3))) {
		pull_fail(&l->text, "base64 of a record is expected");
		return;
	}
	size_t n_filling = (text[n - 1] == '=') + (text[n - 2] == '=');
	for (size_t i = 0; i < n; i += 4) {
		unsigned v = 0;
		for (size_t j = 0; j < 4; j++) {
			unsigned digit = i + j >= n - n_filling ? 0 : digit_of(text[i + j]);
			if (digit > 63)
				pull_fail(&l->text, "base64 of a record is expected");
			v = v << 6 | digit;
		}
		l->exact[i / 4 * 3] = (uint8_t)(v >> 16);
		l->exact[i / 4 * 3 + 1] = (uint8_t)(v >> 8);
		l->exact[i / 4 * 3 + 2] = (uint8_t)v;
	}
	l->claims.exact = l->exact;
	l->claims.n_exact = n / 4 * 3 - n_filling;
}

// A number takes at least two characters. (Rows that are not finite have none: room for a few of them.)
#define NUMBERS_FOR_A_BYTE 4

static int check_paid(const struct line *l, struct error *err)
{
	const struct query *q = &l->query;
	uint64_t top_k = q->top_mass != 0 ? 1 : q->top_k;        // by mass a row may have one id where top_k allows thousands
	uint64_t width = (q->dense ? q->n_keep ? q->n_keep : l->vocab_size : 0) + top_k + q->n_temperatures;
	uint64_t paid = NUMBERS_FOR_A_BYTE * (uint64_t)(l->text.end - l->text.begin);
	uint64_t rows = query_rows(q), n = rows * width + rows * (q->gather.n_lists == 1 ? q->gather.offsets[1] : 0);
	if (n > paid)      // rows below 2^31, width below 2^26
		return error_set(err, ERROR_INVALID, "question", "it calls for %" PRIu64 " numbers, which are not in %td bytes", n,
				 l->text.end - l->text.begin);
	return 0;
}

static int make_rows(struct line *l, struct error *err)
{
	struct sequence s = {l->tokens.ids, (uint32_t)l->tokens.n};
	struct query_limits limits = transfer_limits(l->vocab_size);
	int r = query_check(&l->query, &s, &limits, NULL, err);
	if (!r)
		r = check_paid(l, err);
	return r ? r : record_rows_new(&l->teacher, l->vocab_size, &s, &l->query, &l->rows, err);
}

// ---- rows

enum row_member { R_STATUS, R_LSE, R_IDS, R_LOGITS, R_DENSE, R_OWN, R_ENTROPY, R_MAX_PROB, R_ARGMAX, R_SUM_SQUARES, R_TAIL, R_GATHER,
	R_DRAWS, R_FEATURES, N_ROW_MEMBERS };
static const char *const row_names[N_ROW_MEMBERS] = {"status", "lse", "ids", "logits", "dense", "own_logit", "entropy", "max_prob",
	"argmax", "sum_squares", "tail", "gather", "draws", "features"};

// What a row of status ok has, as bits.
static uint32_t members_asked(const struct record_rows *rows)
{
	const struct query *q = &rows->query;
	const bool asked[N_ROW_MEMBERS] = {[R_STATUS] = true, [R_LSE] = rows->lse, [R_IDS] = rows->ids, [R_LOGITS] = rows->ids,
		[R_DENSE] = rows->dense, [R_OWN] = rows->own_logit, [R_ENTROPY] = rows->entropy, [R_MAX_PROB] = rows->max_prob,
		[R_ARGMAX] = rows->argmax, [R_SUM_SQUARES] = rows->sum_squares, [R_TAIL] = rows->tail, [R_GATHER] = q->gather.n_lists,
		[R_DRAWS] = q->draws.n, [R_FEATURES] = q->n_features && q->pooling == QUERY_POOLING_NONE};
	uint32_t bits = 0;
	for (unsigned i = 0; i < N_ROW_MEMBERS; i++)
		bits |= (uint32_t)asked[i] << i;
	return bits;
}

// The ids of the row's top-k: as many as asked, or with top_mass up to as many; NO_ID behind them.
static void read_top_ids(struct pull *t, struct record_rows *rows, uint32_t row)
{
	size_t k = rows->query.top_k, n = 0;
	uint32_t *ids = rows->ids + row * k;
	pull_open(t, '[');
	while (pull_next(t)) {
		if (n == k)
			pull_fail(t, "more ids than top_k");
		else
			ids[n++] = (uint32_t)pull_u64(t, QUERY_MAX_VOCABULARY);
	}
	if (!rows->n_top && n < k)
		pull_fail(t, "fewer ids than top_k");
	if (rows->n_top)
		rows->n_top[row] = (uint32_t)n;
	for (; n < k; n++)
		ids[n] = RECORD_NO_ID;
}

static void read_top_logits(struct pull *t, struct record_rows *rows, uint32_t row, size_t n)
{
	pull_f32_list(t, rows->logits + (size_t)row * rows->query.top_k, n, 0);
}

static void append_draws(struct pull *t, struct record_rows *rows, uint32_t row, const struct pull_ids *ids, const struct pull_ids *counts)
{
	uint32_t at = rows->draw_starts[row];
	if (ids->n != counts->n)
		pull_fail(t, "draws with other than one count for each id");
	if (!t->failed && (ids->n > UINT32_MAX - at || record_rows_reserve_draws(rows, at + (uint32_t)ids->n, NULL)))
		pull_fail(t, "no memory for draws");
	if (t->failed)
		return;
	for (size_t i = 0; i < ids->n; i++) {
		rows->draw_ids[at + i] = ids->ids[i];
		rows->draw_counts[at + i] = counts->ids[i];
	}
	rows->draw_starts[row + 1] = at + (uint32_t)ids->n;
}

// ids, counts and log_ratios in any order; weights follow from them.
static void read_row_draws(struct pull *t, struct record_rows *rows, uint32_t row)
{
	struct pull_ids ids = {0}, counts = {0};
	const char *ratios = NULL;
	char name[16];
	pull_open(t, '{');
	while (pull_next_member(t, name, sizeof name)) {
		if (strcmp(name, "ids") == 0) {
			pull_id_list(t, &ids, rows->query.draws.n);
		} else if (strcmp(name, "counts") == 0) {
			pull_id_list(t, &counts, rows->query.draws.n);
		} else {
			ratios = strcmp(name, "log_ratios") == 0 ? t->at : ratios;
			pull_skip(t);
		}
	}
	append_draws(t, rows, row, &ids, &counts);
	if (rows->query.draws.tau != 1 && !t->failed) {
		const char *after = t->at;
		if (!ratios)
			pull_fail(t, "draws without log_ratios");
		else
			t->at = ratios;
		pull_f32_list(t, ids.n ? rows->draw_log_ratios + rows->draw_starts[row] : NULL, ids.n, 0);      // of none there is no array
		t->at = after;
	}
	free(ids.ids);
	free(counts.ids);
}

static void read_vectors(struct pull *t, struct record_rows *rows, uint32_t row, float absent)
{
	pull_open(t, '[');
	for (uint32_t i = 0; i < rows->query.n_features; i++) {
		if (!pull_next(t))
			pull_fail(t, "fewer vectors than features");
		else
			pull_f32_list(t, rows->features[i] + (size_t)row * rows->feature_widths[i], rows->feature_widths[i], absent);
	}
	if (pull_next(t))
		pull_fail(t, "more vectors than features");
}

static float read_number(struct pull *t, float absent)
{
	return absent != 0 && pull_null(t) ? absent : pull_f32(t);
}

static void read_row_member(struct pull *t, enum row_member m, struct record_rows *rows, uint32_t row)
{
	const struct query *q = &rows->query;
	size_t width = q->n_keep ? q->n_keep : rows->vocab_size, at;
	switch (m) {
	case R_LSE: pull_f32_list(t, rows->lse + (size_t)row * q->n_temperatures, q->n_temperatures, 0); break;
	case R_IDS: read_top_ids(t, rows, row); break;
	case R_DENSE: pull_f32_list(t, rows->dense + row * width, width, 0); break;
	case R_OWN: rows->own_logit[row] = read_number(t, NAN); break;
	case R_ENTROPY: rows->entropy[row] = read_number(t, 0); break;
	case R_MAX_PROB: rows->max_prob[row] = read_number(t, 0); break;
	case R_ARGMAX: rows->argmax[row] = (uint32_t)pull_u64(t, UINT32_MAX); break;
	case R_SUM_SQUARES: rows->sum_squares[row] = read_number(t, 0); break;
	case R_TAIL: rows->tail[row] = read_number(t, -INFINITY); break;
	case R_GATHER:
		at = record_gather_at(rows, row);
		pull_f32_list(t, rows->gathered + at, record_gather_at(rows, row + 1) - at, 0);
		break;
	case R_DRAWS: read_row_draws(t, rows, row); break;
	case R_FEATURES: read_vectors(t, rows, row, 0); break;
	case R_STATUS: case R_LOGITS: case N_ROW_MEMBERS: break;
	}
}

static enum row_status read_status(struct pull *t)
{
	char word[16];
	pull_string(t, word, sizeof word);
	if (strcmp(word, "ok") != 0 && strcmp(word, "not_finite") != 0)
		pull_fail(t, "an unknown status");
	return strcmp(word, "ok") == 0 ? ROW_OK : ROW_NOT_FINITE;
}

// Members that are asked for, each once; those of other names are somebody's notes.
static void read_row(struct pull *t, struct record_rows *rows, uint32_t row, uint32_t asked)
{
	uint32_t seen = 0;
	const char *logits = NULL;
	char name[16];
	pull_open(t, '{');
	while (pull_next_member(t, name, sizeof name)) {
		enum row_member m = 0;
		while (m < N_ROW_MEMBERS && strcmp(row_names[m], name) != 0)
			m++;
		if (m < N_ROW_MEMBERS && (seen >> m & 1 || !(asked >> m & 1))) {
			pull_fail(t, "a signal that occurs twice or was not asked for");
			return;
		}
		seen |= m < N_ROW_MEMBERS ? 1u << m : 0;
		if (m == R_STATUS)
			rows->status[row] = (uint8_t)read_status(t);
		else if (m < N_ROW_MEMBERS && m != R_LOGITS)
			read_row_member(t, m, rows, row);
		if (m == R_LOGITS)
			logits = t->at;        // how many they are the ids say
		if (m == R_LOGITS || m == N_ROW_MEMBERS)
			pull_skip(t);
	}
	if (seen != (rows->status[row] == ROW_OK ? asked : 1u << R_STATUS))
		pull_fail(t, rows->status[row] == ROW_OK ? "a signal that was asked for is missing"
			: "numbers in a row that is not finite");
	if (!logits || t->failed)
		return;
	const char *after = t->at;
	t->at = logits;
	read_top_logits(t, rows, row, rows->n_top ? rows->n_top[row] : rows->query.top_k);
	t->at = t->failed ? t->at : after;
}

static void read_rows(struct line *l)
{
	struct pull *t = &l->text;
	struct record_rows *rows = l->rows;
	uint32_t row = 0, asked = members_asked(rows);
	if (!rows->status || !must_go_to(l, M_ROWS))
		return;
	pull_open(t, '[');
	while (pull_next(t)) {
		if (row == rows->n_rows) {
			pull_fail(t, "more rows than the question asks for");
			return;
		}
		if (rows->draw_starts)
			rows->draw_starts[row + 1] = rows->draw_starts[row];
		read_row(t, rows, row++, asked);
	}
	if (row < rows->n_rows)
		pull_fail(t, "fewer rows than the question asks for");
}

// ---- what stands beside the rows

static int read_widths(struct line *l, struct error *err)
{
	struct pull_ids widths = {0};
	uint64_t paid = NUMBERS_FOR_A_BYTE * (uint64_t)(l->text.end - l->text.begin), n_rows = l->rows->n_rows, total = 0;
	if (!l->query.n_features || !must_go_to(l, M_WIDTHS))
		return 0;
	pull_id_list(&l->text, &widths, QUERY_MAX_FEATURES);
	if (widths.n != l->query.n_features)
		pull_fail(&l->text, "other than one width for each feature");
	int r = 0;
	for (uint32_t i = 0; i < l->query.n_features && !l->text.failed && !r; i++) {
		// each below 2^63, what was before is paid
		total += widths.ids[i] * (l->query.pooling == QUERY_POOLING_NONE ? n_rows : 1);
		if (!widths.ids[i] || total > paid)
			pull_fail(&l->text, "widths of features whose numbers are not there");
		else
			r = record_rows_add_feature(l->rows, i, widths.ids[i], err);
	}
	free(widths.ids);
	return r;
}

static void read_beside(struct line *l)
{
	struct record_rows *rows = l->rows;
	if (rows->max_logit && must_go_to(l, M_MAX_LOGIT))
		pull_f32_list(&l->text, rows->max_logit, rows->n_rows, 0);
	if (rows->span_sums && must_go_to(l, M_SPANS))
		pull_f32_list(&l->text, rows->span_sums, rows->query.n_spans, NAN);
	if (rows->query.n_features && rows->query.pooling != QUERY_POOLING_NONE && must_go_to(l, M_POOLED))
		read_vectors(&l->text, rows, 0, NAN);
}

static int decode(struct line *l, struct record **ret_record, struct error *err)
{
	find_members(l);
	if (!l->text.failed)
		read_header(l);
	if (!l->text.failed)
		read_exact(l);
	int r = l->text.failed ? -EINVAL : make_rows(l, err);
	if (!r)
		r = read_widths(l, err);
	if (!r && !l->text.failed)
		read_rows(l);
	if (!r && !l->text.failed)
		read_beside(l);
	if (l->text.failed)
		return error_set(err, ERROR_INVALID, NULL, "character %td: %s", l->text.at - l->text.begin + 1, l->text.what);
	return r ? r : claims_redeem(&l->claims, l->rows, ret_record, err);
}

int line_decode(const char *text, size_t n, struct record **ret_record, struct error *err)
{
	struct line l = {.text = pull_init(text, n)};
	query_init(&l.query);
	int r = decode(&l, ret_record, err);
	query_done(&l.query);
	record_rows_free(l.rows);
	free(l.tokens.ids);
	free(l.exact);
	return r;
}
