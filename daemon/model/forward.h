// SPDX-License-Identifier: Apache-2.0
// The transformer as flat lists of operations, in network order. forward.c: tokens -> final hidden rows. backward.c: the reverse.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/model/weights.h"

struct error;

// Work arrays for at most max_positions rows; with `training` the per-layer inputs that backward needs are kept.
struct activations;
int activations_new(const struct weights *w, uint32_t max_positions, bool training, struct activations **ret, struct error *err);
struct activations *activations_free(struct activations *a);

// Runs the trunk; returns the rows after the final norm (T, C), owned by `a`, valid until the next forward.
struct act *forward(const struct weights *w, struct activations *a, const struct layout *layout);

// Adds to every parameter's gradient. dfinal is d loss / d (rows that forward returned), (T, C). The LM head's part is head_backward's.
void backward(const struct weights *w, struct activations *a, const struct layout *layout, const struct act *dfinal);
