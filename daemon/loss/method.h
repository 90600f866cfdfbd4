// SPDX-License-Identifier: Apache-2.0
// The losses that a run can name, on tokens or on features (what lies inside the models): one row each, with its parameters, what it asks
// of the teacher and how it is computed. The table
// feeds the parser, --list-losses and (through a test) the manual page. A new loss is a function and a row.
#pragma once

#include <stdint.h>
#include <stdio.h>

#include "daemon/loss/divergence.h"
#include "daemon/loss/feature.h"

#define METHOD_MAX_PARAMETERS 6
#define METHOD_POOLED_FALLBACK "last"  // of pooling, where a loss has to pool

enum parameter_type {
	PARAMETER_SCHEDULE,            // a number that may change over the run (schedule.h)
	PARAMETER_NUMBER,
	PARAMETER_COUNT,               // whole
	PARAMETER_SWITCH,              // on or off
	PARAMETER_CHOICE,              // a|b|c: its place
	PARAMETER_SUPPORT,             // teacher, student:K or both:K
	PARAMETER_TEXT,
	PARAMETER_LAYERS,              // layer_map.h
};

struct parameter_row {
	const char *name;
	enum parameter_type type;
	double min, max;
	const char *fallback;
	const char *choices;
	const char *help;
};

enum method_flags {
	METHOD_HARD = 1,               // knows no teacher: the label alone
	METHOD_FORMS = 2,              // a sum over a whole row: takes any form of a sparse one
	METHOD_LINEAR = 4,             // linear in p: draws leave it without bias, a uniform tail can be told
	METHOD_BY_STUDENT = 8,         // weighted by q: wants the student's own ids
	METHOD_LABEL = 16,             // the label belongs to S, with the teacher's logit
	METHOD_OWN_IDS = 32,           // compares the teacher's ids with the student's: support both
	METHOD_ADAPTIVE = 64,          // its first parameter moves with the loss (TAID)
	METHOD_NOT_F = 128,            // not an f-divergence: a bucket is no bound of it
	METHOD_DRAWN = 256,            // of labels that the student drew, and the teacher's word for them (with METHOD_HARD: no rows)
	METHOD_RANKS = 512,            // compares likeliest ids by rank: wants as many of the student's as of the teacher's
	METHOD_BY_ID = 1024,          // of those: ids that both vocabularies have are compared as they are
	// On features:
	METHOD_HIDDEN = 1 << 16,       // compares hidden rows, the student's projected where widths differ
	METHOD_RELATION = 1 << 17,     // of q, k and v rows
	METHOD_POOLED = 1 << 18,       // one row for each sequence
};

struct method {
	const char *name;
	unsigned flags;
	const char *top_k;             // default of top-k; NULL: the common one
	const char *help;
	divergence_fn *fn;             // of the teacher's row; else NULL
	struct parameter_row parameters[METHOD_MAX_PARAMETERS];        // up to the first without a name
	feature_fn *feature;           // of features; else NULL
};

// Parameters of every loss, and of every loss on the teacher's row. A method's own come first in a line's list of values.
enum common_parameter {
	COMMON_WEIGHT, COMMON_NAME, COMMON_ON,         // of all
	COMMON_TEMPERATURE, COMMON_T2_SCALE, COMMON_TOP_K, COMMON_SUPPORT, COMMON_TEACHER, COMMON_KEEP, COMMON_TRUST, COMMON_FORM,
	COMMON_TAIL, COMMON_DRAWS, COMMON_TAU,
	COMMON_LAYERS, COMMON_PROJECTION, COMMON_BIAS, COMMON_POOLING,         // of features
	N_COMMON,
};
extern const struct parameter_row common_parameters[N_COMMON];

// Whose text a loss learns from: values of the parameter "on".
enum loss_on { LOSS_ON_ALL, LOSS_ON_TEXT, LOSS_ON_ROLLOUTS };

const struct method *method_find(const char *name);    // NULL: none
const struct method *method_nearest(const char *name); // the row whose name differs least; for "did you mean"
const struct method *method_table(size_t *ret_n);
uint32_t method_n_parameters(const struct method *m);
// NULL where this method does not take it.
const struct parameter_row *method_common(const struct method *m, enum common_parameter which);
const char *form_name(enum loss_form form);
// Whether the loss makes sense where the student's vocabulary is not the teacher's; NULL: it does, else why not.
const char *method_foreign_fault(const struct method *m, enum loss_form form, enum loss_support support);
// One line on what the loss cannot see or gets wrong at this form and support; NULL: nothing.
const char *method_bias(const struct method *m, enum loss_form form, enum loss_support support);
void method_print(FILE *to);           // --list-losses
