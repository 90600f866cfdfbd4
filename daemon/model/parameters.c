// SPDX-License-Identifier: Apache-2.0
// The list of an architecture's parameters: Hugging Face names, shapes, storage order. Everything that walks parameters (loading,
// training, checkpoints, fingerprints) walks this one list.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/weights_internal.h"

#define MAX_PER_LAYER 22
#define MAX_OTHERS 13

// A family's names, without ".weight" and ".bias". A post-norm block ends with its norm: what our lists call the norm before a half is the
// last of the half before, and the embedding's own before the first.
struct names {
	const char *embedding, *positions, *token_types, *embedding_norm;
	const char *layer;                          // before its number
	const char *attention_norm, *q, *k, *v;     // k NULL: q is q, k and v in one
	const char *out, *ffn_norm;
	const char *attention_post_norm, *ffn_post_norm;    // NULL where there is none
	const char *gate, *up, *down;               // gate NULL where there is none, or where up is both
	const char *last_norm;                      // of a layer (post-norm), else of the model
	const char *transform, *transform_norm, *head_bias, *head;
	const char *router, *experts;               // experts: before the number of one, whose matrices are gate, up and down
	bool transposed;                            // the matrices of layers
};

static const struct names llama = {
	.embedding = "model.embed_tokens", .layer = "model.layers.", .attention_norm = "input_layernorm", .q = "self_attn.q_proj",
	.k = "self_attn.k_proj", .v = "self_attn.v_proj", .out = "self_attn.o_proj", .ffn_norm = "post_attention_layernorm",
	.gate = "mlp.gate_proj", .up = "mlp.up_proj", .down = "mlp.down_proj", .last_norm = "model.norm", .head = "lm_head",
};
#define LLAMA_BUT_EXPERTS \
	.embedding = "model.embed_tokens", .layer = "model.layers.", .attention_norm = "input_layernorm", .q = "self_attn.q_proj", \
	.k = "self_attn.k_proj", .v = "self_attn.v_proj", .out = "self_attn.o_proj", .ffn_norm = "post_attention_layernorm", \
	.last_norm = "model.norm", .head = "lm_head"
static const struct names moe = {
	LLAMA_BUT_EXPERTS, .gate = "gate_proj", .up = "up_proj", .down = "down_proj", .router = "mlp.gate", .experts = "mlp.experts.",
};
static const struct names mixtral = {
	LLAMA_BUT_EXPERTS, .gate = "w1", .up = "w3", .down = "w2", .router = "block_sparse_moe.gate",
	.experts = "block_sparse_moe.experts.",
};
static const struct names gemma = {
	.embedding = "model.embed_tokens", .layer = "model.layers.", .attention_norm = "input_layernorm", .q = "self_attn.q_proj",
	.k = "self_attn.k_proj", .v = "self_attn.v_proj", .out = "self_attn.o_proj", .attention_post_norm = "post_attention_layernorm",
	.ffn_norm = "pre_feedforward_layernorm", .gate = "mlp.gate_proj", .up = "mlp.up_proj", .down = "mlp.down_proj",
	.ffn_post_norm = "post_feedforward_layernorm", .last_norm = "model.norm", .head = "lm_head",
};
static const struct names phi3 = {
	.embedding = "model.embed_tokens", .layer = "model.layers.", .attention_norm = "input_layernorm", .q = "self_attn.qkv_proj",
	.out = "self_attn.o_proj", .ffn_norm = "post_attention_layernorm", .up = "mlp.gate_up_proj", .down = "mlp.down_proj",
	.last_norm = "model.norm", .head = "lm_head",
};
static const struct names gpt2 = {
	.embedding = "transformer.wte", .positions = "transformer.wpe", .layer = "transformer.h.", .attention_norm = "ln_1",
	.q = "attn.c_attn", .out = "attn.c_proj", .ffn_norm = "ln_2", .up = "mlp.c_fc", .down = "mlp.c_proj",
	.last_norm = "transformer.ln_f", .head = "lm_head", .transposed = true,
};
static const struct names bert = {
	.embedding = "bert.embeddings.word_embeddings", .positions = "bert.embeddings.position_embeddings",
	.token_types = "bert.embeddings.token_type_embeddings", .embedding_norm = "bert.embeddings.LayerNorm",
	.layer = "bert.encoder.layer.", .q = "attention.self.query", .k = "attention.self.key", .v = "attention.self.value",
	.out = "attention.output.dense", .ffn_norm = "attention.output.LayerNorm", .up = "intermediate.dense", .down = "output.dense",
	.last_norm = "output.LayerNorm", .transform = "cls.predictions.transform.dense",
	.transform_norm = "cls.predictions.transform.LayerNorm", .head_bias = "cls.predictions", .head = "cls.predictions.decoder",
};

static const struct names *names_of(const struct architecture *a)
{
	return a->masked ? &bert : a->learned_positions ? &gpt2 : a->gemma ? &gemma : a->fused ? &phi3 :
	       !a->n_experts ? &llama : !strcmp(a->name, "mixtral") ? &mixtral : &moe;
}

uint32_t parameters_qkv_parts(const struct architecture *a)
{
	return names_of(a)->k ? 3 : 1;
}

uint32_t parameters_up_parts(const struct architecture *a)
{
	return architecture_gated(a) && !a->fused ? 2 : 1;
}

static void layer_prefix(const struct names *names, uint32_t layer, char ret[64])
{
	snprintf(ret, 64, "%s%u.", names->layer, layer);
}

static struct parameter *add(struct parameters *p, const char *prefix, const char *name, const char *what, uint64_t rows, uint64_t columns)
{
	struct parameter *q = &p->list[p->n_parameters++];
	snprintf(q->name, sizeof q->name, "%s%s.%s", prefix, name, what);
	q->n_dims = columns ? 2 : 1;
	q->dims[0] = rows;
	q->dims[1] = columns;
	q->n = rows * (columns ? columns : 1);
	q->offset = p->n_values;
	q->decay = columns != 0;
	p->n_values += q->n;
	return q;
}

static void add_norm(struct parameters *p, const struct architecture *a, const char *prefix, const char *name)
{
	add(p, prefix, name, "weight", a->width, 0)->from_one = a->gemma;
	if (a->norm == NORM_LAYER)
		add(p, prefix, name, "bias", a->width, 0);
}

// The norm before a layer's attention; layer n_layers: after the last.
static void add_boundary_norm(struct parameters *p, const struct architecture *a, const struct names *names, uint32_t layer)
{
	char at[64] = "";
	bool last = layer == a->n_layers;
	if (!(a->post_norm ? layer == 0 : last))
		layer_prefix(names, a->post_norm ? layer - 1 : layer, at);
	add_norm(p, a, at, a->post_norm ? layer == 0 ? names->embedding_norm : names->last_norm : last ? names->last_norm
		: names->attention_norm);
}

static void add_matrix(struct parameters *p, const struct names *names, const char *at, const char *name, uint64_t rows, uint64_t columns)
{
	struct parameter *q = add(p, at, name, "weight", rows, columns);
	q->transposed = names->transposed;
	q->block = name != names->router;        // which expert is chosen is no place to save digits
}

// q, k, v lie side by side, as do gate and up: the fused matrix of forward.c is a view of the storage.
static void add_qkv(struct parameters *p, const struct architecture *a, const struct names *names, const char *at)
{
	const char *const parts[] = {names->q, names->k, names->v};
	uint64_t D = a->head_size, Q = a->n_heads * D, KV = a->n_kv_heads * D, sizes[] = {names->k ? Q : Q + 2 * KV, KV, KV};
	for (int i = 0; i < (names->k ? 3 : 1); i++)
		add_matrix(p, names, at, parts[i], sizes[i], a->width);
	for (int i = 0; a->qkv_bias && i < (names->k ? 3 : 1); i++)
		add(p, at, parts[i], "bias", sizes[i], 0);
	if (a->qk_norm) {
		add(p, at, "self_attn.q_norm", "weight", D, 0)->from_one = a->gemma;
		add(p, at, "self_attn.k_norm", "weight", D, 0)->from_one = a->gemma;
	}
}

static void add_experts(struct parameters *p, const struct architecture *a, const struct names *names, const char *at)
{
	char expert[96];
	add_matrix(p, names, at, names->router, a->n_experts, a->width);
	for (uint32_t e = 0; e < a->n_experts; e++) {
		snprintf(expert, sizeof expert, "%s%s%u.", at, names->experts, e);
		add_matrix(p, names, expert, names->gate, a->ffn_width, a->width);
		add_matrix(p, names, expert, names->up, a->ffn_width, a->width);
		add_matrix(p, names, expert, names->down, a->width, a->ffn_width);
	}
}

static void add_layer(struct parameters *p, const struct architecture *a, const struct names *names, uint32_t layer)
{
	uint64_t C = a->width, F = a->ffn_width;
	char at[64];
	add_boundary_norm(p, a, names, layer);
	layer_prefix(names, layer, at);
	add_qkv(p, a, names, at);
	add_matrix(p, names, at, names->out, C, (uint64_t)a->n_heads * a->head_size);
	if (a->out_bias)
		add(p, at, names->out, "bias", C, 0);
	if (names->attention_post_norm)
		add_norm(p, a, at, names->attention_post_norm);
	add_norm(p, a, at, names->ffn_norm);
	if (names->experts) {
		add_experts(p, a, names, at);
		return;
	}
	bool apart = parameters_up_parts(a) == 2;
	uint64_t up = architecture_up_width(a) - (apart ? F : 0);
	if (apart)
		add_matrix(p, names, at, names->gate, F, C);
	add_matrix(p, names, at, names->up, up, C);
	if (a->ffn_bias && apart)
		add(p, at, names->gate, "bias", F, 0);
	if (a->ffn_bias)
		add(p, at, names->up, "bias", up, 0);
	add_matrix(p, names, at, names->down, C, F);
	if (a->ffn_bias)
		add(p, at, names->down, "bias", C, 0);
	if (names->ffn_post_norm)
		add_norm(p, a, at, names->ffn_post_norm);
}

static void add_head(struct parameters *p, const struct architecture *a, const struct names *names)
{
	if (a->masked) {
		add(p, "", names->transform, "weight", a->width, a->width);
		add(p, "", names->transform, "bias", a->width, 0);
		add_norm(p, a, "", names->transform_norm);
		add(p, "", names->head_bias, "bias", a->vocab_size, 0)->of_vocabulary = true;
	}
	if (!a->tied_head)
		add(p, "", names->head, "weight", a->vocab_size, a->width)->of_vocabulary = true;
}

int parameters_list(const struct architecture *a, struct parameter **ret_list, size_t *ret_n, struct error *err)
{
	int r = architecture_check(a, err);      // the sizes below rely on it
	if (r < 0)
		return r;
	const struct names *names = names_of(a);
	struct parameters p = {0};
	p.list = calloc((size_t)a->n_layers * (MAX_PER_LAYER + 3 * (size_t)a->n_experts) + MAX_OTHERS, sizeof *p.list);
	if (!p.list)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the list of parameters");
	add(&p, "", names->embedding, "weight", a->vocab_size, a->width)->of_vocabulary = true;
	if (a->learned_positions)
		add(&p, "", names->positions, "weight", a->context_length, a->width)->table = true;
	if (a->n_token_types)
		add(&p, "", names->token_types, "weight", a->n_token_types, a->width)->table = true;
	for (uint32_t i = 0; i < a->n_layers; i++)
		add_layer(&p, a, names, i);
	add_boundary_norm(&p, a, names, a->n_layers);
	add_head(&p, a, names);
	*ret_list = p.list;
	*ret_n = p.n_parameters;
	return 0;
}

void parameters_name(const struct architecture *a, enum parameter_role role, char ret_name[96])
{
	const struct names *names = names_of(a);
	char at[64] = "";
	if (role == PARAMETER_FINAL_NORM && a->post_norm)
		layer_prefix(names, a->n_layers - 1, at);
	const char *name = role == PARAMETER_EMBEDDING ? names->embedding : role == PARAMETER_HEAD ? names->head : names->last_norm;
	snprintf(ret_name, 96, "%s%s.weight", at, name);
}
