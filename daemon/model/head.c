// SPDX-License-Identifier: Apache-2.0
// The LM head, tile by tile: pick rows, multiply, sweep; in training also the loss and the way back, while the tile's logits are there.
#include "daemon/model/head.h"

#include <assert.h>
#include <stdlib.h>

#include "common/error.h"
#include "daemon/model/weights.h"

struct head {
	const struct weights *weights;
	struct backend *backend;
	uint32_t max_rows, tile_rows;    // tile_rows: the backend's head_rows, at most max_rows
	struct real *logits;             // (tile_rows, V); in training also their gradient
	struct act *x;                   // (tile_rows, C)
	struct softmax_grad_row *grads;  // (tile_rows) what the loss answers for a tile
	struct act *dx;                  // (max_rows, C) gradients of the picked rows; NULL for immutable weights
};

int head_open(const struct weights *w, uint32_t max_rows, struct head **ret_head, struct error *err)
{
	struct backend *be = w->backend;
	size_t V = w->architecture.vocab_size, C = w->architecture.width, n_dx;
	uint32_t tile = be->ops->head_rows < max_rows ? be->ops->head_rows : max_rows;
	if (__builtin_mul_overflow((size_t)max_rows, C, &n_dx))
		return error_set(err, ERROR_TOO_LARGE, NULL, "a head for %u rows of width %zu", max_rows, C);
	struct head *h = calloc(1, sizeof *h);
	if (!h)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the head");
	*h = (struct head){.weights = w, .backend = be, .max_rows = max_rows, .tile_rows = tile};
	h->logits = be->ops->real_new(be, tile * V, err);
	h->x = h->logits ? be->ops->act_new(be, tile * C, err) : NULL;
	h->dx = h->x && w->parameters ? be->ops->act_new(be, n_dx, err) : NULL;
	if (!h->x || (w->parameters && !h->dx)) {
		head_close(h);
		return error_errno(ERROR_MEMORY);
	}
	h->grads = calloc(tile, sizeof *h->grads);    // also without parameters: evaluation asks the loss too
	if (!h->grads) {
		head_close(h);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the head");
	}
	*ret_head = h;
	return 0;
}

struct head *head_close(struct head *h)
{
	if (!h)
		return NULL;
	h->backend->ops->real_free(h->backend, h->logits);
	h->backend->ops->act_free(h->backend, h->x);
	h->backend->ops->act_free(h->backend, h->dx);
	free(h->grads);
	free(h);
	return NULL;
}

uint32_t head_tile_rows(const struct head *h)
{
	return h->tile_rows;
}

struct real *head_logits(struct head *h, const struct act *hidden, const uint32_t *rows, uint32_t n)
{
	const struct backend_ops *ops = h->backend->ops;
	assert(n <= h->tile_rows);
	ops->pick_rows(h->backend, h->x, hidden, rows, n, h->weights->architecture.width);
	ops->linear_real(h->backend, h->logits, false, h->x, h->weights->head, n);
	return h->logits;
}

struct real *head_keep(struct head *h, const uint32_t *ids, uint32_t n_ids, uint32_t n)
{
	const struct backend_ops *ops = h->backend->ops;
	uint32_t V = h->weights->architecture.vocab_size;
	assert(n <= h->tile_rows / 2 && n_ids <= V);
	struct real *kept = ops->real_at(h->logits, (size_t)n * V);
	ops->pick_columns(h->backend, kept, h->logits, ids, n, n_ids, V);
	return kept;
}

static void sweep_tile(struct head *h, const struct act *hidden, const uint32_t *rows, uint32_t n, struct sweep_row *out)
{
	struct real *logits = head_logits(h, hidden, rows, n);
	h->backend->ops->sweep(h->backend, logits, n, h->weights->architecture.vocab_size, out);
}

static uint32_t rows_of_tile(const struct head *h, uint32_t first, uint32_t n)
{
	return n - first < h->tile_rows ? n - first : h->tile_rows;
}

void head_score(struct head *h, const struct act *hidden, const uint32_t *rows, uint32_t n, struct sweep_row *out)
{
	for (uint32_t first = 0; first < n; first += h->tile_rows)
		sweep_tile(h, hidden, rows + first, rows_of_tile(h, first, n), out + first);
}

int head_train(struct head *h, const struct act *hidden, const uint32_t *rows, uint32_t n, uint32_t T, struct sweep_row *out,
	       head_loss_fn *loss, void *arg, struct act *dhidden, struct error *err)
{
	const struct backend_ops *ops = h->backend->ops;
	uint32_t V = h->weights->architecture.vocab_size, C = h->weights->architecture.width;
	assert(!dhidden || (h->dx && n <= h->max_rows));
	for (uint32_t first = 0; first < n; first += h->tile_rows) {
		uint32_t n_tile = rows_of_tile(h, first, n);
		sweep_tile(h, hidden, rows + first, n_tile, out + first);
		int r = backend_sync(h->backend, err);    // the loss must never see the results of a failed sweep
		if (r == 0)
			r = loss(arg, first, n_tile, out + first, h->grads, err);
		if (r < 0)
			return r;
		if (!dhidden)
			continue;
		ops->softmax_grad(h->backend, h->logits, n_tile, V, h->grads);
		ops->linear_real_backward(h->backend, ops->act_at(h->dx, (size_t)first * C), h->weights->head_gradient, h->logits, h->x,
					  h->weights->head, n_tile);
	}
	if (dhidden)
		ops->put_rows(h->backend, dhidden, h->dx, rows, n, T, C);
	return 0;
}
