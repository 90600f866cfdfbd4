// SPDX-License-Identifier: Apache-2.0
// The part of an objective that looks at features: what its lines say, and which layers of the teacher are asked for. Who holds the rows
// computes them (daemon/worker/features.h).
#pragma once

#include "common/query.h"
#include "daemon/loss/feature.h"
#include "daemon/loss/layer_map.h"

struct error;
struct objective;
struct objective_sums;

enum feature_projection { FEATURE_PROJECTION_AUTO, FEATURE_PROJECTION_EACH, FEATURE_PROJECTION_SHARED, FEATURE_PROJECTION_NONE };

// One line.
struct feature_term {
	char *where;                           // "run.conf:12"
	bool bias;
	enum feature_projection projection;
	enum query_pooling pooling;
	struct layer_map layers;               // resolved by objective_resolve
};

bool objective_has_features(const struct objective *o);
bool objective_has_rows(const struct objective *o);            // losses on tokens too
// Resolves the layer maps for models of so many blocks; n_teacher 0: unknown. An error names the line. Call it before objective_query.
int objective_resolve(struct objective *o, uint32_t n_student, uint32_t n_teacher, struct error *err);

// A term's line, or NULL where it is one on tokens; whether it looks at q, k and v; its function, and what it is called in errors.
const struct feature_term *objective_feature(const struct objective *o, uint32_t term);
bool objective_feature_relates(const struct objective *o, uint32_t term);
bool objective_feature_pools(const struct objective *o, uint32_t term);        // its line pools, or it has to
uint32_t objective_feature_heads(const struct objective *o, uint32_t term);    // as the line says: 0 = the student's
bool objective_feature_wants_width(const struct objective *o, uint32_t term);  // rows of both are equally wide
uint32_t objective_feature_together(const struct objective *o, uint32_t term); // fewest sequences of a micro-batch
bool objective_feature_in_threes(const struct objective *o, uint32_t term);
bool objective_feature_by_head(const struct objective *o, uint32_t term);      // MiniLM v1: the models' own heads
// ERROR of the line: "run.conf:12: loss minilm: heads=7: why".
int objective_feature_refuse(const struct objective *o, uint32_t term, const char *key, const char *why, struct error *err);

// The place of a feature in the question that objective_query makes; UINT32_MAX: it is not asked.
uint32_t objective_feature_place(const struct query *q, enum query_feature_kind kind, uint16_t layer);
// Adds one pair of layers of n_positions positions to the sums, and its weighted gradient to v's. v->scale is set here. `first`: of the
// term's pairs, which counts the positions.
void objective_feature_add(struct objective *o, uint32_t term, struct feature_view *v, uint64_t n_positions, bool first,
			   struct objective_sums *sums);
