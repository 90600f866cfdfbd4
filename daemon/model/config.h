// SPDX-License-Identifier: Apache-2.0
// Architecture of a decoder, read from config.json (Hugging Face) or GGUF metadata. Everything here has been checked
// against the limits below, so later arithmetic on these numbers cannot overflow.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct gguf;

// DIVISORS: GGUF's rope_freqs tensor, one divisor per frequency, where it is not one of the well-known llama3 settings.
enum rope_scaling { ROPE_SCALING_NONE, ROPE_SCALING_LINEAR, ROPE_SCALING_LLAMA3, ROPE_SCALING_DIVISORS };

#define ARCHITECTURE_MAX_HEAD_SIZE 1024

struct architecture {
	char name[32];                 // "llama", "qwen2", "qwen3", "mistral"
	uint32_t n_layers;             // <= 1024
	uint32_t width;                // C <= 65536
	uint32_t ffn_width;            // F <= 1 << 20
	uint32_t n_heads, n_kv_heads;  // n_heads a multiple of n_kv_heads
	uint32_t head_size;            // D, even, <= 1024
	// V, the real vocabulary, <= 1 << 24: ids that have a token. Model files may pad the embedding with more rows; weights and
	// tables are cut to V, so that no logit of a padding row can ever be served or counted in an lse. config.json and GGUF give
	// the padded height; model_file_open lowers it to what the tokenizer has.
	uint32_t vocab_size;
	uint32_t context_length;
	float norm_epsilon;
	double rope_theta;
	enum rope_scaling rope_scaling;
	double rope_factor, rope_low_frequency_factor, rope_high_frequency_factor;
	uint32_t rope_original_context;
	float rope_divisors[ARCHITECTURE_MAX_HEAD_SIZE / 2];      // (D/2) ROPE_SCALING_DIVISORS only
	bool tied_head;                // the LM head is the embedding
	bool qkv_bias;                 // Qwen2
	bool qk_norm;                  // Qwen3
	int32_t bos_id, eos_id;        // -1 = none
};

// Parses and checks config.json; unknown architectures, activations or scalings are refused by name.
int architecture_from_json(const char *json, size_t n, struct architecture *ret, struct error *err);
int architecture_from_gguf(const struct gguf *file, struct architecture *ret, struct error *err);
int architecture_check(const struct architecture *a, struct error *err);
// config.json that `transformers` loads (LlamaForCausalLM, ...); the caller frees.
int architecture_to_json(const struct architecture *a, char **ret_json, struct error *err);
uint64_t architecture_n_parameters(const struct architecture *a);
// Rotation tables over n positions: angle = float(position) * float(inverse frequency), as transformers computes it. Arrays (n, D/2).
void architecture_rope_tables(const struct architecture *a, uint32_t n, float *ret_cosine, float *ret_sine);
