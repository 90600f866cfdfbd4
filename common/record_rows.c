// SPDX-License-Identifier: Apache-2.0
// The decoded form: its arrays.
#include <inttypes.h>

#include "common/error.h"
#include "common/record_layout.h"

static int no_memory(struct error *err)
{
	return error_set(err, ERROR_MEMORY, NULL, "no memory for rows");
}

// An array of n numbers (of 4 bytes) when asked for; refuses more than any record may have.
static int array_init(bool asked, uint64_t n, bool zeroed, void *ret_array, struct error *err)
{
	if (!asked)
		return 0;
	if (n > RECORD_MAX_NUMBERS)
		return error_set(err, ERROR_TOO_LARGE, "record", "%" PRIu64 " numbers of one kind, the limit is %u", n, RECORD_MAX_NUMBERS);
	void *array = zeroed ? calloc(n ? n : 1, 4) : malloc(4 * (n ? n : 1));
	memcpy(ret_array, &array, sizeof array);
	return array ? 0 : no_memory(err);
}

static int array_new(bool asked, uint64_t n, void *ret_array, struct error *err)
{
	return array_init(asked, n, true, ret_array, err);
}

static int arrays_new(struct record_rows *rows, bool zeroed, struct error *err)
{
	const struct query *q = &rows->query;
	uint64_t n = rows->n_rows;
	int r = 0;
	for (size_t i = 0; !r && i < N_COLUMNS; i++)
		r = array_new(column_asked(q, columns[i].tag), n * column_width(q, columns[i].tag), column_of(rows, &columns[i]), err);
	if (!r)
		r = array_new(q->top_mass != 0, n, &rows->n_top, err);
	if (!r)
		r = array_init(q->top_k, n * q->top_k, zeroed, &rows->ids, err);        // n < 2^31, top_k <= 2^24: no overflow
	if (!r)
		r = array_init(q->top_k, n * q->top_k, zeroed, &rows->logits, err);
	if (!r)
		r = array_new(q->dense, n * query_vocabulary(q, rows->vocab_size), &rows->dense, err);
	if (!r)
		r = array_new(q->own, n, &rows->own_logit, err);
	if (!r)
		r = array_new(q->argmax, n, &rows->argmax, err);
	if (!r)
		r = array_new(q->gather.n_lists, record_gather_at(rows, rows->n_rows), &rows->gathered, err);
	if (!r)
		r = array_new(q->draws.n, n + 1, &rows->draw_starts, err);
	if (!r)
		r = array_new(q->n_spans, q->n_spans, &rows->span_sums, err);
	return r;
}

int rows_new(const struct content_id *teacher, uint32_t vocab_size, struct sequence *take, const struct query *canonical, bool zeroed,
	     struct record_rows **ret_rows, struct error *err)
{
	struct record_rows *rows = calloc(1, sizeof *rows);
	if (!rows) {
		sequence_done(take);
		return no_memory(err);
	}
	rows->teacher = *teacher;
	rows->vocab_size = vocab_size;
	rows->sequence = *take;
	rows->n_rows = query_rows(canonical);
	bool has_status = query_has_status(canonical);
	int r = query_copy(&rows->query, canonical) || (has_status && !(rows->status = calloc(rows->n_rows, sizeof *rows->status)))
		? no_memory(err) : 0;
	if (!r)
		r = arrays_new(rows, zeroed, err);
	if (r)
		record_rows_free(rows);
	else
		*ret_rows = rows;
	return r;
}

int record_rows_new(const struct content_id *teacher, uint32_t vocab_size, const struct sequence *s, const struct query *canonical,
		    struct record_rows **ret_rows, struct error *err)
{
	struct sequence copy;
	if (sequence_init(&copy, s->tokens, s->n_tokens))
		return no_memory(err);
	return rows_new(teacher, vocab_size, &copy, canonical, true, ret_rows, err);
}

struct record_rows *record_rows_free(struct record_rows *rows)
{
	if (!rows)
		return NULL;
	for (size_t i = 0; i < N_COLUMNS; i++)
		free(*column_of(rows, &columns[i]));
	for (uint32_t i = 0; i < QUERY_MAX_FEATURES; i++)
		free(rows->features[i]);
	query_done(&rows->query);
	sequence_done(&rows->sequence);
	free(rows->status);
	free(rows->n_top);
	free(rows->ids);
	free(rows->logits);
	free(rows->dense);
	free(rows->own_logit);
	free(rows->argmax);
	free(rows->gathered);
	free(rows->draw_starts);
	free(rows->draw_ids);
	free(rows->draw_counts);
	free(rows->draw_log_ratios);
	free(rows->span_sums);
	free(rows);
	return NULL;
}

uint64_t record_gather_at(const struct record_rows *rows, uint32_t row)
{
	const struct id_lists *g = &rows->query.gather;
	return !g->n_lists ? 0 : g->n_lists == 1 ? (uint64_t)row * g->offsets[1] : g->offsets[row];
}

const uint32_t *record_gather_ids(const struct record_rows *rows, uint32_t row, uint32_t *ret_n)
{
	const struct id_lists *g = &rows->query.gather;
	uint32_t list = g->n_lists == 1 ? 0 : row;
	*ret_n = g->n_lists ? g->offsets[list + 1] - g->offsets[list] : 0;
	return *ret_n ? g->ids + g->offsets[list] : NULL;
}

static bool grow(void *array, size_t n)
{
	void *old, *new;
	memcpy(&old, array, sizeof old);
	new = realloc(old, n * 4);
	if (new)
		memcpy(array, &new, sizeof new);
	return new;
}

int record_rows_reserve_draws(struct record_rows *rows, uint32_t n, struct error *err)
{
	uint64_t room = 2 * (uint64_t)rows->draw_room;
	if (n <= rows->draw_room)
		return 0;
	if (n > RECORD_MAX_NUMBERS)
		return error_set(err, ERROR_TOO_LARGE, "record", "%" PRIu32 " drawn ids, the limit is %u", n, RECORD_MAX_NUMBERS);
	room = room < n ? n : room;
	room = room < 64 ? 64 : room;
	if (!grow(&rows->draw_ids, room) || !grow(&rows->draw_counts, room) ||
	    (rows->query.draws.tau != 1 && !grow(&rows->draw_log_ratios, room)))
		return no_memory(err);
	rows->draw_room = (uint32_t)room;
	return 0;
}

int record_rows_add_feature(struct record_rows *rows, uint32_t i, uint32_t width, struct error *err)
{
	int r = array_new(true, (uint64_t)feature_rows(&rows->query, rows->n_rows) * width, &rows->features[i], err);
	if (!r)
		rows->feature_widths[i] = width;
	return r;
}
