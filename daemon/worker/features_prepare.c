// SPDX-License-Identifier: Apache-2.0
// What a run finds out before its first step so that its feature losses can be checked: how many layers both models have, how wide the
// teacher's rows are.
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/model/model.h"
#include "daemon/worker/answers.h"
#include "daemon/worker/dataset.h"
#include "daemon/worker/features_prepare.h"
#include "daemon/worker/layers.h"
#include "daemon/worker/trainer.h"

#define PROBE_SEQUENCES 16             // asked for rows: records of the first ones may be damaged

static int given_depth(const struct run_settings *s, uint32_t *ret, struct error *err)
{
	struct model_file *file = NULL;
	struct layers layers;
	int r = model_file_open(s->student, &file, err);
	if (r)
		return r;
	*ret = model_file_architecture(file)->n_layers;
	if (s->from_layers) {
		r = layers_parse(s->from_layers, *ret, &layers, err);
		*ret = r ? 0 : layers.n;
	}
	model_file_close(file);
	return r;
}

int features_resolve(struct trainer *t, struct error *err)
{
	const struct run_settings *s = t->settings;
	uint32_t said = answers_info(t->answers)->n_layers, n_teacher = said ? said : (uint32_t)s->teacher_layers,
		n_student = (uint32_t)s->layers;
	int r = 0;
	if (!objective_has_features(t->objective))
		return 0;
	if (said && s->teacher_layers && said != (uint32_t)s->teacher_layers)
		return error_set(err, ERROR_CONFLICT, "teacher-layers", "the teacher has %u", said);
	if (strcmp(s->student, "random") != 0)
		r = given_depth(s, &n_student, err);
	return r ? r : objective_resolve(t->objective, n_student, n_teacher, err);
}

static uint32_t width_of(const struct record_rows *rows, enum query_feature_kind kind)
{
	for (uint32_t i = 0; i < rows->query.n_features; i++)
		if (rows->query.features[i].kind == kind && rows->features[i])
			return rows->feature_widths[i];
	return 0;
}

static void widths_take(const struct record_rows *rows, struct feature_widths *ret)
{
	uint32_t final = width_of(rows, QUERY_FEATURE_FINAL), hidden = width_of(rows, QUERY_FEATURE_HIDDEN);
	*ret = (struct feature_widths){hidden ? hidden : final, width_of(rows, QUERY_FEATURE_Q), width_of(rows, QUERY_FEATURE_K)};
}

static int probe_fail(const struct trainer *t, struct error *err)
{
	struct error why = *err;
	uint32_t term = 0;
	while (!objective_feature(t->objective, term))
		term++;
	return error_set(err, why.code, "loss", "%s: loss %s: the teacher does not give its rows: %s%s%.300s",
			 objective_feature(t->objective, term)->where, objective_name(t->objective, term), why.field,
			 *why.field ? ": " : "", why.message);
}

int features_probe(struct trainer *t, struct error *err)
{
	uint64_t n = dataset_n_train(t->dataset);
	int r = 0;
	if (!objective_has_features(t->objective))
		return 0;
	for (uint64_t i = 0; r == 0 && i < n && i < PROBE_SEQUENCES && !t->widths.hidden && !t->widths.q; i++) {
		struct sequence s = dataset_train_at(t->dataset, i);
		struct record_rows *rows = NULL;
		r = answers_submit(t->answers, &t->query, &s, NULL, 1, err);
		r = r ? r : answers_next(t->answers, &rows, err);
		if (r == 0)
			widths_take(rows, &t->widths);
		record_rows_free(rows);
	}
	if (r == 0 && !t->widths.hidden && !t->widths.q)
		r = error_set(err, ERROR_NOT_FOUND, NULL, "no answer holds any");
	return r && err->code != ERROR_CANCELLED ? probe_fail(t, err) : r;
}

int features_prepare(struct trainer *t, const struct architecture *a, struct error *err)
{
	struct features_options o = {.objective = t->objective, .student = a, .teacher = t->widths,
				     .sequence_length = (uint32_t)t->settings->sequence_length,
				     .micro_batch = (uint32_t)t->settings->micro_batch};
	return features_new(&o, &t->features, err);
}
