// SPDX-License-Identifier: Apache-2.0
// kdctl label, between its files: label.c asks and writes, label_resume.c finds where an earlier one ended.
#pragma once

#include <stdint.h>
#include <stdio.h>

#include "clients/kdctl/kdctl.h"
#include "common/sequence.h"

struct label {
	struct kdctl *k;
	const char *path, *output, *field;   // prompts; where answers go; member of each line of JSON
	bool resume;
	uint32_t batch;                      // prompts of one request
	uint64_t seed;
	struct kd_generation ask;
	const struct kd_server *server;
	FILE *in, *out;
	char *line;                          // of the input, and its number from 1
	size_t line_size;
	uint64_t number;
	uint64_t n_items, n_kept;            // prompts so far; of them already answered
};

// What every line of the output says of how it came about: of one that goes on it must be the same. New reference; NULL = out of memory.
json_t *label_sampler(const struct label *l);
// The next prompt: its text is the caller's. 0, an exit status, or -1: there are no more.
int label_next(struct label *l, char **ret_prompt);
struct content_id label_prompt_id(const char *prompt);
// Opens the output, past what it holds of whole items, and passes over their prompts.
int label_open(struct label *l);
