// SPDX-License-Identifier: Apache-2.0
// The transformer as flat lists of operations, in network order. forward.c: tokens -> final hidden rows. backward.c: the reverse.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/model/weights.h"

struct error;

// Work arrays for at most max_positions rows; with `training` the per-layer inputs that backward needs are kept. With `recompute` n > 0
// (training only; gradient checkpointing, Chen et al., arXiv 1604.06174) of every n layers only what enters the first is, and backward
// computes the rest of them again: the same numbers for a third more work and, instead of all layers' arrays, those of n layers and
// ceil(n_layers / n) (T, C).
struct activations;
int activations_new(const struct weights *w, uint32_t max_positions, bool training, uint32_t recompute, struct activations **ret,
		    struct error *err);
// Adds to *need what activations_new will make.
int activations_need(const struct architecture *a, uint32_t max_positions, bool training, uint32_t recompute, struct backend_need *need,
		     struct error *err);
struct activations *activations_free(struct activations *a);

// What passes by in forward can be looked at, as soon as it stands and before it is overwritten. Training or not, the order is: the
// embedding's HIDDEN (layer 0), then for each block i from 0 its QKV (layer i) and the HIDDEN after it (layer i + 1), then FINAL (layer
// 0).
enum forward_tap {
	FORWARD_HIDDEN,          // x (T, C): the residual stream after `layer` blocks (post-norm: normed)
	FORWARD_QKV,             // y (T, W): q, k, v of block `layer`, after the head norm, before rotation
	FORWARD_FINAL,           // y (T, C): after the final norm
};
// One of x and y is NULL. It may read (real_read, act_read), never write.
typedef void forward_tap_fn(void *arg, enum forward_tap what, uint32_t layer, const struct real *x, const struct act *y);
// Who looks from now on; tap NULL (as at first) = nobody, which costs nothing.
void activations_tap(struct activations *a, forward_tap_fn *tap, void *arg);

// The same places on the way back, in reverse order: what a loss on them adds to their gradient goes in here. One of dx (of HIDDEN) and dy
// is NULL; of their shapes above, complete but for what the function adds. Layers' numbers are forward's.
typedef void backward_tap_fn(void *arg, enum forward_tap what, uint32_t layer, struct real *dx, struct act *dy);
void activations_tap_back(struct activations *a, backward_tap_fn *tap, void *arg);

// Where layouts with slots find and leave their keys and values (never in training); NULL, as at first: there are no such layouts.
struct cache;
void activations_cache(struct activations *a, struct cache *cache);

// Runs the trunk; returns the rows that the head reads (T, C): after the final norm, and (masked models) the head's own transform. Owned by
// `a`, valid until the next forward.
struct act *forward(const struct weights *w, struct activations *a, const struct layout *layout);

// Adds to every parameter's gradient. dfinal is d loss / d (rows that forward returned), (T, C); a function that looks at
// FINAL may change it. The LM head's part is head_backward's.
void backward(const struct weights *w, struct activations *a, const struct layout *layout, struct act *dfinal);
