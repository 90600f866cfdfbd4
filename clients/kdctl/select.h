// SPDX-License-Identifier: Apache-2.0
// kdctl select: which items of a corpus to learn from. Shared by select*.c alone. Functions return 0, or an exit status after saying why.
#pragma once

#include "clients/kdctl/kdctl.h"

struct select_options {
	const char *path;                // the items, or their scores
	const char *items_path;          // NULL = path
	const char *reference_path, *student_path, *previous_path;
	const char **targets;            // (n_targets)
	size_t n_targets;
	double ratio;                    // 0 = count is given
	uint64_t count, seed, bad, min_words;
	double alpha;
	bool top;                        // no noise: the likeliest, not a sample
	const char *output_path, *values_path;         // NULL = stdout; none
};

// ---- lines (select_lines.c)

// Calls `take` for each JSON object of the file in order, from 0; empty lines and kdctl score's summary are passed over.
typedef int line_fn(void *arg, uint64_t number, const json_t *line);
int lines_each(struct kdctl *k, const char *path, line_fn *take, void *arg);
// Copies the chosen lines, in their order, byte for byte. A file is written beside its name and renamed.
int lines_copy(struct kdctl *k, const char *path, const bool *chosen, uint64_t n, const char *output_path);
int lines_fail(struct kdctl *k, uint64_t number, const char *what);       // "line 7: ...", counted from 1

// ---- what an item is worth (select_values.c, select_domains.c)

struct values { double *v; size_t n, capacity; };                 // zero-initialise
int values_append(struct kdctl *k, struct values *values, double v);
void values_done(struct values *values);

int values_difference(struct kdctl *k, const struct select_options *o, struct values *ret);   // reference's mean loss - teacher's
int values_dsir(struct kdctl *k, const struct select_options *o, struct values *ret);         // log importance weight (+ noise)
int values_queries(struct kdctl *k, const struct select_options *o, struct values *ret);      // ln probability + noise
int select_domains(struct kdctl *k, const struct select_options *o);                          // prints weights

// From a line of kdctl score --sum: the summed log-probability, NaN when it is null, and how many tokens it is of.
int line_sum(struct kdctl *k, uint64_t number, const json_t *line, double *ret_sum, uint64_t *ret_tokens);
