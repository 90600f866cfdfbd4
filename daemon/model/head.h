// SPDX-License-Identifier: Apache-2.0
// The LM head in tiles of the backend's head_rows rows: product, then one sweep of the vocabulary (lse, top-k, gather, entropy). Never
// holds [positions x vocabulary]: one tile of logits is reserved at open and nothing grows it.
#pragma once

#include <stdint.h>

#include "kernels/backend.h"

struct architecture;
struct error;
struct weights;
struct head;

int head_open(const struct weights *w, uint32_t max_rows, struct head **ret_head, struct error *err);
// Adds to *need what head_open (beside: head_open_beside) will make on the device whose tiles are largest; elsewhere it is less.
int head_need(const struct architecture *a, uint32_t max_rows, bool training, bool beside, struct backend_need *need, struct error *err);
// Another model's, of the same vocabulary and backend, for scoring: its tiles lie where `owner` has its own, who must outlive it.
int head_open_beside(const struct weights *w, struct head *owner, struct head **ret_head, struct error *err);
struct head *head_close(struct head *h);

// Scores n rows of `hidden` (row indices in `rows`, host memory); results land in `out` (n).
void head_score(struct head *h, const struct act *hidden, const uint32_t *rows, uint32_t n, struct sweep_row *out);

// The same step by step, for who wants to look at a tile's logits more than once: n <= head_tile_rows() rows, (n, V), the head's own until
// its next call.
uint32_t head_tile_rows(const struct head *h);
struct real *head_logits(struct head *h, const struct act *hidden, const uint32_t *rows, uint32_t n);
// Where each product with the head reads it from disk, or unpacks it (head_is_apart), tiles should be full, whoever their rows are for.
// head_expect announces the rows that head_logits will be asked for, in their order (rows is the caller's, and stays until the next call;
// n 0: none are). It then computes a tile of them at a time; head_keep and head_mix may not be called meanwhile but after a head_logits of
// HEAD_UNEXPECTED rows.
void head_expect(struct head *h, const struct act *hidden, const uint32_t *rows, uint32_t n);
bool head_is_apart(const struct head *h);
#define HEAD_UNEXPECTED UINT32_MAX
// The next head_logits is asked for rows from number `at` of the list on, or (HEAD_UNEXPECTED) for others. Returns how many of these are in
// the tile already, 0: whatever the next call asks for begins a new one.
uint32_t head_seek(struct head *h, uint32_t at);
// Their columns at ids (n_ids <= V), (n, n_ids), beside them; for tiles of at most half as many rows.
struct real *head_keep(struct head *h, const uint32_t *ids, uint32_t n_ids, uint32_t n);

// Several models' logits as one, (n, V), in the place of the first's; all but one were opened beside it. Tiles of at most half as many
// rows.
struct head_member { struct head *head; const struct act *hidden; double weight; };
enum head_rule {
	HEAD_SUM,                // weighted sum of logits; weights may be negative
	HEAD_MEAN,               // ln of the weighted sum of probabilities (T = 1), no less than ln 1e-38
};
struct real *head_mix(const struct head_member *members, uint32_t n_members, enum head_rule rule, const uint32_t *rows, uint32_t n);

// Training: for each tile the sweep of `out` is done, then `loss` turns its results into softmax_grad rows for rows first..first+n of
// the list, and the gradients flow on: into the head's parameters (+=) and into dhidden (T, C) (rows not named are zero).
// `loss` returns 0 or -errno (then nothing more is computed and the error is returned). With dhidden NULL it is evaluation: no gradients.
typedef int head_loss_fn(void *arg, uint32_t first, uint32_t n, const struct sweep_row *swept, struct softmax_grad_row *ret_grad,
			 struct error *err);
int head_train(struct head *h, const struct act *hidden, const uint32_t *rows, uint32_t n, uint32_t T, struct sweep_row *out,
	       head_loss_fn *loss, void *arg, struct act *dhidden, struct error *err);
