// SPDX-License-Identifier: Apache-2.0
// config.json of GPT-2 and BERT: layer norms, GELU, learned positions, biases everywhere.
#include <errno.h>
#include <string.h>

#include "daemon/model/config_json.h"
#include "daemon/model/document.h"

// transformers' names for the two forms.
static const struct { const char *name; enum architecture_activation activation; } activations[] = {
	{"gelu", ACTIVATION_GELU_ERF}, {"gelu_new", ACTIVATION_GELU_TANH}, {"gelu_pytorch_tanh", ACTIVATION_GELU_TANH},
	{"gelu_fast", ACTIVATION_GELU_TANH},
};
#define N_ACTIVATIONS (sizeof activations / sizeof *activations)

static int read_activation(const json_t *o, const char *key, const char *fallback, struct architecture *a, struct error *err)
{
	const char *name = fallback;
	int r = document_string(o, CONFIG_NAME, key, &name, err);
	if (r < 0 && r != -ENOENT)
		return r;
	for (size_t i = 0; i < N_ACTIVATIONS; i++) {
		if (!strcmp(name, activations[i].name)) {
			a->activation = activations[i].activation;
			return 0;
		}
	}
	return CONFIG_REFUSE(key, "%s %.32s is not supported (supported: gelu, gelu_new, gelu_pytorch_tanh, gelu_fast)", key, name);
}

static const char *activation_name(const struct architecture *a)
{
	return activations[a->activation == ACTIVATION_GELU_ERF ? 0 : 1].name;
}

static int read_epsilon(const json_t *o, const char *key, double fallback, struct architecture *a, struct error *err)
{
	double epsilon = fallback;
	int r = document_real(o, CONFIG_NAME, key, &epsilon, err);
	a->norm_epsilon = (float)epsilon;
	return r == -ENOENT ? 0 : r;
}

// Booleans that are true unless the file says otherwise, and must be.
static int need_set(const json_t *o, const char *key, struct error *err)
{
	bool v = true;
	int r = document_bool(o, CONFIG_NAME, key, &v, err);
	if (r < 0 && r != -ENOENT)
		return r;
	return v ? 0 : CONFIG_REFUSE(key, "%s false is not supported", key);
}

static int share_heads(struct architecture *a, const char *key, struct error *err)
{
	if (a->n_heads == 0 || a->width % a->n_heads)
		return error_set(err, ERROR_INVALID, key, CONFIG_NAME ": a width of %u is not a multiple of %u heads",
			a->width, a->n_heads);
	a->n_kv_heads = a->n_heads;
	a->head_size = a->width / a->n_heads;
	a->norm = NORM_LAYER;
	a->qkv_bias = a->out_bias = a->ffn_bias = a->learned_positions = true;
	a->tied_head = true;             // the classes' default
	return 0;
}

// transformers takes either name of a size, and where both are there the one that comes last.
static int refuse_two_sizes(const json_t *o, const char *key, const char *other, struct error *err)
{
	const json_t *a = json_object_get(o, key), *b = json_object_get(o, other);
	return !a || !b || json_equal(a, b) ? 0 : error_set(err, ERROR_INVALID, other, CONFIG_NAME ": %s and %s differ", key, other);
}

int config_read_gpt2(const json_t *o, struct architecture *a, struct error *err)
{
	int r;
	if ((r = refuse_two_sizes(o, "n_layer", "num_hidden_layers", err)) < 0 ||
	    (r = refuse_two_sizes(o, "n_embd", "hidden_size", err)) < 0 ||
	    (r = refuse_two_sizes(o, "n_head", "num_attention_heads", err)) < 0 ||
	    (r = refuse_two_sizes(o, "n_positions", "max_position_embeddings", err)) < 0)
		return r;
	if ((r = config_read_size(o, "n_layer", 0, &a->n_layers, err)) < 0 || (r = config_read_size(o, "n_embd", 0, &a->width, err)) < 0 ||
	    (r = config_read_size(o, "n_inner", 4 * (uint64_t)a->width, &a->ffn_width, err)) < 0 ||
	    (r = config_read_size(o, "n_head", 0, &a->n_heads, err)) < 0 ||
	    (r = config_read_size(o, "vocab_size", 0, &a->vocab_size, err)) < 0 ||
	    (r = config_read_size(o, "n_positions", 0, &a->context_length, err)) < 0 || (r = share_heads(a, "n_head", err)) < 0 ||
	    (r = read_epsilon(o, "layer_norm_epsilon", 1e-5, a, err)) < 0 ||
	    (r = read_activation(o, "activation_function", "gelu_new", a, err)) < 0 || (r = need_set(o, "scale_attn_weights", err)) < 0 ||
	    (r = config_refuse_set(o, "scale_attn_by_inverse_layer_idx", "attention scaled by the layer", err)) < 0)
		return r;
	return config_refuse_set(o, "add_cross_attention", "attention to an encoder", err);
}

json_t *config_write_gpt2(const struct architecture *a)
{
	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:s}", "n_layer", (json_int_t)a->n_layers, "n_embd", (json_int_t)a->width,
			 "n_inner", (json_int_t)a->ffn_width, "n_head", (json_int_t)a->n_heads,
			 "n_positions", (json_int_t)a->context_length, "n_ctx", (json_int_t)a->context_length,
			 "layer_norm_epsilon", config_decimal_of(a->norm_epsilon), "activation_function", activation_name(a));
}

int config_read_bert(const json_t *o, struct architecture *a, struct error *err)
{
	const char *positions = "absolute";
	int r = document_string(o, CONFIG_NAME, "position_embedding_type", &positions, err);
	if (r < 0 && r != -ENOENT)
		return r;
	if (strcmp(positions, "absolute") != 0)
		return CONFIG_REFUSE("position_embedding_type",
			"position_embedding_type %.32s is not supported (supported: absolute)", positions);
	a->masked = a->post_norm = true;
	if ((r = config_read_size(o, "num_hidden_layers", 0, &a->n_layers, err)) < 0 ||
	    (r = config_read_size(o, "hidden_size", 0, &a->width, err)) < 0 ||
	    (r = config_read_size(o, "intermediate_size", 0, &a->ffn_width, err)) < 0 ||
	    (r = config_read_size(o, "num_attention_heads", 0, &a->n_heads, err)) < 0 ||
	    (r = config_read_size(o, "vocab_size", 0, &a->vocab_size, err)) < 0 ||
	    (r = config_read_size(o, "max_position_embeddings", 512, &a->context_length, err)) < 0 ||
	    (r = config_read_size(o, "type_vocab_size", 2, &a->n_token_types, err)) < 0 ||
	    (r = share_heads(a, "num_attention_heads", err)) < 0 || (r = read_epsilon(o, "layer_norm_eps", 1e-12, a, err)) < 0 ||
	    (r = read_activation(o, "hidden_act", "gelu", a, err)) < 0 ||
	    (r = config_refuse_set(o, "is_decoder", "a causal BERT", err)) < 0)
		return r;
	return config_refuse_set(o, "add_cross_attention", "attention to an encoder", err);
}

json_t *config_write_bert(const struct architecture *a)
{
	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:s, s:s}", "num_hidden_layers", (json_int_t)a->n_layers, "hidden_size",
			 (json_int_t)a->width, "intermediate_size", (json_int_t)a->ffn_width, "num_attention_heads", (json_int_t)a->n_heads,
			 "max_position_embeddings", (json_int_t)a->context_length, "type_vocab_size", (json_int_t)a->n_token_types,
			 "layer_norm_eps", config_decimal_of(a->norm_epsilon), "hidden_act", activation_name(a), "position_embedding_type",
			 "absolute");
}
