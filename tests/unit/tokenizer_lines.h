// SPDX-License-Identifier: Apache-2.0
// The 10,000 lines of make_tokenizer_golden.py, made again here, and the comparison with what the reference said about them.
#pragma once

#include <jansson.h>

struct tokenizer;

json_t *golden_load(const char *name);                             // tests/golden/tokenizer/NAME; fails the test when it cannot
struct tokenizer *golden_open(const json_t *root);                 // tokenizer_open_json of a value
json_t *golden_variant(const json_t *base, const json_t *changes); // base with members replaced, those of "model" one by one
void golden_compare(const struct tokenizer *t, const char *name);  // fails the test at the first block of lines that differs
void golden_compare_in(const struct tokenizer *t, const char *file, const char *name);    // with another file than expected.json
