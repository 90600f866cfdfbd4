// SPDX-License-Identifier: Apache-2.0
// config.json of Gemma 2 and Gemma 3 (text, or the text half of one that sees): gelu by tanh in the gated unit, capped scores and logits, a
// scale of queries of its own, layers that slide by a pattern, and (Gemma 3) rotate with a base of their own.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/model/config_json.h"
#include "daemon/model/document.h"

static int check_features(const json_t *o, struct error *err)
{
	const char *activation = "gelu_pytorch_tanh";
	int r = document_string(o, CONFIG_NAME, "hidden_activation", &activation, err);
	if (r == -ENOENT)      // the first files had the older key, and in it a name that meant this one
		r = 0;
	if (r == 0 && strcmp(activation, "gelu_pytorch_tanh") != 0)
		return CONFIG_REFUSE("hidden_activation", "hidden_activation %.32s is not supported (supported: gelu_pytorch_tanh)",
			activation);
	if (r < 0 || (r = config_refuse_set(o, "attention_bias", "bias in attention", err)) < 0)
		return r;
	return config_refuse_set(o, "use_bidirectional_attention", "attention to what follows", err);
}

// null is none.
static int read_cap(const json_t *o, const char *key, double fallback, float *ret, struct error *err)
{
	const json_t *v = json_object_get(o, key);
	double cap = v ? 0 : fallback;
	int r = document_real(o, CONFIG_NAME, key, &cap, err);
	if (r == 0 && !(cap > 0))
		return error_set(err, ERROR_INVALID, key, CONFIG_NAME ": %s must be above 0, or null", key);
	*ret = (float)cap;
	return r == -ENOENT ? 0 : r;
}

static int read_common(const json_t *o, const char *name, double score_cap, double logit_cap, struct architecture *a, struct error *err)
{
	int r;
	snprintf(a->name, sizeof a->name, "%s", name);
	a->gemma = true;
	a->activation = ACTIVATION_GEGLU;
	a->tied_head = true;      // unless the file says otherwise
	a->query_scalar = 256;
	if ((r = config_read_sizes(o, 256, 1e-6, false, a, err)) < 0 || (r = check_features(o, err)) < 0 ||
	    (r = read_cap(o, "attn_logit_softcapping", score_cap, &a->score_cap, err)) < 0 ||
	    (r = read_cap(o, "final_logit_softcapping", logit_cap, &a->logit_cap, err)) < 0)
		return r;
	r = document_real(o, CONFIG_NAME, "query_pre_attn_scalar", &a->query_scalar, err);
	if (r == 0 && !(a->query_scalar > 0))
		return error_set(err, ERROR_INVALID, "query_pre_attn_scalar", CONFIG_NAME ": query_pre_attn_scalar must be above 0");
	return r == -ENOENT ? 0 : r;
}

// All but every n-th layer slide.
static void slide_by_pattern(struct architecture *a, uint64_t n)
{
	for (uint32_t i = 0; i < a->n_layers && i < ARCHITECTURE_MAX_LAYERS; i++)
		a->sliding[i] = (i + 1) % n != 0;
}

int config_read_gemma2(const json_t *o, struct architecture *a, struct error *err)
{
	int r = read_common(o, "gemma2", 50, 30, a, err);
	if (r < 0)
		return r;
	slide_by_pattern(a, 2);
	r = config_read_window(o, CONFIG_WINDOW_MIXED, a, err);
	return r < 0 ? r : config_read_rope(o, 10000, a, err);
}

// Old files: rope_theta, rope_local_base_freq, and a rope_scaling that is the full layers' alone. New ones:
// "rope_parameters": {"full_attention": {...}, "sliding_attention": {...}}, for which the old keys are the fallback.
static int read_rope(const json_t *o, struct architecture *a, struct error *err)
{
	const json_t *both = json_object_get(o, "rope_parameters");
	const json_t *full = json_object_get(both, "full_attention"), *sliding = json_object_get(both, "sliding_attention");
	struct architecture of_sliding = {.rope_theta = 10000, .head_size = a->head_size, .context_length = a->context_length};
	int r = document_real(o, CONFIG_NAME, "rope_local_base_freq", &of_sliding.rope_theta, err);
	if (r < 0 && r != -ENOENT)
		return r;
	if (config_has(o, "rope_parameters") && !full && !sliding)
		return CONFIG_REFUSE("rope_parameters", "rope_parameters of Gemma 3 are read by kind of layer (full_attention, "
				     "sliding_attention)");
	if (full && config_has(o, "rope_scaling"))
		return CONFIG_REFUSE("rope_scaling", "rope_scaling beside rope_parameters is not supported");
	if ((r = config_read_theta(o, 1e6, a, err)) < 0 ||
	    (config_has(o, "rope_scaling") && (r = config_read_rope_object(NULL, json_object_get(o, "rope_scaling"), a, err)) < 0) ||
	    (full && (r = config_read_rope_object(NULL, full, a, err)) < 0) ||
	    (sliding && (r = config_read_rope_object(NULL, sliding, &of_sliding, err)) < 0))
		return r;
	if (of_sliding.rope_scaling != ROPE_SCALING_NONE || of_sliding.rope_size)
		return CONFIG_REFUSE("rope_parameters", "scaled rotation in sliding layers is not supported");
	if (!(of_sliding.rope_theta > 0))
		return error_set(err, ERROR_INVALID, "rope_local_base_freq", CONFIG_NAME ": rope_local_base_freq must be above 0");
	a->rope_theta_sliding = of_sliding.rope_theta;
	return 0;
}

int config_read_gemma3(const json_t *o, struct architecture *a, struct error *err)
{
	uint64_t pattern = 6;
	int r = read_common(o, "gemma3", 0, 0, a, err);
	if (r < 0)
		return r;
	a->qk_norm = true;
	if (a->score_cap != 0)      // the key is there, and transformers' attention does not look at it
		return CONFIG_REFUSE("attn_logit_softcapping", "attn_logit_softcapping of Gemma 3 is not supported (supported: null)");
	r = document_u64(o, CONFIG_NAME, "sliding_window_pattern", 1, ARCHITECTURE_MAX_LAYERS, &pattern, err);
	if (r < 0 && r != -ENOENT)
		return r;
	slide_by_pattern(a, pattern);
	r = read_rope(o, a, err);
	return r < 0 ? r : config_read_window(o, CONFIG_WINDOW_MIXED, a, err);
}

static bool is_vision(const json_t *o)
{
	const char *class = json_string_value(json_array_get(json_object_get(o, "architectures"), 0));
	const char *type = json_string_value(json_object_get(o, "model_type"));
	return class ? !strcmp(class, CONFIG_GEMMA3_VISION) : type && !strcmp(type, "gemma3");
}

static int check_type(const json_t *o, const char *field, const char *wanted, struct error *err)
{
	const char *type = wanted;
	int r = document_string(o, CONFIG_NAME, "model_type", &type, err);
	if (r < 0 && r != -ENOENT)
		return r;
	if (!strcmp(type, wanted))
		return 0;
	return CONFIG_REFUSE(field, "model_type %.32s is not supported in " CONFIG_GEMMA3_VISION " (supported: %s)", type, wanted);
}

static int check_tied(const json_t *o, struct error *err)
{
	bool tied = !json_object_get(o, "tie_word_embeddings");      // null is false there
	int r = document_bool(o, CONFIG_NAME, "tie_word_embeddings", &tied, err);
	if (r < 0 && r != -ENOENT)
		return r;
	return tied ? 0 : CONFIG_REFUSE("tie_word_embeddings", "a head of its own is not supported in " CONFIG_GEMMA3_VISION);
}

// Where transformers computes something else than for the same text model alone, nobody says which was meant.
static int check_vision(const json_t *o, const json_t *text, struct error *err)
{
	const json_t *scaling = json_object_get(text, "rope_scaling");
	int r;
	if ((r = check_type(o, "model_type", "gemma3", err)) < 0 || (r = check_type(text, "text_config", "gemma3_text", err)) < 0 ||
	    (r = check_tied(o, err)) < 0 || (r = check_tied(text, err)) < 0)
		return r;
	if (config_has(text, "final_logit_softcapping"))
		return CONFIG_REFUSE("final_logit_softcapping", "final_logit_softcapping is not supported in " CONFIG_GEMMA3_VISION);
	if (config_has(scaling, "type"))
		return CONFIG_REFUSE("rope_scaling", "rope_scaling with the old key \"type\" is not supported in " CONFIG_GEMMA3_VISION);
	return 0;
}

// Published files leave out what is as in transformers' class.
static json_t *vision_defaults(void)
{
	return json_pack("{s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i}", "vocab_size", 262208, "hidden_size", 2304, "intermediate_size", 9216,
			 "num_hidden_layers", 26, "num_attention_heads", 8, "num_key_value_heads", 4, "max_position_embeddings", 131072,
			 "sliding_window", 4096);
}

static json_t *text_of(const json_t *o, const json_t *text)
{
	static const char *const outer[] = {"bos_token_id", "eos_token_id", "quantization_config"};
	json_t *ret = text ? json_deep_copy(text) : json_object(), *defaults = vision_defaults();
	json_t *class = json_pack("[s]", "Gemma3ForCausalLM"), *type = json_string("gemma3_text");
	int r = ret && defaults ? json_object_update_missing(ret, defaults) : -1;
	r |= ret ? json_object_set(ret, "architectures", class) | json_object_set(ret, "model_type", type) : -1;
	for (size_t i = 0; i < sizeof outer / sizeof *outer && r == 0; i++)
		if (config_has(o, outer[i]))
			r = json_object_set(ret, outer[i], json_object_get(o, outer[i]));
	json_decref(class);
	json_decref(type);
	json_decref(defaults);
	if (r == 0)
		return ret;
	json_decref(ret);
	return NULL;
}

int config_take_text(json_t **document, struct error *err)
{
	const json_t *text = config_has(*document, "text_config") ? json_object_get(*document, "text_config") : NULL;
	if (!is_vision(*document))
		return 0;
	if (text && !json_is_object(text))
		return error_set(err, ERROR_INVALID, "text_config", CONFIG_NAME ": text_config must be an object");
	int r = check_vision(*document, text, err);
	if (r < 0)
		return r;
	json_t *flat = text_of(*document, text);
	if (!flat)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for " CONFIG_NAME);
	json_decref(*document);
	*document = flat;
	return 0;
}
