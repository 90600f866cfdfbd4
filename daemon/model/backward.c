// SPDX-License-Identifier: Apache-2.0
// forward.c's list in reverse. dx is the gradient of the residual stream: each half-layer adds its own part to it.
#include <assert.h>

#include "daemon/model/activations.h"
#include "daemon/model/forward.h"

void backward(const struct weights *w, struct activations *a, const struct layout *layout, const struct act *dfinal)
{
	struct backend *be = a->backend;
	const struct backend_ops *ops = be->ops;
	const struct architecture *arch = &w->architecture;
	uint32_t T = layout->n_positions, C = arch->width, F = arch->ffn_width;
	float epsilon = arch->norm_epsilon;
	assert(a->training && w->parameters && T <= a->max_positions);
	ops->begin(be, layout);
	ops->real_zero(be, a->dx, (size_t)T * C);
	ops->rmsnorm_backward(be, a->dx, w->final_norm_gradient, dfinal, a->x_final, w->final_norm, epsilon, T, C);
	for (uint32_t i = a->n_layers; i-- > 0;) {
		const struct layer_weights *lw = &w->layers[i];
		const struct layer_gradients *g = &w->gradients[i];
		const struct layer_activations *l = &a->layers[i];

		ops->linear_real_backward(be, a->dffn, g->down, NULL, a->dx, l->ffn, lw->down, T);
		ops->swiglu_backward(be, a->dgate_up, a->dffn, l->gate_up, T, F);
		ops->linear_backward(be, a->dh, g->gate_up, NULL, a->dgate_up, l->h_ffn, lw->gate_up, T);
		ops->rmsnorm_backward(be, a->dx, g->ffn_norm, a->dh, l->x_ffn, lw->ffn_norm, epsilon, T, C);

		ops->linear_real_backward(be, a->dheads, g->out, NULL, a->dx, l->heads, lw->out, T);
		ops->attention_backward(be, a->dqkv, a->dheads, l->qkv, l->heads, l->lse, &a->shape);
		ops->rope(be, a->dqkv, w->cosine, w->sine, &a->shape, true);
		if (lw->q_norm)
			ops->head_norm_backward(be, a->dqkv, g->q_norm, g->k_norm, a->dqkv, l->qkv_plain, lw->q_norm, lw->k_norm,
						&a->shape, epsilon);
		ops->linear_backward(be, a->dh, g->qkv, g->qkv_bias, a->dqkv, l->h_attention, lw->qkv, T);
		ops->rmsnorm_backward(be, a->dx, g->attention_norm, a->dh, l->x_attention, lw->attention_norm, epsilon, T, C);
	}
	ops->embed_backward(be, w->embedding_gradient, a->dx, C);
}
