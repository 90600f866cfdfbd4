// SPDX-License-Identifier: Apache-2.0
// A student that starts from some layers of a larger model: the model's tensors under the student's numbers.
#pragma once

#include <stdint.h>

#include "daemon/model/weights.h"

struct error;

#define LAYERS_MAX 1024

struct layers {
	uint32_t n;
	uint32_t of[LAYERS_MAX];               // layer i of the student is layer of[i] of the model
	struct tensor_source from;
};

// "0,5,11", or "uniform:N": student layer i of 1..N from layer i M / N of M, rounded down, counted from 1. Errors name the setting.
int layers_parse(const char *text, uint32_t n_layers, struct layers *ret, struct error *err);
// Outlives what reads from it; so must *l and `from`.
struct tensor_source layers_source(struct layers *l, const struct tensor_source *from);
