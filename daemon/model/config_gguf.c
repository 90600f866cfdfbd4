// SPDX-License-Identifier: Apache-2.0
// GGUF metadata -> struct architecture. Keys are "<architecture>.<what>"; what has no key is told by the tensors present (tied head,
// biases).
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/config.h"
#include "daemon/model/gguf.h"

struct source {
	const struct gguf *file;
	const char *family;
	struct error *err;
};

// Writes "<family>.<key>" and returns it.
static const char *key_of(const struct source *s, const char *key, char ret[128])
{
	snprintf(ret, 128, "%s.%s", s->family, key);
	return ret;
}

static int missing(const struct source *s, const char *key)
{
	return error_set(s->err, ERROR_INVALID, key, "GGUF metadata: key %s is missing", key);
}

// fallback 0: the key must be there.
static int read_size(const struct source *s, const char *key, uint32_t fallback, uint32_t *ret)
{
	char name[128];
	uint64_t v = fallback;
	int r = gguf_get_u64(s->file, key_of(s, key, name), &v, s->err);
	if (r == -ENOENT)
		r = fallback ? 0 : missing(s, name);
	if (r == 0 && v > UINT32_MAX)
		r = error_set(s->err, ERROR_INVALID, name, "GGUF metadata: %s is %llu", name, (unsigned long long)v);
	*ret = (uint32_t)v;
	return r;
}

static int read_real(const struct source *s, const char *key, double fallback, double *ret)
{
	char name[128];
	*ret = fallback;
	int r = gguf_get_f64(s->file, key_of(s, key, name), ret, s->err);
	return r == -ENOENT ? fallback != 0 ? 0 : missing(s, name) : r;
}

static int read_optional(const struct source *s, const char *key, double *value)
{
	char name[128];
	int r = gguf_get_f64(s->file, key_of(s, key, name), value, s->err);
	return r == -ENOENT ? 0 : r;
}

// A number of whatever type, a boolean as 0 or 1; what is neither is no number.
static int read_any(const struct source *s, const char *name, double *ret)
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
static int refuse_foreign(const struct source *s)
{
	static const struct { const char *key, *unless; double neutral, other; } keys[] = {
		{"attention.causal", "", 1, 1}, {"attention.scale", "", 0, 0}, {"attention.output_scale", "", 0, 1},
		{"attention.value_scale", "", 0, 1}, {"attention.temperature_scale", "", 0, 0}, {"attention.clamp_kqv", "", 0, 0},
		{"attention.max_alibi_bias", "", 0, 0}, {"attn_logit_softcapping", "gemma2", 0, 0},
		{"final_logit_softcapping", "gemma2 gemma3", 0, 0}, {"router_logit_softcapping", "", 0, 0}, {"logit_scale", "", 0, 1},
		{"residual_scale", "", 0, 1}, {"embedding_scale", "", 0, 1}, {"use_parallel_residual", "", 0, 0}, {"swin_norm", "", 0, 0},
		{"rope.scaling.attn_factor", "", 0, 1}, {"rope.scaling.alpha", "", 0, 0}, {"rope.freq_base_swa", "gemma3", 0, 0},
		{"expert_weights_scale", "", 0, 1}, {"expert_weights_norm", "", 1, 1}, {"expert_gating_func", "", 0, 1},
		{"expert_group_count", "", 0, 1}, {"expert_shared_count", "", 0, 0}, {"expert_shared_feed_forward_length", "", 0, 0},
		{"leading_dense_block_count", "", 0, 0}, {"interleave_moe_layer_step", "", 0, 1}, {"moe_every_n_layers", "", 0, 1},
		{"swiglu_clamp_exp", "", 0, 0}, {"nextn_predict_layers", "", 0, 0},
	};
	for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
		char name[128];
		double v;
		if (strstr(keys[i].unless, s->family) || read_any(s, key_of(s, keys[i].key, name), &v) == -ENOENT)
			continue;
		if (!(v == keys[i].neutral || v == keys[i].other))
			return error_set(s->err, ERROR_UNSUPPORTED, name, "GGUF metadata: %s is %g, which is not supported "
					 "(supported: %g)", name, v, keys[i].other);
	}
	return 0;
}

static int read_sizes(const struct source *s, struct architecture *a)
{
	double epsilon;
	int r;
	if ((r = read_size(s, "block_count", 0, &a->n_layers)) < 0 || (r = read_size(s, "embedding_length", 0, &a->width)) < 0 ||
	    (r = read_size(s, "feed_forward_length", 0, &a->ffn_width)) < 0 ||
	    (r = read_size(s, "attention.head_count", 0, &a->n_heads)) < 0 ||
	    (r = read_size(s, "context_length", 0, &a->context_length)) < 0 ||
	    (r = read_real(s, a->norm == NORM_LAYER ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon",
			   0, &epsilon)) < 0)
		return r;
	if (a->n_heads == 0)
		return error_set(s->err, ERROR_INVALID, "attention.head_count", "GGUF metadata: %s.attention.head_count is 0", s->family);
	a->norm_epsilon = (float)epsilon;
	if ((r = read_size(s, "attention.head_count_kv", a->n_heads, &a->n_kv_heads)) < 0)
		return r;
	return read_size(s, "attention.key_length", a->width / a->n_heads, &a->head_size);
}

static int refuse_other(const struct source *s, const char *key, uint32_t wanted, const char *what)
{
	uint32_t v;
	int r = read_size(s, key, wanted, &v);
	if (r < 0 || v == wanted)
		return r;
	return error_set(s->err, ERROR_UNSUPPORTED, key, "GGUF metadata: %s.%s is %u: %s not supported", s->family, key, v, what);
}

// Files of families without layers of their own kinds: all of them slide, if any. Qwen's, some of which may, say not which.
static int read_window(const struct source *s, struct architecture *a)
{
	int r = read_size(s, "attention.sliding_window", UINT32_MAX, &a->window);
	if (r == 0 && a->window && a->window < a->context_length && strcmp(a->name, "llama") != 0)
		return error_set(s->err, ERROR_UNSUPPORTED, "attention.sliding_window", "GGUF metadata: %s.attention.sliding_window is %u, "
				 "but which layers slide is not said", s->family, a->window);
	for (uint32_t i = 0; i < a->n_layers && i < ARCHITECTURE_MAX_LAYERS; i++)
		a->sliding[i] = true;
	architecture_settle_window(a);
	return r;
}

// Mixtures, all of whose files are evaluated with normalised probabilities.
static int read_experts(const struct source *s, struct architecture *a)
{
	int r = read_size(s, "expert_count", UINT32_MAX, &a->n_experts);
	if (r < 0)
		return r;
	if (a->n_experts == UINT32_MAX || a->n_experts == 0) {
		a->n_experts = 0;
		return strcmp(a->name, "qwen3moe") ? 0 : missing(s, "qwen3moe.expert_count");
	}
	a->normalise_experts = true;
	if ((r = read_size(s, "expert_used_count", 0, &a->n_experts_used)) < 0)
		return r;
	return strcmp(a->name, "qwen3moe") ? 0 : read_size(s, "expert_feed_forward_length", a->ffn_width, &a->ffn_width);
}

// Gemma 3 without a window has no sliding layers, whose rotation would be another.
static void stop_sliding(struct architecture *a)
{
	memset(a->sliding, 0, sizeof a->sliding);
	a->rope_theta_sliding = 0;
}

// What llama.cpp knows of the family without a key: the caps' defaults, the pattern of layers, the window of Gemma 2, the base of sliding
// layers, and that the models of 27 B scale queries by width / heads.
static int read_gemma(const struct source *s, struct architecture *a)
{
	bool third = !strcmp(a->name, "gemma3");
	double score_cap = third ? 0 : 50, logit_cap = third ? 0 : 30, theta = third ? 10000 : 0;
	uint32_t pattern;
	int r;
	if ((r = read_size(s, "attention.sliding_window_pattern", third ? 6 : 2, &pattern)) < 0 ||
	    (!third && (r = read_optional(s, "attn_logit_softcapping", &score_cap)) < 0) ||
	    (r = read_optional(s, "final_logit_softcapping", &logit_cap)) < 0 ||
	    (third && (r = read_optional(s, "rope.freq_base_swa", &theta)) < 0) ||
	    (r = read_size(s, "attention.sliding_window", third ? UINT32_MAX : 4096, &a->window)) < 0)
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

static int check_features(const struct source *s, struct architecture *a)
{
	int r;
	if ((r = refuse_foreign(s)) < 0 ||
	    (r = refuse_other(s, "attention.value_length", a->head_size, "values of another size than keys are")) < 0 ||
	    (r = refuse_other(s, "attention.key_length_swa", a->head_size, "heads of another size in sliding layers are")) < 0 ||
	    (r = refuse_other(s, "attention.value_length_swa", a->head_size, "heads of another size in sliding layers are")) < 0 ||
	    (r = refuse_other(s, "rope.dimension_count", a->head_size, "partial rotation is")) < 0 ||
	    (r = refuse_other(s, "rope.dimension_count_swa", a->head_size, "partial rotation is")) < 0 ||
	    (r = read_experts(s, a)) < 0)
		return r;
	return a->gemma ? read_gemma(s, a) : read_window(s, a);
}

// llama3 scaling arrives as the divisors it leads to. Meta's own setting (low 1, high 4, original 8192, any factor) is recognised, so that
// frequencies are computed as transformers does and config.json can name it.
static bool is_llama3(struct architecture *a)
{
	uint32_t half = a->head_size / 2;
	double factor = (double)a->rope_divisors[half - 1];
	for (uint32_t i = 0; i < half; i++) {
		double wavelength = 2 * M_PI * pow(a->rope_theta, 2.0 * i / a->head_size), want, smooth = (8192 / wavelength - 1) / 3;
		want = wavelength < 8192 / 4.0 ? 1 : wavelength > 8192 ? factor : 1 / ((1 - smooth) / factor + smooth);
		if (fabs((double)a->rope_divisors[i] - want) > 1e-4 * want)
			return false;
	}
	a->rope_scaling = ROPE_SCALING_LLAMA3;
	a->rope_factor = factor;
	a->rope_low_frequency_factor = 1;
	a->rope_high_frequency_factor = 4;
	a->rope_original_context = 8192;
	memset(a->rope_divisors, 0, sizeof a->rope_divisors);
	return true;
}

static int read_divisors(const struct source *s, struct architecture *a)
{
	struct tensor t;
	bool all_one = true;
	if (a->head_size < 2 || a->head_size > ARCHITECTURE_MAX_HEAD_SIZE)
		return 0;      // architecture_check will say so
	int r = gguf_read(s->file, "rope_freqs.weight", &t, s->err);
	if (r < 0)
		return r == -ENOENT ? 0 : r;
	if (t.dtype != DTYPE_F32 || t.n_dims != 1 || t.dims[0] != a->head_size / 2 || a->rope_scaling != ROPE_SCALING_NONE) {
		r = error_set(s->err, ERROR_INVALID, "rope_freqs.weight",
			      "tensor rope_freqs.weight must be %u F32 values, without another scaling", a->head_size / 2);
	} else {
		dtype_to_float(t.dtype, t.data, a->rope_divisors, a->head_size / 2);
		for (uint32_t i = 0; i < a->head_size / 2; i++)
			all_one = all_one && a->rope_divisors[i] == 1;
		if (!all_one && !is_llama3(a))
			a->rope_scaling = ROPE_SCALING_DIVISORS;
	}
	free((void *)(uintptr_t)t.data);
	return r;
}

static bool is_text(const char *s, size_t n, const char *text)
{
	return n == strlen(text) && !memcmp(s, text, n);
}

// A factor counts, as in llama.cpp, where no type is named.
static int read_rope(const struct source *s, struct architecture *a)
{
	char name[128];
	const char *type = "linear";
	size_t n = 6;
	double factor = 0;
	int r = read_real(s, "rope.freq_base", 10000, &a->rope_theta);
	if (r < 0 || (r = read_optional(s, "rope.scale_linear", &factor)) < 0 || (r = read_optional(s, "rope.scaling.factor", &factor)) < 0)
		return r;
	r = gguf_get_string(s->file, key_of(s, "rope.scaling.type", name), &type, &n, s->err);
	if (r < 0 && r != -ENOENT)
		return r;
	bool named = r == 0;
	if (!is_text(type, n, "linear") && !is_text(type, n, "none"))
		return error_set(s->err, ERROR_UNSUPPORTED, name,
				 "GGUF metadata: rope scaling %.*s is not supported (supported: none, linear, llama3)",
				 n < 32 ? (int)n : 32, type);
	if (is_text(type, n, "linear") && (named || (factor != 0 && factor != 1))) {
		if (factor == 0)
			return missing(s, key_of(s, "rope.scaling.factor", name));
		a->rope_scaling = ROPE_SCALING_LINEAR;
		a->rope_factor = factor;
	}
	return read_divisors(s, a);
}

// Converters fill the token list up to the height of the embedding with unused tokens "[PAD123]": those at the end have no token.
static int without_padding(const struct source *s, uint64_t *n_tokens)
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
static int read_vocabulary(const struct source *s, struct architecture *a)
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

static int read_token(const struct source *s, const char *key, int32_t *ret)
{
	uint64_t v = UINT64_MAX;
	int r = gguf_get_u64(s->file, key, &v, s->err);
	*ret = r == 0 && v <= INT32_MAX ? (int32_t)v : -1;      // 0xffffffff is written for none
	return r == -ENOENT ? 0 : r;
}

static int find_family(struct source *s, char ret_name[32])
{
	static const char *const supported[] = {"llama", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "gpt2"};
	const char *name = NULL;
	size_t n = 0;
	int r = gguf_get_string(s->file, "general.architecture", &name, &n, s->err);
	if (r < 0)
		return r == -ENOENT ? missing(s, "general.architecture") : r;
	for (size_t i = 0; i < sizeof supported / sizeof *supported; i++) {
		if (is_text(name, n, supported[i])) {
			s->family = supported[i];
			snprintf(ret_name, 32, "%s", supported[i]);
			return 0;
		}
	}
	return error_set(s->err, ERROR_UNSUPPORTED, "general.architecture",
			 "GGUF metadata: architecture %.*s is not supported "
			 "(supported: llama, qwen2, qwen3, qwen3moe, gemma2, gemma3, gpt2)", n < 32 ? (int)n : 32, name);
}

int architecture_from_gguf(const struct gguf *file, struct architecture *ret, struct error *err)
{
	struct architecture a = {.bos_id = -1, .eos_id = -1};
	struct source s = {.file = file, .err = err};
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
		a.learned_positions = a.linear_bias = true;
	}
	if ((r = read_sizes(&s, &a)) < 0 || (r = check_features(&s, &a)) < 0 || (!a.learned_positions && (r = read_rope(&s, &a)) < 0) ||
	    (r = read_vocabulary(&s, &a)) < 0 || (r = read_token(&s, "tokenizer.ggml.bos_token_id", &a.bos_id)) < 0 ||
	    (r = read_token(&s, "tokenizer.ggml.eos_token_id", &a.eos_id)) < 0)
		return r;
	a.tied_head = gguf_find(file, "output.weight", &t) == -ENOENT;
	a.qkv_bias = gguf_find(file, a.learned_positions ? "blk.0.attn_qkv.bias" : "blk.0.attn_q.bias", &t) == 0;
	a.qk_norm = !strcmp(a.name, "qwen3") || !strcmp(a.name, "qwen3moe") || !strcmp(a.name, "gemma3");
	if ((r = architecture_check(&a, err)) < 0)
		return r;
	*ret = a;
	return 0;
}
