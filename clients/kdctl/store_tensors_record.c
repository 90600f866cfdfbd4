// SPDX-License-Identifier: Apache-2.0
// A record out of exported arrays. Offsets are checked against what they point into, and lengths against what the question calls for,
// before anything of that size is allocated.
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/pull.h"
#include "clients/kdctl/store_tensors.h"
#include "clients/kdctl/store_transfer.h"
#include "common/error.h"

struct picker {
	const struct tensors *t;
	struct error *err;
	uint64_t number;                 // of the record
	uint64_t row, n_rows;            // where its rows are
	uint32_t vocab_size;
	struct content_id teacher;
	struct sequence sequence;
	struct query query;
	struct claims claims;
	uint8_t *exact;
	struct record_rows *rows;
};

static int wrong(const struct picker *p, enum column c, const char *what)
{
	return error_set(p->err, ERROR_INVALID, column_kinds[c].name, "%s", what);
}

static void swap_words(void *words, uint64_t n)
{
#if __BYTE_ORDER != __LITTLE_ENDIAN
	for (uint64_t i = 0; i < n; i++)
		((uint32_t *)words)[i] = le32toh(((uint32_t *)words)[i]);
#else
	(void)words, (void)n;
#endif
}

// n entries of 4 bytes.
static int pick(const struct picker *p, enum column c, uint64_t first, uint64_t n, void *to)
{
	int r = tensors_read(p->t, c, first, n, to, p->err);
	if (!r)
		swap_words(to, n);
	return r;
}

// Where the record's part of `of` lies.
static int pick_range(const struct picker *p, enum column at, enum column of, uint64_t *ret_first, uint64_t *ret_n)
{
	uint64_t ends[2];
	int r = tensors_read(p->t, at, p->number, 2, ends, p->err);
	if (r)
		return r;
	uint64_t n = of == COLUMN_STATUS ? p->t->n_rows : p->t->columns[of].n;
	ends[0] = le64toh(ends[0]);
	ends[1] = le64toh(ends[1]);
	if (ends[0] > ends[1] || ends[1] > n)
		return wrong(p, at, "an offset outside what it points into");
	*ret_first = ends[0];
	*ret_n = ends[1] - ends[0];
	return 0;
}

// Memory for n things of a size; those are in the file, so that the file bounds it.
static int new_array(const struct picker *p, uint64_t n, size_t size, void *ret)
{
	void *array = n > SIZE_MAX / size - 1 ? NULL : malloc((n + 1) * size);
	memcpy(ret, &array, sizeof array);
	return array ? 0 : error_set(p->err, ERROR_MEMORY, NULL, "no memory for %" PRIu64 " numbers", n);
}

// ---- before the rows

static int pick_question(struct picker *p)
{
	uint64_t first, n;
	char *text;
	int r = pick_range(p, COLUMN_QUESTION_AT, COLUMN_QUESTION, &first, &n);
	if (!r)
		r = new_array(p, n, 1, &text);
	if (r)
		return r;
	r = tensors_read(p->t, COLUMN_QUESTION, first, n, text, p->err);
	text[r ? 0 : n] = '\0';
	struct pull pull = pull_init(text, r ? 0 : n);
	if (!r) {
		line_decode_question(&pull, &p->query);
		pull_end(&pull);
	}
	if (pull.failed)
		r = wrong(p, COLUMN_QUESTION, pull.what);
	free(text);
	return r;
}

static int pick_tokens(struct picker *p)
{
	uint64_t first, n;
	int r = pick_range(p, COLUMN_TOKEN_AT, COLUMN_TOKENS, &first, &n);
	if (!r && n > INT32_MAX)
		r = wrong(p, COLUMN_TOKENS, "too many for a sequence");
	if (!r)
		r = new_array(p, n, 4, &p->sequence.tokens);
	if (r)
		return r;
	p->sequence.n_tokens = (uint32_t)n;
	return pick(p, COLUMN_TOKENS, first, n, p->sequence.tokens);
}

static int pick_claims(struct picker *p)
{
	uint32_t words[2];
	uint64_t checksum, first, n;
	int r = pick(p, COLUMN_VERSION, p->number, 1, &words[0]);
	if (!r)
		r = pick(p, COLUMN_VOCAB_SIZE, p->number, 1, &words[1]);
	if (!r)
		r = tensors_read(p->t, COLUMN_CHECKSUM, p->number, 1, &checksum, p->err);
	if (!r)
		r = tensors_read(p->t, COLUMN_KEY, p->number, 1, &p->claims.key, p->err);
	if (!r)
		r = tensors_read(p->t, COLUMN_TEACHER, p->number, 1, &p->teacher, p->err);
	if (r)
		return r;
	p->claims.version = words[0];
	p->vocab_size = words[1];
	p->claims.checksum = (uint32_t)le64toh(checksum);
	p->claims.has_key = p->claims.has_checksum = true;
	if (p->vocab_size > QUERY_MAX_VOCABULARY)
		return wrong(p, COLUMN_VOCAB_SIZE, "larger than any");
	if (!p->t->columns[COLUMN_RECORD_AT].there)
		return 0;
	r = pick_range(p, COLUMN_RECORD_AT, COLUMN_RECORD, &first, &n);
	if (r || !n)
		return r;
	r = n > RECORD_MAX_BYTES ? wrong(p, COLUMN_RECORD, "larger than any") : new_array(p, n, 1, &p->exact);
	p->claims.exact = p->exact;
	p->claims.n_exact = n;
	return r ? r : tensors_read(p->t, COLUMN_RECORD, first, n, p->exact, p->err);
}

static bool has_status(const struct query *q)
{
	return query_has_rows(q) || (q->n_features && q->pooling == QUERY_POOLING_NONE);
}

// As many numbers of each kind as the question calls for are in the file.
static int check_paid(struct picker *p)
{
	const struct query *q = &p->query;
	uint64_t first, n, rows = query_rows(q), width = q->n_keep ? q->n_keep : p->vocab_size;
	int r = pick_range(p, COLUMN_ROW_AT, COLUMN_STATUS, &p->row, &p->n_rows);
	if (!r && p->n_rows != (has_status(q) ? rows : 0))
		r = wrong(p, COLUMN_ROW_AT, "other rows than the question asks for");
	if (r || !p->n_rows)
		return r;
	if (q->n_temperatures && !(r = pick_range(p, COLUMN_LSE_AT, COLUMN_LSE, &first, &n)) && n != rows * q->n_temperatures)
		r = wrong(p, COLUMN_LSE_AT, "other than a number for each row and temperature");
	if (!r && q->dense && !(r = pick_range(p, COLUMN_DENSE_AT, COLUMN_DENSE, &first, &n)) && n != rows * width)
		r = wrong(p, COLUMN_DENSE_AT, "other than a number for each row and id");
	return r;
}

static int make_rows(struct picker *p)
{
	struct query_limits limits = transfer_limits(p->vocab_size);
	int r = query_check(&p->query, &p->sequence, &limits, NULL, p->err);
	if (!r)
		r = check_paid(p);
	return r ? r : record_rows_new(&p->teacher, p->vocab_size, &p->sequence, &p->query, &p->rows, p->err);
}

// ---- rows

static int pick_scalars(struct picker *p)
{
	struct record_rows *rows = p->rows;
	const struct { enum column c; void *to; } scalars[] = {{COLUMN_MAX_LOGIT, rows->max_logit}, {COLUMN_OWN_LOGIT, rows->own_logit},
		{COLUMN_ENTROPY, rows->entropy}, {COLUMN_MAX_PROB, rows->max_prob}, {COLUMN_ARGMAX, rows->argmax},
		{COLUMN_SUM_SQUARES, rows->sum_squares}, {COLUMN_TAIL, rows->tail}};
	int r = tensors_read(p->t, COLUMN_STATUS, p->row, p->n_rows, rows->status, p->err);
	for (size_t i = 0; !r && i < sizeof scalars / sizeof *scalars; i++)
		if (scalars[i].to)
			r = pick(p, scalars[i].c, p->row, p->n_rows, scalars[i].to);
	return r;
}

// A flat array of which the record must have exactly n.
static int pick_flat(struct picker *p, enum column at, enum column c, uint64_t n, void *to)
{
	uint64_t first, there;
	int r = to ? pick_range(p, at, c, &first, &there) : 0;
	if (!to || r)
		return r;
	return there == n ? pick(p, c, first, n, to) : wrong(p, at, "other than as many as the question asks for");
}

// The offsets of the record's rows: n_rows + 1 that never fall, within what they point into.
static int pick_offsets(struct picker *p, enum column at, enum column of, uint64_t **ret)
{
	int r = new_array(p, p->n_rows + 1, 8, ret);
	if (!r)
		r = tensors_read(p->t, at, p->row, p->n_rows + 1, *ret, p->err);
	for (uint64_t i = 0; !r && i <= p->n_rows; i++) {
		(*ret)[i] = le64toh((*ret)[i]);
		if ((*ret)[i] > p->t->columns[of].n || (i && (*ret)[i] < (*ret)[i - 1]))
			r = wrong(p, at, "an offset outside what it points into");
	}
	return r;
}

static int pick_top_row(struct picker *p, uint32_t row, uint64_t first, uint64_t n)
{
	struct record_rows *rows = p->rows;
	size_t k = rows->query.top_k;
	uint32_t *ids = rows->ids + row * k;
	bool ok = rows->status[row] == ROW_OK;
	if (n > k || (ok && !rows->n_top && n < k) || (!ok && n))
		return wrong(p, COLUMN_TOP_AT, "other than as many ids as the question asks for");
	if (!ok)
		return 0;
	if (rows->n_top)
		rows->n_top[row] = (uint32_t)n;
	for (size_t i = n; i < k; i++)
		ids[i] = RECORD_NO_ID;
	int r = pick(p, COLUMN_IDS, first, n, ids);
	return r ? r : pick(p, COLUMN_LOGITS, first, n, rows->logits + row * k);
}

static int pick_top(struct picker *p)
{
	uint64_t *offsets = NULL;
	int r = p->rows->ids ? pick_offsets(p, COLUMN_TOP_AT, COLUMN_IDS, &offsets) : 0;
	for (uint32_t row = 0; !r && p->rows->ids && row < p->n_rows; row++)
		r = pick_top_row(p, row, offsets[row], offsets[row + 1] - offsets[row]);
	free(offsets);
	return r;
}

// Whether the ids beside the numbers are the question's.
static int check_gather_ids(struct picker *p, uint32_t row, uint64_t first)
{
	uint32_t n, *found;
	const uint32_t *wanted = record_gather_ids(p->rows, row, &n);
	int r = new_array(p, n, 4, &found);
	if (!r)
		r = pick(p, COLUMN_GATHER_IDS, first, n, found);
	if (!r && n && memcmp(found, wanted, 4 * (size_t)n) != 0)
		r = wrong(p, COLUMN_GATHER_IDS, "not the ids of the question");
	free(found);
	return r;
}

static int pick_gather(struct picker *p)
{
	uint64_t *offsets = NULL;
	struct record_rows *rows = p->rows;
	if (!rows->query.gather.n_lists)
		return 0;
	int r = pick_offsets(p, COLUMN_GATHER_AT, COLUMN_GATHER, &offsets);
	for (uint32_t row = 0; !r && row < p->n_rows; row++) {
		uint64_t to = record_gather_at(rows, row), n = record_gather_at(rows, row + 1) - to;
		if (offsets[row + 1] - offsets[row] != n)
			r = wrong(p, COLUMN_GATHER_AT, "other than a number for each id of the question");
		if (!r && n)
			r = pick(p, COLUMN_GATHER, offsets[row], n, rows->gathered + to);
		if (!r)
			r = check_gather_ids(p, row, offsets[row]);
	}
	free(offsets);
	return r;
}

static int pick_draws(struct picker *p)
{
	uint64_t *offsets = NULL, n;
	struct record_rows *rows = p->rows;
	if (!rows->query.draws.n)
		return 0;
	int r = pick_offsets(p, COLUMN_DRAW_AT, COLUMN_DRAW_IDS, &offsets);
	n = r ? 0 : offsets[p->n_rows] - offsets[0];
	if (!r && n > RECORD_MAX_NUMBERS)
		r = wrong(p, COLUMN_DRAW_AT, "more draws than a record may have");
	if (!r)
		r = record_rows_reserve_draws(rows, (uint32_t)n, p->err);
	for (uint64_t row = 0; !r && row <= p->n_rows; row++)
		rows->draw_starts[row] = (uint32_t)(offsets[row] - offsets[0]);
	if (!r && n)
		r = pick(p, COLUMN_DRAW_IDS, offsets[0], n, rows->draw_ids);
	if (!r && n)
		r = pick(p, COLUMN_DRAW_COUNTS, offsets[0], n, rows->draw_counts);
	if (!r && n && rows->query.draws.tau != 1)
		r = pick(p, COLUMN_DRAW_LOG_RATIOS, offsets[0], n, rows->draw_log_ratios);
	free(offsets);
	return r;
}

static int pick_features(struct picker *p)
{
	const struct query *q = &p->rows->query;
	uint32_t widths[QUERY_MAX_FEATURES];
	uint64_t first, n, used = 0, rows = q->pooling == QUERY_POOLING_NONE ? p->rows->n_rows : 1;
	if (!q->n_features)
		return 0;
	int r = pick_flat(p, COLUMN_WIDTH_AT, COLUMN_FEATURE_WIDTHS, q->n_features, widths);
	if (!r)
		r = pick_range(p, COLUMN_FEATURE_AT, COLUMN_FEATURES, &first, &n);
	for (uint32_t i = 0; !r && i < q->n_features; i++) {
		uint64_t here = rows * widths[i];       // below 2^63; what is left is below 2^61
		if (!widths[i] || here > n - used)
			r = wrong(p, COLUMN_FEATURE_WIDTHS, "other widths than the numbers have");
		if (!r)
			r = record_rows_add_feature(p->rows, i, widths[i], p->err);
		if (!r)
			r = pick(p, COLUMN_FEATURES, first + used, here, p->rows->features[i]);
		used += r ? 0 : here;
	}
	return !r && used != n ? wrong(p, COLUMN_FEATURE_AT, "other widths than the numbers have") : r;
}

static int pick_rows(struct picker *p)
{
	struct record_rows *rows = p->rows;
	const struct query *q = &rows->query;
	uint64_t width = q->n_keep ? q->n_keep : p->vocab_size;
	int r = rows->status ? pick_scalars(p) : 0;
	if (!r)
		r = pick_flat(p, COLUMN_LSE_AT, COLUMN_LSE, (uint64_t)rows->n_rows * q->n_temperatures, rows->lse);
	if (!r)
		r = pick_flat(p, COLUMN_DENSE_AT, COLUMN_DENSE, rows->n_rows * width, rows->dense);
	if (!r)
		r = pick_flat(p, COLUMN_SPAN_AT, COLUMN_SPAN_SUMS, q->n_spans, rows->span_sums);
	if (!r)
		r = pick_top(p);
	if (!r)
		r = pick_gather(p);
	if (!r)
		r = pick_draws(p);
	return r ? r : pick_features(p);
}

int tensors_record(const struct tensors *t, uint64_t i, struct record **ret_record, struct error *err)
{
	struct error own = {0};
	struct picker p = {.t = t, .err = err ? err : &own, .number = i};
	query_init(&p.query);
	int r = pick_claims(&p);
	if (!r)
		r = pick_tokens(&p);
	if (!r)
		r = pick_question(&p);
	if (!r)
		r = make_rows(&p);
	if (!r)
		r = pick_rows(&p);
	if (!r)
		r = claims_redeem(&p.claims, p.rows, ret_record, p.err);
	query_done(&p.query);
	sequence_done(&p.sequence);
	record_rows_free(p.rows);
	free(p.exact);
	return r;
}
