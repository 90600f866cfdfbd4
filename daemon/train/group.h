// SPDX-License-Identifier: Apache-2.0
// Parameters that are trained differently from the rest: one line of a run's settings, "model.embed_tokens.* learning-rate=0.1".
#pragma once

#include <stddef.h>

struct error;

#define GROUP_PATTERN_MAX 96
#define GROUP_MAX 64                   // lines of one run

struct group {
	char pattern[GROUP_PATTERN_MAX];       // a shell pattern for names as in model.safetensors
	double learning_rate;                  // factor of the run's; 0: these parameters stay as they are
	double weight_decay;                   // NAN: as without the line
};

// Errors have the field "parameters".
int group_parse(const char *text, struct group *ret, struct error *err);
// Of several lines that fit a name the last one counts; NULL: none does.
const struct group *group_find(const struct group *groups, size_t n, const char *name);
