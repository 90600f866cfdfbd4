// SPDX-License-Identifier: Apache-2.0
// GGUF metadata -> struct architecture. Keys are "<architecture>.<what>"; what has no key is told by the tensors present (tied head,
// biases).
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/config_gguf.h"

const char *config_gguf_key(const struct config_source *s, const char *key, char ret[128])
{
	snprintf(ret, 128, "%s.%s", s->family, key);
	return ret;
}

int config_gguf_missing(const struct config_source *s, const char *key)
{
	return error_set(s->err, ERROR_INVALID, key, "GGUF metadata: key %s is missing", key);
}

int config_gguf_size(const struct config_source *s, const char *key, uint32_t fallback, uint32_t *ret)
{
	char name[128];
	uint64_t v = fallback;
	int r = gguf_get_u64(s->file, config_gguf_key(s, key, name), &v, s->err);
	if (r == -ENOENT)
		r = fallback ? 0 : config_gguf_missing(s, name);
	if (r == 0 && v > UINT32_MAX)
		r = error_set(s->err, ERROR_INVALID, name, "GGUF metadata: %s is %llu", name, (unsigned long long)v);
	*ret = (uint32_t)v;
	return r;
}

static int read_real(const struct config_source *s, const char *key, double fallback, double *ret)
{
	char name[128];
	*ret = fallback;
	int r = gguf_get_f64(s->file, config_gguf_key(s, key, name), ret, s->err);
	return r == -ENOENT ? fallback != 0 ? 0 : config_gguf_missing(s, name) : r;
}

int config_gguf_optional(const struct config_source *s, const char *key, double *value)
{
	char name[128];
	int r = gguf_get_f64(s->file, config_gguf_key(s, key, name), value, s->err);
	return r == -ENOENT ? 0 : r;
}

// A number of whatever type, a boolean as 0 or 1; what is neither is no number.
static int read_any(const struct config_source *s, const char *name, double *ret)
{
	uint64_t u;
	bool b;
	int r = gguf_get_f64(s->file, name, ret, NULL);
	if (r != -EINVAL)
		return r;
	*ret = gguf_get_u64(s->file, name, &u, NULL) == 0 ? (double)u : gguf_get_bool(s->file, name, &b, NULL) == 0 ? b : (double)NAN;
	return 0;
}

// What llama.cpp's keys say of other families would change numbers of these too: each is absent, or has a value that changes nothing.
static int refuse_foreign(const struct config_source *s)
{
	static const struct { const char *key, *unless; double neutral, other; } keys[] = {
		{"attention.causal", "", 1, 1}, {"attention.scale", "granite", 0, 0}, {"attention.output_scale", "", 0, 1},
		{"attention.value_scale", "", 0, 1}, {"attention.temperature_scale", "", 0, 0}, {"attention.clamp_kqv", "", 0, 0},
		{"attention.max_alibi_bias", "", 0, 0}, {"attn_logit_softcapping", "gemma2", 0, 0},
		{"final_logit_softcapping", "gemma2 gemma3", 0, 0}, {"router_logit_softcapping", "", 0, 0},
		{"logit_scale", "granite", 0, 1},
		{"residual_scale", "granite", 0, 1},
		{"embedding_scale", "granite", 0, 1}, {"use_parallel_residual", "", 0, 0}, {"swin_norm", "", 0, 0},
		{"rope.scaling.attn_factor", "llama qwen2 qwen3 qwen3moe phi3 smollm3 granite", 0, 1}, {"rope.scaling.alpha", "", 0, 0},
		{"rope.scaling.yarn_ext_factor", "", -1, 1}, {"rope.scaling.yarn_attn_factor", "", 1, 1},
		{"rope.scaling.yarn_log_multiplier", "", 0, 0}, {"rope.freq_base_swa", "gemma3", 0, 0},
		{"expert_weights_scale", "", 0, 1}, {"expert_weights_norm", "", 1, 1}, {"expert_gating_func", "", 0, 1},
		{"expert_group_count", "", 0, 1}, {"expert_shared_count", "", 0, 0}, {"expert_shared_feed_forward_length", "", 0, 0},
		{"leading_dense_block_count", "", 0, 0}, {"interleave_moe_layer_step", "", 0, 1}, {"moe_every_n_layers", "", 0, 1},
		{"swiglu_clamp_exp", "", 0, 0}, {"nextn_predict_layers", "", 0, 0},
	};
	for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
		char name[128];
		double v;
		if (strstr(keys[i].unless, s->family) || read_any(s, config_gguf_key(s, keys[i].key, name), &v) == -ENOENT)
			continue;
		if (!(v == keys[i].neutral || v == keys[i].other))
			return error_set(s->err, ERROR_UNSUPPORTED, name, "GGUF metadata: %s is %g, which is not supported "
					 "(supported: %g)", name, v, keys[i].other);
	}
	return 0;
}

static int read_sizes(const struct config_source *s, struct architecture *a)
{
	double epsilon;
	int r;
	if ((r = config_gguf_size(s, "block_count", 0, &a->n_layers)) < 0 ||
	    (r = config_gguf_size(s, "embedding_length", 0, &a->width)) < 0 ||
	    (r = config_gguf_size(s, "feed_forward_length", 0, &a->ffn_width)) < 0 ||
	    (r = config_gguf_size(s, "attention.head_count", 0, &a->n_heads)) < 0 ||
	    (r = config_gguf_size(s, "context_length", 0, &a->context_length)) < 0 ||
	    (r = read_real(s, a->norm == NORM_LAYER ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon",
			   0, &epsilon)) < 0)
		return r;
	if (a->n_heads == 0)
		return error_set(s->err, ERROR_INVALID, "attention.head_count", "GGUF metadata: %s.attention.head_count is 0", s->family);
	a->norm_epsilon = (float)epsilon;
	if ((r = config_gguf_size(s, "attention.head_count_kv", a->n_heads, &a->n_kv_heads)) < 0)
		return r;
	return config_gguf_size(s, "attention.key_length", a->width / a->n_heads, &a->head_size);
}

static int refuse_other(const struct config_source *s, const char *key, uint32_t wanted, const char *what)
{
	uint32_t v;
	int r = config_gguf_size(s, key, wanted, &v);
	if (r < 0 || v == wanted)
		return r;
	return error_set(s->err, ERROR_UNSUPPORTED, key, "GGUF metadata: %s.%s is %u: %s not supported", s->family, key, v, what);
}

// Files of families without layers of their own kinds: all of them slide, if any. Qwen's, some of which may, say not which.
static int read_window(const struct config_source *s, struct architecture *a)
{
	int r = config_gguf_size(s, "attention.sliding_window", UINT32_MAX, &a->window);
	if (r == 0 && a->window && a->window < a->context_length && strcmp(a->name, "llama") != 0 &&
	    !a->fused)
		return error_set(s->err, ERROR_UNSUPPORTED, "attention.sliding_window", "GGUF metadata: %s.attention.sliding_window is %u, "
				 "but which layers slide is not said", s->family, a->window);
	for (uint32_t i = 0; i < a->n_layers && i < ARCHITECTURE_MAX_LAYERS; i++)
		a->sliding[i] = true;
	architecture_settle_window(a);
	return r;
}

// Mixtures, all of whose files are evaluated with normalised probabilities.
static int read_experts(const struct config_source *s, struct architecture *a)
{
	int r = config_gguf_size(s, "expert_count", UINT32_MAX, &a->n_experts);
	if (r < 0)
		return r;
	if (a->n_experts == UINT32_MAX || a->n_experts == 0) {
		a->n_experts = 0;
		return strcmp(a->name, "qwen3moe") ? 0 : config_gguf_missing(s, "qwen3moe.expert_count");
	}
	if (strcmp(a->name, "llama") != 0 && strcmp(a->name, "qwen3moe") != 0)
		return error_set(s->err, ERROR_UNSUPPORTED, "expert_count", "GGUF metadata: %s.expert_count is %u: experts of this "
				 "family are not supported", s->family, a->n_experts);
	a->normalise_experts = true;
	if ((r = config_gguf_size(s, "expert_used_count", 0, &a->n_experts_used)) < 0)
		return r;
	return strcmp(a->name, "qwen3moe") ? 0 : config_gguf_size(s, "expert_feed_forward_length", a->ffn_width, &a->ffn_width);
}

// Gemma 3 without a window has no sliding layers, whose rotation would be another.
static void stop_sliding(struct architecture *a)
{
	memset(a->sliding, 0, sizeof a->sliding);
	a->rope_theta_sliding = 0;
}

// What llama.cpp knows of the family without a key: the caps' defaults, the pattern of layers, the window of Gemma 2, the base of sliding
// layers, and that the models of 27 B scale queries by width / heads.
static int read_gemma(const struct config_source *s, struct architecture *a)
{
	bool third = !strcmp(a->name, "gemma3");
	double score_cap = third ? 0 : 50, logit_cap = third ? 0 : 30, theta = third ? 10000 : 0;
	uint32_t pattern;
	int r;
	if ((r = config_gguf_size(s, "attention.sliding_window_pattern", third ? 6 : 2, &pattern)) < 0 ||
	    (!third && (r = config_gguf_optional(s, "attn_logit_softcapping", &score_cap)) < 0) ||
	    (r = config_gguf_optional(s, "final_logit_softcapping", &logit_cap)) < 0 ||
	    (third && (r = config_gguf_optional(s, "rope.freq_base_swa", &theta)) < 0) ||
	    (r = config_gguf_size(s, "attention.sliding_window", third ? UINT32_MAX : 4096, &a->window)) < 0)
		return r;
	a->score_cap = (float)score_cap;
	a->logit_cap = (float)logit_cap;
	a->rope_theta_sliding = theta;
	a->query_scalar = a->n_layers == (third ? 62 : 46) ? (double)a->width / a->n_heads : a->head_size;
	for (uint32_t i = 0; i < a->n_layers && i < ARCHITECTURE_MAX_LAYERS; i++)
		a->sliding[i] = pattern && (i + 1) % pattern != 0;
	if (third && (a->window == 0 || a->window == UINT32_MAX))
		stop_sliding(a);
	architecture_settle_window(a);
	return 0;
}

static int read_granite(const struct config_source *s, struct architecture *a)
{
	char name[128];
	double scale = 0;
	bool rotates = true;
	int r = gguf_get_bool(s->file, config_gguf_key(s, "rope.scaling.finetuned", name), &rotates, s->err);
	if (r < 0 && r != -ENOENT)
		return r;
	if (!rotates)
		return error_set(s->err, ERROR_UNSUPPORTED, name, "GGUF metadata: %s is false: layers that do not rotate", name);
	if ((r = read_real(s, "logit_scale", 0, &a->logit_divisor)) < 0 ||
	    (r = config_gguf_optional(s, "residual_scale", &a->residual_scale)) < 0 ||
	    (r = config_gguf_optional(s, "embedding_scale", &a->embedding_scale)) < 0 ||
	    (r = config_gguf_optional(s, "attention.scale", &scale)) < 0)
		return r;
	if (!(a->logit_divisor > 0) || scale < 0)
		return error_set(s->err, ERROR_INVALID, "logit_scale", "GGUF metadata: %s.logit_scale is %g, attention.scale %g",
				 s->family, a->logit_divisor, scale);
	a->query_scalar = scale > 0 ? 1 / (scale * scale) : 0;
	return read_window(s, a);
}

static int check_features(const struct config_source *s, struct architecture *a)
{
	int r;
	if ((r = refuse_foreign(s)) < 0 ||
	    (r = refuse_other(s, "attention.value_length", a->head_size, "values of another size than keys are")) < 0 ||
	    (r = refuse_other(s, "attention.key_length_swa", a->head_size, "heads of another size in sliding layers are")) < 0 ||
	    (r = refuse_other(s, "attention.value_length_swa", a->head_size, "heads of another size in sliding layers are")) < 0 ||
	    ((a->gemma || a->learned_positions) &&
	     (r = refuse_other(s, "rope.dimension_count", a->head_size, "partial rotation is")) < 0) ||
	    (r = refuse_other(s, "rope.dimension_count_swa", a->head_size, "partial rotation is")) < 0 ||
	    (r = read_experts(s, a)) < 0)
		return r;
	return a->gemma ? read_gemma(s, a) : !strcmp(a->name, "granite") ? read_granite(s, a) : read_window(s, a);
}

static bool is_text(const char *s, size_t n, const char *text)
{
	return n == strlen(text) && !memcmp(s, text, n);
}

// Converters fill the token list up to the height of the embedding with unused tokens "[PAD123]": those at the end have no token.
static int without_padding(const struct config_source *s, uint64_t *n_tokens)
{
	enum { UNUSED = 5 };      // ggml's token type
	int32_t *types = NULL;
	uint64_t n = 0;
	int r = gguf_get_int32s(s->file, "tokenizer.ggml.token_type", &types, &n, s->err);
	if (r < 0)
		return r == -ENOENT ? 0 : r;
	while (n == *n_tokens && n > 1) {
		const char *text;
		size_t text_n;
		if (types[n - 1] != UNUSED || gguf_string_at(s->file, "tokenizer.ggml.tokens", n - 1, &text, &text_n) < 0 || text_n < 4 ||
		    memcmp(text, "[PAD", 4) != 0)
			break;
		*n_tokens = --n;
	}
	free(types);
	return 0;
}

// Rows of the embedding, or fewer when the token list is shorter: see vocab_size in config.h.
static int read_vocabulary(const struct config_source *s, struct architecture *a)
{
	struct tensor t;
	uint64_t n_tokens;
	if (gguf_find(s->file, "token_embd.weight", &t) < 0)
		return error_set(s->err, ERROR_INVALID, "token_embd.weight", "tensor token_embd.weight is missing");
	int r = gguf_get_strings(s->file, "tokenizer.ggml.tokens", &n_tokens, s->err);
	if (r == -ENOENT)
		n_tokens = t.dims[0];
	else if (r < 0 || (r = without_padding(s, &n_tokens)) < 0)
		return r;
	if (n_tokens > t.dims[0])
		return error_set(s->err, ERROR_INVALID, "tokenizer.ggml.tokens", "%llu tokens, but token_embd.weight has %llu rows",
				 (unsigned long long)n_tokens, (unsigned long long)t.dims[0]);
	a->vocab_size = n_tokens < UINT32_MAX ? (uint32_t)n_tokens : UINT32_MAX;
	return 0;
}

static int read_token(const struct config_source *s, const char *key, int32_t *ret)
{
	uint64_t v = UINT64_MAX;
	int r = gguf_get_u64(s->file, key, &v, s->err);
	*ret = r == 0 && v <= INT32_MAX ? (int32_t)v : -1;      // 0xffffffff is written for none
	return r == -ENOENT ? 0 : r;
}

static int find_family(struct config_source *s, char ret_name[32])
{
	static const char *const supported[] = {"llama", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3", "smollm3",
						 "granite", "gpt2"};
	const char *name = NULL;
	size_t n = 0;
	int r = gguf_get_string(s->file, "general.architecture", &name, &n, s->err);
	if (r < 0)
		return r == -ENOENT ? config_gguf_missing(s, "general.architecture") : r;
	for (size_t i = 0; i < sizeof supported / sizeof *supported; i++) {
		if (is_text(name, n, supported[i])) {
			s->family = supported[i];
			snprintf(ret_name, 32, "%s", supported[i]);
			return 0;
		}
	}
	return error_set(s->err, ERROR_UNSUPPORTED, "general.architecture",
			 "GGUF metadata: architecture %.*s is not supported "
			 "(supported: llama, qwen2, qwen3, qwen3moe, gemma2, gemma3, phi3, smollm3, granite, gpt2)",
			 n < 32 ? (int)n : 32, name);
}

int architecture_from_gguf(const struct gguf *file, struct architecture *ret, struct error *err)
{
	struct architecture a = {.bos_id = -1, .eos_id = -1};
	struct config_source s = {.file = file, .err = err};
	struct tensor t;
	int r = find_family(&s, a.name);
	if (r < 0)
		return r;
	if (!strcmp(a.name, "gemma2") || !strcmp(a.name, "gemma3")) {
		a.gemma = true;
		a.activation = ACTIVATION_GEGLU;
	}
	if (!strcmp(a.name, "gpt2")) {
		a.norm = NORM_LAYER;
		a.activation = ACTIVATION_GELU_TANH;
		a.learned_positions = true;
	}
	a.fused = !strcmp(a.name, "phi3");
	for (uint32_t i = 0; i < ARCHITECTURE_MAX_LAYERS; i++)      // no key says so: it is the family's
		a.unrotated[i] = !strcmp(a.name, "smollm3") && (i + 1) % 4 == 0;
	if ((r = read_sizes(&s, &a)) < 0 || (r = check_features(&s, &a)) < 0 ||
	    (!a.learned_positions && (r = config_gguf_rope(&s, &a)) < 0) ||
	    (r = read_vocabulary(&s, &a)) < 0 || (r = read_token(&s, "tokenizer.ggml.bos_token_id", &a.bos_id)) < 0 ||
	    (r = read_token(&s, "tokenizer.ggml.eos_token_id", &a.eos_id)) < 0)
		return r;
	a.tied_head = gguf_find(file, "output.weight", &t) == -ENOENT;
	a.qkv_bias = gguf_find(file, a.learned_positions ? "blk.0.attn_qkv.bias" : "blk.0.attn_q.bias", &t) == 0;
	a.out_bias = a.learned_positions || gguf_find(file, "blk.0.attn_output.bias", &t) == 0;
	a.ffn_bias = a.learned_positions || gguf_find(file, "blk.0.ffn_up.bias", &t) == 0;
	a.qk_norm = !strcmp(a.name, "qwen3") || !strcmp(a.name, "qwen3moe") || !strcmp(a.name, "gemma3");
	if ((r = architecture_check(&a, err)) < 0)
		return r;
	*ret = a;
	return 0;
}
