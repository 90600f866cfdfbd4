// SPDX-License-Identifier: Apache-2.0
// Work arrays: sizes follow from the architecture and the largest batch; everything is reserved here and nothing grows.
#include "daemon/model/activations.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

#include "common/error.h"

// Allocates until the first failure, so a list of arrays needs one check. With `count` nothing is made: the same lists say how much it
// would be, so that what is counted cannot differ from what is made.
struct maker { struct backend *backend; struct backend_count *count; struct error *err; size_t rows; int result; };

static size_t maker_size(struct maker *m, size_t width)
{
	size_t n = 0;
	if (m->result == 0 && __builtin_mul_overflow(m->rows, width, &n))
		m->result = error_set(m->err, ERROR_TOO_LARGE, NULL, "a batch of %zu positions of width %zu", m->rows, width);
	return n;
}

static struct real *make_real(struct maker *m, size_t width)
{
	size_t n = maker_size(m, width);
	if (m->result == 0 && m->count) {
		m->count->n_real += n;
		m->count->n_arrays++;
	}
	if (m->result < 0 || m->count)
		return NULL;
	struct real *x = m->backend->ops->real_new(m->backend, n, m->err);
	if (!x)
		m->result = error_errno(ERROR_MEMORY);
	return x;
}

static struct act *make_act(struct maker *m, size_t width)
{
	size_t n = maker_size(m, width);
	if (m->result == 0 && m->count) {
		m->count->n_act += n;
		m->count->n_arrays++;
	}
	if (m->result < 0 || m->count)
		return NULL;
	struct act *x = m->backend->ops->act_new(m->backend, n, m->err);
	if (!x)
		m->result = error_errno(ERROR_MEMORY);
	return x;
}

// But x_attention, which is there.
static void make_layer(struct maker *m, const struct architecture *a, bool training, struct layer_activations *ret)
{
	size_t C = a->width, F = a->ffn_width, D = a->head_size, W = (a->n_heads + 2 * (size_t)a->n_kv_heads) * D;
	bool apart = training && a->post_norm;
	ret->r_attention = apart ? make_real(m, C) : ret->x_attention;
	ret->h_attention = make_act(m, C);
	ret->qkv = make_act(m, W);
	ret->qkv_plain = training && a->qk_norm ? make_act(m, W) : ret->qkv;
	ret->heads = make_act(m, a->n_heads * D);
	ret->lse = training ? make_real(m, a->n_heads) : NULL;
	ret->x_ffn = training ? make_real(m, C) : ret->x_attention;
	ret->r_ffn = apart ? make_real(m, C) : ret->x_ffn;
	ret->h_ffn = make_act(m, C);
	ret->gate_up = make_act(m, architecture_up_width(a));
	ret->ffn = make_act(m, F);
}

static void free_layer(struct backend *be, struct layer_activations *l)
{
	const struct backend_ops *ops = be->ops;
	if (l->r_ffn != l->x_ffn)
		ops->real_free(be, l->r_ffn);
	if (l->r_attention != l->x_attention)
		ops->real_free(be, l->r_attention);
	if (l->x_ffn != l->x_attention)
		ops->real_free(be, l->x_ffn);
	if (l->qkv_plain != l->qkv)
		ops->act_free(be, l->qkv_plain);
	ops->act_free(be, l->h_attention);
	ops->act_free(be, l->qkv);
	ops->act_free(be, l->heads);
	ops->real_free(be, l->lse);
	ops->act_free(be, l->h_ffn);
	ops->act_free(be, l->gate_up);
	ops->act_free(be, l->ffn);
}

static void make_gradients(struct maker *m, const struct architecture *a, struct activations *ret)
{
	ret->dx = make_real(m, a->width);
	ret->dh = make_act(m, a->width);
	ret->dqkv = make_act(m, (a->n_heads + 2 * (size_t)a->n_kv_heads) * a->head_size);
	ret->dheads = make_act(m, (size_t)a->n_heads * a->head_size);
	ret->dgate_up = make_act(m, architecture_up_width(a));
	ret->dffn = make_act(m, a->ffn_width);
	ret->dtransformed = a->masked ? make_act(m, a->width) : NULL;
}

static void make_head(struct maker *m, const struct architecture *a, bool training, struct activations *ret)
{
	size_t C = a->width;
	ret->final = make_act(m, C);
	ret->head = ret->final;
	if (!a->masked)
		return;
	ret->transformed = make_act(m, C);
	ret->activated = training ? make_act(m, C) : ret->transformed;
	ret->x_head = make_real(m, C);
	ret->head = make_act(m, C);
}

static void free_head(struct activations *a)
{
	const struct backend_ops *ops = a->backend->ops;
	if (a->head != a->final)
		ops->act_free(a->backend, a->head);
	if (a->activated != a->transformed)
		ops->act_free(a->backend, a->activated);
	ops->act_free(a->backend, a->transformed);
	ops->act_free(a->backend, a->final);
	ops->real_free(a->backend, a->x_head);
	ops->act_free(a->backend, a->dtransformed);
}

// Layers with an x_attention of their own: all of the first segment, and the first of each other.
static bool keeps_input(const struct activations *x, uint32_t i)
{
	return i < x->segment || (x->training && i % x->segment == 0);
}

// x holds the layers' places.
static void make_arrays(struct maker *m, const struct architecture *a, bool training, struct activations *x)
{
	assert(x->segment);
	for (uint32_t i = 0; i < a->n_layers; i++) {
		struct layer_activations *l = &x->layers[i];
		if (i >= x->segment)
			*l = x->layers[i % x->segment];
		if (keeps_input(x, i))
			l->x_attention = make_real(m, a->width);
		if (i < x->segment)
			make_layer(m, a, training, l);
		else if (keeps_input(x, i) && !a->post_norm)
			l->r_attention = l->x_attention;
	}
	x->x_final = training ? make_real(m, a->width) : x->layers[0].x_attention;
	x->r_final = training && a->post_norm ? make_real(m, a->width) : x->x_final;
	if (a->n_experts) {
		x->experts.scores = make_real(m, a->n_experts);
		x->experts.h = make_act(m, a->width);
		x->experts.y = make_real(m, a->width);
		x->experts.gate_up = x->layers[0].gate_up;
		x->experts.ffn = x->layers[0].ffn;
	}
	x->x_half = a->gemma || a->residual_scale != 0 ? make_real(m, a->width) : NULL;
	make_head(m, a, training, x);
	if (training)
		make_gradients(m, a, x);
}

static uint32_t segment_of(const struct architecture *a, bool training, uint32_t recompute)
{
	uint32_t n = !training ? 1 : recompute ? recompute : a->n_layers;
	return n < a->n_layers ? n : a->n_layers;
}

int activations_need(const struct architecture *a, uint32_t max_positions, bool training, uint32_t recompute, struct backend_need *need,
		     struct error *err)
{
	struct maker m = {.count = &need->parts[training ? BACKEND_PART_TRAINING : BACKEND_PART_WORK], .err = err, .rows = max_positions};
	struct activations x = {.layers = calloc(a->n_layers, sizeof *x.layers), .training = training,
				.segment = segment_of(a, training, recompute)};
	if (!x.layers)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for %u layers", a->n_layers);
	make_arrays(&m, a, training, &x);
	free(x.layers);
	return m.result;
}

int activations_new(const struct weights *w, uint32_t max_positions, bool training, uint32_t recompute, struct activations **ret,
		    struct error *err)
{
	const struct architecture *a = &w->architecture;
	struct maker m = {.backend = w->backend, .err = err, .rows = max_positions};
	struct activations *x = calloc(1, sizeof *x);
	struct layer_activations *layers = calloc(a->n_layers, sizeof *layers);
	if (!x || !layers) {
		free(x);
		free(layers);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for %u layers", a->n_layers);
	}
	*x = (struct activations){.backend = w->backend, .n_layers = a->n_layers, .max_positions = max_positions, .training = training,
				  .segment = segment_of(a, training, recompute),
				  .shape = {.n_heads = a->n_heads, .n_kv_heads = a->n_kv_heads, .head_size = a->head_size,
					    .scale = (float)(1 / sqrt(a->query_scalar > 0 ? a->query_scalar : a->head_size)),
					    .bidirectional = a->masked, .soft_cap = a->score_cap}, .layers = layers};
	make_arrays(&m, a, training, x);
	x->choice = a->n_experts && m.result == 0 ? experts_new(a, max_positions) : NULL;
	if (m.result == 0 && a->n_experts && !x->choice)
		m.result = error_set(err, ERROR_MEMORY, NULL, "no memory for the choice of experts");
	if (m.result < 0) {
		activations_free(x);
		return m.result;
	}
	*ret = x;
	return 0;
}

struct activations *activations_free(struct activations *a)
{
	if (!a)
		return NULL;
	const struct backend_ops *ops = a->backend->ops;
	if (a->r_final != a->x_final)
		ops->real_free(a->backend, a->r_final);
	if (a->training)
		ops->real_free(a->backend, a->x_final);
	free_head(a);
	ops->real_free(a->backend, a->x_half);
	ops->real_free(a->backend, a->experts.scores);
	ops->act_free(a->backend, a->experts.h);
	ops->real_free(a->backend, a->experts.y);
	experts_free(a->choice);
	ops->real_free(a->backend, a->dx);
	ops->act_free(a->backend, a->dh);
	ops->act_free(a->backend, a->dqkv);
	ops->act_free(a->backend, a->dheads);
	ops->act_free(a->backend, a->dgate_up);
	ops->act_free(a->backend, a->dffn);
	for (uint32_t i = 0; i < a->n_layers; i++) {
		if (i < a->segment)
			free_layer(a->backend, &a->layers[i]);
		if (keeps_input(a, i))
			ops->real_free(a->backend, a->layers[i].x_attention);
	}
	free(a->layers);
	free(a);
	return NULL;
}

void activations_tap(struct activations *a, forward_tap_fn *tap, void *arg)
{
	a->tap = tap;
	a->tap_arg = arg;
}

void activations_tap_back(struct activations *a, backward_tap_fn *tap, void *arg)
{
	a->tap_back = tap;
	a->tap_back_arg = arg;
}

void activations_cache(struct activations *a, struct cache *cache)
{
	a->cache = cache;
}
