// SPDX-License-Identifier: Apache-2.0
// Private to forward.c and backward.c: the work arrays of one pass.
#pragma once

#include "daemon/model/experts.h"
#include "daemon/model/forward.h"

// Inputs of one layer's operations. Without training every layer has the same arrays (each is dead once the next has been computed)
// and x_ffn is x_attention; with training each layer keeps its own, or (recompute) shares all with the layers as many segments away
// but, where it is the first of a segment, x_attention.
struct layer_activations {
	struct real *x_attention;        // (T, C) what the norm before the attention half reads: the residual stream,
	                                 // or (post-norm) the sum
	struct real *r_attention;        // (T, C) what the half adds to: x_attention, or (post-norm) its norm
	struct act *h_attention;         // (T, C) normed
	struct act *qkv_plain;           // (T, W) before the head norm; qkv itself where there is none (or nothing is kept)
	struct act *qkv;                 // (T, W) rotated
	struct act *heads;               // (T, NH D) what attention gave
	struct real *lse;                // (T, NH); NULL without training
	struct real *x_ffn, *r_ffn;      // (T, C) the same of the feed-forward half
	struct act *h_ffn;               // (T, C) normed
	struct act *gate_up;             // (T, 2F), or (T, F) without a gate
	struct act *ffn;                 // (T, F)
};

// The form of GELU of an architecture that has it.
static inline enum gelu forward_gelu(const struct architecture *a)
{
	return a->activation == ACTIVATION_GELU_TANH ? GELU_TANH : GELU_ERF;
}

struct activations;
struct attention_shape forward_shape(const struct weights *w, const struct activations *a, uint32_t layer);
// Queries and keys of a layer (T,W) in place, where it rotates them; inverse = backward.
void forward_rotate(const struct weights *w, const struct activations *a, uint32_t layer, struct act *qkv, bool inverse);

struct activations {
	struct backend *backend;
	uint32_t n_layers, max_positions;
	bool training;
	uint32_t segment;                    // layers whose arrays stand at a time: n_layers when all are kept; 1 without training
	struct attention_shape shape;        // but for what layers differ in: see forward_shape
	struct layer_activations *layers;    // (n_layers)
	struct real *x_final, *r_final;      // (T, C) as x_attention and r_attention, after the last layer
	struct experts_work experts;         // of mixtures; gate_up and ffn are the layers' own
	struct choice_of_experts *choice;
	struct real *x_half;                 // (T, C) what a half gives, where it is normed or scaled before it is added; else NULL
	struct act *final;                   // (T, C) normed
	// Masked models: final, multiplied, through GELU (also as real), normed; else `head` is `final`.
	struct act *transformed, *activated, *head;
	struct real *x_head;
	forward_tap_fn *tap;                 // or NULL
	void *tap_arg;
	backward_tap_fn *tap_back;           // or NULL
	void *tap_back_arg;
	struct cache *cache;                 // of layouts with slots; or NULL
	// Training only: gradients, one array for all layers.
	struct real *dx;                     // (T, C) of the residual stream
	struct act *dh, *dqkv, *dheads, *dgate_up, *dffn, *dtransformed;
};

// The operations of layer i from its x_attention on, which must stand, shown to the tap or not. x_next: where the residual stream goes on;
// NULL: it is not wanted.
void forward_layer(const struct weights *w, struct activations *a, const struct layout *layout, uint32_t i,
	struct real *x_next, bool shown);
