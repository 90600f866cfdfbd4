// SPDX-License-Identifier: Apache-2.0
// Whole model files: tiny GGUF files of every type and a Hugging Face directory, through to the matrices a backend holds.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/model/checkpoint.h"
#include "daemon/model/gguf_source.h"
#include "daemon/model/model.h"
#include "tests/unit/builder.h"

#define C 256      // one super-block of the K types
#define F 256
#define D 32
#define Q (4 * D)
#define KV (2 * D)
#define V 11

static const struct { const char *name; uint32_t columns, rows; } shapes[] = {
	{"token_embd.weight", C, V + 2}, {"output_norm.weight", C, 0}, {"blk.0.attn_norm.weight", C, 0}, {"blk.0.ffn_norm.weight", C, 0},
	{"blk.0.attn_q.weight", C, Q}, {"blk.0.attn_k.weight", C, KV}, {"blk.0.attn_v.weight", C, KV}, {"blk.0.attn_output.weight", Q, C},
	{"blk.0.ffn_gate.weight", C, F}, {"blk.0.ffn_up.weight", C, F}, {"blk.0.ffn_down.weight", F, C},
};
#define N_SHAPES (sizeof shapes / sizeof *shapes)
static const uint32_t ggml_number[N_DTYPES] = {
	[DTYPE_F32] = 0, [DTYPE_F16] = 1, [DTYPE_BF16] = 30, [DTYPE_Q8_0] = 8, [DTYPE_Q4_0] = 2, [DTYPE_Q4_1] = 3, [DTYPE_Q5_0] = 6,
	[DTYPE_Q5_1] = 7, [DTYPE_Q4_K] = 12, [DTYPE_Q5_K] = 13, [DTYPE_Q6_K] = 14, [DTYPE_Q2_K] = 10, [DTYPE_Q3_K] = 11,
	[DTYPE_IQ4_NL] = 20, [DTYPE_IQ4_XS] = 23, [DTYPE_MXFP4] = 39, [DTYPE_TQ1_0] = 34, [DTYPE_TQ2_0] = 35,
	[DTYPE_IQ1_S] = 19, [DTYPE_IQ1_M] = 29, [DTYPE_IQ2_XXS] = 16, [DTYPE_IQ2_XS] = 17, [DTYPE_IQ2_S] = 22,
	[DTYPE_IQ3_XXS] = 18, [DTYPE_IQ3_S] = 21,
};

// Norms are F32; attn_output has rows of 128, which super-blocks do not fit.
static enum dtype type_of(size_t shape, enum dtype matrices)
{
	if (!shapes[shape].rows)
		return DTYPE_F32;
	return shapes[shape].columns % dtype_block_elements(matrices) ? DTYPE_Q8_0 : matrices;
}

static size_t bytes_of(size_t shape, enum dtype matrices)
{
	return dtype_row_bytes(type_of(shape, matrices), shapes[shape].columns) * (shapes[shape].rows ? shapes[shape].rows : 1);
}

// Any bytes are blocks, but scales (f16 anywhere, or bf16, f32) must be finite: clearing bit 0x40 of each byte keeps every exponent from
// all ones.
static void put_data(struct builder *b, size_t shape, enum dtype matrices)
{
	uint32_t x = (uint32_t)shape * 7919 + 1;
	for (size_t i = 0; i < bytes_of(shape, matrices); i++) {
		x = x * 1664525u + 1013904223u;
		build_bytes(b, &(uint8_t){(x >> 24) & 0xbf}, 1);
	}
}

// flaw 1: a tensor too many; 2: one too few; 3: q too high
static void put_model(struct builder *b, enum dtype matrices, int flaw)
{
	static const struct { const char *key; uint32_t value; } sizes[] = {
		{"llama.block_count", 1}, {"llama.context_length", 64}, {"llama.embedding_length", C}, {"llama.feed_forward_length", F},
		{"llama.attention.head_count", Q / D}, {"llama.attention.head_count_kv", KV / D}, {"llama.attention.key_length", D},
	};
	uint64_t offset = 0;
	size_t n = flaw == 2 ? N_SHAPES - 1 : N_SHAPES;
	build_gguf(b, 3, n + (flaw == 1), 11);
	build_key_string(b, "general.architecture", "llama");
	for (size_t i = 0; i < 7; i++)
		build_key_u32(b, sizes[i].key, sizes[i].value);
	build_key_f32(b, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
	build_key_array(b, "tokenizer.ggml.tokens", 8, V + 2);
	for (int i = 0; i < V; i++)
		build_string(b, "token");
	build_string(b, "[PAD11]");
	build_string(b, "[PAD12]");
	build_key_array(b, "tokenizer.ggml.token_type", 5, V + 2);
	for (int i = 0; i < V + 2; i++)
		build_u32(b, i < V ? 1 : 5);
	for (size_t i = 0; i < n; i++) {
		uint32_t rows = shapes[i].rows + (flaw == 3 && i == 4 ? D : 0);
		build_tensor(b, shapes[i].name, rows ? 2 : 1, shapes[i].columns, rows, ggml_number[type_of(i, matrices)], offset);
		offset += (bytes_of(i, matrices) + (flaw == 3 && i == 4 ? dtype_row_bytes(type_of(i, matrices), C) * D : 0) + 31) / 32 * 32;
	}
	if (flaw == 1)
		build_tensor(b, "blk.0.attn_sinks.weight", 1, C, 0, 0, offset);
	build_align(b, 32);
	for (size_t i = 0; i < n; i++) {
		put_data(b, i, matrices);
		if (flaw == 3 && i == 4)
			for (size_t k = 0; k < dtype_row_bytes(type_of(i, matrices), C) * D; k++)
				build_bytes(b, "", 1);
		build_align(b, 32);
	}
	for (int i = 0; flaw == 1 && i < C; i++)
		build_u32(b, 0);
}

static int open_built(struct builder *b, struct model_file **ret, struct error *err)
{
	char path[] = "test_model.XXXXXX";
	int fd = mkstemp(path);
	build_write(b, path);
	build_done(b);
	int r = model_file_open(path, ret, err);      // the open descriptor outlives the name
	close(fd);
	unlink(path);
	return r;
}

static float *values_of(size_t shape, enum dtype matrices)
{
	struct builder b = {0};
	size_t n = (size_t)shapes[shape].columns * (shapes[shape].rows ? shapes[shape].rows : 1);
	float *v = malloc(n * sizeof *v);
	put_data(&b, shape, matrices);
	dtype_to_float(type_of(shape, matrices), b.bytes, v, n);
	build_done(&b);
	return v;
}

// Where row r of a q or k matrix lies in the file.
static uint32_t file_row(size_t shape, uint32_t r)
{
	if (shape != 4 && shape != 5)
		return r;
	uint32_t head = r / D, s = r % D / (D / 2), i = r % (D / 2);
	return head * D + 2 * i + s;
}

// The matrix's rows first..first+n against the file's values, by a product with unit vectors.
static void assert_rows(struct backend *be, const struct weight *w, uint32_t N, uint32_t first, size_t shape, enum dtype matrices,
			uint32_t n)
{
	uint32_t K = shapes[shape].columns;
	float *unit = calloc((size_t)K * K, sizeof *unit), *want = values_of(shape, matrices);
	double *y = malloc((size_t)K * N * sizeof *y);
	for (uint32_t i = 0; i < K; i++)
		unit[(size_t)i * K + i] = 1;
	struct act *x = be->ops->act_new(be, (size_t)K * K, NULL), *out = be->ops->act_new(be, (size_t)K * N, NULL);
	be->ops->act_write(be, x, unit, (size_t)K * K);
	be->ops->linear(be, out, x, w, NULL, K);
	be->ops->act_read(be, y, out, (size_t)K * N);
	for (uint32_t r = 0; r < n; r++)
		for (uint32_t k = 0; k < K; k++)
			if (y[(size_t)k * N + first + r] != (double)want[(size_t)file_row(shape, r) * K + k])
				fail_msg("%s as %s: row %u column %u differs", shapes[shape].name, dtype_name(matrices), r, k);
	be->ops->act_free(be, x);
	be->ops->act_free(be, out);
	free(unit);
	free(want);
	free(y);
}

static void expect_every_type(const char *device, const struct backend_options *options)
{
	struct backend *be = NULL;
	assert_int_equal(backend_open(device, options, &be, NULL), 0);
	be->room = be->stores ? 0 : be->room;
	for (int t = 0; t < N_DTYPES; t++) {
		struct builder b = {0};
		struct model_file *m = NULL;
		struct weights *w = NULL;
		struct error err = {0};
		put_model(&b, (enum dtype)t, 0);
		if (open_built(&b, &m, &err) < 0)
			fail_msg("%s", err.message);
		assert_string_equal(model_file_dtype(m), dtype_name((enum dtype)t));
		struct tensor_source source = model_file_source(m);
		uint64_t before = be->stored_bytes;
		if (weights_load(be, model_file_architecture(m), &source, 8, &w, &err) < 0)
			fail_msg("%s", err.message);
		assert_int_equal(be->stored_bytes - before, be->stores ? model_file_stored_bytes(m) : 0);
		assert_rows(be, w->embedding, V, 0, 0, (enum dtype)t, V);
		assert_rows(be, w->layers[0].qkv, Q + 2 * KV, 0, 4, (enum dtype)t, Q);
		assert_rows(be, w->layers[0].qkv, Q + 2 * KV, Q, 5, (enum dtype)t, KV);
		assert_rows(be, w->layers[0].qkv, Q + 2 * KV, Q + KV, 6, (enum dtype)t, KV);
		assert_rows(be, w->layers[0].out, C, 0, 7, (enum dtype)t, C);
		assert_rows(be, w->layers[0].gate_up, 2 * F, 0, 8, (enum dtype)t, F);
		assert_rows(be, w->layers[0].gate_up, 2 * F, F, 9, (enum dtype)t, F);
		assert_rows(be, w->layers[0].down, C, 0, 10, (enum dtype)t, C);
		assert_ptr_equal(w->head, w->embedding);
		weights_free(w);
		model_file_close(m);
	}
	backend_close(be);
}

static void every_type_loads_to_its_dequantised_values(void **state)
{
	(void)state;
	struct backend_options options = {.n_threads = 1, .numeric = BACKEND_NUMERIC_F32, .max_rows = C}, stored = options;
	stored.host_bytes = UINT64_C(1) << 30;       // more than there is room for, less as stored
	stored.need.parts[BACKEND_PART_WEIGHTS] = (struct backend_count){.n_weight = UINT64_C(1) << 30, .stored_bytes = 1};
	expect_every_type("ref", &options);
	expect_every_type("cpu", &options);
	expect_every_type("cpu", &stored);
}

static void rows_of_every_type_are_read_by_number(void **state)
{
	(void)state;
	static const uint32_t rows[] = {3, 4, 5, 0, 10, 3};
	for (int t = 0; t < N_DTYPES; t++) {
		struct builder b = {0};
		struct model_file *m = NULL;
		struct error err = {0};
		float got[6 * C], *expected = values_of(0, (enum dtype)t), *norm = values_of(1, (enum dtype)t);
		put_model(&b, (enum dtype)t, 0);
		assert_int_equal(open_built(&b, &m, NULL), 0);
		if (model_file_read_rows(m, "model.embed_tokens.weight", rows, 6, got, &err))
			fail_msg("%s", err.message);
		for (int i = 0; i < 6; i++)
			assert_memory_equal(got + i * C, expected + rows[i] * C, C * sizeof *got);
		assert_int_equal(model_file_read_rows(m, "model.norm.weight", (uint32_t[]){0}, 1, got, &err), 0);
		assert_memory_equal(got, norm, C * sizeof *got);
		assert_int_equal(model_file_read_rows(m, "lm_head.weight", rows, 1, got, &err), -ENOENT);
		assert_int_equal(model_file_read_rows(m, "model.embed_tokens.weight", (uint32_t[]){V + 2}, 1, got, &err), -EINVAL);
		free(expected);
		free(norm);
		model_file_close(m);
	}
}

static void padding_tokens_are_not_vocabulary(void **state)
{
	(void)state;
	struct builder b = {0};
	struct model_file *m = NULL;
	put_model(&b, DTYPE_F16, 0);
	assert_int_equal(open_built(&b, &m, NULL), 0);
	assert_int_equal(model_file_architecture(m)->vocab_size, V);
	model_file_close(m);
}

static void refused(enum dtype t, int flaw, int code, const char *part)
{
	struct builder b = {0};
	struct model_file *m = NULL;
	struct error err = {0};
	put_model(&b, t, flaw);
	int r = open_built(&b, &m, &err);
	if (r == 0) {
		struct backend *be = NULL;
		struct backend_options options = {.n_threads = 1, .max_rows = 8};
		struct tensor_source source = model_file_source(m);
		struct weights *w = NULL;
		assert_int_equal(backend_open("ref", &options, &be, NULL), 0);
		r = weights_load(be, model_file_architecture(m), &source, 8, &w, &err);
		backend_close(be);
	}
	if (r != code || !strstr(err.message, part))
		fail_msg("wanted %d \"%s\", got %d \"%s\"", code, part, r, err.message);
	model_file_close(m);
}

static void left_over_and_missing_tensors_are_refused(void **state)
{
	(void)state;
	refused(DTYPE_Q4_0, 1, -EOPNOTSUPP, "tensor blk.0.attn_sinks.weight has no place in the architecture llama");
	refused(DTYPE_Q4_0, 2, -EINVAL, "tensor model.layers.0.mlp.down_proj.weight is missing");
	refused(DTYPE_Q4_0, 3, -EINVAL, "self_attn.q_proj.weight is 160 x 256; the architecture needs 128 x 256");
}

static void names_are_translated(void **state)
{
	(void)state;
	static const struct architecture llama, gemma = {.gemma = true};
	char name[GGUF_SOURCE_NAME];
	assert_int_equal(gguf_source_name(&gemma, "model.layers.3.post_attention_layernorm.weight", name), 0);
	assert_string_equal(name, "blk.3.post_attention_norm.weight");
	assert_int_equal(gguf_source_name(&llama, "model.layers.3.post_attention_layernorm.weight", name), 0);
	assert_string_equal(name, "blk.3.ffn_norm.weight");
	assert_int_equal(gguf_source_name(&llama, "model.layers.3.pre_feedforward_layernorm.weight", name), -ENOENT);
	assert_int_equal(gguf_source_name(&llama, "model.layers.1023.self_attn.k_norm.weight", name), 0);
	assert_string_equal(name, "blk.1023.attn_k_norm.weight");
	uint32_t expert;
	assert_int_equal(gguf_source_name(&llama, "model.layers.2.mlp.experts.17.gate_proj.weight", name), 0);
	assert_string_equal(name, "blk.2.ffn_gate_exps.weight");
	assert_true(gguf_source_expert("model.layers.2.mlp.experts.17.gate_proj.weight", &expert) && expert == 17);
	assert_false(gguf_source_expert("model.layers.2.mlp.gate.weight", &expert));
	assert_int_equal(gguf_source_name(&llama, "model.layers.2.mlp.gate.weight", name), 0);
	assert_string_equal(name, "blk.2.ffn_gate_inp.weight");
	assert_int_equal(gguf_source_name(&llama, "model.layers.2.mlp.experts.17.other.weight", name), -ENOENT);
	assert_int_equal(gguf_source_name(&llama, "lm_head.weight", name), 0);
	assert_string_equal(name, "output.weight");
	assert_int_equal(gguf_source_name(&llama, "transformer.h.47.attn.c_attn.bias", name), 0);
	assert_string_equal(name, "blk.47.attn_qkv.bias");
	assert_int_equal(gguf_source_name(&llama, "transformer.wpe.weight", name), 0);
	assert_string_equal(name, "position_embd.weight");
	assert_int_equal(gguf_source_name(&llama, "transformer.h.0.self_attn.q_proj.weight", name), -ENOENT);
	assert_int_equal(gguf_source_name(&llama, "bert.embeddings.word_embeddings.weight", name), -ENOENT);
	assert_int_equal(gguf_source_name(&llama, "model.layers.x.mlp.up_proj.weight", name), -ENOENT);
	assert_int_equal(gguf_source_name(&llama, "model.layers.1.mlp.up_proj.bias", name), 0);
	assert_string_equal(name, "blk.1.ffn_up.bias");
	assert_int_equal(gguf_source_name(&llama, "model.layers.1.mlp.up_proj.gain", name), -ENOENT);
}

static struct content_id id_of(struct builder *b)
{
	struct model_file *m = NULL;
	struct content_id id, again;
	assert_int_equal(open_built(b, &m, NULL), 0);
	assert_int_equal(model_file_weights_id(m, &id, NULL), 0);
	assert_int_equal(model_file_weights_id(m, &again, NULL), 0);
	assert_memory_equal(&id, &again, sizeof id);
	model_file_close(m);
	return id;
}

static void weights_id_is_of_the_weights(void **state)
{
	(void)state;
	struct builder b = {0};
	put_model(&b, DTYPE_Q5_1, 0);
	struct content_id first = id_of(&b);
	put_model(&b, DTYPE_Q5_1, 0);
	struct content_id same = id_of(&b);
	put_model(&b, DTYPE_Q5_1, 0);
	b.bytes[b.n - 40] ^= 1;      // in the last tensor
	struct content_id other = id_of(&b);
	put_model(&b, DTYPE_Q5_0, 0);
	struct content_id type = id_of(&b);
	assert_memory_equal(&first, &same, sizeof first);
	assert_memory_not_equal(&first, &other, sizeof first);
	assert_memory_not_equal(&first, &type, sizeof first);
}

#define CONFIG "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":8,\"intermediate_size\":12,\"num_hidden_layers\":1," \
	       "\"vocab_size\":11,\"num_attention_heads\":2,\"max_position_embeddings\":16,\"tie_word_embeddings\":true}"
#define TOKENIZER "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[],\"normalizer\":null," \
	"\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true}," \
	"\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\"}," \
	"\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":null," \
	"\"end_of_word_suffix\":null,\"fuse_unk\":false,\"byte_fallback\":false,\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"d\":8}," \
	"\"merges\":[\"a b\"]}}"

// Whether a second copy of the tied head is the embedding or, with its last byte changed, is not.
static bool head_differs;

// A directory as a student's checkpoint would be, plus one tensor of choice; lm_head.weight is the embedding once more.
static int open_directory(const char *config, const char *tokenizer, const char *extra, struct model_file **ret, struct error *err)
{
	char directory[] = "test_model.XXXXXX", path[3][64];
	struct backend *be = NULL;
	struct backend_options options = {.n_threads = 1, .max_rows = 8};
	struct weights *w = NULL;
	struct architecture a;
	struct checkpoint_tensor *tensors = NULL, all[32];
	static const float zero[4] = {0};
	size_t n = 0;
	assert_non_null(mkdtemp(directory));
	snprintf(path[0], sizeof path[0], "%s/config.json", directory);
	snprintf(path[1], sizeof path[1], "%s/model.safetensors", directory);
	snprintf(path[2], sizeof path[2], "%s/tokenizer.json", directory);
	assert_int_equal(architecture_from_json(CONFIG, strlen(CONFIG), &a, NULL), 0);
	assert_int_equal(backend_open("ref", &options, &be, NULL), 0);
	assert_int_equal(weights_new_trainable(be, &a, 1, 8, &w, NULL), 0);
	assert_int_equal(weights_export(w, w->parameters->value, DTYPE_BF16, &tensors, &n, NULL), 0);
	memcpy(all, tensors, n * sizeof *all);
	all[n] = (struct checkpoint_tensor){extra, {.dtype = DTYPE_F32, .n_dims = 1, .dims = {4}, .data = zero, .n_bytes = 16}};
	uint8_t *head = malloc(all[0].tensor.n_bytes);
	memcpy(head, all[0].tensor.data, all[0].tensor.n_bytes);
	head[all[0].tensor.n_bytes - 1] ^= head_differs;
	if (extra && !strcmp(extra, "lm_head.weight")) {
		all[n].tensor = all[0].tensor;
		all[n].tensor.data = head;
	}
	assert_int_equal(checkpoint_write_safetensors(path[1], all, n + (extra != NULL), NULL), 0);
	free(head);
	weights_export_free(tensors, n);
	weights_free(w);
	backend_close(be);
	if (config)
		assert_int_equal(checkpoint_write_file(path[0], config, strlen(config), NULL), 0);
	if (tokenizer)
		assert_int_equal(checkpoint_write_file(path[2], tokenizer, strlen(tokenizer), NULL), 0);
	int r = model_file_open(directory, ret, err);
	for (int i = 0; i < 3; i++)
		unlink(path[i]);
	rmdir(directory);
	return r;
}

static void directories_open(void **state)
{
	(void)state;
	struct model_file *m = NULL;
	struct error err = {0};
	struct tokenizer *t = NULL;
	if (open_directory(CONFIG, NULL, NULL, &m, &err) < 0)
		fail_msg("%s", err.message);
	assert_string_equal(model_file_dtype(m), "BF16");
	assert_int_equal(model_file_architecture(m)->vocab_size, 11);
	model_file_close(m);
	if (open_directory(CONFIG, TOKENIZER, "model.layers.0.self_attn.rotary_emb.inv_freq", &m, &err) < 0)
		fail_msg("%s", err.message);
	assert_int_equal(model_file_architecture(m)->vocab_size, 9);      // highest id + 1, not the embedding's 11 rows
	assert_int_equal(model_file_tokenizer(m, &t, &err), 0);
	model_file_close(m);
	assert_int_equal(tokenizer_vocab_size(t), 9);
	tokenizer_close(t);
	assert_int_equal(open_directory(CONFIG, NULL, "lm_head.weight", &m, &err), 0);      // tied: a second copy is ignored
	model_file_close(m);
}

// transformers 4 takes the embedding then, transformers 5 the head.
static void a_tied_head_that_is_not_the_embedding_is_refused(void **state)
{
	(void)state;
	struct model_file *m = NULL;
	struct error err = {0};
	head_differs = true;
	int r = open_directory(CONFIG, NULL, "lm_head.weight", &m, &err);
	head_differs = false;
	assert_int_equal(r, -EOPNOTSUPP);
	assert_non_null(strstr(err.message, "ties lm_head.weight to model.embed_tokens.weight (tie_word_embeddings), but they differ"));
}

static void wrong_directories_are_refused(void **state)
{
	(void)state;
	struct model_file *m = NULL;
	struct error err = {0};
	assert_int_equal(open_directory(NULL, NULL, NULL, &m, &err), -ENOENT);
	assert_non_null(strstr(err.message, "neither a GGUF file nor a Hugging Face model directory"));
	assert_int_equal(open_directory(CONFIG, "{}", NULL, &m, &err) < 0, 1);
	assert_int_equal(open_directory(CONFIG, NULL, "model.layers.0.self_attn.o_proj.bias", &m, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.message, "o_proj.bias has no place in the architecture llama"));
	assert_int_equal(model_file_open("no-such-model", &m, &err), -ENOENT);
	struct builder b = {0};
	build_bytes(&b, "#!/bin/sh\n", 10);
	assert_int_equal(open_built(&b, &m, &err), -EINVAL);
	assert_non_null(strstr(err.message, "is not a GGUF file"));
}

static void committed_models_open(void **state)
{
	(void)state;
	static const char *const names[] = {"linear", "llama", "llama-tied", "llama3", "qwen2", "qwen3", "train"};
	const char *top = getenv("top_srcdir");
	if (!top)
		skip();
	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		char path[4096];
		struct model_file *m = NULL;
		struct error err = {0};
		snprintf(path, sizeof path, "%s/tests/golden/models/%s", top, names[i]);
		if (model_file_open(path, &m, &err) < 0)
			fail_msg("%s: %s", path, err.message);
		model_file_close(m);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_type_loads_to_its_dequantised_values),
		cmocka_unit_test(rows_of_every_type_are_read_by_number),
		cmocka_unit_test(padding_tokens_are_not_vocabulary),
		cmocka_unit_test(left_over_and_missing_tensors_are_refused),
		cmocka_unit_test(names_are_translated),
		cmocka_unit_test(weights_id_is_of_the_weights),
		cmocka_unit_test(directories_open),
		cmocka_unit_test(a_tied_head_that_is_not_the_embedding_is_refused),
		cmocka_unit_test(wrong_directories_are_refused),
		cmocka_unit_test(committed_models_open),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
