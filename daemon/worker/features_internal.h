// SPDX-License-Identifier: Apache-2.0
// Private to features*.c.
#pragma once

#include "daemon/model/forward.h"
#include "daemon/model/weights.h"
#include "daemon/worker/features.h"

#define FEATURES_NO_PROJECTION UINT32_MAX

// Rows that forward shows, perhaps projected; several losses may look at them.
struct slot {
	enum forward_tap tap;
	uint32_t layer, stride;                // forward's, and how wide its rows are there
	uint32_t width;                        // of the values
	uint32_t projection;                   // place in the list beside, or FEATURES_NO_PROJECTION
	bool bias;                             // which follows it there
	struct act *input;                     // (max_rows, stride) of a projection
	double *values, *gradient;             // (max_rows, width)
};

// One pair of layers of one line.
struct lesson {
	uint32_t term, slot;
	enum query_feature_kind kind;          // HIDDEN, FINAL, or Q: all three
	uint16_t teacher;                      // its layer, as questions count
	uint32_t n_heads;                      // relations
};

struct features {
	struct features_options options;
	struct feature_widths student;
	bool bidirectional;
	uint32_t max_rows, widest;
	struct parameters_beside beside;       // owned
	struct slot *slots;
	struct lesson *lessons;
	uint32_t n_slots, n_lessons;
	// Host scratch of one lesson: rows that count, side by side.
	double *student_rows[FEATURE_PARTS], *teacher_rows[FEATURE_PARTS], *gradient_rows[FEATURE_PARTS];
	uint32_t *row_starts, *single_starts;  // (max_rows + 1)
	double *scratch;
	float *floats;                         // (max_rows, widest)
	// Device, between open and close.
	struct weights *weights;
	struct activations *activations;
	struct real *wide, *plus;              // (max_rows, widest)
	struct act *narrow;                    // (max_rows, C)
	uint32_t n_positions;                  // of the micro-batch
};
