// SPDX-License-Identifier: Apache-2.0
// Limits of an architecture (what every later size computation relies on) and its parameter count.
#include "daemon/model/config.h"

#include <math.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/config_check.h"

int config_check_number(const char *name, uint64_t value, uint64_t min, uint64_t max, struct error *err)
{
	if (value >= min && value <= max)
		return 0;
	return error_set(err, ERROR_INVALID, name, "%s is %llu; supported: %llu to %llu", name, (unsigned long long)value,
			 (unsigned long long)min, (unsigned long long)max);
}

int config_check_real(const char *name, double value, double above, double max, struct error *err)
{
	if (value > above && value <= max)      // false for NaN
		return 0;
	return error_set(err, ERROR_INVALID, name, "%s is %g; it must be above %g and at most %g", name, value, above, max);
}

void architecture_settle_window(struct architecture *a)
{
	bool any = false;
	for (uint32_t i = 0; i < a->n_layers && i < ARCHITECTURE_MAX_LAYERS; i++)
		any = any || a->sliding[i];
	if (any && a->window && a->window < a->context_length)
		return;
	a->window = 0;
	if (a->rope_theta_sliding == 0)
		memset(a->sliding, 0, sizeof a->sliding);
}

int architecture_check(const struct architecture *a, struct error *err)
{
	int r;
	if ((r = config_check_number("number of layers", a->n_layers, 1, ARCHITECTURE_MAX_LAYERS, err)) < 0 ||
	    (r = config_check_number("width", a->width, 1, 65536, err)) < 0 ||
	    (r = config_check_number("feed-forward width", a->ffn_width, 1, 1u << 20, err)) < 0 ||
	    (r = config_check_number("number of heads", a->n_heads, 1, 1024, err)) < 0 ||
	    (r = config_check_number("number of key/value heads", a->n_kv_heads, 1, a->n_heads, err)) < 0 ||
	    (r = config_check_number("head size", a->head_size, 2, ARCHITECTURE_MAX_HEAD_SIZE, err)) < 0 ||
	    (r = config_check_number("vocabulary size", a->vocab_size, 1, 1u << 24, err)) < 0 ||
	    (r = config_check_number("context length", a->context_length, 1, 1u << 30, err)) < 0 ||
	    (r = config_check_real("norm epsilon", (double)a->norm_epsilon, 0, 1, err)) < 0)
		return r;
	if (a->n_heads % a->n_kv_heads)
		return error_set(err, ERROR_INVALID, "n_kv_heads", "%u heads are not a multiple of %u key/value heads",
			a->n_heads, a->n_kv_heads);
	if (a->head_size % 2 && !a->learned_positions)
		return error_set(err, ERROR_INVALID, "head_size", "head size %u is odd; rotation needs pairs", a->head_size);
	if (a->bos_id < -1 || a->eos_id < -1)
		return error_set(err, ERROR_INVALID, a->bos_id < -1 ? "bos_id" : "eos_id", "token id below -1 (-1 = none)");
	if (a->n_token_types > 65536)
		return error_set(err, ERROR_INVALID, "type_vocab_size", "%u token types; supported: up to 65536", a->n_token_types);
	if ((a->post_norm || a->masked) && a->norm != NORM_LAYER)
		return error_set(err, ERROR_UNSUPPORTED, NULL, "post-norm blocks and masked models have layer norms");
	if (a->n_experts && ((r = config_check_number("number of experts", a->n_experts, 1, ARCHITECTURE_MAX_EXPERTS, err)) < 0 ||
			     (r = config_check_number("number of experts used", a->n_experts_used, 1, a->n_experts, err)) < 0))
		return r;
	if (a->score_cap != 0 && (r = config_check_real("attn_logit_softcapping", (double)a->score_cap, 0, 1e6, err)) < 0)
		return r;
	if (a->logit_cap != 0 && (r = config_check_real("final_logit_softcapping", (double)a->logit_cap, 0, 1e6, err)) < 0)
		return r;
	if (a->query_scalar != 0 && (r = config_check_real("query_pre_attn_scalar", a->query_scalar, 0, 1e9, err)) < 0)
		return r;
	if ((a->embedding_scale != 0 && (r = config_check_real("embedding_multiplier", a->embedding_scale, 0, 1e9, err)) < 0) ||
	    (a->residual_scale != 0 && (r = config_check_real("residual_multiplier", a->residual_scale, 0, 1e9, err)) < 0) ||
	    (a->logit_divisor != 0 && (r = config_check_real("logits_scaling", a->logit_divisor, 0, 1e9, err)) < 0))
		return r;
	if (a->rope_theta_sliding != 0 && (r = config_check_real("rope_local_base_freq", a->rope_theta_sliding, 0, 1e30, err)) < 0)
		return r;
	if (a->window && a->masked)
		return error_set(err, ERROR_UNSUPPORTED, NULL, "masked models with sliding windows");
	if (a->qk_norm && a->masked)
		return error_set(err, ERROR_UNSUPPORTED, NULL, "masked models with Q/K norms");
	return a->learned_positions ? 0 : config_check_rope(a, err);
}

bool architecture_trains(const struct architecture *a)
{
	return !a->gemma && !a->n_experts && !a->fused && strcmp(a->name, "smollm3") != 0 && strcmp(a->name, "granite") != 0;
}

static uint64_t layer_parameters(const struct architecture *a)
{
	uint64_t C = a->width, D = a->head_size, W = (a->n_heads + 2 * (uint64_t)a->n_kv_heads) * D, up = architecture_up_width(a);
	uint64_t norm = a->norm == NORM_LAYER ? 2 * C : C, n = 2 * norm + W * C + C * a->n_heads * D;
	n += a->n_experts ? a->n_experts * ((up + a->ffn_width) * C + C) : (up + a->ffn_width) * C;
	if (a->qkv_bias)
		n += W;
	if (a->qk_norm)
		n += 2 * D;
	if (a->gemma)
		n += 2 * C;
	if (a->out_bias)
		n += C;
	if (a->ffn_bias)
		n += C + up;
	return n;
}

uint64_t architecture_n_parameters(const struct architecture *a)
{
	uint64_t C = a->width, V = a->vocab_size, norm = a->norm == NORM_LAYER ? 2 * C : C;
	uint64_t n = a->n_layers * layer_parameters(a) + norm + (a->tied_head ? 1 : 2) * V * C + a->n_token_types * C;
	if (a->learned_positions)
		n += a->context_length * C;
	if (a->masked)
		n += C * C + C + norm + V;
	return n;
}
