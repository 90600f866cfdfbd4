// SPDX-License-Identifier: Apache-2.0
// The trunk as a list of operations: embedding, then per layer attention and feed-forward, each added to the residual stream.
#include "daemon/model/forward.h"

#include <assert.h>

#include "daemon/model/activations.h"
#include "daemon/model/cache.h"

// y = x + product: with training x is kept, so the sum goes to another array.
static void add_product(struct backend *be, struct real *y, const struct real *x, const struct act *h, const struct weight *w, uint32_t T,
			uint32_t C)
{
	if (y != x)
		be->ops->real_copy(be, y, x, (size_t)T * C);
	be->ops->linear_real(be, y, true, h, w, NULL, T);
}

static void show(const struct activations *a, enum forward_tap what, uint32_t layer, const struct real *x, const struct act *y)
{
	if (a->tap)
		a->tap(a->tap_arg, what, layer, x, y);
}

static void attend(const struct activations *a, const struct layer_activations *l, uint32_t layer, bool cached)
{
	const struct backend_ops *ops = a->backend->ops;
	if (!cached) {
		ops->attention(a->backend, l->heads, l->lse, l->qkv, &a->shape);
		return;
	}
	struct act *cache = cache_layer(a->cache, layer);
	ops->cache_write(a->backend, cache, l->qkv, &a->shape);
	ops->attention_cached(a->backend, l->heads, l->qkv, cache, &a->shape);
}

struct act *forward(const struct weights *w, struct activations *a, const struct layout *layout)
{
	struct backend *be = a->backend;
	const struct backend_ops *ops = be->ops;
	const struct architecture *arch = &w->architecture;
	uint32_t T = layout->n_positions, C = arch->width, F = arch->ffn_width;
	assert(T <= a->max_positions && (!layout->slots || (a->cache && !a->training)));
	ops->begin(be, layout);
	ops->embed(be, a->layers[0].x_attention, w->embedding);
	show(a, FORWARD_HIDDEN, 0, a->layers[0].x_attention, NULL);
	for (uint32_t i = 0; i < a->n_layers; i++) {
		const struct layer_weights *lw = &w->layers[i];
		const struct layer_activations *l = &a->layers[i];
		struct real *x_next = i + 1 < a->n_layers ? a->layers[i + 1].x_attention : a->x_final;

		ops->rmsnorm(be, l->h_attention, l->x_attention, lw->attention_norm, arch->norm_epsilon, T, C);
		ops->linear(be, l->qkv_plain, l->h_attention, lw->qkv, lw->qkv_bias, T);
		if (lw->q_norm)
			ops->head_norm(be, l->qkv, l->qkv_plain, lw->q_norm, lw->k_norm, &a->shape, arch->norm_epsilon);
		show(a, FORWARD_QKV, i, NULL, l->qkv);
		ops->rope(be, l->qkv, w->cosine, w->sine, &a->shape, false);
		attend(a, l, i, layout->slots != NULL);
		add_product(be, l->x_ffn, l->x_attention, l->heads, lw->out, T, C);

		ops->rmsnorm(be, l->h_ffn, l->x_ffn, lw->ffn_norm, arch->norm_epsilon, T, C);
		ops->linear(be, l->gate_up, l->h_ffn, lw->gate_up, NULL, T);
		ops->swiglu(be, l->ffn, l->gate_up, T, F);
		add_product(be, x_next, l->x_ffn, l->ffn, lw->down, T, C);
		show(a, FORWARD_HIDDEN, i + 1, x_next, NULL);
	}
	ops->rmsnorm(be, a->final, a->x_final, w->final_norm, arch->norm_epsilon, T, C);
	show(a, FORWARD_FINAL, 0, NULL, a->final);
	return a->final;
}
