// SPDX-License-Identifier: Apache-2.0
// GGUF metadata to an architecture: what is read, what llama.cpp fills in where a key lacks, what is refused.
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/model/config.h"
#include "daemon/model/gguf.h"
#include "tests/unit/builder.h"

struct gguf_case { const char *family, *scaling; float divisor; uint32_t n_tokens, rows, context; bool bias, head, norm; };

enum { TYPE_U32 = 4, TYPE_F32 = 6, TYPE_BOOL = 7 };
struct extra { const char *key; uint32_t type; float value; };

// A key of the family, or one that begins with "/".
static void build_extra(struct builder *b, const char *family, const struct extra *e)
{
	char key[96];
	uint8_t truth = e->value != 0;
	snprintf(key, sizeof key, "%s%s%s", *e->key == '/' ? "" : family, *e->key == '/' ? "" : ".", e->key + (*e->key == '/'));
	if (e->type == TYPE_F32) {
		build_key_f32(b, key, e->value);
	} else if (e->type == TYPE_BOOL) {
		build_key(b, key, TYPE_BOOL);
		build_bytes(b, &truth, 1);
	} else {
		build_key_u32(b, key, (uint32_t)e->value);
	}
}

static int from_gguf(const struct gguf_case *c, const struct extra *extras, uint32_t n_extras, struct architecture *ret,
		     struct error *err)
{
	struct builder b = {0};
	struct gguf *f = NULL;
	char key[96];
	uint32_t n_tensors = 1 + c->bias + c->head + c->norm + (c->divisor != 0), offset = 0;
	const struct { const char *key; uint32_t value; } sizes[] = {
		{"block_count", 2}, {"context_length", c->context ? c->context : 512}, {"embedding_length", 64},
		{"feed_forward_length", 128},
		{"attention.head_count", 4}, {"attention.head_count_kv", 2}, {"rope.dimension_count", 16},
	};
	build_gguf(&b, 3, n_tensors, 11 + (c->scaling ? 2 : 0) + n_extras);
	build_key_string(&b, "general.architecture", c->family);
	for (size_t i = 0; i < 7; i++) {
		snprintf(key, sizeof key, "%s.%s", c->family, sizes[i].key);
		build_key_u32(&b, key, sizes[i].value);
	}
	snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", c->family);
	build_key_f32(&b, key, 1e-5f);
	snprintf(key, sizeof key, "%s.rope.freq_base", c->family);
	build_key_f32(&b, key, 500000);
	build_key_array(&b, "tokenizer.ggml.tokens", 8, c->n_tokens);
	for (uint32_t i = 0; i < c->n_tokens; i++)
		build_string(&b, "t");
	if (c->scaling) {
		snprintf(key, sizeof key, "%s.rope.scaling.type", c->family);
		build_key_string(&b, key, c->scaling);
		snprintf(key, sizeof key, "%s.rope.scaling.factor", c->family);
		build_key_f32(&b, key, 4);
	}
	for (uint32_t i = 0; i < n_extras; i++)
		build_extra(&b, c->family, &extras[i]);
	build_tensor(&b, "token_embd.weight", 2, 1, c->rows, 0, offset);
	offset += (c->rows * 4 + 31) / 32 * 32;
	const char *names[] = {c->bias ? "blk.0.attn_q.bias" : NULL, c->head ? "output.weight" : NULL,
		c->norm ? "blk.0.attn_q_norm.weight" : NULL};
	for (int i = 0; i < 3; i++) {
		if (names[i]) {
			build_tensor(&b, names[i], 1, 1, 0, 0, offset);
			offset += 32;
		}
	}
	if (c->divisor != 0)
		build_tensor(&b, "rope_freqs.weight", 1, 8, 0, 0, offset);
	build_align(&b, 32);
	for (uint32_t i = 0; i < offset / 4; i++)
		build_u32(&b, 0);
	for (int i = 0; i < 8; i++) {      // what llama3 with factor 8 means for theta 500000 and head size 16, or a constant
		static const float llama3[8] = {1, 1, 1, 1, 2.69452969f, 8, 8, 8};
		float v = c->divisor < 0 ? llama3[i] : c->divisor;
		build_bytes(&b, &v, 4);
	}
	int r = gguf_open_bytes(b.bytes, b.n, &f, err);
	if (r < 0)
		fail_msg("%s", err->message);
	r = architecture_from_gguf(f, ret, err);
	gguf_close(f);
	build_done(&b);
	return r;
}

static void gguf_families_are_read(void **state)
{
	(void)state;
	struct architecture a;
	struct error err = {0};
	struct gguf_case c = {.family = "llama", .n_tokens = 90, .rows = 100};
	if (from_gguf(&c, &(struct extra){"/tokenizer.ggml.bos_token_id", TYPE_U32, 5}, 1, &a, &err) < 0)
		fail_msg("%s", err.message);
	assert_string_equal(a.name, "llama");
	assert_int_equal(a.width, 64);
	assert_int_equal(a.head_size, 16);
	assert_int_equal(a.n_kv_heads, 2);
	assert_int_equal(a.vocab_size, 90);      // not the 10 rows of padding
	assert_int_equal(a.bos_id, 5);
	assert_int_equal(a.eos_id, -1);
	assert_true(a.tied_head && !a.qkv_bias && !a.qk_norm && a.norm_epsilon == 1e-5f && a.rope_theta == 500000);
	c = (struct gguf_case){.family = "qwen2", .n_tokens = 9, .rows = 9, .bias = true, .head = true, .scaling = "linear"};
	assert_int_equal(from_gguf(&c, &(struct extra){"attention.key_length", TYPE_U32, 16}, 1, &a, &err), 0);
	assert_true(!a.tied_head && a.qkv_bias && a.rope_scaling == ROPE_SCALING_LINEAR && a.rope_factor == 4);
	c = (struct gguf_case){.family = "qwen3", .n_tokens = 9, .rows = 9, .norm = true};
	assert_int_equal(from_gguf(&c, NULL, 0, &a, &err), 0);
	assert_true(a.qk_norm);
	c.family = "llama";      // has no such norms: the tensor is left over then, rather than used on rows that are in another order
	assert_int_equal(from_gguf(&c, NULL, 0, &a, &err), 0);
	assert_false(a.qk_norm);
}

static void values_that_change_nothing_are_no_reason(void **state)
{
	(void)state;
	static const struct extra extras[] = {
		{"attention.causal", TYPE_BOOL, 1}, {"attention.scale", TYPE_F32, 0}, {"logit_scale", TYPE_F32, 1},
		{"rope.scaling.attn_factor", TYPE_F32, 1}, {"expert_weights_scale", TYPE_F32, 1}, {"expert_weights_norm", TYPE_BOOL, 1},
		{"expert_gating_func", TYPE_U32, 1}, {"expert_shared_count", TYPE_U32, 0}, {"attention.value_length", TYPE_U32, 16},
		{"/split.count", TYPE_U32, 1},
	};
	struct architecture a;
	struct error err = {0};
	struct gguf_case c = {.family = "llama", .n_tokens = 9, .rows = 9};
	if (from_gguf(&c, extras, sizeof extras / sizeof *extras, &a, &err))
		fail_msg("%s", err.message);
}

// llama.cpp takes "linear" where no type is named.
static void a_factor_without_a_type_counts(void **state)
{
	(void)state;
	struct architecture a;
	struct error err = {0};
	struct gguf_case c = {.family = "llama", .n_tokens = 9, .rows = 9};
	assert_int_equal(from_gguf(&c, &(struct extra){"rope.scaling.factor", TYPE_F32, 4}, 1, &a, &err), 0);
	assert_true(a.rope_scaling == ROPE_SCALING_LINEAR && a.rope_factor == 4);
	assert_int_equal(from_gguf(&c, &(struct extra){"rope.scale_linear", TYPE_F32, 2}, 1, &a, &err), 0);
	assert_true(a.rope_scaling == ROPE_SCALING_LINEAR && a.rope_factor == 2);
	static const struct extra both[] = {{"rope.scale_linear", TYPE_F32, 2}, {"rope.scaling.factor", TYPE_F32, 4}};
	assert_int_equal(from_gguf(&c, both, 2, &a, &err), 0);
	assert_true(a.rope_factor == 4);
	assert_int_equal(from_gguf(&c, &(struct extra){"rope.scaling.factor", TYPE_F32, 1}, 1, &a, &err), 0);
	assert_int_equal(a.rope_scaling, ROPE_SCALING_NONE);
	c.scaling = "none";      // and its factor 4 is for nothing
	assert_int_equal(from_gguf(&c, NULL, 0, &a, &err), 0);
	assert_int_equal(a.rope_scaling, ROPE_SCALING_NONE);
}

static void gemma_keys_lack_as_in_llamacpp(void **state)
{
	(void)state;
	struct architecture a;
	struct error err = {0};
	struct gguf_case c = {.family = "gemma2", .n_tokens = 9, .rows = 9};
	static const struct extra window[] = {{"attention.sliding_window", TYPE_U32, 32}, {"final_logit_softcapping", TYPE_F32, 25},
					      {"rope.freq_base_swa", TYPE_F32, 77}};
	assert_int_equal(from_gguf(&c, window, 2, &a, &err), 0);
	assert_true(a.score_cap == 50 && a.logit_cap == 25 && architecture_window(&a, 0) == 32 && architecture_window(&a, 1) == 0);
	assert_int_equal(from_gguf(&c, window, 3, &a, &err), -EOPNOTSUPP);
	c.context = 8192;
	assert_int_equal(from_gguf(&c, NULL, 0, &a, &err), 0);
	assert_int_equal(architecture_window(&a, 0), 4096);
	c.family = "gemma3";
	assert_int_equal(from_gguf(&c, window, 3, &a, &err), 0);
	assert_true(a.qk_norm && a.logit_cap == 25 && a.score_cap == 0 && a.rope_theta_sliding == 77 && architecture_window(&a, 0) == 32);
	assert_int_equal(from_gguf(&c, window, 1, &a, &err), 0);
	assert_true(a.logit_cap == 0 && a.rope_theta_sliding == 10000);
	// no window: no layer slides, and all rotate alike
	static const struct extra none = {"attention.sliding_window", TYPE_U32, 0};
	for (uint32_t n = 0; n < 2; n++) {
		assert_int_equal(from_gguf(&c, &none, n, &a, &err), 0);
		assert_true(a.rope_theta_sliding == 0 && !a.sliding[0] && a.window == 0 && a.rope_theta == 500000);
	}
}

static void rope_divisors_of_gguf_are_kept_or_recognised(void **state)
{
	(void)state;
	struct architecture a;
	struct error err = {0};
	struct gguf_case c = {.family = "llama", .n_tokens = 9, .rows = 9, .divisor = 1};
	assert_int_equal(from_gguf(&c, NULL, 0, &a, &err), 0);
	assert_int_equal(a.rope_scaling, ROPE_SCALING_NONE);
	c.divisor = 3;
	assert_int_equal(from_gguf(&c, NULL, 0, &a, &err), 0);
	assert_int_equal(a.rope_scaling, ROPE_SCALING_DIVISORS);
	float cosine[2 * 8], sine[2 * 8];
	architecture_rope_tables(&a, 2, cosine, sine);
	assert_true(fabsf(sine[8] - sinf(1.0f / 3)) < 1e-7f);
	c.divisor = -1;
	assert_int_equal(from_gguf(&c, NULL, 0, &a, &err), 0);
	assert_int_equal(a.rope_scaling, ROPE_SCALING_LLAMA3);
	assert_true(a.rope_factor == 8 && a.rope_original_context == 8192);
	c.divisor = -3;      // any negative: the same table
	c.scaling = "linear";
	assert_int_equal(from_gguf(&c, NULL, 0, &a, &err), -EINVAL);
	assert_non_null(strstr(err.message, "without another scaling"));
	c.scaling = NULL;
	c.divisor = INFINITY;
	assert_int_equal(from_gguf(&c, NULL, 0, &a, &err), -EINVAL);
}

static void yarn_of_gguf_has_llamacpps_defaults(void **state)
{
	(void)state;
	struct architecture a;
	struct error err = {0};
	struct gguf_case c = {.family = "llama", .n_tokens = 9, .rows = 9, .scaling = "yarn"};
	assert_int_equal(from_gguf(&c, NULL, 0, &a, &err), 0);
	assert_true(a.rope_scaling == ROPE_SCALING_YARN && a.rope_factor == 4 && a.rope_original_context == 512 && a.rope_truncate);
	assert_true(a.rope_beta_fast == 32 && a.rope_beta_slow == 1 && a.rope_attention_factor == 0.1 * log(4) + 1);
	static const struct extra extras[] = {{"rope.scaling.attn_factor", TYPE_F32, 2},
		{"rope.scaling.original_context_length", TYPE_U32, 128}, {"rope.scaling.yarn_beta_fast", TYPE_F32, 16},
		{"rope.scaling.yarn_beta_slow", TYPE_F32, 2}};
	assert_int_equal(from_gguf(&c, extras, 4, &a, &err), 0);
	assert_true(a.rope_original_context == 128 && a.rope_attention_factor == 2 * (0.1 * log(4) + 1));
	assert_true(a.rope_beta_fast == 16 && a.rope_beta_slow == 2 && a.context_length == 512);
	c.scaling = NULL;      // counts without a scaling too
	assert_int_equal(from_gguf(&c, extras, 1, &a, &err), 0);
	assert_true(a.rope_attention_factor == 2 && a.rope_scaling == ROPE_SCALING_NONE);
	c.family = "gemma2";
	assert_int_equal(from_gguf(&c, extras, 1, &a, &err), -EOPNOTSUPP);
	c.scaling = "yarn";
	assert_int_equal(from_gguf(&c, NULL, 0, &a, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.message, "rope scaling yarn is not supported (supported: none, linear)"));
	c.family = "llama";
	c.scaling = "longrope";
	assert_int_equal(from_gguf(&c, NULL, 0, &a, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.message, "a factor beside those of longrope"));
}

static void granite_of_gguf_is_read(void **state)
{
	(void)state;
	struct architecture a;
	struct error err = {0};
	struct gguf_case c = {.family = "granite", .n_tokens = 9, .rows = 9};
	static const struct extra extras[] = {{"logit_scale", TYPE_F32, 8}, {"residual_scale", TYPE_F32, 0.25f},
		{"embedding_scale", TYPE_F32, 12}, {"attention.scale", TYPE_F32, 0.125f}, {"rope.scaling.finetuned", TYPE_BOOL, 0}};
	assert_int_equal(from_gguf(&c, NULL, 0, &a, &err), -EINVAL);
	assert_non_null(strstr(err.message, "granite.logit_scale is missing"));
	assert_int_equal(from_gguf(&c, extras, 1, &a, &err), 0);
	assert_true(a.logit_divisor == 8 && a.residual_scale == 0 && a.embedding_scale == 0 && a.query_scalar == 0);
	assert_int_equal(from_gguf(&c, extras, 4, &a, &err), 0);
	assert_true(a.residual_scale == 0.25 && a.embedding_scale == 12 && a.query_scalar == 64);
	assert_int_equal(from_gguf(&c, extras, 5, &a, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.message, "layers that do not rotate"));
}

static void a_part_of_each_head_rotates(void **state)
{
	(void)state;
	struct architecture a;
	struct error err = {0};
	struct gguf_case c = {.family = "qwen2", .n_tokens = 9, .rows = 9};      // rope.dimension_count is 16
	assert_int_equal(from_gguf(&c, &(struct extra){"attention.key_length", TYPE_U32, 32}, 1, &a, &err), 0);
	assert_true(a.head_size == 32 && a.rope_size == 16);
	assert_int_equal(from_gguf(&c, &(struct extra){"attention.key_length", TYPE_U32, 8}, 1, &a, &err), -EINVAL);
	assert_non_null(strstr(err.message, "16 dimensions rotate of a head of 8"));
	c.family = "gemma2";
	assert_int_equal(from_gguf(&c, &(struct extra){"attention.key_length", TYPE_U32, 32}, 1, &a, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.message, "partial rotation"));
}

static void gguf_features_are_refused_by_name(void **state)
{
	(void)state;
	struct architecture a;
	struct error err = {0};
	struct gguf_case c = {.family = "falcon", .n_tokens = 9, .rows = 9};
	assert_int_equal(from_gguf(&c, NULL, 0, &a, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.message, "architecture falcon is not supported (supported: llama, qwen2, qwen3, qwen3moe, gemma2,"));
	c.family = "llama";
	c.scaling = "su";
	assert_int_equal(from_gguf(&c, NULL, 0, &a, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.message, "rope scaling su is not supported (supported: none, linear, yarn, longrope)"));
	c.scaling = NULL;
	static const struct { struct extra extra; const char *part; } cases[] = {
		{{"attention.value_length", TYPE_U32, 32}, "values of another size"},
		{{"attention.key_length_swa", TYPE_U32, 32}, "heads of another size in sliding layers"},
		{{"rope.dimension_count_swa", TYPE_U32, 8}, "partial rotation"},
		{{"attention.causal", TYPE_BOOL, 0}, "llama.attention.causal is 0, which is not supported (supported: 1)"},
		{{"attention.scale", TYPE_F32, 0.25f}, "llama.attention.scale is 0.25"},
		{{"attention.clamp_kqv", TYPE_F32, 8}, "llama.attention.clamp_kqv is 8"},
		{{"attention.max_alibi_bias", TYPE_F32, 8}, "llama.attention.max_alibi_bias"},
		{{"attn_logit_softcapping", TYPE_F32, 50}, "llama.attn_logit_softcapping"},
		{{"final_logit_softcapping", TYPE_F32, 30}, "llama.final_logit_softcapping"},
		{{"logit_scale", TYPE_F32, 8}, "llama.logit_scale is 8"}, {{"residual_scale", TYPE_F32, 0.22f}, "llama.residual_scale"},
		{{"embedding_scale", TYPE_F32, 12}, "llama.embedding_scale"},
		{{"use_parallel_residual", TYPE_BOOL, 1}, "llama.use_parallel_residual"},
		{{"rope.scaling.yarn_ext_factor", TYPE_F32, 0.5f}, "llama.rope.scaling.yarn_ext_factor is 0.5"},
		{{"rope.scaling.yarn_attn_factor", TYPE_F32, 2}, "llama.rope.scaling.yarn_attn_factor is 2"},
		{{"rope.scaling.yarn_log_multiplier", TYPE_F32, 0.1f}, "llama.rope.scaling.yarn_log_multiplier is 0.1"},
		{{"rope.freq_base_swa", TYPE_F32, 10000}, "llama.rope.freq_base_swa"},
		{{"expert_weights_scale", TYPE_F32, 2.5f}, "llama.expert_weights_scale"},
		{{"expert_weights_norm", TYPE_BOOL, 0}, "llama.expert_weights_norm"},
		{{"expert_gating_func", TYPE_U32, 2}, "llama.expert_gating_func is 2"},
		{{"expert_shared_count", TYPE_U32, 1}, "llama.expert_shared_count"},
		{{"leading_dense_block_count", TYPE_U32, 1}, "llama.leading_dense_block_count"},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		int r = from_gguf(&c, &cases[i].extra, 1, &a, &err);
		if (r != -EOPNOTSUPP || !strstr(err.message, cases[i].part))
			fail_msg("%s: %d %s", cases[i].extra.key, r, err.message);
	}
	c.family = "qwen2";
	assert_int_equal(from_gguf(&c, &(struct extra){"attention.sliding_window", TYPE_U32, 5}, 1, &a, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.message, "which layers slide is not said"));
	assert_int_equal(from_gguf(&c, &(struct extra){"expert_count", TYPE_U32, 4}, 1, &a, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.message, "qwen2.expert_count is 4: experts of this family are not supported"));
	c.family = "llama";
	assert_int_equal(from_gguf(&c, &(struct extra){"expert_count", TYPE_U32, 0}, 1, &a, &err), 0);
	assert_int_equal(architecture_window(&a, 0), 0);
	assert_int_equal(from_gguf(&c, &(struct extra){"attention.sliding_window", TYPE_U32, 5}, 1, &a, &err), 0);
	assert_int_equal(architecture_window(&a, a.n_layers - 1), 5);
	c.n_tokens = 10;
	assert_int_equal(from_gguf(&c, NULL, 0, &a, &err), -EINVAL);
	assert_non_null(strstr(err.message, "10 tokens, but token_embd.weight has 9 rows"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(gguf_families_are_read),
		cmocka_unit_test(values_that_change_nothing_are_no_reason),
		cmocka_unit_test(a_factor_without_a_type_counts),
		cmocka_unit_test(gemma_keys_lack_as_in_llamacpp),
		cmocka_unit_test(rope_divisors_of_gguf_are_kept_or_recognised),
		cmocka_unit_test(yarn_of_gguf_has_llamacpps_defaults),
		cmocka_unit_test(a_part_of_each_head_rotates),
		cmocka_unit_test(granite_of_gguf_is_read),
		cmocka_unit_test(gguf_features_are_refused_by_name),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
