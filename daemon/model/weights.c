// SPDX-License-Identifier: Apache-2.0
// Immutable weights from a model file. The tensors of a fused matrix (q, k, v; gate, up) are handed to the backend as stacked parts, so
// that they are never copied together in host memory; each matrix's host bytes are released before the next is read.
#include "daemon/model/weights.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/weights_internal.h"

#define MAX_PARTS 3
#define TURN 32      // rows written side by side: what lies between two reads stays in the cache

// Loading walks the list of parameters in order; the first failure sticks and later steps do nothing.
struct loading {
	struct weights *w;
	const struct tensor_source *source;
	const struct parameter *next;
	bool head_kept;              // there is room for the head, and it is taken
	int result;
	struct error *err;
};

static int shape_error(const struct parameter *p, const struct tensor *t, struct error *err)
{
	unsigned long long d[4] = {p->dims[0], p->dims[1], t->dims[0], t->n_dims > 1 ? t->dims[1] : 0};
	if (p->n_dims == 1 && t->n_dims == 1)
		return error_set(err, ERROR_INVALID, p->name, "tensor %s has %llu elements; the architecture needs %llu",
			p->name, d[2], d[0]);
	if (p->n_dims == 2 && t->n_dims == 2)
		return error_set(err, ERROR_INVALID, p->name, "tensor %s is %llu x %llu; the architecture needs %llu x %llu", p->name, d[2],
				 d[3], d[0], d[1]);
	return error_set(err, ERROR_INVALID, p->name, "tensor %s has %u dimensions; the architecture needs %u", p->name,
		t->n_dims, p->n_dims);
}

static int turned_shape_error(const struct parameter *p, const struct tensor *t, struct error *err)
{
	struct parameter stored = *p;
	stored.dims[0] = p->dims[1];
	stored.dims[1] = p->dims[0];
	return shape_error(&stored, t, err);
}

static bool is_turned(const struct tensor_source *source, const struct parameter *p)
{
	return p->transposed && !source->row_major;
}

// Whether t has the rows of p, or may have them cut from it; its bytes are then cut to them.
static bool cut_to_shape(const struct parameter *p, struct tensor *t)
{
	bool fits = t->n_dims == p->n_dims && (p->n_dims == 1 || t->dims[1] == p->dims[1]) &&
		    (t->dims[0] == p->dims[0] || (p->of_vocabulary && t->dims[0] > p->dims[0]));
	size_t bytes = !fits ? 0 : p->n_dims == 2 ? dtype_row_bytes(t->dtype, p->dims[1]) * p->dims[0]
		: dtype_row_bytes(t->dtype, p->dims[0]);
	if (!fits || !bytes || bytes > t->n_bytes)
		return false;
	t->dims[0] = p->dims[0];
	t->n_bytes = bytes;
	return true;
}

// t (dims[1], dims[0]) of p becomes an array of our own, (dims[0], dims[1]).
static int turn(const struct tensor_source *source, const struct parameter *p, struct tensor *t, struct error *err)
{
	uint64_t N = p->dims[0], K = p->dims[1];
	size_t element = dtype_block_bytes(t->dtype);
	if (t->n_dims != 2 || t->dims[0] != K || t->dims[1] != N || t->n_bytes < dtype_row_bytes(t->dtype, N) * K)
		return turned_shape_error(p, t, err);
	if (dtype_block_elements(t->dtype) != 1)
		return error_set(err, ERROR_UNSUPPORTED, p->name, "tensor %s is stored transposed: type %s is not supported", p->name,
				 dtype_name(t->dtype));
	const uint8_t *from = t->data;
	uint8_t *to = malloc(N * K * element);
	if (!to)
		return error_set(err, ERROR_MEMORY, p->name, "no memory for tensor %s", p->name);
	for (uint64_t first = 0; first < N; first += TURN)
		for (uint64_t k = 0; k < K; k++)
			for (uint64_t n = first; n < N && n < first + TURN; n++)
				memcpy(to + (n * K + k) * element, from + (k * N + n) * element, element);
	if (source->release)
		source->release(source->file, t);
	t->data = to;
	t->dims[0] = N;
	t->dims[1] = K;
	return 0;
}

typedef int finder(void *file, const char *name, struct tensor *ret_tensor, struct error *err);

static int find_by(finder *find, void *file, const struct parameter *p, struct tensor *ret_tensor, struct error *err)
{
	int r = find(file, p->name, ret_tensor, err);
	return r == -ENOENT ? error_set(err, ERROR_INVALID, p->name, "tensor %s is missing", p->name) : r;
}

int weights_find(const struct tensor_source *source, const struct parameter *p, struct tensor *ret_tensor, struct error *err)
{
	int r = find_by(source->find, source->file, p, ret_tensor, err);
	if (r < 0)
		return r;
	if (is_turned(source, p))
		r = turn(source, p, ret_tensor, err);
	else if (!cut_to_shape(p, ret_tensor))
		r = shape_error(p, ret_tensor, err);
	if (r < 0 && source->release)
		source->release(source->file, ret_tensor);
	return r;
}

static int read_rows(const struct tensor_rows *rows, uint64_t first, uint64_t n, void *to, struct error *err)
{
	const struct parameter_rows *p = (const struct parameter_rows *)rows;
	return p->source->read_rows(p->source->file, p->name, first, n, to, err);
}

int weights_find_rows(const struct tensor_source *source, const struct parameter *p, struct parameter_rows *rows, struct tensor *ret_tensor,
		      struct error *err)
{
	if (!parameter_by_rows(p) || !source->read_rows)
		return weights_find(source, p, ret_tensor, err);
	int r = find_by(source->describe, source->file, p, ret_tensor, err);
	if (r < 0)
		return r;
	*rows = (struct parameter_rows){.rows.read = read_rows, .source = source, .name = p->name};
	ret_tensor->data = NULL;
	ret_tensor->rows = &rows->rows;
	return cut_to_shape(p, ret_tensor) ? 0 : shape_error(p, ret_tensor, err);
}

void weights_release(const struct tensor_source *source, const struct parameter *p, struct tensor *t)
{
	if (is_turned(source, p))
		free((void *)(uintptr_t)t->data);
	else if (source->release && t->data)
		source->release(source->file, t);
}

// The next n parameters, stacked by rows; in memory, or apart.
static struct weight *load_stacked(struct loading *g, uint32_t n, bool kept)
{
	const struct backend_ops *ops = g->w->backend->ops;
	struct tensor parts[MAX_PARTS];
	struct parameter_rows rows[MAX_PARTS];
	struct weight *m = NULL;
	uint32_t n_found = 0;
	for (const struct parameter *p = g->next; g->result == 0 && n_found < n; p++) {
		struct tensor *t = &parts[n_found];
		g->result = g->w->backend->reads_rows ? weights_find_rows(g->source, p, &rows[n_found], t, g->err)
			: weights_find(g->source, p, t, g->err);
		n_found += g->result == 0;
	}
	if (g->result == 0) {
		enum weight_kind kind = g->next->block ? WEIGHT_BLOCK : WEIGHT_PLAIN;
		m = (kept ? ops->weight_load : ops->weight_load_apart)(g->w->backend, kind, parts, n, g->err);
		if (!m)
			g->result = -ENOMEM;
	}
	for (uint32_t i = 0; i < n_found; i++) {
		g->w->file_bytes += parts[i].n_bytes;
		weights_release(g->source, g->next + i, &parts[i]);
	}
	g->next += n;
	return m;
}

// Whether memory has room for n parameters, packed; if so, it is taken.
static bool keep(const struct loading *g, const struct parameter *p, uint32_t n)
{
	uint64_t n_elements = 0;
	for (uint32_t i = 0; i < n; i++)
		n_elements += p[i].n;
	return backend_keeps(g->w->backend, n_elements, weights_stored_bytes(g->source, p, n));
}

// The next n parameters, in memory as long as there is room.
static struct weight *load_matrix(struct loading *g, uint32_t n)
{
	return load_stacked(g, n, g->result < 0 || keep(g, g->next, n));
}

// The next n parameters (vectors, or tables to add rows of), one after the other.
static struct real *load_vector(struct loading *g, uint32_t n)
{
	const struct backend_ops *ops = g->w->backend->ops;
	const struct parameter *p = g->next;
	size_t total = p[n - 1].offset + p[n - 1].n - p[0].offset;
	g->next += n;
	if (g->result < 0)
		return NULL;
	float *values = malloc(total * sizeof *values);
	struct real *x = ops->real_new(g->w->backend, total, g->err);
	if (!values || !x)
		g->result = x ? error_set(g->err, ERROR_MEMORY, p->name, "no memory for %s", p->name) : -ENOMEM;
	for (uint32_t i = 0; i < n && g->result == 0; i++) {
		struct tensor t;
		g->result = weights_find(g->source, &p[i], &t, g->err);
		if (g->result == 0) {
			float *to = values + (p[i].offset - p[0].offset);
			dtype_to_float(t.dtype, t.data, to, p[i].n);
			for (size_t j = 0; p[i].from_one && !g->source->row_major && j < p[i].n; j++)
				to[j] += 1;
			g->w->file_bytes += t.n_bytes;
			weights_release(g->source, &p[i], &t);
		}
	}
	if (g->result == 0)
		ops->real_write(g->w->backend, x, values, total);
	free(values);
	if (g->result == 0)
		return x;
	if (x)
		ops->real_free(g->w->backend, x);
	return NULL;
}

// A gain and, of a layer norm, its bias.
static void load_norm(struct loading *g, struct real **ret_gain, struct real **ret_bias)
{
	*ret_gain = load_vector(g, 1);
	if (g->w->architecture.norm == NORM_LAYER)
		*ret_bias = load_vector(g, 1);
}

static void load_experts(struct loading *g, struct layer_weights *l)
{
	uint32_t n = g->w->architecture.n_experts;
	l->router = load_matrix(g, 1);
	l->experts = calloc(n, sizeof *l->experts);
	if (!l->experts && g->result == 0)
		g->result = error_set(g->err, ERROR_MEMORY, NULL, "no memory for %u experts", n);
	for (uint32_t e = 0; e < n && g->result == 0; e++) {
		l->experts[e].gate_up = load_matrix(g, 2);
		l->experts[e].down = load_matrix(g, 1);
	}
}

// In the order of parameters.c.
static void load_layer(struct loading *g, struct layer_weights *l)
{
	const struct architecture *a = &g->w->architecture;
	uint32_t n_qkv = parameters_qkv_parts(a);
	load_norm(g, &l->attention_norm, &l->attention_norm_bias);
	l->qkv = load_matrix(g, n_qkv);
	if (a->qkv_bias)
		l->qkv_bias = load_vector(g, n_qkv);
	if (a->qk_norm) {
		l->q_norm = load_vector(g, 1);
		l->k_norm = load_vector(g, 1);
	}
	l->out = load_matrix(g, 1);
	if (a->out_bias)
		l->out_bias = load_vector(g, 1);
	if (a->gemma)
		l->attention_post_norm = load_vector(g, 1);
	load_norm(g, &l->ffn_norm, &l->ffn_norm_bias);
	if (a->n_experts) {
		load_experts(g, l);
		return;
	}
	l->gate_up = load_matrix(g, parameters_up_parts(a));
	if (a->ffn_bias)
		l->up_bias = load_vector(g, parameters_up_parts(a));
	l->down = load_matrix(g, 1);
	if (a->ffn_bias)
		l->down_bias = load_vector(g, 1);
	if (a->gemma)
		l->ffn_post_norm = load_vector(g, 1);
}

static void load_embeddings(struct loading *g)
{
	struct weights *w = g->w;
	// Where not everything has room, an embedding that is not the head too is the first to go: of it a pass reads a row for each token.
	bool all = w->backend->room == UINT64_MAX;
	w->embedding = load_stacked(g, 1, all || (w->architecture.tied_head && g->head_kept));
	if (w->architecture.learned_positions)
		w->vectors.positions = load_vector(g, 1);
	if (w->architecture.n_token_types)
		w->vectors.token_types = load_vector(g, 1);
}

static void load_head(struct loading *g)
{
	struct weights *w = g->w;
	load_norm(g, &w->vectors.final_norm, &w->vectors.final_norm_bias);
	if (w->architecture.masked) {
		w->transform = load_matrix(g, 1);
		w->vectors.transform_bias = load_vector(g, 1);
		load_norm(g, &w->vectors.transform_norm, &w->vectors.transform_norm_bias);
		w->vectors.head_bias = load_vector(g, 1);
	}
	w->head = w->architecture.tied_head ? w->embedding : load_stacked(g, 1, g->head_kept);
}

static int make_rope_tables(struct weights *w, bool sliding, struct real **ret_cosine, struct real **ret_sine, struct error *err)
{
	const struct backend_ops *ops = w->backend->ops;
	size_t n = (size_t)w->max_positions * (architecture_rope_size(&w->architecture) / 2);
	int r = 0;
	float *cosine = malloc(2 * n * sizeof *cosine);
	if (!cosine)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for rotation tables of %u positions", w->max_positions);
	float *sine = cosine + n;
	(sliding ? architecture_rope_tables_sliding : architecture_rope_tables)(&w->architecture, w->max_positions, cosine, sine);
	*ret_cosine = ops->real_new(w->backend, n, err);
	*ret_sine = *ret_cosine ? ops->real_new(w->backend, n, err) : NULL;
	if (*ret_sine) {
		ops->real_write(w->backend, *ret_cosine, cosine, n);
		ops->real_write(w->backend, *ret_sine, sine, n);
	} else {
		r = -ENOMEM;
	}
	free(cosine);
	return r;
}

int weights_new_empty(struct backend *be, const struct architecture *a, uint32_t max_positions, struct weights **ret_weights,
		      struct error *err)
{
	int r = architecture_check(a, err);
	if (r < 0)
		return r;
	if (a->learned_positions && max_positions > a->context_length)
		max_positions = a->context_length;
	struct attention_shape shape = {.n_heads = a->n_heads, .n_kv_heads = a->n_kv_heads, .head_size = a->head_size, .scale = 1,
					.bidirectional = a->masked};
	if ((r = be->ops->check_shape(be, &shape, err)) < 0)
		return r;
	if (max_positions < 1 || max_positions > 1u << 24)
		return error_set(err, ERROR_INVALID, "max_positions", "%u positions; supported: 1 to %u", max_positions, 1u << 24);
	struct weights *w = calloc(1, sizeof *w);
	if (w)
		w->layers = calloc(a->n_layers, sizeof *w->layers);
	if (!w || !w->layers) {
		free(w);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for %u layers", a->n_layers);
	}
	w->backend = be;
	w->architecture = *a;
	w->max_positions = max_positions;
	r = a->learned_positions ? 0 : make_rope_tables(w, false, &w->cosine, &w->sine, err);
	if (r == 0 && a->rope_theta_sliding > 0)
		r = make_rope_tables(w, true, &w->cosine_sliding, &w->sine_sliding, err);
	if (r < 0) {
		weights_free(w);
		return r;
	}
	*ret_weights = w;
	return 0;
}

int weights_load(struct backend *be, const struct architecture *a, const struct tensor_source *source, uint32_t max_positions,
		 struct weights **ret_weights, struct error *err)
{
	struct parameter *list = NULL;
	struct weights *w = NULL;
	size_t n = 0;
	int r = weights_new_empty(be, a, max_positions, &w, err);
	if (r == 0)
		r = parameters_list(a, &list, &n, err);
	if (r < 0)
		goto out;
	struct loading g = {.w = w, .source = source, .next = list, .err = err};
	// The head is used once for each tile of rows, layers once in a pass: it has the first claim to memory.
	g.head_kept = keep(&g, a->tied_head ? list : list + n - 1, 1);
	w->head_apart = !g.head_kept;
	load_embeddings(&g);
	for (uint32_t i = 0; i < a->n_layers && g.result == 0; i++)
		load_layer(&g, &w->layers[i]);
	if (g.result == 0)
		load_head(&g);
	r = g.result ? g.result : backend_sync(be, err);
out:
	free(list);
	if (r < 0)
		weights_free(w);
	else
		*ret_weights = w;
	return r;
}

static void free_matrix(struct weights *w, struct weight *m)
{
	if (m)
		w->backend->ops->weight_free(w->backend, m);
}

static void free_vector(struct weights *w, struct real *x)
{
	if (x)
		w->backend->ops->real_free(w->backend, x);
}

static void free_layer(struct weights *w, struct layer_weights *l)
{
	free_matrix(w, l->qkv);
	free_matrix(w, l->out);
	free_matrix(w, l->gate_up);
	free_matrix(w, l->down);
	free_matrix(w, l->router);
	for (uint32_t e = 0; l->experts && e < w->architecture.n_experts; e++) {
		free_matrix(w, l->experts[e].gate_up);
		free_matrix(w, l->experts[e].down);
	}
	free(l->experts);
	if (w->parameters)      // vectors are places in the flat array
		return;
	struct real *vectors[] = {l->attention_norm, l->attention_norm_bias, l->ffn_norm, l->ffn_norm_bias, l->q_norm, l->k_norm,
				  l->qkv_bias, l->out_bias, l->up_bias, l->down_bias, l->attention_post_norm, l->ffn_post_norm};
	for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
		free_vector(w, vectors[i]);
}

static void free_model_vectors(struct weights *w)
{
	const struct model_vectors *v = &w->vectors;
	struct real *vectors[] = {v->positions, v->token_types, v->final_norm, v->final_norm_bias, v->transform_bias, v->transform_norm,
				  v->transform_norm_bias, v->head_bias};
	for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
		free_vector(w, vectors[i]);
}

static void free_parameters(struct weights *w)
{
	struct parameters *p = w->parameters;
	if (!p)
		return;
	for (size_t i = 0; w->beside && i < p->n_parameters - p->n_model; i++)
		free_matrix(w, w->beside[i]);
	free(w->beside);
	free_vector(w, p->value);
	free_vector(w, p->gradient);
	free(p->list);
	free(p);
}

struct weights *weights_free(struct weights *w)
{
	if (!w)
		return NULL;
	if (w->head != w->embedding)
		free_matrix(w, w->head);
	free_matrix(w, w->embedding);
	free_matrix(w, w->transform);
	for (uint32_t i = 0; i < w->architecture.n_layers; i++)
		free_layer(w, &w->layers[i]);
	if (!w->parameters)
		free_model_vectors(w);
	free_vector(w, w->cosine);
	free_vector(w, w->sine);
	free_vector(w, w->cosine_sliding);
	free_vector(w, w->sine_sliding);
	free_parameters(w);
	free(w->gradients);
	free(w->layers);
	free(w);
	return NULL;
}
