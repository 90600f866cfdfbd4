// SPDX-License-Identifier: Apache-2.0
// Whole rows of a small vocabulary seen as a token loss sees them: for the tests of daemon/loss.
#pragma once

#include "daemon/loss/divergence.h"
#include "daemon/loss/gradient.h"
#include "daemon/loss/pair.h"

#define EXAMPLE_V 12

// The running example of five logits worked out by hand in double precision (values at T = 1 unless said).
extern const double example_zt[5], example_zs[5];

struct example {
	uint32_t V, n_top, label;
	double zt[EXAMPLE_V], zs[EXAMPLE_V];
	uint32_t n_own;                        // the student's likeliest ids that the teacher was asked about
	uint32_t own[EXAMPLE_V];               // ids
	uint32_t n_drawn;
	uint32_t drawn[EXAMPLE_V];             // ids
	double weights[EXAMPLE_V];
	double temperature;
	uint32_t top[EXAMPLE_V];               // ids instead of the teacher's likeliest; where n_given is not 0
	uint32_t n_given;
	bool tail;                             // the teacher's own word on its tail
};

struct example example_five(double temperature, uint32_t n_top);       // the running example, label 1
double example_lse(const double *z, uint32_t V, double temperature);
// Value of the loss at the example and, where asked, its gradient on the V logits of the student. The position's temperature 0 is the
// example's.
double example_evaluate(const struct example *e, divergence_fn *fn, const double *x, const struct pair_view *view, double *gradient);
