// SPDX-License-Identifier: Apache-2.0
#include "daemon/loss/objective_feature.h"

#include <math.h>
#include <stdio.h>

#include "common/error.h"
#include "daemon/loss/objective_internal.h"

bool objective_has_features(const struct objective *o)
{
	for (uint32_t i = 0; i < o->n_terms; i++)
		if (term_is_feature(&o->terms[i]))
			return true;
	return false;
}

bool objective_has_rows(const struct objective *o)
{
	for (uint32_t i = 0; i < o->n_terms; i++)
		if (!term_is_feature(&o->terms[i]))
			return true;
	return false;
}

const struct feature_term *objective_feature(const struct objective *o, uint32_t term)
{
	return term_is_feature(&o->terms[term]) ? &o->terms[term].feature : NULL;
}

bool objective_feature_relates(const struct objective *o, uint32_t term)
{
	return o->terms[term].method->flags & METHOD_RELATION;
}

bool objective_feature_pools(const struct objective *o, uint32_t term)
{
	return o->terms[term].feature.pooling != QUERY_POOLING_NONE;
}

uint32_t objective_feature_heads(const struct objective *o, uint32_t term)
{
	return objective_feature_relates(o, term) ? (uint32_t)o->terms[term].own[1].values[0] : 0;
}

bool objective_feature_by_head(const struct objective *o, uint32_t term)
{
	return objective_feature_relates(o, term) && o->terms[term].own[0].values[0] > 0;
}

bool objective_feature_wants_width(const struct objective *o, uint32_t term)
{
	return o->terms[term].method->feature != feature_margin_mse;
}

uint32_t objective_feature_together(const struct objective *o, uint32_t term)
{
	return o->terms[term].method->feature == feature_margin_mse ? 3 : 1;
}

bool objective_feature_in_threes(const struct objective *o, uint32_t term)
{
	return o->terms[term].method->feature == feature_margin_mse && o->terms[term].own[1].values[0] > 0;
}

int objective_feature_refuse(const struct objective *o, uint32_t term, const char *key, const char *why, struct error *err)
{
	const struct term *t = &o->terms[term];
	return error_set(err, ERROR_INVALID, "loss", "%s: loss %s: %s: %s", t->feature.where, t->method->name, key, why);
}

int objective_resolve(struct objective *o, uint32_t n_student, uint32_t n_teacher, struct error *err)
{
	char room[160];
	for (uint32_t i = 0; i < o->n_terms; i++) {
		struct term *t = &o->terms[i];
		if (!term_is_feature(t))
			continue;
		const char *why = layer_map_resolve(&t->feature.layers, n_student, n_teacher, objective_feature_relates(o, i),
			room, sizeof room);
		if (why)
			return objective_feature_refuse(o, i, "layers", why, err);
	}
	return feature_check(o, err);
}

uint32_t objective_feature_place(const struct query *q, enum query_feature_kind kind, uint16_t layer)
{
	for (uint32_t i = 0; i < q->n_features; i++)
		if (q->features[i].kind == kind && q->features[i].layer == layer)
			return i;
	return UINT32_MAX;
}

static uint32_t feature_add(struct query *q, uint32_t n, enum query_feature_kind kind, uint16_t layer)
{
	if (objective_feature_place(q, kind, layer) != UINT32_MAX)
		return n;
	if (n < QUERY_MAX_FEATURES) {
		q->features[n] = (struct query_feature){(uint8_t)kind, layer};
		q->n_features = n + 1;
	}
	return n + 1;
}

// How many the terms ask for; those that find room in q are there.
static uint32_t features_list(const struct objective *o, struct query *q)
{
	uint32_t n = q->n_features;
	for (uint32_t i = 0; i < o->n_terms; i++) {
		const struct layer_map *map = &o->terms[i].feature.layers;
		for (uint32_t k = 0; term_is_feature(&o->terms[i]) && k < map->n; k++) {
			uint16_t layer = map->pairs[k].teacher;
			if (!objective_feature_relates(o, i))
				n = feature_add(q, n, map->kind == LAYER_MAP_FINAL ? QUERY_FEATURE_FINAL : QUERY_FEATURE_HIDDEN, layer);
			for (int kind = QUERY_FEATURE_Q; objective_feature_relates(o, i) && layer && kind <= QUERY_FEATURE_V; kind++)
				n = feature_add(q, n, (enum query_feature_kind)kind, (uint16_t)(layer - 1));
		}
	}
	return n;
}

int feature_check(const struct objective *o, struct error *err)
{
	struct query q = {0};
	uint32_t n = features_list(o, &q);
	if (n > QUERY_MAX_FEATURES)
		return error_set(err, ERROR_TOO_LARGE, "loss", "losses ask for %u layers' rows of the teacher; one question has at most %d",
				 n, QUERY_MAX_FEATURES);
	return 0;
}

// One pooling where all lines agree on one; else rows, which the trainer pools itself.
void feature_query(const struct objective *o, struct query *q)
{
	bool first = true;
	features_list(o, q);
	for (uint32_t i = 0; i < o->n_terms; i++) {
		const struct term *t = &o->terms[i];
		if (!term_is_feature(t))
			continue;
		q->pooling = first || q->pooling == t->feature.pooling ? t->feature.pooling : QUERY_POOLING_NONE;
		first = false;
	}
}

static const char *layers_words(const struct layer_map *m, char *to, size_t room)
{
	size_t n = 0;
	if (m->kind == LAYER_MAP_FINAL)
		return "after the final norm";
	*to = '\0';
	for (uint32_t i = 0; i < m->n && n < room; i++)
		n += (size_t)snprintf(to + n, room - n, "%s%u:%u", i ? " " : "layers ", m->pairs[i].student, m->pairs[i].teacher);
	return to;
}

void feature_describe(const struct term *t, const char *weight, char *to, size_t room)
{
	static const char *const poolings[] = {"each position", "mean of a sequence's rows", "last row of a sequence"};
	char layers[160];
	bool relates = t->method->flags & METHOD_RELATION;
	snprintf(to, room, "%s: weight %s, %s, %s", t->name, weight, layers_words(&t->feature.layers, layers, sizeof layers),
		 relates ? "q, k and v before rotation" : poolings[t->feature.pooling]);
}

void objective_feature_add(struct objective *o, uint32_t term, struct feature_view *v, uint64_t n_positions, bool first,
			   struct objective_sums *sums)
{
	struct term *t = &o->terms[term];
	double n = (double)n_positions;
	if (!t->active) {
		sums->values[term] = sums->entropies[term] = NAN;
		return;
	}
	v->scale = t->weight_now * n;
	double value = n * t->method->feature(v, t->x);
	sums->values[term] += value;
	sums->counts[term] += first ? n : 0;
	sums->entropies[term] = NAN;
	sums->total += t->weight_now * value;
}
