// SPDX-License-Identifier: Apache-2.0
#include "common/record_json.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

#include "common/buffer.h"
#include "common/record.h"

void record_json_ids(struct buffer *b, const uint32_t *ids, size_t n)
{
	buffer_text(b, "[");
	for (size_t i = 0; i < n; i++)
		buffer_printf(b, i ? ",%" PRIu32 : "%" PRIu32, ids[i]);
	buffer_text(b, "]");
}

void record_json_numbers(struct buffer *b, const float *numbers, size_t n)
{
	buffer_text(b, "[");
	for (size_t i = 0; i < n; i++) {
		if (i)
			buffer_text(b, ",");
		buffer_float(b, numbers[i]);
	}
	buffer_text(b, "]");
}

static void number(struct buffer *b, const char *name, const float *column, uint32_t row)
{
	if (!column)
		return;
	buffer_printf(b, ",\"%s\":", name);
	buffer_float(b, column[row]);
}

static void numbers(struct buffer *b, const char *name, const float *values, size_t n)
{
	buffer_printf(b, ",\"%s\":", name);
	record_json_numbers(b, values, n);
}

static void top(struct buffer *b, const struct record_rows *r, uint32_t row)
{
	size_t k = r->query.top_k;
	if (!r->ids)
		return;
	size_t n = r->n_top ? r->n_top[row] : k;
	buffer_text(b, ",\"ids\":");
	record_json_ids(b, r->ids + row * k, n);
	numbers(b, "logits", r->logits + row * k, n);
}

void record_json_weights(const struct record_rows *r, uint32_t row, float *ret_weights)
{
	size_t begin = r->draw_starts[row], end = r->draw_starts[row + 1];
	for (size_t i = begin; i < end; i++) {
		double log_ratio = r->draw_log_ratios ? (double)r->draw_log_ratios[i] : r->query.draws.tail ? (double)r->tail[row] : 0;
		ret_weights[i - begin] = (float)(r->draw_counts[i] * exp(log_ratio) / r->query.draws.n);
	}
}

static void weights(struct buffer *b, const struct record_rows *r, uint32_t row)
{
	size_t n = r->draw_starts[row + 1] - r->draw_starts[row];
	float *w = malloc((n ? n : 1) * sizeof *w);
	if (!w) {
		b->failed = true;
		return;
	}
	record_json_weights(r, row, w);
	numbers(b, "weights", w, n);
	free(w);
}

static void draws(struct buffer *b, const struct record_rows *r, uint32_t row)
{
	if (!r->draw_starts)
		return;
	size_t at = r->draw_starts[row], n = r->draw_starts[row + 1] - at;
	buffer_text(b, ",\"draws\":{\"ids\":");
	record_json_ids(b, n ? r->draw_ids + at : NULL, n);
	buffer_text(b, ",\"counts\":");
	record_json_ids(b, n ? r->draw_counts + at : NULL, n);
	if (r->draw_log_ratios)
		numbers(b, "log_ratios", r->draw_log_ratios + at, n);
	weights(b, r, row);
	buffer_text(b, "}");
}

// One vector per feature; of row 0 when they are pooled.
static void features(struct buffer *b, const struct record_rows *r, uint32_t row)
{
	buffer_text(b, "[");
	for (uint32_t i = 0; i < r->query.n_features; i++) {
		if (i)
			buffer_text(b, ",");
		record_json_numbers(b, r->features[i] + (size_t)row * r->feature_widths[i], r->feature_widths[i]);
	}
	buffer_text(b, "]");
}

void record_json_row(struct buffer *b, const struct record_rows *r, uint32_t row)
{
	const struct query *q = &r->query;
	if (r->status[row] != ROW_OK) {
		buffer_text(b, "{\"status\":\"not_finite\"}");
		return;
	}
	buffer_text(b, "{\"status\":\"ok\"");
	if (r->lse)
		numbers(b, "lse", r->lse + (size_t)row * q->n_temperatures, q->n_temperatures);
	top(b, r, row);
	if (r->dense) {
		size_t n = q->n_keep ? q->n_keep : r->vocab_size;
		numbers(b, "dense", r->dense + row * n, n);
	}
	number(b, "own_logit", r->own_logit, row);
	number(b, "entropy", r->entropy, row);
	number(b, "max_prob", r->max_prob, row);
	if (r->argmax)
		buffer_printf(b, ",\"argmax\":%" PRIu32, r->argmax[row]);
	number(b, "sum_squares", r->sum_squares, row);
	number(b, "tail", r->tail, row);
	if (r->gathered) {
		uint64_t at = record_gather_at(r, row);
		numbers(b, "gather", r->gathered + at, record_gather_at(r, row + 1) - at);
	}
	draws(b, r, row);
	if (q->n_features && q->pooling == QUERY_POOLING_NONE) {
		buffer_text(b, ",\"features\":");
		features(b, r, row);
	}
	buffer_text(b, "}");
}

void record_json_members(struct buffer *b, const struct record_rows *r)
{
	const struct query *q = &r->query;
	const char *comma = "";
	if (r->status) {
		buffer_text(b, "\"rows\":[");
		for (uint32_t i = 0; i < r->n_rows; i++) {
			if (i)
				buffer_text(b, ",");
			record_json_row(b, r, i);
		}
		buffer_text(b, "]");
		comma = ",";
	}
	if (q->n_spans) {
		buffer_printf(b, "%s\"spans\":", comma);
		record_json_numbers(b, r->span_sums, q->n_spans);
		comma = ",";
	}
	if (q->n_features && q->pooling != QUERY_POOLING_NONE) {
		buffer_printf(b, "%s\"pooled\":", comma);
		features(b, r, 0);
	}
}
