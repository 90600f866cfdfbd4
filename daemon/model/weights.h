// SPDX-License-Identifier: Apache-2.0
// Names -> device matrices. Two makers: weights_load (immutable, from a model file, any dtype) and parameters (trainable, one flat
// device array with gradients beside it). Both give the same struct weights, so forward.c serves teacher and student alike.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "daemon/model/config.h"
#include "kernels/backend.h"

struct error;
struct checkpoint_tensor;

struct expert_weights { struct weight *gate_up, *down; };

struct layer_weights {
	struct real *attention_norm, *ffn_norm;       // (C)
	struct real *attention_post_norm, *ffn_post_norm;    // (C) of what a half gives, or NULL
	struct real *q_norm, *k_norm;                 // (D) or NULL
	struct real *attention_norm_bias, *ffn_norm_bias;    // (C) of layer norms, or NULL
	struct real *qkv_bias;                        // (W) or NULL
	struct real *out_bias, *up_bias, *down_bias;  // (C), (2F or F), (C) or NULL
	struct weight *qkv;                           // (W, C) rows: q heads, k heads, v heads
	struct weight *out;                           // (C, NH D)
	struct weight *gate_up;                       // (2F, C) rows: gate then up; (F, C) where there is no gate
	struct weight *down;                          // (C, F)
	// A mixture has, in the place of these two, a router (n_experts, C) and n_experts of both; else NULL.
	struct weight *router;
	struct expert_weights *experts;
};

// Gradients of the same shapes, places in parameters->gradient (NULL where the layer has no such weight).
struct layer_gradients {
	struct real *attention_norm, *ffn_norm, *q_norm, *k_norm, *attention_norm_bias, *ffn_norm_bias;
	struct real *qkv_bias, *out_bias, *up_bias, *down_bias;
	struct real *qkv, *out, *gate_up, *down;
};

// What a model has once, beside the embedding and the head: NULL where it has none. A masked model's head reads
// layernorm(gelu(rows transformᵀ + transform_bias)).
struct model_vectors {
	struct real *positions;                       // (context_length, C)
	struct real *token_types;                     // (n_token_types, C)
	struct real *final_norm, *final_norm_bias;    // (C)
	struct real *transform_bias, *transform_norm, *transform_norm_bias;    // (C)
	struct real *head_bias;                       // (V)
};

struct weights {
	struct backend *backend;
	struct architecture architecture;
	struct weight *embedding;                     // (V, C)
	struct layer_weights *layers;
	struct model_vectors vectors;
	struct weight *transform;                     // (C, C) of masked models, or NULL
	struct weight *head;                          // (V, C); the embedding's own when tied
	struct real *cosine, *sine;                   // rotation tables (max_positions, R/2); NULL where positions are learned
	struct real *cosine_sliding, *sine_sliding;   // of sliding layers, where they have their own; else NULL
	uint32_t max_positions;
	uint64_t file_bytes;                          // of what weights_load read
	bool head_apart;                              // the head has no room in memory: each product with it reads, or unpacks, all of it
	uint64_t *beats;                              // counted up with each layer and each tile of the head; NULL = nobody looks
	// Trainable only, else NULL:
	struct parameters *parameters;                // owner of the storage
	struct layer_gradients *gradients;            // (n_layers)
	struct real *embedding_gradient, *transform_gradient;
	struct model_vectors vector_gradients;
	struct real *head_gradient;                   // the embedding's own when tied
	struct weight **beside;                       // (parameters->n_parameters - n_model) the matrices beside the model;
	                                              // NULL for vectors
};

// A sign of life of whoever computes with them, for a thread that watches.
static inline void weights_beat(const struct weights *w)
{
	if (w->beats)
		__atomic_fetch_add(w->beats, 1, __ATOMIC_RELAXED);
}

// Where tensors come from: Hugging Face names ("model.layers.0.self_attn.q_proj.weight"); GGUF names and its permuted q/k rows are
// translated by the source. find returns -ENOENT for an absent name (err untouched). What find gave is valid until release, which
// must be called for each (NULL: nothing to release): a source reads a tensor when asked, so that loading holds one matrix at a time.
// Where there is a read_rows (it and describe may be NULL), a matrix of a row for each token, the largest of most files, need not be read
// whole: describe is find but for the data, read_rows gives its rows first..first+n-1 as stored, to any thread.
// Tensors are as Hugging Face stores them, GPT-2's matrices transposed and Gemma's gains less 1, unless `row_major` (GGUF).
struct tensor_source {
	void *file;
	int (*find)(void *file, const char *name, struct tensor *ret_tensor, struct error *err);
	void (*release)(void *file, struct tensor *tensor);
	bool row_major;
	int (*describe)(void *file, const char *name, struct tensor *ret_tensor, struct error *err);
	int (*read_rows)(const void *file, const char *name, uint64_t first, uint64_t n, void *to, struct error *err);
};

// Where memory is bounded (backend_options.host_bytes) the head has the first claim to it, then layers from the first on; what has no room
// lies apart (weight_load_apart), with an embedding that is not the head's too.
int weights_load(struct backend *be, const struct architecture *a, const struct tensor_source *source, uint32_t max_positions,
		 struct weights **ret_weights, struct error *err);
struct weights *weights_free(struct weights *w);
// Adds to *need what weights_load will make: no less, and at most some rounding more. With n_arrays what weights_new_trainable will, and
// others of its caller's in parameter layout: value, gradient and an optimizer's.
int weights_need(const struct architecture *a, uint32_t max_positions, uint32_t n_arrays, struct backend_need *need, struct error *err);

// Trainable parameters: value and gradient are flat device arrays of the same length and order, as are those of an optimizer.
struct parameter {
	char name[96];
	uint32_t n_dims;
	uint64_t dims[2];
	size_t offset, n;
	bool decay;                                   // weight decay applies: matrices
	bool transposed;                              // Hugging Face stores it as (dims[1], dims[0])
	bool table;                                   // its rows are added to others: an array of numbers, not a matrix
	bool from_one;                                // Hugging Face stores the gain less 1
	bool block;                                   // a matrix of a block's products (WEIGHT_BLOCK)
	bool of_vocabulary;                           // a row for each token: files may have more (padding)
};
// Bytes of the matrices among n parameters as the source has them; 0 where it does not say before they are read.
uint64_t weights_stored_bytes(const struct tensor_source *source, const struct parameter *list, size_t n);
// Every parameter of an architecture in storage order; the caller frees *ret_list.
int parameters_list(const struct architecture *a, struct parameter **ret_list, size_t *ret_n, struct error *err);
// The name of what every model has.
enum parameter_role { PARAMETER_EMBEDDING, PARAMETER_HEAD, PARAMETER_FINAL_NORM };
void parameters_name(const struct architecture *a, enum parameter_role role, char ret_name[96]);
struct parameters {
	size_t n_values, n_parameters;
	size_t n_model, n_model_values;               // of these, the model's own, which come first
	struct parameter *list;                       // Hugging Face names, in storage order (q, k, v adjacent; gate, up adjacent)
	struct real *value, *gradient;
};
// Random start: normal(0, 0.02), residual outputs scaled by 1/sqrt(2 n_layers), norms 1; a pure function of (architecture, seed).
int weights_new_trainable(struct backend *be, const struct architecture *a, uint64_t seed, uint32_t max_positions,
			  struct weights **ret_weights, struct error *err);
// The same with parameters beside the model: a loss's projections, say, which are trained, averaged and resumed like its own but are no
// part of it. Matrices start at normal(0, 0.02), vectors (columns 0) at 0. Names are copied.
struct parameter_beside { char name[96]; uint32_t rows, columns; };
struct parameters_beside { uint32_t n; const struct parameter_beside *list; };
int weights_new_beside(struct backend *be, const struct architecture *a, const struct parameters_beside *beside, uint64_t seed,
		       uint32_t max_positions, struct weights **ret_weights, struct error *err);
// Adds to *need what they are more; n_arrays as in weights_need.
void weights_need_beside(const struct parameters_beside *beside, uint32_t n_arrays, struct backend_need *need);
// Overwrites every parameter of the model from a source (dequantised); a missing or misshapen tensor is an error naming it.
int weights_fill(struct weights *w, const struct tensor_source *source, struct error *err);
// The same for any array in parameter layout (value, an optimizer's), whole: for resuming.
int weights_fill_array(struct weights *w, struct real *array, const struct tensor_source *source, struct error *err);
void weights_refresh(struct weights *w);      // after values changed (weights_fill does it itself): every trainable matrix anew
// Host copies of an array in parameter layout as named tensors (F32, F16 or BF16), for checkpoint_write_safetensors; the first n_model are
// the model.
int weights_export(const struct weights *w, const struct real *array, enum dtype dtype, struct checkpoint_tensor **ret_tensors,
		   size_t *ret_n, struct error *err);
void weights_export_free(struct checkpoint_tensor *tensors, size_t n);    // NULL is fine
