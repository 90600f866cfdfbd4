// SPDX-License-Identifier: Apache-2.0
// Which rows a run's feature losses look at, and whether both models can give them.
#include "daemon/worker/features.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/worker/features_internal.h"

static int no_memory(struct error *err)
{
	return error_set(err, ERROR_MEMORY, "loss", "no memory for the features of a micro-batch");
}

// ---- the plan

static uint32_t slot_find(struct features *f, enum forward_tap tap, uint32_t layer, uint32_t projection)
{
	uint32_t i = 0;
	while (i < f->n_slots && (f->slots[i].tap != tap || f->slots[i].layer != layer || f->slots[i].projection != projection))
		i++;
	return i;
}

static int slot_add(struct features *f, const struct slot *want, uint32_t *ret)
{
	uint32_t at = *ret = slot_find(f, want->tap, want->layer, want->projection);
	if (at < f->n_slots)
		return 0;
	struct slot *slots = reallocarray(f->slots, at + 1, sizeof *slots);
	if (!slots)
		return -1;
	f->slots = slots;
	slots[f->n_slots++] = *want;
	f->widest = want->width > f->widest ? want->width : f->widest;
	f->widest = want->stride > f->widest ? want->stride : f->widest;
	return 0;
}

static int lesson_add(struct features *f, const struct lesson *l)
{
	struct lesson *lessons = reallocarray(f->lessons, f->n_lessons + 1, sizeof *lessons);
	if (!lessons)
		return -1;
	f->lessons = lessons;
	lessons[f->n_lessons++] = *l;
	return 0;
}

static int beside_add(struct features *f, const char *name, const char *what, uint32_t rows, uint32_t columns)
{
	struct parameter_beside *list = reallocarray((void *)(uintptr_t)f->beside.list, f->beside.n + 1, sizeof *list);
	if (!list)
		return -1;
	list[f->beside.n] = (struct parameter_beside){.rows = rows, .columns = columns};
	snprintf(list[f->beside.n].name, sizeof list->name, "projection.%s.%s", name, what);
	f->beside.list = list;
	f->beside.n++;
	return 0;
}

// The projection of pair `pair` of a term, made where it is the first to use it.
static int projection_add(struct features *f, uint32_t term, uint32_t pair, uint32_t *ret)
{
	const struct feature_term *line = objective_feature(f->options.objective, term);
	bool shared = line->projection == FEATURE_PROJECTION_SHARED;
	char name[64];
	if (shared && pair) {
		*ret = f->slots[f->lessons[f->n_lessons - 1].slot].projection;
		return 0;
	}
	*ret = f->beside.n;
	snprintf(name, sizeof name, shared ? "%s" : "%s.%u", objective_name(f->options.objective, term), pair);
	int r = beside_add(f, name, "weight", f->options.teacher.hidden, f->student.hidden);
	return r || !line->bias ? r : beside_add(f, name, "bias", f->options.teacher.hidden, 0);
}

static int hidden_plan(struct features *f, uint32_t term, struct error *err)
{
	const struct objective *o = f->options.objective;
	const struct feature_term *line = objective_feature(o, term);
	uint32_t ws = f->student.hidden, wt = f->options.teacher.hidden;
	bool differ = ws != wt && objective_feature_wants_width(o, term), final = line->layers.kind == LAYER_MAP_FINAL;
	bool project = line->projection == FEATURE_PROJECTION_AUTO ? differ : line->projection != FEATURE_PROJECTION_NONE;
	char why[128];
	snprintf(why, sizeof why, "the student's rows are %u wide, the teacher's %u: auto, each or shared is expected", ws, wt);
	if (differ && !project)
		return objective_feature_refuse(o, term, "projection=none", why, err);
	if (line->bias && !project)
		return objective_feature_refuse(o, term, "bias", "there is no projection: projection=each makes one", err);
	for (uint32_t i = 0; i < line->layers.n; i++) {
		const struct layer_pair *p = &line->layers.pairs[i];
		struct slot s = {.tap = final ? FORWARD_FINAL : FORWARD_HIDDEN, .layer = p->student, .stride = ws,
				 .width = project ? wt : ws, .projection = FEATURES_NO_PROJECTION, .bias = line->bias};
		struct lesson l = {.term = term, .kind = final ? QUERY_FEATURE_FINAL : QUERY_FEATURE_HIDDEN, .teacher = p->teacher};
		if ((project && projection_add(f, term, i, &s.projection)) || slot_add(f, &s, &l.slot) || lesson_add(f, &l))
			return no_memory(err);
	}
	return 0;
}

// Heads of both models as v1 has them: those of k and v may serve several of q.
static const char *heads_fault(const struct features *f, const struct architecture *a, uint32_t heads, char *why, size_t room)
{
	uint32_t q = f->options.teacher.q, kv = f->options.teacher.kv, D = q / heads;
	snprintf(why, room,
		 "v1 compares attention head by head: the student has %u heads, the teacher's q rows are %u wide and its k rows %u",
		 a->n_heads, q, kv);
	bool good = heads == a->n_heads && q % heads == 0 && D && kv % D == 0 && kv && heads % (kv / D) == 0;
	return good ? NULL : why;
}

static const char *split_fault(const struct features *f, uint32_t heads, char *why, size_t room)
{
	const struct { const char *what; uint32_t width; } rows[] = {
		{"the student's q", f->student.q}, {"the student's k and v", f->student.kv}, {"the teacher's q", f->options.teacher.q},
		{"the teacher's k and v", f->options.teacher.kv}};
	for (int i = 0; i < 4; i++)
		if (rows[i].width % heads || rows[i].width == 0) {
			snprintf(why, room, "%u heads do not divide %s rows of %u", heads, rows[i].what, rows[i].width);
			return why;
		}
	return NULL;
}

static int relation_plan(struct features *f, const struct architecture *a, uint32_t term, struct error *err)
{
	const struct objective *o = f->options.objective;
	const struct feature_term *line = objective_feature(o, term);
	uint32_t said = objective_feature_heads(o, term), heads = said ? said : a->n_heads;
	char room[192], key[32];
	const char *why = objective_feature_by_head(o, term) ? heads_fault(f, a, heads, room, sizeof room)
		: split_fault(f, heads, room, sizeof room);
	snprintf(key, sizeof key, "heads=%u", said);
	if (why)
		return objective_feature_refuse(o, term, key, why, err);
	for (uint32_t i = 0; i < line->layers.n; i++) {
		const struct layer_pair *p = &line->layers.pairs[i];
		uint32_t W = f->student.q + 2 * f->student.kv;
		struct slot s = {.tap = FORWARD_QKV, .layer = p->student - 1u, .stride = W, .width = W,
			.projection = FEATURES_NO_PROJECTION};
		struct lesson l = {.term = term, .kind = QUERY_FEATURE_Q, .teacher = (uint16_t)(p->teacher - 1), .n_heads = heads};
		if (slot_add(f, &s, &l.slot) || lesson_add(f, &l))
			return no_memory(err);
	}
	return 0;
}

static int term_plan(struct features *f, const struct architecture *a, uint32_t term, struct error *err)
{
	const struct objective *o = f->options.objective;
	uint32_t least = objective_feature_together(o, term), n = f->options.micro_batch;
	char why[96];
	snprintf(why, sizeof why, "is %u sequences; %s is expected", n, objective_feature_in_threes(o, term)
		? "a multiple of 3" : "3 or more");
	if (n < least || (objective_feature_in_threes(o, term) && n % 3))
		return objective_feature_refuse(o, term, "micro-batch", why, err);
	return objective_feature_relates(o, term) ? relation_plan(f, a, term, err) : hidden_plan(f, term, err);
}

// ---- memory

static uint32_t larger(uint32_t a, uint32_t b)
{
	return a > b ? a : b;
}

// Widest rows that one part of a lesson may have: hidden rows, and each of q, k and v.
static uint32_t part_width(const struct features *f)
{
	const struct feature_widths *s = &f->student, *t = &f->options.teacher;
	return larger(larger(larger(s->hidden, s->q), s->kv), larger(larger(t->hidden, t->q), t->kv));
}

static int host_new(struct features *f, struct error *err)
{
	size_t rows = f->max_rows, width = part_width(f);
	uint32_t n = f->max_rows + 1;      // packed documents may be as many
	bool good = true;
	for (uint32_t i = 0; i < f->n_slots; i++) {
		struct slot *s = &f->slots[i];
		s->values = calloc(rows, s->width * sizeof *s->values);
		s->gradient = calloc(rows, s->width * sizeof *s->gradient);
		good = good && s->values && s->gradient;
	}
	for (int i = 0; i < FEATURE_PARTS; i++) {
		f->student_rows[i] = calloc(rows, width * sizeof(double));
		f->teacher_rows[i] = calloc(rows, width * sizeof(double));
		f->gradient_rows[i] = calloc(rows, width * sizeof(double));
		good = good && f->student_rows[i] && f->teacher_rows[i] && f->gradient_rows[i];
	}
	f->row_starts = calloc(n, sizeof *f->row_starts);
	f->single_starts = calloc(n, sizeof *f->single_starts);
	f->scratch = calloc(relation_room(f->options.sequence_length, (uint32_t)width, (uint32_t)width), sizeof *f->scratch);
	f->floats = calloc(rows, f->widest * sizeof *f->floats);
	for (uint32_t i = 0; f->single_starts && i < n; i++)
		f->single_starts[i] = i;
	return good && f->row_starts && f->single_starts && f->scratch && f->floats ? 0 : no_memory(err);
}

int features_new(const struct features_options *options, struct features **ret, struct error *err)
{
	const struct architecture *a = options->student;
	*ret = NULL;
	if (!objective_has_features(options->objective))
		return 0;
	struct features *f = calloc(1, sizeof *f);
	if (!f)
		return no_memory(err);
	f->options = *options;
	f->student = (struct feature_widths){a->width, a->n_heads * a->head_size, a->n_kv_heads * a->head_size};
	f->bidirectional = a->masked;
	f->max_rows = options->micro_batch * options->sequence_length;
	int r = 0;
	for (uint32_t i = 0; r == 0 && i < objective_n_terms(options->objective); i++)
		if (objective_feature(options->objective, i))
			r = term_plan(f, a, i, err);
	r = r ? r : host_new(f, err);
	if (r)
		features_free(f);
	else
		*ret = f;
	return r;
}

struct features *features_free(struct features *f)
{
	if (!f)
		return NULL;
	for (uint32_t i = 0; i < f->n_slots; i++) {
		free(f->slots[i].values);
		free(f->slots[i].gradient);
	}
	for (int i = 0; i < FEATURE_PARTS; i++)
		free(f->student_rows[i]), free(f->teacher_rows[i]), free(f->gradient_rows[i]);
	free(f->row_starts), free(f->single_starts), free(f->scratch), free(f->floats);
	free((void *)(uintptr_t)f->beside.list);
	free(f->slots);
	free(f->lessons);
	free(f);
	return NULL;
}

const struct parameters_beside *features_beside(const struct features *f)
{
	static const struct parameters_beside none;
	return f ? &f->beside : &none;
}

void features_need(const struct features *f, struct backend_need *need)
{
	struct backend_count *count = &need->parts[BACKEND_PART_TRAINING];
	if (!f)
		return;
	count->n_real += 2 * (uint64_t)f->max_rows * f->widest;
	count->n_act += (uint64_t)f->max_rows * f->student.hidden;
	count->n_arrays += 3;
	for (uint32_t i = 0; i < f->n_slots; i++)
		if (f->slots[i].projection != FEATURES_NO_PROJECTION) {
			count->n_act += (uint64_t)f->max_rows * f->slots[i].stride;
			count->n_arrays++;
		}
}
