// SPDX-License-Identifier: Apache-2.0
// The list of an architecture's parameters: Hugging Face names, shapes, storage order. Everything that walks parameters (loading,
// training, checkpoints, fingerprints) walks this one list.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/weights.h"

#define MAX_PER_LAYER 14

static void add(struct parameters *p, const char *prefix, const char *name, uint64_t rows, uint64_t columns)
{
	struct parameter *q = &p->list[p->n_parameters++];
	snprintf(q->name, sizeof q->name, "%s%s", prefix, name);
	q->n_dims = columns ? 2 : 1;
	q->dims[0] = rows;
	q->dims[1] = columns;
	q->n = rows * (columns ? columns : 1);
	q->offset = p->n_values;
	q->decay = columns != 0;
	p->n_values += q->n;
}

// q, k, v lie side by side, as do gate and up: the fused matrix of forward.c is a view of the storage.
static void add_layer(struct parameters *p, const struct architecture *a, uint32_t layer)
{
	uint64_t C = a->width, F = a->ffn_width, D = a->head_size, Q = a->n_heads * D, KV = a->n_kv_heads * D;
	char at[40];
	snprintf(at, sizeof at, "model.layers.%u.", layer);
	add(p, at, "input_layernorm.weight", C, 0);
	add(p, at, "self_attn.q_proj.weight", Q, C);
	add(p, at, "self_attn.k_proj.weight", KV, C);
	add(p, at, "self_attn.v_proj.weight", KV, C);
	if (a->qkv_bias) {
		add(p, at, "self_attn.q_proj.bias", Q, 0);
		add(p, at, "self_attn.k_proj.bias", KV, 0);
		add(p, at, "self_attn.v_proj.bias", KV, 0);
	}
	if (a->qk_norm) {
		add(p, at, "self_attn.q_norm.weight", D, 0);
		add(p, at, "self_attn.k_norm.weight", D, 0);
	}
	add(p, at, "self_attn.o_proj.weight", C, Q);
	add(p, at, "post_attention_layernorm.weight", C, 0);
	add(p, at, "mlp.gate_proj.weight", F, C);
	add(p, at, "mlp.up_proj.weight", F, C);
	add(p, at, "mlp.down_proj.weight", C, F);
}

int parameters_list(const struct architecture *a, struct parameter **ret_list, size_t *ret_n, struct error *err)
{
	int r = architecture_check(a, err);      // the sizes below rely on it
	if (r < 0)
		return r;
	struct parameters p = {0};
	p.list = calloc((size_t)a->n_layers * MAX_PER_LAYER + 3, sizeof *p.list);
	if (!p.list)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the list of parameters");
	add(&p, "", "model.embed_tokens.weight", a->vocab_size, a->width);
	for (uint32_t i = 0; i < a->n_layers; i++)
		add_layer(&p, a, i);
	add(&p, "", "model.norm.weight", a->width, 0);
	if (!a->tied_head)
		add(&p, "", "lm_head.weight", a->vocab_size, a->width);
	*ret_list = p.list;
	*ret_n = p.n_parameters;
	return 0;
}
