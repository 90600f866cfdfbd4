// SPDX-License-Identifier: Apache-2.0
// Losses on what lies inside the models: hidden rows, q, k and v rows. Each is a function of the student's and the teacher's numbers at the
// positions of one micro-batch, and adds its gradient on the student's. In double precision; the devices hold the rows, the host this.
//
// A value is the mean over the micro-batch's positions (of pooled rows: its sequences, or pairs or triples of them). The caller multiplies
// it by the number of positions, so that the step's sum over positions is a mean over all of them.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define FEATURE_PARTS 3

struct feature_part {
	const double *student, *teacher;       // (rows, student_width), (rows, teacher_width)
	uint32_t student_width, teacher_width;
	double *gradient;                      // (rows, student_width) +=; NULL: none is wanted
};

struct feature_view {
	uint32_t n_sequences;
	const uint32_t *starts;                // (n_sequences + 1) rows of each sequence; pooled: one row each, s at s
	bool pooled;                           // a teacher's row that begins with NaN is not known
	bool causal;                           // relations: a row sees the rows up to itself, else its whole sequence
	uint32_t n_heads;                      // relations: heads that each side's width is split into
	struct feature_part parts[FEATURE_PARTS];      // hidden rows; or q, k, v
	double scale;                          // of what is added to the gradients
	double *scratch;                       // (relation_room) of relations
};

// The mean. x: the method's parameters, as method.h lists them.
typedef double feature_fn(const struct feature_view *v, const double *x);

// x: normalise (both rows are divided by their length), sum (over the width instead of its mean). PKD: both. Widths are equal.
feature_fn feature_hidden_mse;
// 1 - cos.
feature_fn feature_hidden_cosine;
// Pooled rows give scores of pairs of sequences, dot products (x[0] = 0) or cosines (1); ((s_ij - s_ik) - (t_ij - t_ik))^2, mean over all i
// and j < k (x[1] = 0), or over each three sequences, i, j, k, of the micro-batch (1). Widths may differ. Hofstaetter et al.,
// arXiv 2010.02666.
feature_fn feature_margin_mse;
// x: version (0 = v2, 1 = v1). v2: of each of q, k, v, split into n_heads heads: KL of the teacher's softmax(X X' / sqrt(d)) to the
// student's, mean over rows and heads, summed over the three (Wang et al., arXiv 2012.15828). v1: the same of softmax(Q K' / sqrt(d)), head
// by head (k and v heads may be shared by several q heads), and of the v rows (arXiv 2002.10957).
feature_fn feature_relations;

// Doubles of scratch for sequences of at most n rows, of those widths in all.
uint64_t relation_room(uint32_t n, uint32_t student_width, uint32_t teacher_width);
