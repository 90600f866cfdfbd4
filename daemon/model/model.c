// SPDX-License-Identifier: Apache-2.0
// One way in for both kinds of model. A tensor in the file that the architecture does not use is an error: ignoring, say, a bias would
// give wrong numbers without a word.
#include "daemon/model/model.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/error.h"
#include "daemon/model/directory.h"
#include "daemon/model/gguf_source.h"
#include "daemon/model/input.h"
#include "daemon/model/safetensors.h"
#include "daemon/model/weights_internal.h"

#define MAX_CONFIG (1u << 20)            // config.json: a few KiB
#define PIECE_BYTES (1u << 20)           // of a tensor that is read by rows, or compared, at a time, or one row

struct model_file {
	char *path;
	struct gguf *gguf;                      // one of the two
	struct safetensors *safetensors;
	struct architecture architecture;
	struct tokenizer *tokenizer;            // read at open to learn the vocabulary; the first to ask gets it
	struct parameter *list;
	size_t n_parameters;
	enum dtype dtype;
};

static void release(void *file, struct tensor *t)
{
	(void)file;
	free((void *)(uintptr_t)t->data);
}

static int find_in_gguf(void *file, const char *name, struct tensor *ret_tensor, struct error *err)
{
	struct model_file *m = file;
	return gguf_source_read(m->gguf, &m->architecture, name, ret_tensor, err);
}

static const char *stored_name(const struct model_file *m, const char *name, char buffer[STORED_NAME])
{
	return directory_name(m->safetensors, &m->architecture, name, buffer);
}

static int find_in_safetensors(void *file, const char *name, struct tensor *ret_tensor, struct error *err)
{
	struct model_file *m = file;
	char old[STORED_NAME];
	return safetensors_read(m->safetensors, stored_name(m, name, old), ret_tensor, err);
}

// Without reading.
static int describe(const struct model_file *m, const char *name, struct tensor *ret_tensor, struct error *err)
{
	char old[STORED_NAME];
	if (!m->gguf)
		return safetensors_find(m->safetensors, stored_name(m, name, old), ret_tensor, err);
	return gguf_source_find(m->gguf, &m->architecture, name, ret_tensor);
}

static int describe_in(void *file, const char *name, struct tensor *ret_tensor, struct error *err)
{
	return describe(file, name, ret_tensor, err);
}

static int read_rows(const void *file, const char *name, uint64_t first, uint64_t n, void *to, struct error *err)
{
	const struct model_file *m = file;
	char gguf[GGUF_SOURCE_NAME], old[STORED_NAME];
	if (!m->gguf)
		return safetensors_read_rows(m->safetensors, stored_name(m, name, old), first, n, to, err);
	int r = gguf_source_name(&m->architecture, name, gguf);
	return r < 0 ? r : gguf_read_rows(m->gguf, gguf, first, n, to, err);
}

struct tensor_source model_file_source(struct model_file *file)
{
	return (struct tensor_source){.file = file, .find = file->gguf ? find_in_gguf : find_in_safetensors, .release = release,
				      .row_major = file->gguf != NULL, .describe = describe_in, .read_rows = read_rows};
}

static size_t tensor_count(const struct model_file *m)
{
	return m->gguf ? gguf_count(m->gguf) : safetensors_count(m->safetensors);
}

static const char *tensor_name(const struct model_file *m, size_t i)
{
	return m->gguf ? gguf_name(m->gguf, i) : safetensors_name(m->safetensors, i);
}

static bool may_be_ignored(const struct model_file *m, const char *name)
{
	bool longrope = m->architecture.rope_scaling == ROPE_SCALING_LONGROPE;
	if (m->gguf && longrope && (!strcmp(name, "rope_factors_short.weight") || !strcmp(name, "rope_factors_long.weight")))
		return true;
	return m->gguf ? !strcmp(name, "rope_freqs.weight") : directory_ignores(m->safetensors, &m->architecture, name);
}

static bool is_parameter(const struct model_file *m, const char *name)
{
	char gguf[GGUF_SOURCE_NAME], old[STORED_NAME];
	for (size_t i = 0; i < m->n_parameters; i++) {
		if (m->gguf && gguf_source_name(&m->architecture, m->list[i].name, gguf) < 0)
			continue;
		if (!strcmp(name, m->gguf ? gguf : stored_name(m, m->list[i].name, old)))
			return true;
	}
	return false;
}

// Every tensor the architecture needs is there, none is left over; counts the bytes by type on the way.
static int check_tensors(struct model_file *m, struct error *err)
{
	uint64_t bytes[N_DTYPES] = {0};
	size_t n_used = m->n_parameters;
	for (size_t i = 0; i < m->n_parameters; i++) {
		struct tensor t;
		int r = describe(m, m->list[i].name, &t, err);
		if (r == -ENOENT)
			return error_set(err, ERROR_INVALID, m->list[i].name, "%s: tensor %s is missing", m->path, m->list[i].name);
		if (r < 0)
			return r;
		bytes[t.dtype] += t.n_bytes;
		uint32_t expert;
		n_used -= m->gguf && gguf_source_expert(m->list[i].name, &expert) && expert;      // in the tensor of expert 0
	}
	for (int t = 0; t < N_DTYPES; t++)
		if (bytes[t] > bytes[m->dtype])
			m->dtype = (enum dtype)t;
	for (size_t i = 0; i < tensor_count(m); i++)
		n_used += may_be_ignored(m, tensor_name(m, i));
	if (n_used == tensor_count(m))
		return 0;
	for (size_t i = 0; i < tensor_count(m); i++)
		if (!may_be_ignored(m, tensor_name(m, i)) && !is_parameter(m, tensor_name(m, i)))
			return error_set(err, ERROR_UNSUPPORTED, tensor_name(m, i), "%s: tensor %s has no place in the architecture %s",
					 m->path, tensor_name(m, i), m->architecture.name);
	return error_set(err, ERROR_INTERNAL, NULL, "%s: tensors do not add up", m->path);
}

static bool same_shape(const struct tensor *t, const struct tensor *u)
{
	return t->dtype == u->dtype && t->n_dims == u->n_dims && t->n_bytes == u->n_bytes && t->dims[0] == u->dims[0];
}

static size_t rows_at_once(size_t row_bytes)
{
	return PIECE_BYTES / (row_bytes + 1) + 1;
}

// Both have the shape t.
static int compare_rows(const struct model_file *m, const char *name, const char *copy, const struct tensor *t, bool *ret_same,
			struct error *err)
{
	uint64_t n_rows = t->n_dims > 1 ? t->dims[0] : 1;
	size_t row = n_rows ? t->n_bytes / (size_t)n_rows : 0, most = rows_at_once(row);
	uint8_t *bytes = malloc(2 * most * row + 1);
	int r = bytes ? 0 : error_set(err, ERROR_MEMORY, copy, "no memory to compare %s with %s", copy, name);
	*ret_same = true;
	for (uint64_t i = 0, n; r == 0 && *ret_same && i < n_rows; i += n) {
		n = n_rows - i < most ? n_rows - i : most;
		if ((r = read_rows(m, name, i, n, bytes, err)) == 0 && (r = read_rows(m, copy, i, n, bytes + n * row, err)) == 0)
			*ret_same = !memcmp(bytes, bytes + n * row, (size_t)n * row);
	}
	free(bytes);
	return r;
}

// A tensor that is there twice must be the same twice: which of two is meant is not for us to say (transformers 4 takes the first,
// transformers 5 the second).
static int check_copy(const struct model_file *m, const char *name, const char *copy, struct error *err)
{
	struct tensor t, u;
	bool same = false;
	int r = describe(m, copy, &u, NULL) < 0 ? -ENOENT : describe(m, name, &t, err);
	if (r == 0 && same_shape(&t, &u))
		r = compare_rows(m, name, copy, &t, &same, err);
	if (r < 0 || same)
		return r == -ENOENT ? 0 : r;
	return error_set(err, ERROR_UNSUPPORTED, copy, "%s: config.json ties %s to %s (tie_word_embeddings), but they differ", m->path,
			 copy, name);
}

// Only safetensors have copies.
static int check_copies(const struct model_file *m, struct error *err)
{
	char embedding[96], head[96];
	int r;
	if (m->gguf || !m->architecture.tied_head)
		return 0;
	parameters_name(&m->architecture, PARAMETER_EMBEDDING, embedding);
	parameters_name(&m->architecture, PARAMETER_HEAD, head);
	if (!(r = check_copy(m, embedding, head, err)) && m->architecture.masked)
		r = check_copy(m, "cls.predictions.bias", "cls.predictions.decoder.bias", err);
	return r;
}

static char *path_in(const struct model_file *m, const char *name)
{
	char *path;
	return asprintf(&path, "%s/%s", m->path, name) < 0 ? NULL : path;
}

static int read_in_directory(const struct model_file *m, const char *name, size_t max, char **ret_text, size_t *ret_n, struct error *err)
{
	char *path = path_in(m, name);
	int r = path ? input_read_file(path, max, ret_text, ret_n, err) : error_set(err, ERROR_MEMORY, name, "no memory");
	free(path);
	return r;
}

static int open_tokenizer(const struct model_file *m, struct tokenizer **ret, struct error *err)
{
	return m->gguf ? tokenizer_open_gguf(m->gguf, ret, err) : tokenizer_open_path(m->path, ret, err);
}

// The rows of the embedding that have a token: see vocab_size in config.h. A directory without a tokenizer (weights alone) is taken at
// its word.
static int limit_vocabulary(struct model_file *m, struct error *err)
{
	struct stat st;
	char *path = path_in(m, "tokenizer.json");
	bool absent = path && stat(path, &st) < 0 && errno == ENOENT;
	int r = path ? 0 : error_set(err, ERROR_MEMORY, NULL, "no memory");
	free(path);
	if (r < 0 || absent || (r = open_tokenizer(m, &m->tokenizer, err)) < 0)
		return r;
	uint32_t n = tokenizer_vocab_size(m->tokenizer);
	if (n && n < m->architecture.vocab_size)
		m->architecture.vocab_size = n;
	return 0;
}

static int open_directory(struct model_file *m, struct error *err)
{
	char *text = NULL;
	size_t n = 0;
	int r = read_in_directory(m, "config.json", MAX_CONFIG, &text, &n, err);
	if (r == -ENOENT)
		r = error_set(err, ERROR_NOT_FOUND, m->path,
			"%s has no config.json: neither a GGUF file nor a Hugging Face model directory", m->path);
	if (r == 0)
		r = architecture_from_json(text, n, &m->architecture, err);
	free(text);
	if (r < 0 || (r = safetensors_open_directory(m->path, &m->safetensors, err)) < 0)
		return r;
	return limit_vocabulary(m, err);
}

static int open_gguf(struct model_file *m, struct error *err)
{
	int r = gguf_open(m->path, &m->gguf, err);
	return r < 0 ? r : architecture_from_gguf(m->gguf, &m->architecture, err);
}

int model_file_open(const char *path, struct model_file **ret_file, struct error *err)
{
	struct stat st;
	if (stat(path, &st) < 0)
		return error_system(err, errno, "teacher", "cannot open model %s", path);
	struct model_file *m = calloc(1, sizeof *m);
	if (m)
		m->path = strdup(path);
	int r = m && m->path ? 0 : error_set(err, ERROR_MEMORY, NULL, "no memory");
	if (r == 0)
		r = S_ISDIR(st.st_mode) ? open_directory(m, err) : open_gguf(m, err);
	if (r == 0)
		r = parameters_list(&m->architecture, &m->list, &m->n_parameters, err);
	if (r == 0)
		r = check_tensors(m, err);
	if (r == 0)
		r = check_copies(m, err);
	if (r < 0)
		model_file_close(m);
	else
		*ret_file = m;
	return r;
}

struct model_file *model_file_close(struct model_file *file)
{
	if (!file)
		return NULL;
	tokenizer_close(file->tokenizer);
	gguf_close(file->gguf);
	safetensors_close(file->safetensors);
	free(file->list);
	free(file->path);
	free(file);
	return NULL;
}

const struct architecture *model_file_architecture(const struct model_file *file)
{
	return &file->architecture;
}

// As stored, and a copy: where rows are put in another order or a matrix is turned round, or as float, where it is no matrix.
static uint64_t reading_bytes(const struct model_file *m, const struct parameter *p)
{
	struct tensor t;
	if (parameter_by_rows(p) || describe(m, p->name, &t, NULL) < 0)
		return 0;      // it is not there: check_tensors has found it
	return t.n_bytes + (parameter_is_matrix(p) ? t.n_bytes : p->n * sizeof(float));
}

uint64_t model_file_loading_bytes(const struct model_file *file)
{
	uint64_t largest = 0, before[2] = {0};
	for (size_t i = 0; i < file->n_parameters; i++) {      // q, k, v are the most that are read together
		uint64_t bytes = reading_bytes(file, &file->list[i]), together = before[0] + before[1] + bytes;
		largest = together > largest ? together : largest;
		before[0] = before[1];
		before[1] = bytes;
	}
	return largest;
}

uint64_t model_file_stored_bytes(struct model_file *file)
{
	struct tensor_source source = model_file_source(file);
	return weights_stored_bytes(&source, file->list, file->n_parameters);
}

int model_file_tokenizer(struct model_file *file, struct tokenizer **ret_tokenizer, struct error *err)
{
	if (!file->tokenizer)
		return open_tokenizer(file, ret_tokenizer, err);
	*ret_tokenizer = file->tokenizer;
	file->tokenizer = NULL;
	return 0;
}

// Numbers that follow each other, from rows[from] on.
static uint32_t run_length(const uint32_t *rows, uint32_t from, uint32_t n)
{
	uint32_t length = 1;
	while (from + length < n && rows[from + length] == rows[from] + length)
		length++;
	return length;
}

int model_file_read_rows(const struct model_file *file, const char *name, const uint32_t *rows, uint32_t n, float *ret_values,
			 struct error *err)
{
	struct tensor t;
	uint32_t expert;
	int r = file->gguf && gguf_source_expert(name, &expert) ? -ENOENT : describe(file, name, &t, err);
	if (r < 0)
		return r;
	size_t columns = t.dims[t.n_dims - 1], row = dtype_row_bytes(t.dtype, columns), bytes;
	if (__builtin_mul_overflow(row, n, &bytes))
		return error_set(err, ERROR_TOO_LARGE, name, "%u rows of %s", n, name);
	void *blocks = malloc(bytes ? bytes : 1);
	if (!blocks)
		return error_set(err, ERROR_MEMORY, name, "no memory for %u rows of %s", n, name);
	for (uint32_t i = 0, length; i < n && r == 0; i += length) {
		length = run_length(rows, i, n);
		r = read_rows(file, name, rows[i], length, (uint8_t *)blocks + i * row, err);
	}
	if (r == 0)
		dtype_to_float(t.dtype, blocks, ret_values, columns * n);
	free(blocks);
	return r;
}

const char *model_file_dtype(const struct model_file *file)
{
	return dtype_name(file->dtype);
}

// Numbers as text, doubles in hexadecimal: exact and the same on every machine.
static void hash_architecture(struct hasher *h, const struct architecture *a)
{
	char text[512];
	int n = snprintf(text, sizeof text, "kdserved weights 1\n%s %u %u %u %u %u %u %u %u %d %d %d %a %a %d %a %a %a %u\n", a->name,
			 a->n_layers, a->width, a->ffn_width, a->n_heads, a->n_kv_heads, a->head_size, a->vocab_size, a->context_length,
			 a->tied_head, a->qkv_bias, a->qk_norm, (double)a->norm_epsilon, a->rope_theta, (int)a->rope_scaling,
			 a->rope_factor, a->rope_low_frequency_factor, a->rope_high_frequency_factor, a->rope_original_context);
	hasher_update(h, text, (size_t)n);
	if (a->norm == NORM_LAYER) {      // Llama's descendants keep the ids they had before there were others
		n = snprintf(text, sizeof text, "%d %d %d %d %d %u\n", a->activation, a->post_norm, a->out_bias, a->learned_positions,
			     a->masked, a->n_token_types);
		hasher_update(h, text, (size_t)n);
	}
	if (a->norm == NORM_RMS && (a->out_bias || a->ffn_bias))
		hasher_update(h, a->out_bias ? a->ffn_bias ? "of" : "o" : "f", a->out_bias && a->ffn_bias ? 2 : 1);
	if (a->gemma) {
		n = snprintf(text, sizeof text, "%a %a %a %a\n", a->rope_theta_sliding, a->query_scalar, (double)a->score_cap,
			(double)a->logit_cap);
		hasher_update(h, text, (size_t)n);
	}
	if (a->n_experts) {
		n = snprintf(text, sizeof text, "%u %u %d\n", a->n_experts, a->n_experts_used, a->normalise_experts);
		hasher_update(h, text, (size_t)n);
	}
	if (a->logit_divisor != 0) {
		n = snprintf(text, sizeof text, "granite %a %a %a %a\n", a->embedding_scale, a->residual_scale,
			     a->logit_divisor, a->query_scalar);
		hasher_update(h, text, (size_t)n);
	}
	for (uint32_t i = 0; i < a->n_layers; i++) {
		if (a->unrotated[i]) {
			n = snprintf(text, sizeof text, "unrotated %u\n", i);
			hasher_update(h, text, (size_t)n);
		}
	}
	for (uint32_t i = 0; a->window && i < a->n_layers; i++) {      // nor do those without a window differ
		n = snprintf(text, sizeof text, "%u\n", architecture_window(a, i));
		hasher_update(h, text, (size_t)n);
	}
	for (uint32_t i = 0; !a->window && a->rope_theta_sliding != 0 && i < a->n_layers; i++)      // they rotate otherwise all the same
		hasher_update(h, a->sliding[i] ? "s" : "f", 1);
	if (a->rope_scaling == ROPE_SCALING_YARN) {
		n = snprintf(text, sizeof text, "yarn %a %a %d\n", a->rope_beta_fast, a->rope_beta_slow, a->rope_truncate);
		hasher_update(h, text, (size_t)n);
	}
	if (a->rope_attention_factor != 0 || a->rope_size) {
		n = snprintf(text, sizeof text, "rope %a %u\n", a->rope_attention_factor, a->rope_size);
		hasher_update(h, text, (size_t)n);
	}
	bool divisors = a->rope_scaling == ROPE_SCALING_DIVISORS || a->rope_scaling == ROPE_SCALING_LONGROPE;
	for (uint32_t i = 0; divisors && i < architecture_rope_size(a) / 2; i++) {
		n = snprintf(text, sizeof text, "%a\n", (double)a->rope_divisors[i]);
		hasher_update(h, text, (size_t)n);
	}
}

static int hash_rows(struct hasher *h, const struct parameter *p, const struct tensor *t, struct error *err)
{
	size_t row = t->n_bytes / (size_t)t->dims[0], some = rows_at_once(row);
	void *bytes = malloc(some * row);
	int r = bytes ? 0 : error_set(err, ERROR_MEMORY, p->name, "no memory for %zu rows of %s", some, p->name);
	for (uint64_t first = 0, n; first < t->dims[0] && r == 0; first += n) {
		n = t->dims[0] - first < some ? t->dims[0] - first : some;
		if ((r = t->rows->read(t->rows, first, n, bytes, err)) == 0)
			hasher_update(h, bytes, (size_t)n * row);
	}
	free(bytes);
	return r;
}

static int hash_tensor(struct hasher *h, const struct tensor_source *source, const struct parameter *p, struct error *err)
{
	char text[192];
	struct tensor t;
	struct parameter_rows rows;
	int r = weights_find_rows(source, p, &rows, &t, err);
	if (r < 0)
		return r;
	int n = snprintf(text, sizeof text, "%s %s %llu %llu\n", p->name, dtype_name(t.dtype), (unsigned long long)p->dims[0],
			 (unsigned long long)p->dims[1]);
	hasher_update(h, text, (size_t)n);
	if (t.data)
		hasher_update(h, t.data, t.n_bytes);
	else
		r = hash_rows(h, p, &t, err);
	weights_release(source, p, &t);
	return r;
}

int model_file_weights_id(struct model_file *file, struct content_id *ret_id, struct error *err)
{
	struct tensor_source source = model_file_source(file);
	struct hasher *h = hasher_new();
	int r = h ? 0 : error_set(err, ERROR_MEMORY, NULL, "no memory");
	if (h)
		hash_architecture(h, &file->architecture);
	for (size_t i = 0; i < file->n_parameters && r == 0; i++)
		r = hash_tensor(h, &source, &file->list[i], err);
	struct content_id id = {0};
	if (h)
		id = hasher_free(h);
	if (r == 0)
		*ret_id = id;
	return r;
}
