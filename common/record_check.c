// SPDX-License-Identifier: Apache-2.0
// What rows must keep to before they are encoded. They are our own: a fault here is one of the program.
#include "common/record_check.h"

#include <inttypes.h>
#include <math.h>

#include "common/error.h"
#include "common/record_layout.h"

static int broken(struct error *err, uint32_t row, const char *what)
{
	return error_set(err, ERROR_INTERNAL, "record", "row %" PRIu32 ": %s", row, what);
}

// Every array the question calls for is there.
static int check_arrays(const struct record_rows *rows, struct error *err)
{
	const struct query *q = &rows->query;
	const char *missing = NULL;
	for (size_t i = 0; i < N_COLUMNS; i++)
		if (column_asked(q, columns[i].tag) && !column_values(rows, &columns[i]))
			missing = columns[i].name;
	if (query_has_status(q) && !rows->status)
		missing = "status";
	if ((q->top_k && (!rows->ids || !rows->logits)) || (q->top_mass != 0 && !rows->n_top))
		missing = "top_k";
	if ((q->dense && !rows->dense) || (q->own && !rows->own_logit) || (q->argmax && !rows->argmax))
		missing = "dense, own or argmax";
	if ((q->gather.n_lists && !rows->gathered) || (q->n_spans && !rows->span_sums))
		missing = "gather or spans";
	if (q->draws.n && (!rows->draw_starts || rows->draw_starts[rows->n_rows] > rows->draw_room))
		missing = "draws";
	for (uint32_t i = 0; i < q->n_features; i++)
		if (!rows->features[i] || !rows->feature_widths[i])
			missing = "features";
	return missing ? error_set(err, ERROR_INTERNAL, "record", "rows without %s, which the question asks for", missing) : 0;
}

int check_shape(const struct record_rows *rows, struct error *err)
{
	struct error why = {0};
	if (!rows->vocab_size || rows->vocab_size > QUERY_MAX_VOCABULARY)
		return error_set(err, ERROR_UNSUPPORTED, "record", "a vocabulary of %" PRIu32 " ids", rows->vocab_size);
	int r = check_canonical(&rows->query, &rows->sequence, rows->vocab_size, rows->n_rows, &why);
	if (r)
		return error_set(err, why.code == ERROR_MEMORY ? ERROR_MEMORY : ERROR_INTERNAL, "record", "%s", why.message);
	return check_arrays(rows, err);
}

static bool row_is_ok(const struct record_rows *rows, uint32_t row)
{
	return rows->status[row] == ROW_OK;
}

static int check_status(const struct record_rows *rows, struct error *err)
{
	for (uint32_t row = 0; row < rows->n_rows; row++)
		if (rows->status[row] > ROW_NOT_FINITE)
			return error_set(err, ERROR_INTERNAL, "record", "row %" PRIu32 " has the unknown status %d", row,
				rows->status[row]);
	return 0;
}

static int check_column(const struct record_rows *rows, const struct column *c, struct error *err)
{
	const float *values = column_values(rows, c);
	size_t width = column_width(&rows->query, c->tag);
	if (all_rows_ok(rows) && numbers_within(values, rows->n_rows * width, c->low, c->high))
		return 0;
	for (uint32_t row = 0; row < rows->n_rows; row++)
		if (row_is_ok(rows, row) && !numbers_within(values + row * width, width, c->low, c->high))
			return broken(err, row, c->name);
	return 0;
}

static int check_dense(const struct record_rows *rows, uint32_t row, struct error *err)
{
	size_t width = query_vocabulary(&rows->query, rows->vocab_size);
	const float *values = rows->dense + row * width;
	float largest = -INFINITY;
	for (size_t i = 0; i < width; i++)
		largest = values[i] > largest ? values[i] : largest;
	if (!numbers_within(values, width, -__FLT_MAX__, __FLT_MAX__) || largest != rows->max_logit[row])
		return broken(err, row, "dense logits that are not finite, or whose largest is not max_logit");
	return 0;
}

static int check_gathered(const struct record_rows *rows, uint32_t row, struct error *err)
{
	uint64_t begin = record_gather_at(rows, row), n = record_gather_at(rows, row + 1) - begin;
	if (!numbers_within(rows->gathered + begin, n, -__FLT_MAX__, rows->max_logit[row]))
		return broken(err, row, "a gathered logit is not finite or above max_logit");
	return 0;
}

static int check_own(const struct record_rows *rows, uint32_t row, struct error *err)
{
	return !own_exists(rows, row) || isfinite(rows->own_logit[row]) ? 0 : broken(err, row, "own_logit is not finite");
}

static int check_argmax(const struct record_rows *rows, uint32_t row, struct error *err)
{
	uint32_t id = rows->argmax[row];
	bool good = id < rows->vocab_size && query_keep_position(&rows->query, id) != UINT32_MAX;
	return good ? 0 : broken(err, row, "argmax is outside the vocabulary");
}

static int check_n_top(const struct record_rows *rows, uint32_t row, struct error *err)
{
	return rows->n_top[row] && rows->n_top[row] <= rows->query.top_k ? 0 : broken(err, row, "n_top is not from 1 to top_k");
}

static int check_draws(const struct record_rows *rows, uint32_t row, struct error *err)
{
	const struct query *q = &rows->query;
	uint32_t begin = rows->draw_starts[row], end = rows->draw_starts[row + 1];
	uint32_t wanted = q->draws.tail && rows->tail[row] == -INFINITY ? 0 : q->draws.n;
	uint64_t sum = 0;
	bool good = begin <= end && end <= rows->draw_starts[rows->n_rows];
	for (uint32_t i = begin; good && i < end; i++) {
		sum += rows->draw_counts[i];
		good = rows->draw_ids[i] < rows->vocab_size && query_keep_position(q, rows->draw_ids[i]) != UINT32_MAX &&
			rows->draw_counts[i] && (i == begin || rows->draw_ids[i] > rows->draw_ids[i - 1]) &&
			(q->draws.tau == 1 || isfinite(rows->draw_log_ratios[i]));
	}
	return good && sum == wanted ? 0
		: broken(err, row, "drawn ids that do not ascend within the vocabulary, or counts that do not add up");
}

int check_numbers(const struct record_rows *rows, struct error *err)
{
	const struct query *q = &rows->query;
	const struct { bool asked; int (*check)(const struct record_rows *rows, uint32_t row, struct error *err); } signals[] = {
		{q->dense, check_dense}, {q->own, check_own}, {q->argmax, check_argmax}, {q->gather.n_lists, check_gathered},
		{q->top_mass != 0, check_n_top}, {q->draws.n, check_draws},
	};
	int r = rows->status ? check_status(rows, err) : 0;
	for (size_t i = 0; !r && i < N_COLUMNS; i++)
		if (column_asked(q, columns[i].tag))
			r = check_column(rows, &columns[i], err);
	for (size_t i = 0; !r && i < sizeof signals / sizeof *signals; i++)
		for (uint32_t row = 0; signals[i].asked && !r && row < rows->n_rows; row++)
			if (row_is_ok(rows, row))
				r = signals[i].check(rows, row, err);
	return r;
}
