// SPDX-License-Identifier: Apache-2.0
// Architecture of a transformer, read from config.json (Hugging Face) or GGUF metadata. Everything here has been checked
// against the limits below, so later arithmetic on these numbers cannot overflow.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct gguf;

// DIVISORS: GGUF's rope_freqs tensor, one divisor per frequency, where it is not one of the well-known llama3 settings. LONGROPE: the same
// by LongRoPE's short factors. Longer sequences than its original context would rotate by the long ones from their first position on, and
// give other numbers for the same beginning: context_length is the original context, and they are refused. Dynamic NTK scaling changes
// nothing up to the context, so it is NONE.
enum rope_scaling { ROPE_SCALING_NONE, ROPE_SCALING_LINEAR, ROPE_SCALING_LLAMA3, ROPE_SCALING_DIVISORS, ROPE_SCALING_YARN,
		    ROPE_SCALING_LONGROPE };

enum architecture_norm { NORM_RMS, NORM_LAYER };      // a layer norm has a bias

// What stands between the two products of the feed-forward half. SWIGLU is gated: silu(gate) * up.
// GEGLU: gelu_tanh(gate) * up.
enum architecture_activation { ACTIVATION_SWIGLU, ACTIVATION_GELU_ERF, ACTIVATION_GELU_TANH, ACTIVATION_GEGLU };

#define ARCHITECTURE_MAX_HEAD_SIZE 1024
#define ARCHITECTURE_MAX_LAYERS 1024
#define ARCHITECTURE_MAX_EXPERTS 1024

struct architecture {
	// "llama", "qwen2", "qwen3", "mistral", "mixtral", "qwen3moe", "gemma2", "gemma3", "phi3", "smollm3", "granite", "gpt2",
	// "bert"
	char name[32];
	uint32_t n_layers;             // <= ARCHITECTURE_MAX_LAYERS
	uint32_t width;                // C <= 65536
	uint32_t ffn_width;            // F <= 1 << 20
	uint32_t n_heads, n_kv_heads;  // n_heads a multiple of n_kv_heads
	uint32_t head_size;            // D, <= 1024; even where positions rotate
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
	float rope_divisors[ARCHITECTURE_MAX_HEAD_SIZE / 2];      // (R/2) ROPE_SCALING_DIVISORS and _LONGROPE only
	double rope_beta_fast, rope_beta_slow;                    // YaRN: turns in the original context from which on a dimension is
	bool rope_truncate;                                       // kept, and below which it is divided; both as whole dimensions
	double rope_attention_factor;  // of all cosines and sines (YaRN, LongRoPE); 0: 1
	uint32_t rope_size;            // R, the first dimensions of a head that rotate; 0: all D
	enum architecture_norm norm;
	enum architecture_activation activation;
	// A block adds to the rows it found and norms what it reads (pre-norm), or norms what it has added to them (post-norm, BERT).
	bool post_norm;
	bool out_bias, ffn_bias;       // biases on the attention output, and in the feed-forward half
	bool learned_positions;        // a row for each of context_length positions is added to the embedding; nothing rotates
	uint32_t n_token_types;        // rows of the token-type table, whose row 0 is added to every position; 0 = no table
	// The model was trained to name masked tokens: every row sees its whole sequence, row i is the distribution *at* token i, and the
	// head is BERT's (dense, GELU, layer norm, a bias for each token). Else row i is the distribution after token i.
	bool masked;
	bool tied_head;                // the LM head is the embedding
	bool qkv_bias;                 // Qwen2, GPT-2, BERT; with out_bias what is called attention_bias
	bool qk_norm;                  // Qwen3
	bool fused;                    // Phi-3: files have q, k and v as one matrix, and gate and up
	int32_t bos_id, eos_id;        // -1 = none
	// Rows of sliding layers see the last `window` positions, themselves among them, and no more. 0: none slides (as when the window is
	// no shorter than the context).
	uint32_t window;
	bool sliding[ARCHITECTURE_MAX_LAYERS];
	double rope_theta_sliding;     // of sliding layers, whose frequencies are not scaled; 0: as in the others
	bool unrotated[ARCHITECTURE_MAX_LAYERS];      // SmolLM3: layers whose queries and keys do not rotate
	// Gemma: the embedding is multiplied by sqrt(C), and what a half gives is normed once more before it is added. Hugging Face's files
	// hold the gains of norms less 1.
	bool gemma;
	double query_scalar;           // scores are multiplied by 1/sqrt of it; 0: of the head size
	float score_cap, logit_cap;    // x becomes cap tanh(x / cap); 0 = none
	// Granite: the embedding is multiplied by the first, what a half gives by the second before it is added, and logits are divided by
	// the third; 0: 1.
	double embedding_scale, residual_scale, logit_divisor;
	// Mixture of experts: the feed-forward half is there n_experts times (ffn_width is the width of one), and each row goes through the
	// n_experts_used that a router finds likeliest, added up by their probabilities (normalise_experts:
	// divided by their sum). 0 = none.
	uint32_t n_experts, n_experts_used;
	bool normalise_experts;
};

static inline bool architecture_gated(const struct architecture *a)
{
	return a->activation == ACTIVATION_SWIGLU || a->activation == ACTIVATION_GEGLU;
}

// What rows of that layer see: 0 = everything before them.
static inline uint32_t architecture_window(const struct architecture *a, uint32_t layer)
{
	return a->sliding[layer] ? a->window : 0;
}

static inline uint32_t architecture_rope_size(const struct architecture *a)
{
	return a->rope_size ? a->rope_size : a->head_size;
}

// Width of what the first product of the feed-forward half gives: gate and up, or up alone.
static inline uint64_t architecture_up_width(const struct architecture *a)
{
	return (architecture_gated(a) ? 2 : 1) * (uint64_t)a->ffn_width;
}

// Parses and checks config.json; unknown architectures, activations or scalings are refused by name.
int architecture_from_json(const char *json, size_t n, struct architecture *ret, struct error *err);
int architecture_from_gguf(const struct gguf *file, struct architecture *ret, struct error *err);
// Without effect on a number: a window that no layer has, or that reaches over the whole context, becomes none.
void architecture_settle_window(struct architecture *a);
int architecture_check(const struct architecture *a, struct error *err);
// Whether backward and architecture_to_json know the kind; else it is a teacher only.
bool architecture_trains(const struct architecture *a);
// config.json that `transformers` loads (LlamaForCausalLM, ...); the caller frees.
int architecture_to_json(const struct architecture *a, char **ret_json, struct error *err);
uint64_t architecture_n_parameters(const struct architecture *a);
// Rotation tables over n positions: angle = float(position) * float(inverse frequency), as transformers computes it. Arrays (n, R/2).
void architecture_rope_tables(const struct architecture *a, uint32_t n, float *ret_cosine, float *ret_sine);
// Those of sliding layers, where they have their own.
void architecture_rope_tables_sliding(const struct architecture *a, uint32_t n, float *ret_cosine, float *ret_sine);
