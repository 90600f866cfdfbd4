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

// Loading walks the list of parameters in order; the first failure sticks and later steps do nothing.
struct loading {
	struct weights *w;
	const struct tensor_source *source;
	const struct parameter *next;
	int result;
	struct error *err;
};

static bool may_be_padded(const struct parameter *p)
{
	return !strcmp(p->name, "model.embed_tokens.weight") || !strcmp(p->name, "lm_head.weight");
}

static int shape_error(const struct parameter *p, const struct tensor *t, struct error *err)
{
	unsigned long long d[4] = {p->dims[0], p->dims[1], t->dims[0], t->n_dims > 1 ? t->dims[1] : 0};
	if (p->n_dims == 1 && t->n_dims == 1)
		return error_set(err, ERROR_INVALID, p->name, "tensor %s has %llu elements; the architecture needs %llu", p->name, d[2], d[0]);
	if (p->n_dims == 2 && t->n_dims == 2)
		return error_set(err, ERROR_INVALID, p->name, "tensor %s is %llu x %llu; the architecture needs %llu x %llu", p->name, d[2], d[3],
				 d[0], d[1]);
	return error_set(err, ERROR_INVALID, p->name, "tensor %s has %u dimensions; the architecture needs %u", p->name, t->n_dims, p->n_dims);
}

int weights_find(const struct tensor_source *source, const struct parameter *p, struct tensor *ret_tensor, struct error *err)
{
	int r = source->find(source->file, p->name, ret_tensor, err);
	if (r == -ENOENT)
		return error_set(err, ERROR_INVALID, p->name, "tensor %s is missing", p->name);
	if (r < 0)
		return r;
	struct tensor *t = ret_tensor;
	bool fits = t->n_dims == p->n_dims && (p->n_dims == 1 || t->dims[1] == p->dims[1]) &&
		    (t->dims[0] == p->dims[0] || (may_be_padded(p) && t->dims[0] > p->dims[0]));
	size_t bytes = fits && p->n_dims == 2 ? dtype_row_bytes(t->dtype, p->dims[1]) * p->dims[0] : fits ? dtype_row_bytes(t->dtype, p->dims[0]) : 0;
	if (!fits || !bytes || bytes > t->n_bytes) {
		r = shape_error(p, t, err);
		weights_release(source, t);
		return r;
	}
	t->dims[0] = p->dims[0];
	t->n_bytes = bytes;
	return 0;
}

void weights_release(const struct tensor_source *source, struct tensor *t)
{
	if (source->release)
		source->release(source->file, t);
}

// The next n parameters, stacked by rows.
static struct weight *load_matrix(struct loading *g, uint32_t n)
{
	struct tensor parts[MAX_PARTS];
	struct weight *m = NULL;
	uint32_t n_found = 0;
	while (g->result == 0 && n_found < n)
		if ((g->result = weights_find(g->source, g->next + n_found, &parts[n_found], g->err)) == 0)
			n_found++;
	if (g->result == 0) {
		m = g->w->backend->ops->weight_load(g->w->backend, parts, n, g->err);
		if (!m)
			g->result = -ENOMEM;
	}
	for (uint32_t i = 0; i < n_found; i++)
		weights_release(g->source, &parts[i]);
	g->next += n;
	return m;
}

// The next n parameters (vectors), one after the other.
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
			dtype_to_float(t.dtype, t.data, values + (p[i].offset - p[0].offset), p[i].n);
			weights_release(g->source, &t);
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

// In the order of parameters.c.
static void load_layer(struct loading *g, struct layer_weights *l)
{
	const struct architecture *a = &g->w->architecture;
	l->attention_norm = load_vector(g, 1);
	l->qkv = load_matrix(g, 3);
	if (a->qkv_bias)
		l->qkv_bias = load_vector(g, 3);
	if (a->qk_norm) {
		l->q_norm = load_vector(g, 1);
		l->k_norm = load_vector(g, 1);
	}
	l->out = load_matrix(g, 1);
	l->ffn_norm = load_vector(g, 1);
	l->gate_up = load_matrix(g, 2);
	l->down = load_matrix(g, 1);
}

static int make_rope_tables(struct weights *w, struct error *err)
{
	const struct backend_ops *ops = w->backend->ops;
	size_t n = (size_t)w->max_positions * (w->architecture.head_size / 2);
	int r = 0;
	float *cosine = malloc(2 * n * sizeof *cosine);
	if (!cosine)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for rotation tables of %u positions", w->max_positions);
	float *sine = cosine + n;
	architecture_rope_tables(&w->architecture, w->max_positions, cosine, sine);
	w->cosine = ops->real_new(w->backend, n, err);
	w->sine = w->cosine ? ops->real_new(w->backend, n, err) : NULL;
	if (w->sine) {
		ops->real_write(w->backend, w->cosine, cosine, n);
		ops->real_write(w->backend, w->sine, sine, n);
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
	r = make_rope_tables(w, err);
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
	size_t n;
	int r = weights_new_empty(be, a, max_positions, &w, err);
	if (r == 0)
		r = parameters_list(a, &list, &n, err);
	if (r < 0)
		goto out;
	struct loading g = {.w = w, .source = source, .next = list, .err = err};
	w->embedding = load_matrix(&g, 1);
	for (uint32_t i = 0; i < a->n_layers && g.result == 0; i++)
		load_layer(&g, &w->layers[i]);
	if (g.result == 0)
		w->final_norm = load_vector(&g, 1);
	if (g.result == 0)
		w->head = a->tied_head ? w->embedding : load_matrix(&g, 1);
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
	if (w->parameters)      // vectors are places in the flat array
		return;
	free_vector(w, l->attention_norm);
	free_vector(w, l->ffn_norm);
	free_vector(w, l->q_norm);
	free_vector(w, l->k_norm);
	free_vector(w, l->qkv_bias);
}

static void free_parameters(struct weights *w)
{
	struct parameters *p = w->parameters;
	if (!p)
		return;
	free_vector(w, p->value);
	free_vector(w, p->gradient);
	free_vector(w, p->moment1);
	free_vector(w, p->moment2);
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
	for (uint32_t i = 0; i < w->architecture.n_layers; i++)
		free_layer(w, &w->layers[i]);
	if (!w->parameters)
		free_vector(w, w->final_norm);
	free_vector(w, w->cosine);
	free_vector(w, w->sine);
	free_parameters(w);
	free(w->gradients);
	free(w->layers);
	free(w);
	return NULL;
}
