// SPDX-License-Identifier: Apache-2.0
// config.json <-> struct architecture. What would change a single logit and is not implemented is refused by name; defaults for absent
// keys are those of transformers' configuration classes.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/jansson.h"
#include "daemon/model/config.h"
#include "daemon/model/config_json.h"
#include "daemon/model/document.h"

#define MAX_VALUES 100000      // id2label maps and the like; what matters takes under 100

static const struct family {
	const char *name, *class;
	enum config_window window;
	uint32_t default_head_size;      // 0: width / heads
	double default_epsilon, default_theta;
	int (*read)(const json_t *o, struct architecture *a, struct error *err);    // all but the name; NULL: as Llama's
	json_t *(*write)(const struct architecture *a);
	int (*more)(const json_t *o, struct architecture *a, struct error *err);    // after what is read as Llama's; or NULL
	enum biases { NO_BIAS, ATTENTION_BIAS, ANY_BIAS } biases;      // that its keys can ask for
} families[] = {
	{"llama", "LlamaForCausalLM", CONFIG_WINDOW_NONE, 0, 1e-6, 1e4, NULL, NULL, NULL, ANY_BIAS},
	{"mistral", "MistralForCausalLM", CONFIG_WINDOW_ALL, 0, 1e-6, 1e4, NULL, NULL, NULL, NO_BIAS},
	{"qwen2", "Qwen2ForCausalLM", CONFIG_WINDOW_LATE, 0, 1e-6, 1e4, NULL, NULL, NULL, NO_BIAS},
	{"qwen3", "Qwen3ForCausalLM", CONFIG_WINDOW_LATE, 128, 1e-6, 1e4, NULL, NULL, NULL, ATTENTION_BIAS},
	{"mixtral", "MixtralForCausalLM", CONFIG_WINDOW_NONE, 0, 1e-5, 1e6, NULL, NULL, config_read_mixtral, NO_BIAS},
	{"qwen3_moe", "Qwen3MoeForCausalLM", CONFIG_WINDOW_NONE, 0, 1e-6, 1e4, NULL, NULL, config_read_qwen3_moe, ATTENTION_BIAS},
	{"gemma2", "Gemma2ForCausalLM", CONFIG_WINDOW_MIXED, 256, 1e-6, 1e4, config_read_gemma2, NULL, NULL, NO_BIAS},
	{"gemma3_text", "Gemma3ForCausalLM", CONFIG_WINDOW_MIXED, 256, 1e-6, 1e6, config_read_gemma3, NULL, NULL, NO_BIAS},
	{"phi3", "Phi3ForCausalLM", CONFIG_WINDOW_NONE, 0, 1e-5, 1e4, NULL, NULL, config_read_phi3, NO_BIAS},
	{"smollm3", "SmolLM3ForCausalLM", CONFIG_WINDOW_NONE, 0, 1e-6, 2e6, NULL, NULL, config_read_smollm3, ANY_BIAS},
	{"granite", "GraniteForCausalLM", CONFIG_WINDOW_NONE, 0, 1e-6, 1e4, NULL, NULL, config_read_granite, ANY_BIAS},
	{"gpt2", "GPT2LMHeadModel", CONFIG_WINDOW_NONE, 0, 0, 0, config_read_gpt2, config_write_gpt2, NULL, NO_BIAS},
	{"bert", "BertForMaskedLM", CONFIG_WINDOW_NONE, 0, 0, 0, config_read_bert, config_write_bert, NULL, NO_BIAS},
};
#define N_FAMILIES (sizeof families / sizeof *families)
#define SUPPORTED "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, MixtralForCausalLM, Qwen3MoeForCausalLM, " \
	"Gemma2ForCausalLM, Gemma3ForCausalLM, " CONFIG_GEMMA3_VISION ", Phi3ForCausalLM, SmolLM3ForCausalLM, GraniteForCausalLM, " \
	"GPT2LMHeadModel, BertForMaskedLM"

static int find_family(const json_t *o, const struct family **ret, struct error *err)
{
	const json_t *list = json_object_get(o, "architectures");
	const char *class = json_string_value(json_array_get(list, 0)), *type = NULL;
	int r = document_string(o, CONFIG_NAME, "model_type", &type, err);
	if (r < 0 && r != -ENOENT)
		return r;
	for (size_t i = 0; i < N_FAMILIES; i++) {
		if (class ? strcmp(class, families[i].class) != 0 : !type || strcmp(type, families[i].name) != 0)
			continue;
		if (type && strcmp(type, families[i].name) != 0)      // transformers goes by the one, or by the other
			return CONFIG_REFUSE("model_type", "model_type %.32s does not go with the architecture %s, whose is %s", type,
					     families[i].class, families[i].name);
		*ret = &families[i];
		return 0;
	}
	return CONFIG_REFUSE("architectures", "architecture %.64s is not supported (supported: " SUPPORTED ")",
			     class ? class : type ? type : "(none named)");
}

int config_read_size(const json_t *o, const char *key, uint64_t fallback, uint32_t *ret, struct error *err)
{
	uint64_t v = fallback;
	int r = document_u64(o, CONFIG_NAME, key, 0, UINT32_MAX, &v, err);
	if (r == -ENOENT)
		r = fallback ? 0 : error_set(err, ERROR_INVALID, key, CONFIG_NAME ": %s is missing", key);
	*ret = (uint32_t)v;
	return r;
}

int config_read_sizes(const json_t *o, uint32_t default_head_size, double default_epsilon, bool n_kv_heads_may_lack,
		      struct architecture *a, struct error *err)
{
	double epsilon = default_epsilon;
	int r;
	if ((r = config_read_size(o, "num_hidden_layers", 0, &a->n_layers, err)) < 0 ||
	    (r = config_read_size(o, "hidden_size", 0, &a->width, err)) < 0 ||
	    (r = config_read_size(o, "intermediate_size", 0, &a->ffn_width, err)) < 0 ||
	    (r = config_read_size(o, "num_attention_heads", 0, &a->n_heads, err)) < 0 ||
	    (r = config_read_size(o, "vocab_size", 0, &a->vocab_size, err)) < 0 ||
	    (r = config_read_size(o, "max_position_embeddings", 0, &a->context_length, err)) < 0)
		return r;
	if (a->n_heads == 0)
		return error_set(err, ERROR_INVALID, "num_attention_heads", CONFIG_NAME ": num_attention_heads is 0");
	// Only Llama counts the key/value heads as the heads when the key is absent; the others have a fixed default nobody relies on.
	if ((r = config_read_size(o, "num_key_value_heads", n_kv_heads_may_lack ? a->n_heads : 0, &a->n_kv_heads, err)) < 0)
		return r;
	uint32_t share = a->width / a->n_heads;
	if ((r = config_read_size(o, "head_dim", default_head_size ? default_head_size : share, &a->head_size, err)) < 0)
		return r;
	if ((r = document_real(o, CONFIG_NAME, "rms_norm_eps", &epsilon, err)) < 0 && r != -ENOENT)
		return r;
	a->norm_epsilon = (float)epsilon;
	return 0;
}

int config_refuse_set(const json_t *o, const char *key, const char *what, struct error *err)
{
	bool v = false;
	int r = document_bool(o, CONFIG_NAME, key, &v, err);
	if (r < 0 && r != -ENOENT)
		return r;
	return v ? CONFIG_REFUSE(key, "%s (%s) is not supported", key, what) : 0;
}

// Classes that do not know the key go on without a bias: who asked for one is told.
static int read_bias(const json_t *o, const char *key, bool known, bool *ret, struct error *err)
{
	int r = known ? document_bool(o, CONFIG_NAME, key, ret, err) : config_refuse_set(o, key, "a bias that the class lacks", err);
	return r == -ENOENT ? 0 : r;
}

static int check_features(const json_t *o, const struct family *f, struct architecture *a, struct error *err)
{
	const char *activation = NULL;
	int r = document_string(o, CONFIG_NAME, "hidden_act", &activation, err);
	if (r < 0 && r != -ENOENT)
		return r;
	if (activation && strcmp(activation, "silu") != 0)
		return CONFIG_REFUSE("hidden_act", "hidden_act %.32s is not supported (supported: silu)", activation);
	if ((r = read_bias(o, "attention_bias", f->biases != NO_BIAS, &a->out_bias, err)) < 0 ||
	    (r = read_bias(o, "mlp_bias", f->biases == ANY_BIAS, &a->ffn_bias, err)) < 0)
		return r;
	a->qkv_bias = a->qkv_bias || a->out_bias;
	return config_read_window(o, f->window, a, err);
}

bool config_has(const json_t *o, const char *key)
{
	const json_t *v = json_object_get(o, key);
	return v && !json_is_null(v) && !(json_is_object(v) && json_object_size(v) == 0);
}

static int check_any_family(const json_t *o, struct error *err)
{
	if (config_has(o, "quantization_config"))
		return CONFIG_REFUSE("quantization_config", "quantised safetensors are not supported (supported: F32 F16 BF16; or GGUF)");
	if (config_has(o, "per_layer_config"))
		return CONFIG_REFUSE("per_layer_config", "layers that differ (per_layer_config) are not supported");
	return 0;
}

// One id, or a list of which the first counts; null or absent is none.
static int read_token(const json_t *o, const char *key, int32_t *ret, struct error *err)
{
	const json_t *v = json_object_get(o, key);
	if (json_is_array(v) && json_array_size(v))
		v = json_array_get(v, 0);
	*ret = -1;
	if (!v || json_is_null(v))
		return 0;
	if (!json_is_integer(v) || json_integer_value(v) < -1 || json_integer_value(v) > INT32_MAX)
		return error_set(err, ERROR_INVALID, key, CONFIG_NAME ": %s must be a token id", key);
	*ret = (int32_t)json_integer_value(v);
	return 0;
}

static int read_llama(const json_t *o, const struct family *f, struct architecture *a, struct error *err)
{
	int r;
	a->qkv_bias = !strcmp(f->name, "qwen2");
	a->qk_norm = !strcmp(f->name, "qwen3");
	bool n_kv_heads_may_lack = !strcmp(f->name, "llama") || !strcmp(f->name, "phi3") || !strcmp(f->name, "granite");
	a->tied_head = !strcmp(f->name, "smollm3");      // the class' default
	if ((r = config_read_sizes(o, f->default_head_size, f->default_epsilon, n_kv_heads_may_lack, a, err)) < 0 ||
		(r = check_features(o, f, a, err)) < 0)
		return r;
	r = config_read_rope(o, f->default_theta, a, err);
	architecture_settle_window(a);      // whose context may be shorter now
	return r == 0 && f->more ? f->more(o, a, err) : r;
}

// transformers' classes but Phi-3's rotate whole heads, whatever partial_rotary_factor says (or fail).
static int check_rotation(const struct architecture *a, struct error *err)
{
	if (!a->rope_size || a->fused)
		return 0;
	return CONFIG_REFUSE("partial_rotary_factor", "partial_rotary_factor is not supported in models of the family %s (supported: 1)",
			     a->name);
}

int architecture_from_json(const char *json, size_t n, struct architecture *ret, struct error *err)
{
	struct architecture a = {.bos_id = -1, .eos_id = -1};
	const struct family *f = NULL;
	json_t *o = NULL;
	int r = document_parse(json, n, CONFIG_NAME, MAX_VALUES, &o, err);
	if (r < 0)
		return r;
	if ((r = config_take_text(&o, err)) < 0 || (r = find_family(o, &f, err)) < 0)
		goto out;
	snprintf(a.name, sizeof a.name, "%s", f->name);
	if ((r = check_any_family(o, err)) < 0 || (r = f->read ? f->read(o, &a, err) : read_llama(o, f, &a, err)) < 0 ||
	    (r = check_rotation(&a, err)) < 0 ||
	    (r = read_token(o, "bos_token_id", &a.bos_id, err)) < 0 || (r = read_token(o, "eos_token_id", &a.eos_id, err)) < 0)
		goto out;
	r = document_bool(o, CONFIG_NAME, "tie_word_embeddings", &a.tied_head, err);
	if (r == 0 || r == -ENOENT)
		r = architecture_check(&a, err);
out:
	json_decref(o);
	if (r == 0)
		*ret = a;
	return r;
}

// The class that computes what the flags say, whatever the family's name was (a GGUF "llama" may carry QKV biases).
static const struct family *family_of(const struct architecture *a)
{
	if (a->learned_positions)
		return &families[a->masked ? N_FAMILIES - 1 : N_FAMILIES - 2];
	if (a->qk_norm)
		return a->qkv_bias == a->out_bias && !a->ffn_bias ? &families[3] : NULL;
	if (a->qkv_bias && !a->out_bias)
		return a->ffn_bias ? NULL : &families[2];
	if (a->out_bias != a->qkv_bias)
		return NULL;
	if (!strcmp(a->name, "mistral") || a->window)      // a GGUF "llama" may have windows: those of Mistral's class
		return a->out_bias || a->ffn_bias ? NULL : &families[1];
	return &families[0];
}

json_t *config_token_json(int32_t id)
{
	return id < 0 ? json_null() : json_integer(id);
}

double config_decimal_of(float f)
{
	char text[32];
	double v = (double)f;
	for (int digits = 6; digits <= 9; digits++) {
		snprintf(text, sizeof text, "%.*g", digits, (double)f);
		v = strtod(text, NULL);
		if ((float)v == f)
			break;
	}
	return v;
}

static json_t *write_llama(const struct architecture *a, const struct family *f)
{
	int r = 0;
	json_t *o = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:s, s:f, s:o, s:b}",
		"num_hidden_layers", (json_int_t)a->n_layers, "hidden_size",
		(json_int_t)a->width, "intermediate_size", (json_int_t)a->ffn_width, "num_attention_heads", (json_int_t)a->n_heads,
		"num_key_value_heads", (json_int_t)a->n_kv_heads, "head_dim", (json_int_t)a->head_size,
		"max_position_embeddings", (json_int_t)a->context_length, "rms_norm_eps", config_decimal_of(a->norm_epsilon),
		"hidden_act", "silu", "rope_theta", a->rope_theta, "rope_scaling", config_rope_json(a), "attention_bias", (int)a->out_bias);
	if (o && f == &families[0])
		r = json_object_set_new(o, "mlp_bias", json_boolean(a->ffn_bias));
	if (o && f->window != CONFIG_WINDOW_NONE)
		r |= config_write_window(a, f->window, o);
	if (r == 0)
		return o;
	json_decref(o);
	return NULL;
}

int architecture_to_json(const struct architecture *a, char **ret_json, struct error *err)
{
	int r = architecture_check(a, err);
	if (r < 0)
		return r;
	if (!architecture_trains(a))
		return error_set(err, ERROR_UNSUPPORTED, NULL, "models of the family %s are not written", a->name);
	const struct family *f = family_of(a);
	if (!f)
		return error_set(err, ERROR_UNSUPPORTED, NULL, "no class of transformers has these biases, norms and windows together");
	bool factor = a->rope_scaling == ROPE_SCALING_YARN || a->rope_scaling == ROPE_SCALING_LONGROPE;
	if (a->rope_scaling == ROPE_SCALING_DIVISORS || a->rope_size || (!factor && a->rope_attention_factor != 0))
		return error_set(err, ERROR_UNSUPPORTED, NULL,
			"rope_freqs.weight, attn_factor or dimension_count of this GGUF cannot be written as transformers' rope scaling");
	json_t *o = json_pack("{s:[s], s:s, s:I, s:b, s:o, s:o, s:s}", "architectures", f->class, "model_type", f->name, "vocab_size",
		(json_int_t)a->vocab_size, "tie_word_embeddings", (int)a->tied_head, "bos_token_id", config_token_json(a->bos_id),
		"eos_token_id", config_token_json(a->eos_id), "torch_dtype", "float32");
	json_t *own = f->write ? f->write(a) : write_llama(a, f);
	char *text = o && own && json_object_update(o, own) == 0 ? jansson_dump(o, JSON_INDENT(2)) : NULL;
	json_decref(own);
	json_decref(o);
	if (!text)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for " CONFIG_NAME);
	*ret_json = text;
	return 0;
}
