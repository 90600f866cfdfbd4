// SPDX-License-Identifier: Apache-2.0
// One micro-batch of the feature losses: rows out of forward, losses on the host, gradients into backward.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/worker/features_internal.h"
#include "kernels/backend.h"

int features_open(struct features *f, struct weights *w, struct activations *a, struct error *err)
{
	struct backend *be = w->backend;
	size_t rows = f->max_rows;
	f->weights = w;
	f->activations = a;
	f->wide = be->ops->real_new(be, rows * f->widest, err);
	f->plus = f->wide ? be->ops->real_new(be, rows * f->widest, err) : NULL;
	f->narrow = f->plus ? be->ops->act_new(be, rows * f->student.hidden, err) : NULL;
	for (uint32_t i = 0; f->narrow && i < f->n_slots; i++) {
		struct slot *s = &f->slots[i];
		if (s->projection != FEATURES_NO_PROJECTION && !(s->input = be->ops->act_new(be, rows * s->stride, err)))
			return error_errno(ERROR_MEMORY);
	}
	return f->narrow ? 0 : error_errno(ERROR_MEMORY);
}

void features_close(struct features *f)
{
	if (!f || !f->weights)
		return;
	struct backend *be = f->weights->backend;
	be->ops->real_free(be, f->wide);
	be->ops->real_free(be, f->plus);
	be->ops->act_free(be, f->narrow);
	for (uint32_t i = 0; i < f->n_slots; i++) {
		be->ops->act_free(be, f->slots[i].input);
		f->slots[i].input = NULL;
	}
	f->wide = f->plus = NULL;
	f->narrow = NULL;
	f->weights = NULL;
}

// ---- the device's side

// Of the projection's matrix, or of the bias behind it.
static struct real *place(const struct features *f, const struct slot *s, struct real *array, uint32_t behind)
{
	const struct parameters *p = f->weights->parameters;
	return f->weights->backend->ops->real_at(array, p->list[p->n_model + s->projection + behind].offset);
}

static void project(struct features *f, struct slot *s, const struct real *x, const struct act *y)
{
	struct backend *be = f->weights->backend;
	size_t n = (size_t)f->n_positions * s->stride;
	if (y)
		be->ops->widen(be, f->plus, y, n);
	be->ops->narrow(be, s->input, y ? f->plus : x, n);
	be->ops->linear_real(be, f->wide, false, s->input, f->weights->beside[s->projection],
			     s->bias ? place(f, s, f->weights->parameters->value, 1) : NULL, f->n_positions);
	be->ops->real_read(be, s->values, f->wide, (size_t)f->n_positions * s->width);
}

static void look(void *arg, enum forward_tap what, uint32_t layer, const struct real *x, const struct act *y)
{
	struct features *f = arg;
	struct backend *be = f->weights->backend;
	for (uint32_t i = 0; i < f->n_slots; i++) {
		struct slot *s = &f->slots[i];
		if (s->tap != what || s->layer != layer)
			continue;
		if (s->projection != FEATURES_NO_PROJECTION)
			project(f, s, x, y);
		else if (x)
			be->ops->real_read(be, s->values, x, (size_t)f->n_positions * s->width);
		else
			be->ops->act_read(be, s->values, y, (size_t)f->n_positions * s->width);
	}
}

// plus = the gradient of the slot's rows as forward has them.
static void gradient_write(struct features *f, const struct slot *s)
{
	struct backend *be = f->weights->backend;
	const struct backend_ops *ops = be->ops;
	struct real *gradient = f->weights->parameters->gradient;
	uint32_t T = f->n_positions;
	size_t n = (size_t)T * s->width;
	bool projected = s->projection != FEATURES_NO_PROJECTION;
	for (size_t i = 0; i < n; i++)
		f->floats[i] = (float)s->gradient[i];
	ops->real_write(be, projected ? f->wide : f->plus, f->floats, n);
	if (!projected)
		return;
	ops->linear_real_backward(be, f->narrow, place(f, s, gradient, 0), s->bias ? place(f, s, gradient, 1) : NULL, f->wide, s->input,
				  f->weights->beside[s->projection], T);
	ops->widen(be, f->plus, f->narrow, (size_t)T * s->stride);
}

static void give(void *arg, enum forward_tap what, uint32_t layer, struct real *dx, struct act *dy)
{
	struct features *f = arg;
	struct backend *be = f->weights->backend;
	uint32_t T = f->n_positions;
	for (uint32_t i = 0; i < f->n_slots; i++) {
		const struct slot *s = &f->slots[i];
		if (s->tap != what || s->layer != layer)
			continue;
		gradient_write(f, s);
		if (dx) {
			be->ops->mix(be, dx, true, f->plus, 1, NULL, T, s->stride);
			continue;
		}
		be->ops->widen(be, f->wide, dy, (size_t)T * s->stride);
		be->ops->mix(be, f->wide, true, f->plus, 1, NULL, T, s->stride);
		be->ops->narrow(be, dy, f->wide, (size_t)T * s->stride);
	}
}

void features_watch(struct features *f, uint32_t n_positions)
{
	if (!f)
		return;
	f->n_positions = n_positions;
	activations_tap(f->activations, look, f);
	activations_tap_back(f->activations, give, f);
}

void features_unwatch(struct features *f)
{
	if (!f)
		return;
	activations_tap(f->activations, NULL, NULL);
	activations_tap_back(f->activations, NULL, NULL);
}

// ---- the host's side

// Where the rows that count of each sequence begin, side by side.
static void rows_split(struct features *f, const struct features_batch *b)
{
	uint32_t i = 0;
	for (uint32_t k = 0; k < b->n_sequences; k++) {
		f->row_starts[k] = i;
		while (i < b->n_rows && b->rows[i] < b->starts[k + 1])
			i++;
	}
	f->row_starts[b->n_sequences] = i;
}

// A part of a lesson: where its numbers lie on both sides.
struct part { uint32_t offset, width; enum query_feature_kind kind; uint32_t teacher_width; };

static struct part part_of(const struct features *f, const struct lesson *l, int i)
{
	uint32_t q = f->student.q, kv = f->student.kv;
	if (l->kind == QUERY_FEATURE_HIDDEN || l->kind == QUERY_FEATURE_FINAL)
		return (struct part){0, f->slots[l->slot].width, l->kind, f->options.teacher.hidden};
	const struct part parts[] = {{0, q, QUERY_FEATURE_Q, f->options.teacher.q}, {q, kv, QUERY_FEATURE_K, f->options.teacher.kv},
				     {q + kv, kv, QUERY_FEATURE_V, f->options.teacher.kv}};
	return parts[i];
}

// to = the row, or adds a share of it.
static void take(double *to, const double *wide, const float *narrow, uint32_t n, double share)
{
	for (uint32_t i = 0; i < n; i++)
		to[i] += share * (wide ? wide[i] : (double)narrow[i]);
}

struct pooling { bool pooled, mean; };

// The share of row i (of rows first..end - 1) in its sequence's one.
static double share_of(const struct pooling *p, uint32_t i, uint32_t first, uint32_t end)
{
	return !p->pooled ? 1 : p->mean ? 1 / (double)(end - first) : i + 1 == end;
}

static int teacher_rows(const struct features *f, const struct features_batch *b, uint32_t k, const struct part *p, uint16_t layer,
			const struct pooling *pooling, double *to, struct error *err)
{
	const struct record_rows *t = b->sequences[k];
	uint32_t place = objective_feature_place(&t->query, p->kind, layer), first = f->row_starts[k], end = f->row_starts[k + 1];
	bool whole = pooling->pooled && t->query.pooling != QUERY_POOLING_NONE;
	if (place == UINT32_MAX || !t->features[place] || t->feature_widths[place] != p->teacher_width)
		return error_set(err, ERROR_INTERNAL, "loss", "the teacher's answer does not hold the rows of layer %u as asked", layer);
	if (whole)
		take(to, NULL, t->features[place], p->teacher_width, 1);
	for (uint32_t i = first; !whole && i < end; i++) {
		size_t row = b->rows[i] - b->starts[k] - (uint32_t)t->query.first;
		take(to + (pooling->pooled ? 0 : (size_t)(i - first) * p->teacher_width), NULL, t->features[place] + row * p->teacher_width,
		     p->teacher_width, share_of(pooling, i, first, end));
	}
	return 0;
}

static int part_gather(struct features *f, const struct features_batch *b, const struct lesson *l, int which, const struct pooling *pooling,
		       struct feature_part *ret, struct error *err)
{
	struct part p = part_of(f, l, which);
	const struct slot *s = &f->slots[l->slot];
	uint32_t n = pooling->pooled ? b->n_sequences : b->n_rows;
	double *student = f->student_rows[which], *teacher = f->teacher_rows[which];
	memset(student, 0, (size_t)n * p.width * sizeof *student);
	memset(teacher, 0, (size_t)n * p.teacher_width * sizeof *teacher);
	memset(f->gradient_rows[which], 0, (size_t)n * p.width * sizeof *student);
	for (uint32_t k = 0; k < b->n_sequences; k++) {
		uint32_t first = f->row_starts[k], end = f->row_starts[k + 1];
		double *to = teacher + (size_t)(pooling->pooled ? k : first) * p.teacher_width;
		if (first == end) {
			*to = pooling->pooled ? NAN : *to;
			continue;
		}
		int r = teacher_rows(f, b, k, &p, l->teacher, pooling, to, err);
		if (r)
			return r;
		for (uint32_t i = first; i < end; i++)
			take(student + (size_t)(pooling->pooled ? k : i) * p.width, s->values + (size_t)b->rows[i] * s->width + p.offset,
			     NULL, p.width, share_of(pooling, i, first, end));
	}
	*ret = (struct feature_part){student, teacher, p.width, p.teacher_width, f->gradient_rows[which]};
	return 0;
}

static void part_scatter(struct features *f, const struct features_batch *b, const struct lesson *l, int which,
	const struct pooling *pooling)
{
	struct part p = part_of(f, l, which);
	struct slot *s = &f->slots[l->slot];
	for (uint32_t k = 0; k < b->n_sequences; k++)
		for (uint32_t i = f->row_starts[k]; i < f->row_starts[k + 1]; i++)
			take(s->gradient + (size_t)b->rows[i] * s->width + p.offset,
			     f->gradient_rows[which] + (size_t)(pooling->pooled ? k : i) * p.width, NULL, p.width,
			     share_of(pooling, i, f->row_starts[k], f->row_starts[k + 1]));
}

static int lesson_learn(struct features *f, const struct features_batch *b, const struct lesson *l, struct objective_sums *sums,
			struct error *err)
{
	struct objective *o = f->options.objective;
	struct pooling pooling = {objective_feature_pools(o, l->term), objective_feature(o, l->term)->pooling == QUERY_POOLING_MEAN};
	int n_parts = l->kind == QUERY_FEATURE_Q ? FEATURE_PARTS : 1, r = 0;
	struct feature_view v = {.n_sequences = b->n_sequences, .starts = pooling.pooled ? f->single_starts : f->row_starts,
				 .pooled = pooling.pooled, .causal = !f->bidirectional, .n_heads = l->n_heads, .scratch = f->scratch};
	for (int i = 0; r == 0 && i < n_parts; i++)
		r = part_gather(f, b, l, i, &pooling, &v.parts[i], err);
	if (r)
		return r;
	objective_feature_add(o, l->term, &v, b->n_rows, l == f->lessons || l[-1].term != l->term, sums);
	for (int i = 0; i < n_parts; i++)
		part_scatter(f, b, l, i, &pooling);
	return 0;
}

void features_forget(struct record_rows *rows)
{
	for (uint32_t i = 0; i < QUERY_MAX_FEATURES; i++) {
		free(rows->features[i]);
		rows->features[i] = NULL;
	}
}

int features_learn(struct features *f, const struct features_batch *b, struct objective_sums *sums, struct error *err)
{
	int r = 0;
	rows_split(f, b);
	for (uint32_t i = 0; i < f->n_slots; i++)
		memset(f->slots[i].gradient, 0, (size_t)f->n_positions * f->slots[i].width * sizeof(double));
	for (uint32_t i = 0; r == 0 && i < f->n_lessons; i++)
		r = lesson_learn(f, b, &f->lessons[i], sums, err);
	if (r == 0 && !isfinite(sums->total))
		r = error_set(err, ERROR_NOT_FINITE, NULL,
			"the student's features are not finite: training has diverged (try a lower learning-rate)");
	return r;
}
