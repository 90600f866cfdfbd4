// SPDX-License-Identifier: Apache-2.0
// Teacher hacking: a student that comes nearer to its teacher and goes away from what the teacher was to stand for. Evaluations are watched
// for its two signs; and the rule of how large a teacher fits a student.
//
// The proxy is the held-out KL to the teacher, the golden metric the held-out cross-entropy of the text itself.
//   off the curve: distillation on fresh text falls as a power of the steps, ln KL = c - a ln step.
// The line is fitted by least squares to the
//     evaluations of the first part of the run; later ones leave it when they stand over 3 standard deviations of the fit above it.
//   apart: the KL fell since the evaluation before, and the cross-entropy rose, though it is above the teacher's own:
// a student that is better
//   at the text than its teacher comes nearer to it in no other way.
// Either counts once it was so for a number of evaluations in a row.
#pragma once

#include <stdint.h>

#define GUARD_LEAST_POINTS 4           // of a fit: two are the line, the others say how well it fits
#define GUARD_LEAST_DEVIATION 0.01     // of ln KL: a fit that is better by chance would make an alarm of every breath

struct guard_options {
	double fit_steps;              // evaluations up to this step make the line
	uint32_t checks;               // evaluations in a row
};

struct guard_point { double kl, ce, teacher_ce; };      // teacher_ce NAN: not known

// For checkpoints; zeroed at the start of a run. Sums over the fitted points (x = ln step, y = ln KL), and the evaluation before.
struct guard_state { double n, x, y, xx, xy, yy, kl, ce, off, apart, alarms; };
#define GUARD_N_STATE (sizeof(struct guard_state) / sizeof(double))

enum guard_verdict { GUARD_FINE, GUARD_OFF_CURVE, GUARD_APART };

// The evaluation after `step` steps. *ret_residual: its distance above the line in standard deviations; NAN while there is none. A verdict
// that is not fine is given once, when the count is full.
enum guard_verdict guard_look(const struct guard_options *o, struct guard_state *s, uint64_t step, const struct guard_point *point,
			      double *ret_residual);

// Law of capacity gap: parameters of the teacher that teaches a student of n_student best (2.498 S - 11.498 in millions; below 24 M, where
// that line is of no use, 2.5 times the student's). A hint: others find three to four times, and that the teacher's quality is what counts.
double guard_best_teacher(double n_student);
