// SPDX-License-Identifier: Apache-2.0
// Names, and the one complication: files of "llama", "smollm3" and "granite" store the rows of each q and k head so that
// the pairs which rotate together are neighbours (0, R/2, 1, R/2 + 1, ...). Our rotation, as transformers', takes halves: rows go back.
#include "daemon/model/gguf_source.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"

static const struct { const char *name, *gguf; } of_model[] = {
	{"model.embed_tokens.weight", "token_embd.weight"}, {"model.norm.weight", "output_norm.weight"},
	{"lm_head.weight", "output.weight"}, {"transformer.wte.weight", "token_embd.weight"},
	{"transformer.wpe.weight", "position_embd.weight"}, {"transformer.ln_f.weight", "output_norm.weight"},
	{"transformer.ln_f.bias", "output_norm.bias"},
}, of_layer[] = {
	{"input_layernorm.weight", "attn_norm.weight"}, {"self_attn.q_proj.weight", "attn_q.weight"},
	{"self_attn.k_proj.weight", "attn_k.weight"}, {"self_attn.v_proj.weight", "attn_v.weight"},
	{"self_attn.q_proj.bias", "attn_q.bias"}, {"self_attn.k_proj.bias", "attn_k.bias"}, {"self_attn.v_proj.bias", "attn_v.bias"},
	{"self_attn.q_norm.weight", "attn_q_norm.weight"}, {"self_attn.k_norm.weight", "attn_k_norm.weight"},
	{"self_attn.o_proj.weight", "attn_output.weight"}, {"post_attention_layernorm.weight", "ffn_norm.weight"},
	{"mlp.gate_proj.weight", "ffn_gate.weight"}, {"mlp.up_proj.weight", "ffn_up.weight"}, {"mlp.down_proj.weight", "ffn_down.weight"},
	{"self_attn.qkv_proj.weight", "attn_qkv.weight"}, {"mlp.gate_up_proj.weight", "ffn_up.weight"},
	{"mlp.gate.weight", "ffn_gate_inp.weight"}, {"self_attn.o_proj.bias", "attn_output.bias"},
	{"mlp.gate_proj.bias", "ffn_gate.bias"}, {"mlp.up_proj.bias", "ffn_up.bias"}, {"mlp.down_proj.bias", "ffn_down.bias"},
}, of_expert[] = {
	{"gate_proj.weight", "ffn_gate_exps.weight"}, {"up_proj.weight", "ffn_up_exps.weight"},
	{"down_proj.weight", "ffn_down_exps.weight"},
}, of_gemma_layer[] = {      // first: of_layer has other meanings for the same names
	{"post_attention_layernorm.weight", "post_attention_norm.weight"}, {"pre_feedforward_layernorm.weight", "ffn_norm.weight"},
	{"post_feedforward_layernorm.weight", "post_ffw_norm.weight"},
}, of_gpt2_layer[] = {
	{"ln_1.weight", "attn_norm.weight"}, {"ln_1.bias", "attn_norm.bias"}, {"attn.c_attn.weight", "attn_qkv.weight"},
	{"attn.c_attn.bias", "attn_qkv.bias"}, {"attn.c_proj.weight", "attn_output.weight"}, {"attn.c_proj.bias", "attn_output.bias"},
	{"ln_2.weight", "ffn_norm.weight"}, {"ln_2.bias", "ffn_norm.bias"}, {"mlp.c_fc.weight", "ffn_up.weight"},
	{"mlp.c_fc.bias", "ffn_up.bias"}, {"mlp.c_proj.weight", "ffn_down.weight"}, {"mlp.c_proj.bias", "ffn_down.bias"},
};
#define N(list) (sizeof(list) / sizeof *(list))

// "model.layers.17.rest" or "transformer.h.17.rest" -> 17 and "rest", or NULL.
static const char *layer_part(const char *name, unsigned *ret_layer, bool *ret_gpt2)
{
	int n = 0;
	*ret_gpt2 = false;
	if (sscanf(name, "model.layers.%4u.%n", ret_layer, &n) == 1 && n)        // NOLINT(cert-err34-c): of four digits at most
		return name + n;
	*ret_gpt2 = true;
	if (sscanf(name, "transformer.h.%4u.%n", ret_layer, &n) == 1 && n)       // NOLINT(cert-err34-c): of four digits at most
		return name + n;
	return NULL;
}

// "mlp.experts.5.rest" -> 5 and "rest", or NULL.
static const char *expert_part(const char *rest, unsigned *ret_expert)
{
	int n = 0;
	// NOLINTNEXTLINE(cert-err34-c): of four digits at most
	return sscanf(rest, "mlp.experts.%4u.%n", ret_expert, &n) == 1 && n ? rest + n : NULL;
}

bool gguf_source_expert(const char *name, uint32_t *ret_expert)
{
	unsigned layer, expert = 0;
	bool gpt2;
	const char *rest = layer_part(name, &layer, &gpt2);
	bool found = rest && expert_part(rest, &expert);
	*ret_expert = expert;
	return found;
}

int gguf_source_name(const struct architecture *a, const char *name, char ret_name[GGUF_SOURCE_NAME])
{
	unsigned layer;
	bool gpt2;
	const char *rest = layer_part(name, &layer, &gpt2);
	unsigned expert;
	const char *of_one = rest ? expert_part(rest, &expert) : NULL;
	for (size_t i = 0; of_one && i < N(of_expert); i++) {
		if (!strcmp(of_one, of_expert[i].name)) {
			snprintf(ret_name, GGUF_SOURCE_NAME, "blk.%u.%s", layer, of_expert[i].gguf);
			return 0;
		}
	}
	for (size_t i = 0; !rest && i < N(of_model); i++) {
		if (!strcmp(name, of_model[i].name)) {
			snprintf(ret_name, GGUF_SOURCE_NAME, "%s", of_model[i].gguf);
			return 0;
		}
	}
	for (size_t i = 0; rest && a->gemma && i < N(of_gemma_layer); i++) {
		if (!strcmp(rest, of_gemma_layer[i].name)) {
			snprintf(ret_name, GGUF_SOURCE_NAME, "blk.%u.%s", layer, of_gemma_layer[i].gguf);
			return 0;
		}
	}
	for (size_t i = 0; rest && i < (gpt2 ? N(of_gpt2_layer) : N(of_layer)); i++) {
		if (!strcmp(rest, gpt2 ? of_gpt2_layer[i].name : of_layer[i].name)) {
			snprintf(ret_name, GGUF_SOURCE_NAME, "blk.%u.%s", layer, gpt2 ? of_gpt2_layer[i].gguf : of_layer[i].gguf);
			return 0;
		}
	}
	return -ENOENT;
}

// File row (2 i + s) of a head becomes row (s R/2 + i); those that do not rotate stay.
static int restore_rows(struct tensor *t, uint32_t n_heads, uint32_t head_size, uint32_t R, const char *name, struct error *err)
{
	uint64_t rows = t->dims[0], half = R / 2;
	if (rows != (uint64_t)n_heads * head_size)
		return 0;      // weights.c will name the wrong shape
	size_t row = t->n_bytes / (size_t)rows;
	const uint8_t *from = t->data;
	uint8_t *to = malloc(t->n_bytes);
	if (!to)
		return error_set(err, ERROR_MEMORY, name, "no memory for tensor %s (%zu bytes)", name, t->n_bytes);
	for (uint64_t h = 0; h < n_heads; h++, from += head_size * row) {
		uint8_t *head = to + h * head_size * row;
		for (uint64_t i = 0; i < half; i++)
			for (uint64_t s = 0; s < 2; s++)
				memcpy(head + (s * half + i) * row, from + (2 * i + s) * row, row);
		memcpy(head + R * row, from + R * row, (head_size - R) * row);
	}
	free((void *)(uintptr_t)t->data);
	t->data = to;
	return 0;
}

int gguf_source_find(const struct gguf *file, const struct architecture *a, const char *name, struct tensor *ret_tensor)
{
	char gguf[GGUF_SOURCE_NAME];
	uint32_t expert;
	int r = gguf_source_name(a, name, gguf);
	if (r < 0 || (r = gguf_find(file, gguf, ret_tensor)) < 0 || !gguf_source_expert(name, &expert))
		return r;
	struct tensor *t = ret_tensor;
	if (t->n_dims != 3 || t->dims[0] != a->n_experts || expert >= a->n_experts)
		return 0;      // its shape will be named as wrong
	t->n_dims = 2;
	t->n_bytes /= (size_t)t->dims[0];
	t->dims[0] = t->dims[1];
	t->dims[1] = t->dims[2];
	return 0;
}

static int read_expert(const struct gguf *file, const char *gguf, uint32_t expert, const char *name, struct tensor *t, struct error *err)
{
	void *bytes = malloc(t->n_bytes ? t->n_bytes : 1);
	if (!bytes)
		return error_set(err, ERROR_MEMORY, name, "no memory for tensor %s (%zu bytes)", name, t->n_bytes);
	int r = gguf_read_rows(file, gguf, expert, 1, bytes, err);
	if (r < 0)
		free(bytes);
	t->data = r < 0 ? NULL : bytes;
	return r;
}

int gguf_source_read(const struct gguf *file, const struct architecture *a, const char *name, struct tensor *ret_tensor, struct error *err)
{
	char gguf[GGUF_SOURCE_NAME];
	unsigned layer;
	uint32_t expert;
	int r = gguf_source_name(a, name, gguf);
	if (r == 0 && gguf_source_expert(name, &expert) && (r = gguf_source_find(file, a, name, ret_tensor)) == 0 &&
		ret_tensor->n_dims == 2)
		return read_expert(file, gguf, expert, name, ret_tensor, err);
	if (r < 0 || (r = gguf_read(file, gguf, ret_tensor, err)) < 0)
		return r;
	bool gpt2;
	bool permuted = !strcmp(a->name, "llama") || !strcmp(a->name, "smollm3") || !strcmp(a->name, "granite");
	const char *rest = !permuted ? NULL : layer_part(name, &layer, &gpt2);
	bool q = rest && !strncmp(rest, "self_attn.q_proj.", 17), k = rest && !strncmp(rest, "self_attn.k_proj.", 17);
	// A vector of a block type (a bias in Q8_0) has no rows that could be moved.
	if ((q || k) && ret_tensor->n_dims == 1 && dtype_block_elements(ret_tensor->dtype) > 1)
		r = error_set(err, ERROR_UNSUPPORTED, name, "tensor %s: a bias of type %s is not supported (supported: F32 F16 BF16)", gguf,
			      dtype_name(ret_tensor->dtype));
	else if (q || k)
		r = restore_rows(ret_tensor, q ? a->n_heads : a->n_kv_heads, a->head_size, architecture_rope_size(a), name, err);
	if (r < 0)
		free((void *)(uintptr_t)ret_tensor->data);
	return r;
}
