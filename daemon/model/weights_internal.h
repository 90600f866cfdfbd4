// SPDX-License-Identifier: Apache-2.0
// Shared by weights.c and weights_trainable.c only.
#pragma once

#include "daemon/model/weights.h"

// Finds the tensor of p and checks its shape; on success it must be released. Padding rows beyond the vocabulary are cut off, and what is
// stored transposed is turned round.
int weights_find(const struct tensor_source *source, const struct parameter *p, struct tensor *ret_tensor, struct error *err);
// The same; but a matrix with a row for each token has no data where the source need not read it whole: its rows are read through *rows,
// which must stay where it is until the tensor is released.
struct parameter_rows { struct tensor_rows rows; const struct tensor_source *source; const char *name; };
int weights_find_rows(const struct tensor_source *source, const struct parameter *p, struct parameter_rows *rows, struct tensor *ret_tensor,
		      struct error *err);
static inline bool parameter_is_matrix(const struct parameter *p)
{
	return p->n_dims == 2 && !p->table;
}
static inline bool parameter_by_rows(const struct parameter *p)
{
	return p->of_vocabulary && parameter_is_matrix(p) && !p->transposed;
}
// Tensors that q, k and v are stored in: 3, or 1.
uint32_t parameters_qkv_parts(const struct architecture *a);
uint32_t parameters_up_parts(const struct architecture *a);      // and gate and up: 2, or 1 (no gate, or both in one)
void weights_release(const struct tensor_source *source, const struct parameter *p, struct tensor *t);
// A struct weights with layers allocated and rotation tables made, nothing else.
int weights_new_empty(struct backend *be, const struct architecture *a, uint32_t max_positions, struct weights **ret_weights,
		      struct error *err);
