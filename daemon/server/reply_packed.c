// SPDX-License-Identifier: Apache-2.0
// Rows with "encoding":"base64": each array as one blob, {"dtype","shape","data"}, little-endian (as this program's hosts are) and
// row-major. Where rows differ in length the values of all rows lie end to end, and "offsets" (n_rows + 1 numbers of u32, base64 too) say
// where each row's begin.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/buffer.h"
#include "common/error.h"
#include "common/half.h"
#include "common/record.h"
#include "common/record_json.h"
#include "daemon/server/reply.h"

static void open_blob(struct buffer *b, const char *name, const char *dtype, uint64_t n, uint32_t n_columns)
{
	buffer_printf(b, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%" PRIu64, name, dtype, n);
	if (n_columns)
		buffer_printf(b, ",%" PRIu32, n_columns);
	buffer_text(b, "]");
}

static void close_blob(struct buffer *b, const void *data, size_t n_bytes)
{
	buffer_text(b, ",\"data\":\"");
	buffer_base64(b, data, n_bytes);
	buffer_text(b, "\"}");
}

// n_columns 0: one number per row. Nothing where it was not asked for.
static void blob(struct buffer *b, const char *name, const char *dtype, const void *data, size_t item_bytes, uint32_t n_rows,
		 uint32_t n_columns)
{
	if (!data)
		return;
	open_blob(b, name, dtype, n_rows, n_columns);
	close_blob(b, data, (size_t)n_rows * (n_columns ? n_columns : 1) * item_bytes);
}

static void ragged(struct buffer *b, const char *name, const char *dtype, const void *data, const uint32_t *offsets, uint32_t n_rows)
{
	open_blob(b, name, dtype, offsets[n_rows], 0);
	buffer_text(b, ",\"offsets\":\"");
	buffer_base64(b, offsets, ((size_t)n_rows + 1) * sizeof *offsets);
	buffer_text(b, "\"");
	close_blob(b, data, (size_t)offsets[n_rows] * 4);      // every ragged array is of 4-byte numbers
}

// Rows of the record are padded to top_k: here they are moved together, in place.
static void ragged_top(struct buffer *b, struct record_rows *r, uint32_t *offsets)
{
	size_t k = r->query.top_k;
	offsets[0] = 0;
	for (uint32_t i = 0; i < r->n_rows; i++) {
		for (uint32_t j = 0; j < r->n_top[i]; j++) {
			r->ids[offsets[i] + j] = r->ids[i * k + j];
			r->logits[offsets[i] + j] = r->logits[i * k + j];
		}
		offsets[i + 1] = offsets[i] + r->n_top[i];
	}
	ragged(b, "ids", "u32", r->ids, offsets, r->n_rows);
	ragged(b, "logits", "f32", r->logits, offsets, r->n_rows);
}

static void top(struct buffer *b, struct record_rows *r, uint32_t *offsets)
{
	if (r->n_top) {
		ragged_top(b, r, offsets);
		return;
	}
	blob(b, "ids", "u32", r->ids, 4, r->n_rows, r->query.top_k);
	blob(b, "logits", "f32", r->logits, 4, r->n_rows, r->query.top_k);
}

static void gather(struct buffer *b, const struct record_rows *r, uint32_t *offsets)
{
	const struct id_lists *lists = &r->query.gather;
	if (!r->gathered)
		return;
	for (uint32_t i = 0; i <= r->n_rows; i++)
		offsets[i] = (uint32_t)record_gather_at(r, i);    // RECORD_MAX_NUMBERS bounds it
	if (lists->n_lists == 1 && offsets[1])
		blob(b, "gather", "f32", r->gathered, 4, r->n_rows, offsets[1]);
	else
		ragged(b, "gather", "f32", r->gathered, offsets, r->n_rows);
}

static int draws(struct buffer *b, const struct record_rows *r, struct error *err)
{
	if (!r->draw_starts)
		return 0;
	uint32_t n = r->draw_starts[r->n_rows];
	float *weights = malloc((n ? n : 1) * sizeof *weights);
	if (!weights)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the reply");
	for (uint32_t i = 0; i < r->n_rows; i++)
		record_json_weights(r, i, weights + r->draw_starts[i]);
	ragged(b, "draw_ids", "u32", r->draw_ids, r->draw_starts, r->n_rows);
	ragged(b, "draw_counts", "u32", r->draw_counts, r->draw_starts, r->n_rows);
	ragged(b, "draw_weights", "f32", weights, r->draw_starts, r->n_rows);
	free(weights);
	return 0;
}

// A feature's numbers in the format asked for; exact, since the record holds them so. In place: a narrow number lies before the wide one.
static void feature(struct buffer *b, const char *name, float *values, uint32_t n_rows, uint32_t width, enum query_feature_values format)
{
	static const char *const dtypes[] = {"f32", "f16", "bf16"};
	uint16_t *narrow = (uint16_t *)values;
	size_t n = (size_t)n_rows * width;
	for (size_t i = 0; i < n && format != QUERY_FEATURE_F32; i++) {
		uint16_t v = format == QUERY_FEATURE_F16 ? half_from_float(values[i]) : bfloat_from_float(values[i]);
		memcpy((char *)narrow + 2 * i, &v, sizeof v);
	}
	blob(b, name, dtypes[format], values, format == QUERY_FEATURE_F32 ? 4 : 2, n_rows, width);
}

static void features(struct buffer *b, struct record_rows *r)
{
	static const char *const kinds[] = {"hidden", "final", "q", "k", "v"};
	const struct query *q = &r->query;
	uint32_t n_rows = q->pooling == QUERY_POOLING_NONE ? r->n_rows : 1;
	if (!q->n_features)
		return;
	buffer_text(b, ",\"features\":[");
	for (uint32_t i = 0; i < q->n_features; i++) {
		buffer_printf(b, "%s{\"kind\":\"%s\",\"layer\":%d", i ? "," : "", kinds[q->features[i].kind], q->features[i].layer);
		feature(b, "values", r->features[i], n_rows, r->feature_widths[i], q->feature_values);
		buffer_text(b, "}");
	}
	buffer_text(b, "]");
}

int reply_packed(struct buffer *b, struct record_rows *r, struct error *err)
{
	const struct query *q = &r->query;
	uint32_t *offsets = malloc(((size_t)r->n_rows + 1) * sizeof *offsets);
	if (!offsets)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the reply");
	buffer_printf(b, "\"n_rows\":%" PRIu32, r->n_rows);
	blob(b, "status", "u8", r->status, 1, r->n_rows, 0);
	blob(b, "max_logit", "f32", r->max_logit, 4, r->n_rows, 0);
	blob(b, "lse", "f32", r->lse, 4, r->n_rows, q->n_temperatures);
	if (r->ids)
		top(b, r, offsets);
	blob(b, "dense", "f32", r->dense, 4, r->n_rows, q->n_keep ? q->n_keep : r->vocab_size);
	blob(b, "own_logit", "f32", r->own_logit, 4, r->n_rows, 0);
	blob(b, "entropy", "f32", r->entropy, 4, r->n_rows, 0);
	blob(b, "max_prob", "f32", r->max_prob, 4, r->n_rows, 0);
	blob(b, "argmax", "u32", r->argmax, 4, r->n_rows, 0);
	blob(b, "sum_squares", "f32", r->sum_squares, 4, r->n_rows, 0);
	blob(b, "tail", "f32", r->tail, 4, r->n_rows, 0);
	gather(b, r, offsets);
	int e = draws(b, r, err);
	blob(b, "spans", "f32", r->span_sums, 4, q->n_spans, 0);
	features(b, r);
	free(offsets);
	return e;
}
