// SPDX-License-Identifier: Apache-2.0
// config.json of Gemma 2 and Gemma 3 (text): gelu by tanh in the gated unit, capped scores and logits, a scale of queries of its own,
// layers that slide by a pattern, and (Gemma 3) rotate with a base of their own.
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
	if ((r = config_read_sizes(o, 256, false, a, err)) < 0 || (r = check_features(o, err)) < 0 ||
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

// New files: {"full_attention": {...}, "sliding_attention": {...}}.
static int read_rope_by_layer(const json_t *both, struct architecture *a, struct error *err)
{
	const json_t *full = json_object_get(both, "full_attention"), *sliding = json_object_get(both, "sliding_attention");
	struct architecture of_sliding = {.rope_theta = 10000};
	int r = full ? config_read_rope_object(full, a, err) : 0;
	if (r == 0 && sliding)
		r = config_read_rope_object(sliding, &of_sliding, err);
	if (r == 0 && of_sliding.rope_scaling != ROPE_SCALING_NONE)
		return CONFIG_REFUSE("rope_parameters", "scaled rotation in sliding layers is not supported");
	a->rope_theta_sliding = of_sliding.rope_theta;
	return r;
}

static int read_rope(const json_t *o, struct architecture *a, struct error *err)
{
	const json_t *both = json_object_get(o, "rope_parameters");
	a->rope_theta = 1e6;
	if (json_is_object(both) && (json_is_object(json_object_get(both, "full_attention")) ||
				     json_is_object(json_object_get(both, "sliding_attention"))))
		return read_rope_by_layer(both, a, err);
	a->rope_theta_sliding = 10000;
	int r = document_real(o, CONFIG_NAME, "rope_local_base_freq", &a->rope_theta_sliding, err);
	if (r < 0 && r != -ENOENT)
		return r;
	if (!(a->rope_theta_sliding > 0))
		return error_set(err, ERROR_INVALID, "rope_local_base_freq", CONFIG_NAME ": rope_local_base_freq must be above 0");
	return config_read_rope(o, 1e6, a, err);
}

int config_read_gemma3(const json_t *o, struct architecture *a, struct error *err)
{
	uint64_t pattern = 6;
	int r = read_common(o, "gemma3", 0, 0, a, err);
	if (r < 0)
		return r;
	a->qk_norm = true;
	r = document_u64(o, CONFIG_NAME, "sliding_window_pattern", 1, ARCHITECTURE_MAX_LAYERS, &pattern, err);
	if (r < 0 && r != -ENOENT)
		return r;
	slide_by_pattern(a, pattern);
	r = read_rope(o, a, err);
	return r < 0 ? r : config_read_window(o, CONFIG_WINDOW_MIXED, a, err);
}
