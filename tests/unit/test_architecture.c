// SPDX-License-Identifier: Apache-2.0
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
#include "tests/unit/architecture.h"

#define VISION "{\"architectures\":[\"Gemma3ForConditionalGeneration\"]"
#define LLAMA "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\"," SIZES
#define QWEN2 "{\"architectures\":[\"Qwen2ForCausalLM\"]," SIZES
#define QWEN3 "{\"architectures\":[\"Qwen3ForCausalLM\"]," SIZES
#define MISTRAL "{\"architectures\":[\"MistralForCausalLM\"]," SIZES

#define GPT2 "{\"architectures\":[\"GPT2LMHeadModel\"],\"n_embd\":64,\"n_layer\":2,\"n_head\":4,\"vocab_size\":100,\"n_positions\":512"
#define BERT "{\"architectures\":[\"BertForMaskedLM\"],\"hidden_size\":64,\"num_hidden_layers\":2,\"num_attention_heads\":4," \
	"\"intermediate_size\":128,\"vocab_size\":100"

static void layer_norm_families_are_read_and_written(void **state)
{
	(void)state;
	struct architecture a = parsed(GPT2 ",\"n_inner\":null}"), b = parsed(BERT "}");
	assert_string_equal(a.name, "gpt2");
	assert_int_equal(a.ffn_width, 256);
	assert_true(a.norm == NORM_LAYER && a.activation == ACTIVATION_GELU_TANH && a.norm_epsilon == 1e-5f && a.context_length == 512);
	assert_true(a.learned_positions && a.out_bias && a.ffn_bias && a.qkv_bias && a.tied_head && !a.masked);
	assert_true(!a.post_norm && !a.n_token_types);
	assert_int_equal(a.n_kv_heads, 4);
	assert_string_equal(b.name, "bert");
	assert_true(b.norm == NORM_LAYER && b.activation == ACTIVATION_GELU_ERF && b.norm_epsilon == 1e-12f && b.context_length == 512);
	assert_true(b.masked && b.post_norm && b.learned_positions && b.tied_head && b.n_token_types == 2);
	assert_int_equal(parsed(GPT2 ",\"activation_function\":\"gelu\"}").activation, ACTIVATION_GELU_ERF);
	for (int i = 0; i < 2; i++) {
		char *text = NULL;
		const struct architecture *one = i ? &b : &a;
		assert_int_equal(architecture_to_json(one, &text, NULL), 0);
		struct architecture again = parsed(text);
		assert_memory_equal(&again, one, sizeof again);
		free(text);
	}
	// what transformers says of GPT-2 and BERT of that shape: 2 layers of 12 C^2 + 13 C, tables, norms, head
	assert_int_equal(architecture_n_parameters(&a), 2 * (12 * 64 * 64 + 13 * 64) + 100 * 64 + 512 * 64 + 2 * 64);
}

static void layer_norm_features_are_refused_by_name(void **state)
{
	(void)state;
	refused(GPT2 ",\"activation_function\":\"relu\"}", -EOPNOTSUPP, "activation_function relu is not supported");
	refused(GPT2 ",\"scale_attn_weights\":false}", -EOPNOTSUPP, "scale_attn_weights false");
	refused(GPT2 ",\"scale_attn_by_inverse_layer_idx\":true}", -EOPNOTSUPP, "scale_attn_by_inverse_layer_idx");
	refused(GPT2 ",\"add_cross_attention\":true}", -EOPNOTSUPP, "add_cross_attention");
	refused(BERT ",\"position_embedding_type\":\"relative_key\"}", -EOPNOTSUPP, "position_embedding_type relative_key");
	refused(BERT ",\"is_decoder\":true}", -EOPNOTSUPP, "is_decoder");
	refused(BERT ",\"type_vocab_size\":100000}", -EINVAL, "100000 token types");
	refused("{\"architectures\":[\"GPT2LMHeadModel\"],\"n_embd\":65,\"n_layer\":2,\"n_head\":4,\"vocab_size\":9,\"n_positions\":8}",
		-EINVAL, "a width of 65 is not a multiple of 4 heads");
	refused("{\"architectures\":[\"BertForPreTraining\"]}", -EOPNOTSUPP, "architecture BertForPreTraining is not supported");
}

static void families_are_read(void **state)
{
	(void)state;
	struct architecture a = parsed(LLAMA ",\"rms_norm_eps\":1e-05,\"hidden_act\":\"silu\",\"tie_word_embeddings\":true,"
				       "\"bos_token_id\":1,\"eos_token_id\":[2,3],\"rope_theta\":500000.0,\"rope_scaling\":null,"
				       "\"attention_bias\":false}");
	assert_string_equal(a.name, "llama");
	assert_int_equal(a.width, 64);
	assert_int_equal(a.ffn_width, 128);
	assert_int_equal(a.n_layers, 2);
	assert_int_equal(a.n_heads, 4);
	assert_int_equal(a.n_kv_heads, 2);
	assert_int_equal(a.head_size, 16);
	assert_int_equal(a.vocab_size, 100);
	assert_int_equal(a.context_length, 512);
	assert_true(a.norm_epsilon == 1e-5f && a.rope_theta == 500000 && a.rope_scaling == ROPE_SCALING_NONE);
	assert_true(a.tied_head && !a.qkv_bias && !a.qk_norm);
	assert_int_equal(a.bos_id, 1);
	assert_int_equal(a.eos_id, 2);
	a = parsed(QWEN2 ",\"use_sliding_window\":false,\"sliding_window\":32,\"max_window_layers\":1,\"eos_token_id\":null}");
	assert_string_equal(a.name, "qwen2");
	assert_true(a.qkv_bias && !a.qk_norm && !a.tied_head && a.norm_epsilon == 1e-6f && a.rope_theta == 10000);
	assert_int_equal(a.bos_id, -1);
	assert_int_equal(a.eos_id, -1);
	a = parsed(QWEN3 ",\"layer_types\":[\"full_attention\",\"full_attention\"]}");
	assert_true(a.qk_norm && !a.qkv_bias);
	assert_int_equal(a.head_size, 128);      // not width / heads
	assert_int_equal(parsed(QWEN3 ",\"head_dim\":32}").head_size, 32);
	assert_string_equal(parsed(MISTRAL ",\"sliding_window\":null}").name, "mistral");
	assert_string_equal(parsed("{\"model_type\":\"qwen2\"," SIZES "}").name, "qwen2");
}

static void gemma_and_mixtures_are_read(void **state)
{
	(void)state;
	struct architecture a = parsed("{\"architectures\":[\"Gemma2ForCausalLM\"]," SIZES ",\"sliding_window\":32,\"head_dim\":16}");
	assert_true(a.gemma && a.tied_head && !a.qk_norm && a.activation == ACTIVATION_GEGLU && !strcmp(a.name, "gemma2"));
	assert_true(a.score_cap == 50 && a.logit_cap == 30 && a.query_scalar == 256 && a.rope_theta_sliding == 0);
	assert_true(architecture_window(&a, 0) == 32 && architecture_window(&a, 1) == 0);
	a = parsed("{\"architectures\":[\"Gemma3ForCausalLM\"]," SIZES ",\"sliding_window\":32,\"rope_local_base_freq\":77,"
		   "\"tie_word_embeddings\":false}");
	assert_true(a.gemma && !a.tied_head && a.qk_norm && a.score_cap == 0 && a.logit_cap == 0 && a.head_size == 256);
	assert_true(a.rope_theta == 1e6 && a.rope_theta_sliding == 77 && architecture_window(&a, 1) == 32);
	refused("{\"architectures\":[\"Gemma2ForCausalLM\"]," SIZES ",\"final_logit_softcapping\":-1}", -EINVAL, "final_logit_softcapping");
	refused("{\"architectures\":[\"Gemma2ForCausalLM\"]," SIZES ",\"query_pre_attn_scalar\":0}", -EINVAL, "query_pre_attn_scalar");
	refused("{\"architectures\":[\"Gemma3ForCausalLM\"]," SIZES ",\"hidden_activation\":\"relu\"}", -EOPNOTSUPP,
		"hidden_activation relu");
	refused("{\"architectures\":[\"Gemma3ForCausalLM\"]," SIZES ",\"use_bidirectional_attention\":true}", -EOPNOTSUPP, "what follows");
	a = parsed(VISION ",\"eos_token_id\":[1,106],\"text_config\":{\"hidden_size\":2560,\"intermediate_size\":10240,"
		   "\"num_hidden_layers\":34,\"rope_scaling\":{\"factor\":8.0,\"rope_type\":\"linear\"},\"sliding_window\":1024}}");
	assert_true(a.n_heads == 8 && a.n_kv_heads == 4 && a.head_size == 256 && a.vocab_size == 262208 && a.context_length == 131072);
	assert_true(a.window == 1024 && a.sliding[4] && !a.sliding[5] && a.rope_factor == 8 && a.tied_head && a.eos_id == 1);
	a = parsed("{\"model_type\":\"gemma3\"}");
	assert_true(a.width == 2304 && a.n_layers == 26 && a.window == 4096);
	refused(VISION ",\"text_config\":[]}", -EINVAL, "text_config must be an object");
	refused(VISION ",\"model_type\":\"gemma3_text\"}", -EOPNOTSUPP, "model_type gemma3_text");
	refused(VISION ",\"text_config\":{\"model_type\":\"llama\"}}", -EOPNOTSUPP, "supported: gemma3_text");
	refused(VISION ",\"tie_word_embeddings\":null}", -EOPNOTSUPP, "head of its own");
	refused(VISION ",\"text_config\":{\"tie_word_embeddings\":false}}", -EOPNOTSUPP, "head of its own");
	refused(VISION ",\"text_config\":{\"final_logit_softcapping\":30}}", -EOPNOTSUPP, "softcapping");
	refused(VISION ",\"text_config\":{\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}}", -EOPNOTSUPP, "old key");
	refused(VISION ",\"quantization_config\":{\"bits\":4}}", -EOPNOTSUPP, "quantised");
#define MOE "{\"architectures\":[\"Qwen3MoeForCausalLM\"]," SIZES ",\"moe_intermediate_size\":24,\"num_experts_per_tok\":2"
	a = parsed(MOE ",\"num_experts\":8,\"norm_topk_prob\":true}");
	assert_true(a.n_experts == 8 && a.n_experts_used == 2 && a.normalise_experts && a.ffn_width == 24 && a.qk_norm);
	assert_false(parsed(MOE ",\"num_local_experts\":8}").normalise_experts);
	refused(MOE ",\"num_experts\":1}", -EINVAL, "number of experts used is 2");
	refused(MOE "}", -EINVAL, "num_experts is missing");
	refused(MOE ",\"num_experts\":8,\"mlp_only_layers\":[1]}", -EOPNOTSUPP, "mlp_only_layers");
	refused(MOE ",\"num_experts\":8,\"decoder_sparse_step\":2}", -EOPNOTSUPP, "decoder_sparse_step 2");
	a = parsed("{\"architectures\":[\"MixtralForCausalLM\"]," SIZES ",\"num_local_experts\":8,\"num_experts_per_tok\":2}");
	assert_true(a.normalise_experts && a.window == 0 && a.ffn_width == 128);
}

static void expect_windows(const char *json, uint32_t first, uint32_t second)
{
	struct architecture a = parsed(json), again;
	char *text = NULL;
	assert_int_equal(architecture_window(&a, 0), first);
	assert_int_equal(architecture_window(&a, 1), second);
	assert_int_equal(architecture_to_json(&a, &text, NULL), 0);
	again = parsed(text);
	assert_memory_equal(&again, &a, sizeof a);
	free(text);
}

static void sliding_windows_are_read_and_written_layer_by_layer(void **state)
{
	(void)state;
	expect_windows(MISTRAL ",\"sliding_window\":256}", 256, 256);
	expect_windows(MISTRAL ",\"sliding_window\":512}", 0, 0);          // as long as the context: nothing is hidden
	expect_windows(MISTRAL ",\"sliding_window\":null}", 0, 0);
	expect_windows(MISTRAL "}", 0, 0);                                  // 4096
	expect_windows(MISTRAL ",\"sliding_window\":8,\"layer_types\":[\"sliding_attention\",\"full_attention\"]}", 8, 0);     // Ministral
	expect_windows(MISTRAL ",\"sliding_window\":8,\"layer_types\":null}", 8, 8);
	expect_windows(QWEN2 ",\"use_sliding_window\":true,\"sliding_window\":8,\"max_window_layers\":1}", 0, 8);
	expect_windows(QWEN2 ",\"use_sliding_window\":true,\"sliding_window\":8}", 0, 0);
	expect_windows(QWEN2 ",\"use_sliding_window\":false,\"sliding_window\":8,\"max_window_layers\":1}", 0, 0);
	expect_windows(QWEN3 ",\"use_sliding_window\":true,\"sliding_window\":8,"
		       "\"layer_types\":[\"sliding_attention\",\"full_attention\"]}", 8, 0);
}

static void rope_scaling_is_read_in_old_and_new_form(void **state)
{
	(void)state;
	assert_int_equal(parsed(LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}").rope_scaling, ROPE_SCALING_LINEAR);
	struct architecture a = parsed(LLAMA ",\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":32.0,"
				       "\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192}}");
	assert_int_equal(a.rope_scaling, ROPE_SCALING_LLAMA3);
	assert_true(a.rope_factor == 32 && a.rope_low_frequency_factor == 1 && a.rope_high_frequency_factor == 4);
	assert_int_equal(a.rope_original_context, 8192);
#define LLAMA3 "\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0"
	assert_int_equal(parsed(LLAMA ",\"rope_scaling\":{" LLAMA3 "}}").rope_original_context, 512);      // the context
	a = parsed(LLAMA ",\"rope_scaling\":{\"rope_type\":\"default\",\"factor\":4.0,\"original_max_position_embeddings\":64}}");
	assert_true(a.rope_scaling == ROPE_SCALING_NONE && a.context_length == 512);      // switched off by hand: others are not read
	a = parsed(LLAMA ",\"original_max_position_embeddings\":64,\"rope_scaling\":{" LLAMA3 "}}");
	assert_int_equal(a.rope_original_context, 64);
	refused(LLAMA ",\"original_max_position_embeddings\":64,\"rope_scaling\":{" LLAMA3 ",\"original_max_position_embeddings\":32}}",
		-EOPNOTSUPP, "original_max_position_embeddings is there twice, with two values");
	a = parsed(LLAMA ",\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":4.0,\"rope_theta\":1234.0}}");
	assert_true(a.rope_theta == 1234 && a.rope_factor == 4 && a.rope_scaling == ROPE_SCALING_LINEAR);
	a = parsed(LLAMA ",\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":7.0}}");
	assert_true(a.rope_theta == 7 && a.rope_scaling == ROPE_SCALING_NONE);
	refused(LLAMA ",\"rope_scaling\":{\"type\":\"su\",\"factor\":2}}", -EOPNOTSUPP, "rope scaling su is not supported");
	refused(LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2,\"beta_fast\":3}}", -EOPNOTSUPP,
		"beta_fast is not supported in rope parameters of the type linear");
	refused(LLAMA ",\"rope_scaling\":{\"type\":\"default\",\"mrope_section\":[4,2,2]}}", -EOPNOTSUPP, "mrope_section is not supported");
	refused(LLAMA ",\"rope_scaling\":{\"type\":\"linear\"}}", -EINVAL, "needs factor");
	refused(LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}}", -EINVAL, "rope factor is 0");
	refused(LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":\"2\"}}", -EINVAL, "factor must be a number");
	refused(LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":2}}", -EINVAL, "needs low_freq_factor");
	refused(LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":2,\"low_freq_factor\":4,\"high_freq_factor\":4}}", -EINVAL,
		"must be above 4");
	refused(LLAMA ",\"rope_scaling\":\"linear\"}", -EINVAL, "must be an object");
	refused(LLAMA ",\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\"}}}", -EOPNOTSUPP, "per layer type");
}

static void yarn_is_read_as_transformers_reads_it(void **state)
{
	(void)state;
#define YARN "\"rope_type\":\"yarn\",\"factor\":4.0"
	struct architecture a = parsed(LLAMA ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,\"finetuned\":true}}");
	assert_true(a.rope_scaling == ROPE_SCALING_YARN && a.rope_original_context == 512);
	assert_true(a.rope_beta_fast == 32 && a.rope_beta_slow == 1);
	assert_true(a.rope_truncate && a.rope_attention_factor == 0.1 * log(4) + 1 && a.context_length == 512);
	a = parsed(LLAMA ",\"rope_scaling\":{" YARN ",\"beta_fast\":0,\"beta_slow\":2,\"truncate\":false,"
		   "\"mscale\":0.5,\"mscale_all_dim\":2}}");
	assert_true(a.rope_beta_fast == 32 && a.rope_beta_slow == 2 && !a.rope_truncate);
	assert_true(a.rope_attention_factor == (0.1 * 0.5 * log(4) + 1) / (0.1 * 2 * log(4) + 1));
	assert_false(parsed(LLAMA ",\"rope_scaling\":{" YARN ",\"truncate\":null}}").rope_truncate);
	assert_true(parsed(LLAMA ",\"rope_scaling\":{" YARN ",\"attention_factor\":1.5,\"mscale\":3}}").rope_attention_factor == 1.5);
	refused(LLAMA ",\"rope_scaling\":{" YARN ",\"attention_factor\":0}}", -EINVAL, "attention_factor is 0");
	refused(LLAMA ",\"rope_theta\":1,\"rope_scaling\":{" YARN "}}", -EINVAL, "rope_theta is 1");
	refused(LLAMA ",\"rope_scaling\":{\"rope_type\":\"yarn\"}}", -EINVAL, "needs factor");
	a = parsed(LLAMA ",\"rope_scaling\":{\"rope_type\":\"dynamic\",\"factor\":4.0}}");
	assert_true(a.rope_scaling == ROPE_SCALING_NONE && a.context_length == 512);
	refused(LLAMA ",\"rope_scaling\":{\"rope_type\":\"dynamic\"}}", -EINVAL, "needs factor");
}

#define EIGHT(x) "[" x "," x "," x "," x "," x "," x "," x "," x "]"
#define LONGROPE "\"rope_type\":\"longrope\",\"short_factor\":" EIGHT("1.5") ",\"long_factor\":" EIGHT("9")

static void longrope_serves_the_original_context(void **state)
{
	(void)state;
	struct architecture a = parsed(LLAMA ",\"rope_scaling\":{" LONGROPE ",\"original_max_position_embeddings\":128}}");
	assert_true(a.rope_scaling == ROPE_SCALING_LONGROPE && a.context_length == 128 && a.rope_divisors[7] == 1.5f);
	assert_true(a.rope_attention_factor == sqrt(1 + log(4) / log(128)));
	a = parsed(LLAMA ",\"rope_scaling\":{" LONGROPE ",\"original_max_position_embeddings\":128,\"factor\":2}}");
	assert_true(a.rope_attention_factor == sqrt(1 + log(2) / log(128)));
	a = parsed(LLAMA ",\"rope_scaling\":{" LONGROPE "}}");
	assert_true(a.context_length == 512 && a.rope_attention_factor == 1);
	refused(LLAMA ",\"rope_scaling\":{\"rope_type\":\"longrope\",\"long_factor\":" EIGHT("9") ",\"short_factor\":[1,2]}}", -EINVAL,
		"short_factor must be a list of 8 numbers");
	refused(LLAMA ",\"rope_scaling\":{\"rope_type\":\"longrope\",\"long_factor\":" EIGHT("\"9\"") ",\"short_factor\":" EIGHT("1") "}}",
		-EINVAL, "long_factor[0] must be a number above 0");
}

#define MIXTRAL "{\"architectures\":[\"MixtralForCausalLM\"]," SIZES ",\"num_local_experts\":8,\"num_experts_per_tok\":2"
#define GEMMA3 "{\"architectures\":[\"Gemma3ForCausalLM\"],\"model_type\":\"gemma3_text\"," SIZES ",\"sliding_window\":32"
#define LINEAR8 "{\"rope_type\":\"linear\",\"factor\":8.0}"

// Each class of transformers has its own.
static void what_lacks_is_the_familys_default(void **state)
{
	(void)state;
	struct architecture a = parsed(MIXTRAL "}");
	assert_true(a.norm_epsilon == 1e-5f && a.rope_theta == 1e6);
	a = parsed(MIXTRAL ",\"rms_norm_eps\":1e-6,\"rope_theta\":5.0}");
	assert_true(a.norm_epsilon == 1e-6f && a.rope_theta == 5);
	a = parsed(LLAMA ",\"rope_scaling\":{},\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":4.0,\"rope_theta\":7.0}}");
	assert_true(a.rope_scaling == ROPE_SCALING_LINEAR && a.rope_theta == 7);      // {} is no scaling
}

static void gemma_3_rotates_by_kind_of_layer(void **state)
{
	(void)state;
	struct architecture a = parsed(GEMMA3 ",\"rope_theta\":5.0,\"rope_local_base_freq\":6.0,\"rope_scaling\":" LINEAR8 "}");
	assert_true(a.rope_theta == 5 && a.rope_theta_sliding == 6 && a.rope_scaling == ROPE_SCALING_LINEAR && a.rope_factor == 8);
	a = parsed(GEMMA3 ",\"rope_parameters\":{\"full_attention\":{\"rope_theta\":5.0,\"rope_type\":\"linear\",\"factor\":8.0},"
		   "\"sliding_attention\":{\"rope_theta\":6.0}}}");
	assert_true(a.rope_theta == 5 && a.rope_theta_sliding == 6 && a.rope_scaling == ROPE_SCALING_LINEAR && a.rope_factor == 8);
	a = parsed(GEMMA3 ",\"rope_theta\":5.0,\"rope_local_base_freq\":6.0,\"rope_parameters\":{\"full_attention\":" LINEAR8 "}}");
	assert_true(a.rope_theta == 5 && a.rope_theta_sliding == 6 && a.rope_scaling == ROPE_SCALING_LINEAR);
	refused(GEMMA3 ",\"rope_parameters\":" LINEAR8 "}", -EOPNOTSUPP, "by kind of layer");
	refused(GEMMA3 ",\"rope_scaling\":" LINEAR8 ",\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\"}}}",
		-EOPNOTSUPP, "rope_scaling beside rope_parameters");
	refused(GEMMA3 ",\"rope_parameters\":{\"sliding_attention\":" LINEAR8 "}}", -EOPNOTSUPP, "scaled rotation in sliding layers");
	refused(GEMMA3 ",\"attn_logit_softcapping\":50.0}", -EOPNOTSUPP, "attn_logit_softcapping of Gemma 3");
	refused(GEMMA3 ",\"rope_scaling\":\"linear\"}", -EINVAL, "must be an object");
	refused(GEMMA3 ",\"rope_local_base_freq\":0}", -EINVAL, "rope_local_base_freq must be above 0");
}

static void what_would_change_a_logit_is_refused_by_name(void **state)
{
	(void)state;
	refused("{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"mistral\"," SIZES "}", -EOPNOTSUPP,
		"model_type mistral does not go with the architecture LlamaForCausalLM");
	refused(LLAMA ",\"per_layer_config\":{\"1\":{\"num_key_value_heads\":1}}}", -EOPNOTSUPP, "per_layer_config");
	refused(GPT2 ",\"num_attention_heads\":2}", -EINVAL, "n_head and num_attention_heads differ");
	refused("{\"architectures\":[\"GemmaForCausalLM\"]," SIZES "}", -EOPNOTSUPP,
		"architecture GemmaForCausalLM is not supported (supported: Llama");
	refused("{" SIZES "}", -EOPNOTSUPP, "(none named)");
	refused(LLAMA ",\"hidden_act\":\"gelu\"}", -EOPNOTSUPP, "hidden_act gelu is not supported (supported: silu)");
	refused(QWEN3 ",\"mlp_bias\":true}", -EOPNOTSUPP, "mlp_bias");
	refused(QWEN2 ",\"attention_bias\":true}", -EOPNOTSUPP, "attention_bias (a bias that the class lacks)");
	refused(MISTRAL ",\"attention_bias\":true}", -EOPNOTSUPP, "attention_bias");
	refused(LLAMA ",\"partial_rotary_factor\":0.5}", -EOPNOTSUPP, "partial_rotary_factor is not supported in models");
	refused(LLAMA ",\"rope_parameters\":{\"partial_rotary_factor\":0.5}}", -EOPNOTSUPP,
		"partial_rotary_factor is not supported in models");
	refused(LLAMA ",\"quantization_config\":{\"bits\":4}}", -EOPNOTSUPP, "quantised safetensors");
	refused(LLAMA ",\"layer_types\":[\"full_attention\",\"sliding_attention\"]}", -EOPNOTSUPP, "layer_types[1]");
	refused(QWEN2 ",\"layer_types\":[\"full_attention\",\"chunked_attention\"]}", -EOPNOTSUPP, "layer_types[1] is chunked_attention");
	refused(QWEN2 ",\"layer_types\":[\"full_attention\"]}", -EINVAL, "one word for each of 2 layers");
	refused(MISTRAL ",\"sliding_window\":0}", -EINVAL, "sliding_window");
	refused(MISTRAL ",\"sliding_window\":\"long\"}", -EINVAL, "sliding_window");
	assert_string_equal(parsed(MISTRAL "}").name, "mistral");      // the class's own 4096 is longer than the context
}

static void wrong_numbers_are_refused(void **state)
{
	(void)state;
	refused("{\"model_type\":\"llama\"}", -EINVAL, "num_hidden_layers is missing");
	refused(LLAMA ",\"head_dim\":-16}", -EINVAL, "head_dim is -16");
	refused(LLAMA ",\"head_dim\":16.0}", -EINVAL, "head_dim must be an integer");
	refused(LLAMA ",\"head_dim\":15}", -EINVAL, "head size 15 is odd");
	refused(LLAMA ",\"head_dim\":2048}", -EINVAL, "head size is 2048; supported: 2 to 1024");
	refused(LLAMA ",\"head_dim\":4294967296}", -EINVAL, "head_dim is 4294967296");
	refused(LLAMA ",\"hidden_size\":64}", -EINVAL, "duplicate");
	refused(LLAMA ",\"rms_norm_eps\":0}", -EINVAL, "norm epsilon is 0");
	refused(LLAMA ",\"rope_theta\":-1}", -EINVAL, "rope_theta is -1");
	refused(LLAMA ",\"rope_theta\":1e400}", -EINVAL, "");
	refused(LLAMA ",\"bos_token_id\":\"1\"}", -EINVAL, "bos_token_id must be a token id");
	refused(LLAMA ",\"tie_word_embeddings\":1}", -EINVAL, "tie_word_embeddings must be true or false");
	refused(LLAMA, -EINVAL, "not valid JSON");
	struct architecture a = parsed(LLAMA "}"), b = a;
	struct error err = {0};
	b.n_kv_heads = 3;
	assert_int_equal(architecture_check(&b, &err), -EINVAL);
	assert_non_null(strstr(err.message, "4 heads are not a multiple of 3"));
	b = a;
	b.n_heads = 0;
	assert_int_equal(architecture_check(&b, &err), -EINVAL);
	b = a;
	b.vocab_size = (1u << 24) + 1;
	assert_int_equal(architecture_check(&b, &err), -EINVAL);
	b = a;
	b.rope_theta = NAN;
	assert_int_equal(architecture_check(&b, &err), -EINVAL);
	b = a;
	b.n_layers = 1025;
	assert_int_equal(architecture_check(&b, &err), -EINVAL);
}

static void config_json_reads_back(void **state)
{
	(void)state;
	static const char *const configs[] = {
		LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
		      "\"original_max_position_embeddings\":256},\"bos_token_id\":3}",
		LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.5},\"rms_norm_eps\":1e-5,\"tie_word_embeddings\":true}",
		LLAMA ",\"rope_scaling\":{" YARN ",\"truncate\":false,\"original_max_position_embeddings\":128}}",
		LLAMA ",\"rope_scaling\":{" YARN ",\"original_max_position_embeddings\":512}}",
		LLAMA ",\"rope_scaling\":{" LONGROPE ",\"attention_factor\":1.25}}",
		LLAMA ",\"attention_bias\":true}", LLAMA ",\"mlp_bias\":true}", QWEN3 ",\"attention_bias\":true}",
		MISTRAL ",\"sliding_window\":null,\"rope_theta\":1000000}", QWEN2 ",\"tie_word_embeddings\":true}", QWEN3 "}",
	};
	for (size_t i = 0; i < sizeof configs / sizeof *configs; i++) {
		struct architecture a = parsed(configs[i]), b;
		char *json = NULL;
		assert_int_equal(architecture_to_json(&a, &json, NULL), 0);
		if (a.rope_scaling == ROPE_SCALING_YARN)      // else some releases of transformers make the factor anew
			assert_true(!strstr(json, "original_max") == (a.rope_original_context == a.context_length));
		b = parsed(json);
		assert_memory_equal(&a, &b, sizeof a);
		free(json);
	}
	struct architecture a = parsed(LLAMA "}");
	struct error err = {0};
	char *json = NULL;
	a.norm_epsilon = 1e-5f;
	assert_int_equal(architecture_to_json(&a, &json, NULL), 0);
	assert_non_null(strstr(json, "\"rms_norm_eps\": 1.0000000000000001e-5"));
	free(json);
	a.qkv_bias = true;      // a GGUF "llama" with QKV biases is what transformers calls Qwen2
	assert_int_equal(architecture_to_json(&a, &json, NULL), 0);
	assert_non_null(strstr(json, "Qwen2ForCausalLM"));
	free(json);
	a.qk_norm = true;
	assert_int_equal(architecture_to_json(&a, &json, &err), -EOPNOTSUPP);
	a.qk_norm = a.qkv_bias = false;
	a.rope_scaling = ROPE_SCALING_DIVISORS;
	for (int i = 0; i < 8; i++)
		a.rope_divisors[i] = 1.5f;
	assert_int_equal(architecture_to_json(&a, &json, &err), -EOPNOTSUPP);
}

static void parameters_are_counted(void **state)
{
	(void)state;
	// SmolLM2-135M: 134,515,008 parameters with the tied head counted once.
	struct architecture a = {.n_layers = 30, .width = 576, .ffn_width = 1536, .n_heads = 9, .n_kv_heads = 3, .head_size = 64,
				 .vocab_size = 49152, .tied_head = true};
	assert_int_equal(architecture_n_parameters(&a), 134515008);
	a.tied_head = false;
	assert_int_equal(architecture_n_parameters(&a), 134515008 + 49152 * 576);
}

// cos and sin of transformers' LlamaRotaryEmbedding in float32; see rope_golden.py.
#include "tests/unit/rope_golden.h"

static void rotation_tables_equal_transformers(void **state)
{
	(void)state;
	for (size_t g = 0; g < sizeof rope_golden / sizeof *rope_golden; g++) {
		struct architecture a = parsed(rope_golden[g].config);
		uint32_t half = a.head_size / 2, n = 4096;
		float *cosine = malloc((size_t)n * half * sizeof *cosine), *sine = malloc((size_t)n * half * sizeof *sine);
		architecture_rope_tables(&a, n, cosine, sine);
		for (size_t i = 0; i < ROPE_GOLDEN_POINTS; i++) {
			uint32_t t = rope_golden[g].points[i].position, k = rope_golden[g].points[i].index;
			// One unit in the last place of a frequency, times the position, is what two correct powf may differ by.
			float bound = 1.2e-7f + 1.2e-7f * (float)t;
			assert_true(fabsf(cosine[t * half + k] - rope_golden[g].points[i].cosine) <= bound);
			assert_true(fabsf(sine[t * half + k] - rope_golden[g].points[i].sine) <= bound);
		}
		free(cosine);
		free(sine);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(families_are_read), cmocka_unit_test(layer_norm_families_are_read_and_written),
		cmocka_unit_test(layer_norm_features_are_refused_by_name),
		cmocka_unit_test(gemma_and_mixtures_are_read),
		cmocka_unit_test(sliding_windows_are_read_and_written_layer_by_layer),
		cmocka_unit_test(rope_scaling_is_read_in_old_and_new_form),
		cmocka_unit_test(yarn_is_read_as_transformers_reads_it),
		cmocka_unit_test(longrope_serves_the_original_context),
		cmocka_unit_test(what_lacks_is_the_familys_default),
		cmocka_unit_test(gemma_3_rotates_by_kind_of_layer),
		cmocka_unit_test(what_would_change_a_logit_is_refused_by_name),
		cmocka_unit_test(wrong_numbers_are_refused),
		cmocka_unit_test(config_json_reads_back),
		cmocka_unit_test(parameters_are_counted),
		cmocka_unit_test(rotation_tables_equal_transformers),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
