// SPDX-License-Identifier: Apache-2.0
// A run's corpus as a dataset: text files, and JSON lines of which each holds a text.
#pragma once

struct dataset_options;
struct dataset;
struct error;
struct run_settings;
struct tokenizer;

// `options` without the prefix, which is the tokenizer's. The list is fixed then (dataset_list).
int texts_read(const struct run_settings *s, const struct tokenizer *t, const struct dataset_options *options, struct dataset **ret,
	       struct error *err);
