// SPDX-License-Identifier: Apache-2.0
// The trunk as a list of operations: embedding, then per layer attention and feed-forward, each added to the residual stream.
// Pre-norm: x -> x + f(norm(x)). Post-norm: norm(x) is the stream too, so norm(x) + f(norm(x)) is what the next norm reads. Both are the
// same list, with one norm before each half and one at the end.
#include "daemon/model/forward.h"

#include <assert.h>
#include <math.h>

#include "daemon/model/activations.h"
#include "daemon/model/cache.h"

// y = x + product, or a multiple of it: with training x is kept, so the sum goes to another array.
static void add_product(const struct weights *w, struct activations *a, struct real *y, const struct real *x, const struct act *h,
			const struct weight *matrix, const struct real *bias, uint32_t T)
{
	const struct backend_ops *ops = a->backend->ops;
	uint32_t C = w->architecture.width;
	double scale = w->architecture.residual_scale;
	if (y != x)
		ops->real_copy(a->backend, y, x, (size_t)T * C);
	ops->linear_real(a->backend, scale != 0 ? a->x_half : y, scale == 0, h, matrix, bias, T);
	if (scale != 0)
		ops->mix(a->backend, y, true, a->x_half, scale, NULL, T, C);
}

// y = x + norm(product), the product first in an array of its own. Nothing is kept of it: not in training.
static void add_normed(const struct weights *w, struct activations *a, const struct layer_activations *l, struct real *y,
		       const struct act *h, const struct weight *matrix, const struct real *gain, uint32_t T)
{
	const struct backend_ops *ops = a->backend->ops;
	uint32_t C = w->architecture.width;
	ops->linear_real(a->backend, a->x_half, false, h, matrix, NULL, T);
	ops->rmsnorm(a->backend, l->h_attention, a->x_half, gain, w->architecture.norm_epsilon, T, C);
	ops->widen(a->backend, a->x_half, l->h_attention, (size_t)T * C);
	ops->mix(a->backend, y, true, a->x_half, 1, NULL, T, C);
}

// h = norm(x), and so is r, where a half goes on from the norm. Only layer norms have a bias.
static void norm(const struct weights *w, struct act *h, struct real *r, const struct real *x, const struct real *gain,
		 const struct real *bias, uint32_t T)
{
	const struct architecture *a = &w->architecture;
	if (bias)
		w->backend->ops->layernorm(w->backend, h, a->post_norm ? r : NULL, x, gain, bias, a->norm_epsilon, T, a->width);
	else
		w->backend->ops->rmsnorm(w->backend, h, x, gain, a->norm_epsilon, T, a->width);
}

static void activate(const struct weights *w, struct act *y, const struct act *gate_up, uint32_t T)
{
	const struct architecture *a = &w->architecture;
	if (a->activation == ACTIVATION_SWIGLU)
		w->backend->ops->swiglu(w->backend, y, gate_up, T, a->ffn_width);
	else if (a->activation == ACTIVATION_GEGLU)
		w->backend->ops->geglu(w->backend, y, gate_up, T, a->ffn_width);
	else
		w->backend->ops->gelu(w->backend, y, gate_up, forward_gelu(a), T, a->ffn_width);
}

static void embed(const struct weights *w, struct real *x, uint32_t T)
{
	const struct backend_ops *ops = w->backend->ops;
	uint32_t C = w->architecture.width;
	ops->embed(w->backend, x, w->embedding);
	double scale = w->architecture.gemma ? sqrt(C) : w->architecture.embedding_scale;
	if (scale != 0)
		ops->mix(w->backend, x, false, x, scale, NULL, T, C);
	if (w->vectors.positions)
		ops->embed_add(w->backend, x, w->vectors.positions, true, C);
	if (w->vectors.token_types)
		ops->embed_add(w->backend, x, w->vectors.token_types, false, C);
}

// What the head of a masked model reads.
static void transform(const struct weights *w, struct activations *a, uint32_t T)
{
	struct backend *be = a->backend;
	const struct architecture *arch = &w->architecture;
	uint32_t C = arch->width;
	be->ops->linear(be, a->transformed, a->final, w->transform, w->vectors.transform_bias, T);
	be->ops->gelu(be, a->activated, a->transformed, forward_gelu(arch), T, C);
	be->ops->widen(be, a->x_head, a->activated, (size_t)T * C);
	be->ops->layernorm(be, a->head, NULL, a->x_head, w->vectors.transform_norm, w->vectors.transform_norm_bias,
		arch->norm_epsilon, T, C);
}

static void show(const struct activations *a, enum forward_tap what, uint32_t layer, const struct real *x, const struct act *y)
{
	if (a->tap)
		a->tap(a->tap_arg, what, layer, x, y);
}

struct attention_shape forward_shape(const struct weights *w, const struct activations *a, uint32_t layer)
{
	struct attention_shape shape = a->shape;
	shape.window = architecture_window(&w->architecture, layer);
	return shape;
}

void forward_rotate(const struct weights *w, const struct activations *a, uint32_t layer, struct act *qkv, bool inverse)
{
	bool own = w->cosine_sliding && w->architecture.sliding[layer];
	if (w->cosine && !w->architecture.unrotated[layer])
		a->backend->ops->rope(a->backend, qkv, own ? w->cosine_sliding : w->cosine, own ? w->sine_sliding : w->sine,
				      architecture_rope_size(&w->architecture), &a->shape, inverse);
}

static void attend(const struct weights *w, const struct activations *a, const struct layer_activations *l, uint32_t layer, bool cached)
{
	const struct backend_ops *ops = a->backend->ops;
	struct attention_shape shape = forward_shape(w, a, layer);
	if (!cached) {
		ops->attention(a->backend, l->heads, l->lse, l->qkv, &shape);
		return;
	}
	struct act *cache = cache_layer(a->cache, layer);
	ops->cache_write(a->backend, cache, l->qkv, &shape);
	ops->attention_cached(a->backend, l->heads, l->qkv, cache, &shape);
}

void forward_layer(const struct weights *w, struct activations *a, const struct layout *layout, uint32_t i, struct real *x_next, bool shown)
{
	struct backend *be = a->backend;
	const struct backend_ops *ops = be->ops;
	const struct layer_weights *lw = &w->layers[i];
	const struct layer_activations *l = &a->layers[i];
	uint32_t T = layout->n_positions;

	weights_beat(w);
	norm(w, l->h_attention, l->r_attention, l->x_attention, lw->attention_norm, lw->attention_norm_bias, T);
	if (shown)
		show(a, FORWARD_HIDDEN, i, l->r_attention, NULL);
	ops->linear(be, l->qkv_plain, l->h_attention, lw->qkv, lw->qkv_bias, T);
	if (lw->q_norm)
		ops->head_norm(be, l->qkv, l->qkv_plain, lw->q_norm, lw->k_norm, &a->shape, w->architecture.norm_epsilon);
	if (shown)
		show(a, FORWARD_QKV, i, NULL, l->qkv);
	forward_rotate(w, a, i, l->qkv, false);
	attend(w, a, l, i, layout->slots != NULL);
	if (lw->attention_post_norm)
		add_normed(w, a, l, l->x_ffn, l->heads, lw->out, lw->attention_post_norm, T);
	else
		add_product(w, a, l->x_ffn, l->r_attention, l->heads, lw->out, lw->out_bias, T);

	norm(w, l->h_ffn, l->r_ffn, l->x_ffn, lw->ffn_norm, lw->ffn_norm_bias, T);
	if (lw->experts) {
		assert(x_next == l->x_ffn);      // nothing is trained
		experts_forward(w, lw, a->choice, &a->experts, x_next, l->h_ffn, T);
		return;
	}
	ops->linear(be, l->gate_up, l->h_ffn, lw->gate_up, lw->up_bias, T);
	activate(w, l->ffn, l->gate_up, T);
	if (lw->ffn_post_norm)
		add_normed(w, a, l, x_next, l->ffn, lw->down, lw->ffn_post_norm, T);
	else if (x_next)
		add_product(w, a, x_next, l->r_ffn, l->ffn, lw->down, lw->down_bias, T);
}

struct act *forward(const struct weights *w, struct activations *a, const struct layout *layout)
{
	struct backend *be = a->backend;
	const struct architecture *arch = &w->architecture;
	uint32_t T = layout->n_positions;
	assert(T <= a->max_positions && (!layout->slots || (a->cache && !a->training && !arch->masked)));
	be->ops->begin(be, layout);
	embed(w, a->layers[0].x_attention, T);
	for (uint32_t i = 0; i < a->n_layers; i++)
		forward_layer(w, a, layout, i, i + 1 < a->n_layers ? a->layers[i + 1].x_attention : a->x_final, true);
	norm(w, a->final, a->r_final, a->x_final, w->vectors.final_norm, w->vectors.final_norm_bias, T);
	show(a, FORWARD_HIDDEN, a->n_layers, a->r_final, NULL);
	show(a, FORWARD_FINAL, 0, NULL, a->final);
	if (arch->masked)
		transform(w, a, T);
	return a->head;
}
