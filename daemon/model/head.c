// SPDX-License-Identifier: Apache-2.0
// The LM head, tile by tile: pick rows, multiply, sweep; in training also the loss and the way back, while the tile's logits are there.
#include "daemon/model/head.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

#include "common/error.h"
#include "daemon/model/weights.h"

#define SWEEPS_AT_ONCE 2             // of the backend: one is read while the next is computed
#define KEEP_ALIGNMENT 64            // logits: devices read several at a time, from addresses that are multiples of that

struct head {
	const struct weights *weights;
	struct backend *backend;
	struct head *owner;              // of the logits; NULL: they are its own
	uint32_t max_rows, tile_rows;    // tile_rows: the backend's head_rows, at most max_rows
	struct real *logits;             // (tile_rows, V), and a gap; in training also their gradient
	struct act *x;                   // (tile_rows, C)
	struct softmax_grad_row *grads;  // (tile_rows) what the loss answers for a tile
	struct sweep_row *sweep;         // (tile_rows) lse of each row, for a mean
	double *lse;
	// Rows announced (n_expected); the tile holds tile_n of them from number tile_first on; `at`: those asked for next, or HEAD_UNEXPECTED.
	const struct act *hidden;
	const uint32_t *expected;
	uint32_t n_expected, at, tile_first, tile_n;
	struct act *dx;                  // (max_rows, C) gradients of the picked rows; NULL for immutable weights
};

int head_need(const struct architecture *a, uint32_t max_rows, bool training, bool beside, struct backend_need *need, struct error *err)
{
	struct backend_count *count = &need->parts[BACKEND_PART_HEAD];
	uint64_t tile = max_rows < BACKEND_MAX_HEAD_ROWS ? max_rows : BACKEND_MAX_HEAD_ROWS, n;
	if (__builtin_mul_overflow((uint64_t)max_rows, (uint64_t)a->width, &n))
		return error_set(err, ERROR_TOO_LARGE, NULL, "a head for %u rows of width %u", max_rows, a->width);
	count->n_real += beside ? 0 : tile * a->vocab_size + KEEP_ALIGNMENT;
	count->n_act += tile * a->width + (training ? n : 0);
	count->n_arrays += 3;
	return 0;
}

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
	h->logits = be->ops->real_new(be, tile * V + KEEP_ALIGNMENT, err);
	h->x = h->logits ? be->ops->act_new(be, tile * C, err) : NULL;
	h->dx = h->x && w->parameters ? be->ops->act_new(be, n_dx, err) : NULL;
	if (!h->x || (w->parameters && !h->dx)) {
		head_close(h);
		return error_errno(ERROR_MEMORY);
	}
	h->grads = calloc(tile, sizeof *h->grads);    // also without parameters: evaluation asks the loss too
	h->sweep = calloc(tile, sizeof *h->sweep);
	h->lse = calloc(tile, sizeof *h->lse);
	if (!h->grads || !h->sweep || !h->lse) {
		head_close(h);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the head");
	}
	*ret_head = h;
	return 0;
}

int head_open_beside(const struct weights *w, struct head *owner, struct head **ret_head, struct error *err)
{
	struct backend *be = w->backend;
	assert(be == owner->backend && w->architecture.vocab_size == owner->weights->architecture.vocab_size && !owner->owner);
	struct head *h = calloc(1, sizeof *h);
	if (!h)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the head");
	*h = (struct head){.weights = w, .backend = be, .owner = owner, .max_rows = owner->max_rows, .tile_rows = owner->tile_rows,
			   .logits = owner->logits};
	h->x = be->ops->act_new(be, (size_t)h->tile_rows * w->architecture.width, err);
	if (!h->x) {
		head_close(h);
		return error_errno(ERROR_MEMORY);
	}
	*ret_head = h;
	return 0;
}

struct head *head_close(struct head *h)
{
	if (!h)
		return NULL;
	if (!h->owner)
		h->backend->ops->real_free(h->backend, h->logits);
	h->backend->ops->act_free(h->backend, h->x);
	h->backend->ops->act_free(h->backend, h->dx);
	free(h->grads);
	free(h->sweep);
	free(h->lse);
	free(h);
	return NULL;
}

uint32_t head_tile_rows(const struct head *h)
{
	return h->tile_rows;
}

static void logits_of(struct head *h, const struct act *hidden, const uint32_t *rows, uint32_t n, struct real *to)
{
	const struct backend_ops *ops = h->backend->ops;
	ops->pick_rows(h->backend, h->x, hidden, rows, n, h->weights->architecture.width);
	ops->linear_real(h->backend, to, false, h->x, h->weights->head, h->weights->vectors.head_bias, n);
	double divisor = h->weights->architecture.logit_divisor;
	if (divisor != 0)
		ops->mix(h->backend, to, false, to, 1 / divisor, NULL, n, h->weights->architecture.vocab_size);
	if (h->weights->architecture.logit_cap > 0)
		ops->soft_cap(h->backend, to, h->weights->architecture.logit_cap, (size_t)n * h->weights->architecture.vocab_size);
}

void head_expect(struct head *h, const struct act *hidden, const uint32_t *rows, uint32_t n)
{
	h->hidden = hidden;
	h->expected = rows;
	h->n_expected = n;
	h->tile_n = 0;
	h->at = HEAD_UNEXPECTED;
}

bool head_is_apart(const struct head *h)
{
	return h->weights->head_apart;
}

uint32_t head_seek(struct head *h, uint32_t at)
{
	h->at = at < h->n_expected ? at : HEAD_UNEXPECTED;
	return h->at != HEAD_UNEXPECTED && at >= h->tile_first && at - h->tile_first < h->tile_n ? h->tile_n - (at - h->tile_first) : 0;
}

// n of the rows announced, which the tile holds, or begin a new one.
static struct real *expected_logits(struct head *h, uint32_t n)
{
	uint32_t at = h->at, left = head_seek(h, at);
	assert(n <= h->n_expected - at);
	if (left < n) {
		h->tile_first = at;
		h->tile_n = h->n_expected - at < h->tile_rows ? h->n_expected - at : h->tile_rows;
		logits_of(h, h->hidden, h->expected + at, h->tile_n, h->logits);
	}
	return h->backend->ops->real_at(h->logits, (size_t)(at - h->tile_first) * h->weights->architecture.vocab_size);
}

struct real *head_logits(struct head *h, const struct act *hidden, const uint32_t *rows, uint32_t n)
{
	assert(n <= h->tile_rows);
	if (h->n_expected && h->at != HEAD_UNEXPECTED)
		return expected_logits(h, n);
	h->tile_n = 0;
	logits_of(h, hidden, rows, n, h->logits);
	return h->logits;
}

// Of n rows, T = 1. A row that is not finite has none: NaN makes the whole row of the mean NaN.
static const double *lse_of(struct head *h, const struct real *logits, uint32_t n)
{
	static const float one = 1;
	for (uint32_t i = 0; i < n; i++) {
		h->lse[i] = NAN;
		h->sweep[i] = (struct sweep_row){.n_temperatures = 1, .temperatures = &one, .lse = &h->lse[i]};
	}
	h->backend->ops->sweep(h->backend, logits, n, h->weights->architecture.vocab_size, h->sweep);
	return h->lse;
}

struct real *head_mix(const struct head_member *members, uint32_t n_members, enum head_rule rule, const uint32_t *rows, uint32_t n)
{
	struct head *first = members[0].head->owner ? members[0].head->owner : members[0].head;
	struct backend *be = first->backend;
	uint32_t V = first->weights->architecture.vocab_size;
	struct real *sum = first->logits, *beside = be->ops->real_at(first->logits, (size_t)n * V);
	assert(n <= first->tile_rows / 2);
	for (uint32_t m = 0; m < n_members; m++) {
		struct real *one = m ? beside : sum;
		logits_of(members[m].head, members[m].hidden, rows, n, one);
		be->ops->mix(be, sum, m > 0, one, members[m].weight, rule == HEAD_MEAN ? lse_of(first, one, n) : NULL, n, V);
	}
	if (rule == HEAD_MEAN)
		be->ops->mix_log(be, sum, n, V);
	return sum;
}

struct real *head_keep(struct head *h, const uint32_t *ids, uint32_t n_ids, uint32_t n)
{
	const struct backend_ops *ops = h->backend->ops;
	uint32_t V = h->weights->architecture.vocab_size;
	assert(n <= h->tile_rows / 2 && n_ids <= V);
	struct real *kept = ops->real_at(h->logits, ((size_t)n * V + KEEP_ALIGNMENT - 1) / KEEP_ALIGNMENT * KEEP_ALIGNMENT);
	ops->pick_columns(h->backend, kept, h->logits, ids, n, n_ids, V);
	return kept;
}

static void sweep_tile(struct head *h, const struct act *hidden, const uint32_t *rows, uint32_t n, struct sweep_row *out)
{
	struct real *logits = head_logits(h, hidden, rows, n);
	weights_beat(h->weights);
	h->backend->ops->sweep(h->backend, logits, n, h->weights->architecture.vocab_size, out);
}

static uint32_t rows_of_tile(const struct head *h, uint32_t first, uint32_t n)
{
	return n - first < h->tile_rows ? n - first : h->tile_rows;
}

void head_score(struct head *h, const struct act *hidden, const uint32_t *rows, uint32_t n, struct sweep_row *out)
{
	const struct backend_ops *ops = h->backend->ops;
	uint32_t n_started = 0;
	for (uint32_t first = 0; first < n; first += h->tile_rows) {
		uint32_t n_tile = rows_of_tile(h, first, n);
		struct real *logits = head_logits(h, hidden, rows + first, n_tile);
		weights_beat(h->weights);
		if (n_started == SWEEPS_AT_ONCE) {
			ops->sweep_finish(h->backend);
			n_started--;
		}
		ops->sweep_start(h->backend, logits, n_tile, h->weights->architecture.vocab_size, out + first);
		n_started++;
	}
	for (; n_started; n_started--)
		ops->sweep_finish(h->backend);
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
		ops->linear_real_backward(h->backend, ops->act_at(h->dx, (size_t)first * C), h->weights->head_gradient,
					  h->weights->vector_gradients.head_bias, h->logits, h->x, h->weights->head, n_tile);
	}
	if (dhidden)
		ops->put_rows(h->backend, dhidden, h->dx, rows, n, T, C);
	return 0;
}
