// SPDX-License-Identifier: Apache-2.0
// What the tensors of a Hugging Face directory are called: as present classes of transformers save them (parameters.c), or by names that
// older ones, or a class that has the model as a part, gave them.
#pragma once

#include <stdbool.h>

#include "daemon/model/config.h"
#include "daemon/model/safetensors.h"

#define STORED_NAME 128

// The name under which the file has a parameter: the present one, unless only another is there (then it is in `buffer`).
const char *directory_name(const struct safetensors *file, const struct architecture *a, const char *name, char buffer[STORED_NAME]);
// A tensor that carries nothing which the architecture does not say already, or that no logit of text depends on.
bool directory_ignores(const struct safetensors *file, const struct architecture *a, const char *name);
