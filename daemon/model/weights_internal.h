// SPDX-License-Identifier: Apache-2.0
// Shared by weights.c and weights_trainable.c only.
#pragma once

#include "daemon/model/weights.h"

// Finds the tensor of p and checks its shape; on success it must be released. Padding rows beyond the vocabulary are cut off, and what is
// stored transposed is turned round.
int weights_find(const struct tensor_source *source, const struct parameter *p, struct tensor *ret_tensor, struct error *err);
// Tensors that q, k and v are stored in: 3, or 1.
uint32_t parameters_qkv_parts(const struct architecture *a);
void weights_release(const struct tensor_source *source, const struct parameter *p, struct tensor *t);
// A struct weights with layers allocated and rotation tables made, nothing else.
int weights_new_empty(struct backend *be, const struct architecture *a, uint32_t max_positions, struct weights **ret_weights,
		      struct error *err);
