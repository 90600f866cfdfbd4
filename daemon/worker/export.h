// SPDX-License-Identifier: Apache-2.0
// The finished student as a Hugging Face directory: config.json, generation_config.json, model.safetensors, tokenizer.json,
// tokenizer_config.json. Loads in `transformers` (AutoModelForCausalLM, AutoTokenizer) and in kdserved.
#pragma once

#include "kernels/dtype.h"

struct architecture;
struct error;
struct tokenizer;
struct weights;

// Written beside `path` and renamed into place; an earlier export there is replaced.
int export_student(const char *path, const struct weights *w, const struct tokenizer *t, enum dtype dtype, struct error *err);
// Whether a model of that architecture can be written: asked before it is trained.
int export_check(const struct architecture *a, struct error *err);
