// SPDX-License-Identifier: Apache-2.0
// forward.c's list in reverse. dx is the gradient of the residual stream: each half-layer adds its own part to it. Where a half goes on
// from the norm (post-norm), dx passes through the norm together with the half's part.
#include <assert.h>

#include "daemon/model/activations.h"
#include "daemon/model/forward.h"

static void norm(const struct weights *w, struct real *dx, struct real *dgain, struct real *dbias, const struct act *dh,
		 const struct real *x, const struct real *gain, uint32_t T)
{
	const struct architecture *a = &w->architecture;
	struct backend *be = w->backend;
	if (dbias)
		be->ops->layernorm_backward(be, dx, dgain, dbias, dh, a->post_norm ? dx : NULL, x, gain, a->norm_epsilon, T, a->width);
	else
		be->ops->rmsnorm_backward(be, dx, dgain, dh, x, gain, a->norm_epsilon, T, a->width);
}

static void activate(const struct weights *w, struct act *dgate_up, const struct act *dy, const struct act *gate_up, uint32_t T)
{
	const struct architecture *a = &w->architecture;
	if (a->activation == ACTIVATION_SWIGLU)
		w->backend->ops->swiglu_backward(w->backend, dgate_up, dy, gate_up, T, a->ffn_width);
	else
		w->backend->ops->gelu_backward(w->backend, dgate_up, dy, gate_up, forward_gelu(a), T, a->ffn_width);
}

// dfinal's way back through a masked model's head; returns the gradient of its input. dx is zero before and after.
static struct act *transform(const struct weights *w, struct activations *a, const struct act *dhead, uint32_t T)
{
	struct backend *be = a->backend;
	const struct architecture *arch = &w->architecture;
	const struct model_vectors *g = &w->vector_gradients;
	uint32_t C = arch->width;
	be->ops->layernorm_backward(be, a->dx, g->transform_norm, g->transform_norm_bias, dhead, NULL, a->x_head, w->vectors.transform_norm,
				    arch->norm_epsilon, T, C);
	be->ops->narrow(be, a->dtransformed, a->dx, (size_t)T * C);
	be->ops->gelu_backward(be, a->dtransformed, a->dtransformed, a->transformed, forward_gelu(arch), T, C);
	be->ops->linear_backward(be, a->dh, w->transform_gradient, g->transform_bias, a->dtransformed, a->final, w->transform, T);
	be->ops->real_zero(be, a->dx, (size_t)T * C);
	return a->dh;
}

static void embed(const struct weights *w, const struct real *dx)
{
	const struct backend_ops *ops = w->backend->ops;
	uint32_t C = w->architecture.width;
	ops->embed_backward(w->backend, w->embedding_gradient, dx, C);
	if (w->vectors.positions)
		ops->embed_add_backward(w->backend, w->vector_gradients.positions, dx, true, C);
	if (w->vectors.token_types)
		ops->embed_add_backward(w->backend, w->vector_gradients.token_types, dx, false, C);
}

static void show(const struct activations *a, enum forward_tap what, uint32_t layer, struct real *dx, struct act *dy)
{
	if (a->tap_back)
		a->tap_back(a->tap_back_arg, what, layer, dx, dy);
}

// Back through the norm after `layer` blocks. The residual stream there is what a post-norm gives, and what any other norm reads.
static void boundary(const struct weights *w, const struct activations *a, uint32_t layer, struct real *dgain, struct real *dbias,
		     const struct act *dh, const struct real *x, const struct real *gain, uint32_t T)
{
	bool post_norm = w->architecture.post_norm;
	if (post_norm)
		show(a, FORWARD_HIDDEN, layer, a->dx, NULL);
	norm(w, a->dx, dgain, dbias, dh, x, gain, T);
	if (!post_norm)
		show(a, FORWARD_HIDDEN, layer, a->dx, NULL);
}

// The arrays of the segment that begins at layer `first`, once more: forward went on and left another's there. What follows the segment
// was kept.
static void segment_recompute(const struct weights *w, struct activations *a, const struct layout *layout, uint32_t first)
{
	for (uint32_t i = first; i < first + a->segment; i++)
		forward_layer(w, a, layout, i, i + 1 < first + a->segment ? a->layers[i + 1].x_attention : NULL, false);
}

static void layer(const struct weights *w, struct activations *a, uint32_t i, uint32_t T)
{
	struct backend *be = a->backend;
	const struct backend_ops *ops = be->ops;
	const struct layer_weights *lw = &w->layers[i];
	const struct layer_gradients *g = &w->gradients[i];
	const struct layer_activations *l = &a->layers[i];
	struct attention_shape shape = forward_shape(w, a, i);

	ops->linear_real_backward(be, a->dffn, g->down, g->down_bias, a->dx, l->ffn, lw->down, T);
	activate(w, a->dgate_up, a->dffn, l->gate_up, T);
	ops->linear_backward(be, a->dh, g->gate_up, g->up_bias, a->dgate_up, l->h_ffn, lw->gate_up, T);
	norm(w, a->dx, g->ffn_norm, g->ffn_norm_bias, a->dh, l->x_ffn, lw->ffn_norm, T);

	ops->linear_real_backward(be, a->dheads, g->out, g->out_bias, a->dx, l->heads, lw->out, T);
	ops->attention_backward(be, a->dqkv, a->dheads, l->qkv, l->heads, l->lse, &shape);
	forward_rotate(w, a, i, a->dqkv, true);
	show(a, FORWARD_QKV, i, NULL, a->dqkv);
	if (lw->q_norm)
		ops->head_norm_backward(be, a->dqkv, g->q_norm, g->k_norm, a->dqkv, l->qkv_plain, lw->q_norm, lw->k_norm,
					&a->shape, w->architecture.norm_epsilon);
	ops->linear_backward(be, a->dh, g->qkv, g->qkv_bias, a->dqkv, l->h_attention, lw->qkv, T);
	boundary(w, a, i, g->attention_norm, g->attention_norm_bias, a->dh, l->x_attention, lw->attention_norm, T);
}

void backward(const struct weights *w, struct activations *a, const struct layout *layout, struct act *dfinal)
{
	struct backend *be = a->backend;
	const struct backend_ops *ops = be->ops;
	const struct architecture *arch = &w->architecture;
	uint32_t T = layout->n_positions, C = arch->width;
	assert(a->training && w->parameters && T <= a->max_positions);
	ops->begin(be, layout);
	ops->real_zero(be, a->dx, (size_t)T * C);
	if (arch->masked)
		dfinal = transform(w, a, dfinal, T);
	show(a, FORWARD_FINAL, 0, NULL, dfinal);
	boundary(w, a, a->n_layers, w->vector_gradients.final_norm, w->vector_gradients.final_norm_bias, dfinal, a->x_final,
		 w->vectors.final_norm, T);
	for (uint32_t i = a->n_layers; i-- > 0;) {
		if (i + 1 < a->n_layers && (i + 1) % a->segment == 0)
			segment_recompute(w, a, layout, i + 1 - a->segment);
		layer(w, a, i, T);
	}
	embed(w, a->dx);
}
