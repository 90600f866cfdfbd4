// SPDX-License-Identifier: Apache-2.0
// Shared by weights.c and weights_trainable.c only.
#pragma once

#include "daemon/model/weights.h"

// Finds `name` and checks its shape against p (whose name may differ); on success the tensor must be released. The embedding and the
// head may have padding rows beyond the vocabulary: the view is cut to p->dims[0] rows.
int weights_find(const struct tensor_source *source, const struct parameter *p, struct tensor *ret_tensor, struct error *err);
void weights_release(const struct tensor_source *source, struct tensor *t);
// A struct weights with layers allocated and rotation tables made, nothing else.
int weights_new_empty(struct backend *be, const struct architecture *a, uint32_t max_positions, struct weights **ret_weights,
		      struct error *err);
