// SPDX-License-Identifier: Apache-2.0
// Hidden states and q, k, v rows, read while forward has them: for the items that ask, a few rows at a time. What is held until the item
// is answered is the answer's own size, which was reserved when the request was accepted.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/model/forward.h"
#include "daemon/teacher/answer_internal.h"
#include "daemon/teacher/batch.h"

struct features {
	size_t starts[QUERY_MAX_FEATURES];     // of each feature in values
	uint8_t *not_finite;                   // (rows) some feature of the row is not
	float values[];
};

struct slice { uint32_t offset, width; };    // of a row, in values

static struct slice slice_of(const struct architecture *a, enum query_feature_kind kind)
{
	uint32_t q = a->n_heads * a->head_size, kv = a->n_kv_heads * a->head_size;
	switch (kind) {
	case QUERY_FEATURE_Q:
		return (struct slice){0, q};
	case QUERY_FEATURE_K:
		return (struct slice){q, kv};
	case QUERY_FEATURE_V:
		return (struct slice){q + kv, kv};
	case QUERY_FEATURE_HIDDEN:
	case QUERY_FEATURE_FINAL:
		break;
	}
	return (struct slice){0, a->width};
}

static uint32_t pooled_rows(const struct query *q)
{
	return q->pooling == QUERY_POOLING_NONE ? query_rows(q) : 1;
}

static struct features *features_new(const struct architecture *a, const struct query *q)
{
	size_t starts[QUERY_MAX_FEATURES], n = 0, rows = pooled_rows(q);
	for (uint32_t i = 0; i < q->n_features; i++) {
		starts[i] = n;
		n += rows * slice_of(a, q->features[i].kind).width;    // < 2^31 * 2^16 * 2^6
	}
	struct features *f = calloc(1, sizeof *f + n * sizeof *f->values + rows);
	if (f) {
		memcpy(f->starts, starts, sizeof starts);
		f->not_finite = (uint8_t *)(f->values + n);
	}
	return f;
}

static bool tap_shows(enum forward_tap tap, enum query_feature_kind kind)
{
	switch (kind) {
	case QUERY_FEATURE_HIDDEN:
		return tap == FORWARD_HIDDEN;
	case QUERY_FEATURE_FINAL:
		return tap == FORWARD_FINAL;
	case QUERY_FEATURE_Q:
	case QUERY_FEATURE_K:
	case QUERY_FEATURE_V:
		return tap == FORWARD_QKV;
	}
	return false;
}

// What a tap shows: rows of `stride` values.
struct shown { const struct real *x; const struct act *y; size_t stride; };

// As many of the n rows as lie one after the other (all, but for a shared prefix) and fit in `room` rows of the line; returns how many.
static size_t read_rows(struct answer *a, const struct shown *shown, const uint32_t *rows, size_t n, size_t room)
{
	const struct backend_ops *ops = a->backend->ops;
	size_t first = rows[0], run = 1;
	n = n < room ? n : room;
	while (run < n && rows[run] == first + run)
		run++;
	n = run;
	if (shown->x)
		ops->real_read(a->backend, a->line, ops->real_at((struct real *)shown->x, first * shown->stride), n * shown->stride);
	else
		ops->act_read(a->backend, a->line, ops->act_at((struct act *)shown->y, first * shown->stride), n * shown->stride);
	return n;
}

static void keep_plain(const struct answer *a, size_t stride, struct slice s, size_t n, float *to, uint8_t *not_finite)
{
	for (size_t i = 0; i < n; i++)
		for (size_t j = 0; j < s.width; j++) {
			to[i * s.width + j] = (float)a->line[i * stride + s.offset + j];
			not_finite[i] |= !isfinite(to[i * s.width + j]);
		}
}

// Sums stand in doubles at the end of the line, which a chunk leaves free.
static void add_rows(struct answer *a, size_t stride, struct slice s, size_t n, double *sums)
{
	for (size_t i = 0; i < n; i++)
		for (size_t j = 0; j < s.width; j++)
			sums[j] += a->line[i * stride + s.offset + j];
}

static void read_mean(struct answer *a, const struct shown *shown, const uint32_t *rows, size_t n, struct slice s, float *to,
		      uint8_t *not_finite)
{
	size_t room = a->line_values / shown->stride - 1;
	double *sums = a->line + a->line_values - s.width;
	memset(sums, 0, s.width * sizeof *sums);
	for (size_t done = 0, m; done < n; done += m) {
		m = read_rows(a, shown, rows + done, n - done, room);
		add_rows(a, shown->stride, s, m, sums);
	}
	for (size_t j = 0; j < s.width; j++) {
		to[j] = (float)(sums[j] / (double)n);
		*not_finite |= !isfinite(to[j]);
	}
}

// rows: of the batch, that the item's positions from 0 on are.
static void read_feature(struct answer *a, const struct shown *shown, const struct query *q, const uint32_t *rows, uint32_t f,
			 struct features *to)
{
	struct slice s = slice_of(a->architecture, q->features[f].kind);
	size_t n = query_rows(q), room = a->line_values / shown->stride;
	float *values = to->values + to->starts[f];
	rows += q->first;
	if (q->pooling == QUERY_POOLING_MEAN) {
		read_mean(a, shown, rows, n, s, values, to->not_finite);
		return;
	}
	if (q->pooling == QUERY_POOLING_LAST) {
		rows += n - 1;
		n = 1;
	}
	for (size_t done = 0, m; done < n; done += m) {
		m = read_rows(a, shown, rows + done, n - done, room);
		keep_plain(a, shown->stride, s, m, values + done * s.width, to->not_finite + done);
	}
}

static void look(void *arg, enum forward_tap what, uint32_t layer, const struct real *x, const struct act *y)
{
	struct answer *a = arg;
	const struct architecture *arch = a->architecture;
	struct shown shown = {x, y, what == FORWARD_QKV ? (arch->n_heads + 2 * (size_t)arch->n_kv_heads) * arch->head_size : arch->width};
	for (uint32_t i = 0; i < a->batch->n_items; i++) {
		const struct query *q = &a->batch->items[i].item->query;
		for (uint32_t f = 0; a->features[i] && f < q->n_features; f++)
			if (tap_shows(what, q->features[f].kind) && q->features[f].layer == layer)
				read_feature(a, &shown, q, a->batch->rows + a->batch->items[i].rows, f, a->features[i]);
	}
}

bool answer_watch(struct answer *a, const struct architecture *arch, struct activations *activations, const struct batch *batch)
{
	bool any = false;
	a->batch = batch;
	a->architecture = arch;
	a->activations = activations;
	for (uint32_t i = 0; i < batch->n_items; i++) {
		const struct query *q = &batch->items[i].item->query;
		a->features[i] = q->n_features ? features_new(arch, q) : NULL;
		any |= a->features[i] != NULL;
	}
	if (any)
		activations_tap(activations, look, a);
	return any;
}

void answer_unwatch(struct answer *a)
{
	if (a->batch)
		activations_tap(a->activations, NULL, NULL);
	for (uint32_t i = 0; a->batch && i < a->batch->n_items; i++) {
		free(a->features[i]);
		a->features[i] = NULL;
	}
	a->batch = NULL;
}

// A row with such a value is ROW_NOT_FINITE; where rows are pooled there is no such row, and the whole feature says so.
static bool mark_not_finite(const struct features *from, uint32_t f, uint32_t width, struct record_rows *rows)
{
	bool pooled = rows->query.pooling != QUERY_POOLING_NONE, any = false;
	for (uint32_t i = 0; i < (pooled ? 1 : rows->n_rows); i++) {
		if (!from->not_finite[i])
			continue;
		any = true;
		if (!pooled)
			rows->status[i] = ROW_NOT_FINITE;
		for (uint32_t j = 0; j < width; j++)
			rows->features[f][(size_t)i * width + j] = pooled ? NAN : 0;
	}
	return any;
}

int features_keep(struct answer *a, uint32_t index, struct record_rows *rows, bool *ret_not_finite, struct error *err)
{
	const struct query *q = &rows->query;
	const struct features *from = a->features[index];
	if (q->n_features && !from)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the features of a sequence of %u tokens", rows->sequence.n_tokens);
	*ret_not_finite = false;
	for (uint32_t f = 0; f < q->n_features; f++) {
		uint32_t width = slice_of(a->architecture, q->features[f].kind).width;
		int r = record_rows_add_feature(rows, f, width, err);
		if (r)
			return r;
		memcpy(rows->features[f], from->values + from->starts[f], (size_t)pooled_rows(q) * width * sizeof(float));
		*ret_not_finite |= mark_not_finite(from, f, width, rows);
	}
	return 0;
}
