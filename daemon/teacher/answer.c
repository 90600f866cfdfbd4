// SPDX-License-Identifier: Apache-2.0
// Records of a batch's items, made one after the other. The device is kept a chunk of rows ahead of the host, beyond the end of an item: it
// multiplies and sweeps the next one while the results of the last are read and its record is encoded.
#include "daemon/teacher/answer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/model/head.h"
#include "daemon/teacher/answer_internal.h"
#include "daemon/teacher/batch.h"
#include "daemon/teacher/choice.h"
#include "daemon/teacher/request.h"

#define ARENA_BYTES (16u << 20)    // results of a chunk of rows with k = 1024 and 1024 draws; longer rows go in smaller chunks
#define LINE_ROWS 16               // rows of a feature read at once

static size_t larger(size_t a, size_t b)
{
	return a > b ? a : b;
}

static bool chunk_init(struct chunk *c, size_t arena_bytes)
{
	c->arena = malloc(arena_bytes);
	return c->arena != NULL;
}

static bool work_init(struct work *w, uint32_t max_tokens)
{
	w->plan.needs = calloc(max_tokens, sizeof *w->plan.needs);
	w->plan.own = calloc(max_tokens, sizeof *w->plan.own);
	return w->plan.needs && w->plan.own;
}

int answer_open(struct backend *be, const struct answer_limits *limits, struct answer **ret_answer, struct error *err)
{
	struct answer *a = calloc(1, sizeof *a);
	bool good = a != NULL;
	if (a) {
		a->backend = be;
		a->limits = *limits;
		a->arena_bytes = larger(ARENA_BYTES, plan_row_bytes(limits->max_top_k, limits->max_gather + 1, limits->max_draws));
		a->line_values = larger(limits->vocab_size, LINE_ROWS * (size_t)limits->widest);
		a->line = malloc(a->line_values * sizeof *a->line);
		a->features = calloc(limits->max_items, sizeof(*a->features));
		a->expected_at = calloc(limits->max_items, sizeof(*a->expected_at));
		good = a->line && a->features && a->expected_at;
		for (int i = 0; i < MAX_STARTED; i++)
			good = good && chunk_init(&a->chunks[i], a->arena_bytes);
		for (int i = 0; i < 2; i++)
			good = good && work_init(&a->works[i], limits->max_tokens);
	}
	if (!good) {
		answer_close(a);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for answers of top_k %u", limits->max_top_k);
	}
	*ret_answer = a;
	return 0;
}

struct answer *answer_close(struct answer *a)
{
	if (!a)
		return NULL;
	for (int i = 0; i < MAX_STARTED; i++)
		free(a->chunks[i].arena);
	for (int i = 0; i < 2; i++) {
		free(a->works[i].plan.needs);
		free(a->works[i].plan.own);
	}
	free(a->line);
	free(a->features);
	free(a->expected_at);
	free(a->expected);
	free(a);
	return NULL;
}

static void mark_needs(uint8_t *needs, const struct request_item *item, uint32_t after)
{
	const struct query *q = &item->query;
	memset(needs, 0, item->sequence.n_tokens);
	if (query_has_rows(q))
		memset(needs + q->first, NEED_ROW, query_rows(q));
	for (uint32_t s = 0; s < q->n_spans; s++)
		for (uint32_t i = q->spans[s].begin; i < q->spans[s].end; i++)
			needs[i - after] |= NEED_OWN;
}

// ---- rows announced to a head that is read from disk

static bool expect_item(struct answer *a, const struct batch *batch, uint32_t index)
{
	const struct request_item *item = batch->items[index].item;
	uint8_t *needs = a->works[0].plan.needs;      // no item is under way yet
	size_t most = (size_t)a->n_expected + item->sequence.n_tokens;
	a->expected_at[index] = item->query.n_keep ? HEAD_UNEXPECTED : a->n_expected;
	if (item->query.n_keep)      // writes beside the rows of a tile
		return true;
	if (most > a->expected_capacity) {
		uint32_t *expected = realloc(a->expected, 2 * most * sizeof *expected);
		if (!expected)
			return false;
		a->expected = expected;
		a->expected_capacity = 2 * most;
	}
	mark_needs(needs, item, a->in.after);
	for (uint32_t p = 0; p < item->sequence.n_tokens; p++)
		if (needs[p])
			a->expected[a->n_expected++] = batch->rows[batch->items[index].rows + p];
	return true;
}

static void expect(struct answer *a, const struct batch *batch)
{
	const struct head_member *first = &a->in.members[0];
	a->n_expected = 0;
	if (a->in.choice->is_mixture || !head_is_apart(first->head))
		return;
	for (uint32_t i = 0; i < batch->n_items; i++) {
		if (!expect_item(a, batch, i)) {       // without memory it is not done
			a->n_expected = 0;
			return;
		}
	}
	head_expect(first->head, first->hidden, a->expected, a->n_expected);
}

// ---- a chunk of rows: the question to the device, and what comes back

static struct chunk *chunk_at(struct answer *a, uint32_t number)
{
	return &a->chunks[number % MAX_STARTED];
}

// To the next position that anybody needs, from w->position on.
static void go_on(struct work *w)
{
	while (w->position < w->plan.sequence->n_tokens && !w->plan.needs[w->position])
		w->position++;
	w->asked = w->position == w->plan.sequence->n_tokens;
}

static void fill_chunk(struct chunk *c, struct work *w, uint32_t most)
{
	for (c->n = 0; !w->asked && c->n < most; c->n++) {
		plan_ask(&w->plan, c, c->n, w->position, w->in.rows[w->position]);
		w->position++;
		go_on(w);
	}
}

// Gives the device the item's next rows. False when there are none, or they must wait for those under way.
static bool start_chunk(struct answer *a, struct work *w)
{
	const struct answer_input *in = &w->in;
	const struct choice *choice = in->choice;
	struct head *head = in->members[0].head;
	struct chunk *c = chunk_at(a, a->n_begun);
	if (w->r || w->asked || a->n_started == MAX_STARTED || (w->alone && a->n_started))
		return false;
	uint32_t there = a->n_expected ? head_seek(head, w->at) : 0;
	fill_chunk(c, w, there && there < w->plan.chunk_rows ? there : w->plan.chunk_rows);
	w->at += w->at == HEAD_UNEXPECTED ? 0 : c->n;
	c->logits = choice->is_mixture ? head_mix(in->members, choice->n_members, choice->rule, c->rows, c->n) :
		head_logits(head, in->members[0].hidden, c->rows, c->n);
	if (w->plan.query->n_keep)
		c->logits = head_keep(head, w->plan.query->keep, w->plan.query->n_keep, c->n);
	a->backend->ops->sweep_start(a->backend, c->logits, c->n, w->plan.V, c->sweep);
	a->n_begun++;
	a->n_started++;
	w->n_started++;
	return true;
}

static void read_dense(struct answer *a, const struct work *w, const struct chunk *c)
{
	const struct backend_ops *ops = a->backend->ops;
	const struct plan *plan = &w->plan;
	for (uint32_t i = 0; i < c->n; i++) {
		if (!(plan->needs[c->positions[i]] & NEED_ROW) || c->sweep[i].not_finite)
			continue;
		float *to = w->rows->dense + (c->positions[i] - (size_t)plan->query->first) * plan->V;
		ops->real_read(a->backend, a->line, ops->real_at(c->logits, (size_t)i * plan->V), plan->V);
		for (uint32_t j = 0; j < plan->V; j++)
			to[j] = (float)a->line[j];
	}
}

static int keep_chunk(struct answer *a, struct work *w, struct chunk *c)
{
	const struct backend_ops *ops = a->backend->ops;
	struct error *err = &w->item->error;
	int r = backend_check(a->backend, err);    // results of a failed sweep are not even garbage: ids among them would be followed
	if (r)
		return r;
	plan_cut(&w->plan, c);
	if (w->plan.cut)
		ops->sweep(a->backend, c->logits, c->n, w->plan.V, c->sweep);
	if (w->plan.query->dense)
		read_dense(a, w, c);
	r = backend_check(a->backend, err);
	for (uint32_t i = 0; i < c->n && !r; i++)
		r = rows_keep(&w->plan, c, i, w->rows, err);
	for (uint32_t i = 0; i < c->n; i++)
		w->counts.n_not_finite += c->sweep[i].not_finite;
	w->counts.n_rows += c->n;
	return r;
}

// The oldest under way, which is w's.
static void finish_chunk(struct answer *a, struct work *w)
{
	struct chunk *c = chunk_at(a, a->n_begun - a->n_started);
	a->backend->ops->sweep_finish(a->backend);
	a->n_started--;
	w->n_started--;
	if (!w->r)
		w->r = keep_chunk(a, w, c);
}

// ---- an item

static void begin_work(struct answer *a, struct work *w, uint32_t index)
{
	struct request_item *item = a->made->items[index].item;
	uint32_t tile_rows = head_tile_rows(a->in.members[0].head);
	*w = (struct work){.plan = w->plan, .item = item, .in = a->in, .at = a->n_expected ? a->expected_at[index] : HEAD_UNEXPECTED};
	w->in.rows = a->made->rows + a->made->items[index].rows;
	w->in.index = index;
	plan_init(&w->plan, a, item, w->in.after, w->in.choice->is_mixture || item->query.n_keep ? tile_rows / 2 : tile_rows);
	w->alone = w->in.choice->is_mixture || w->plan.cut || item->query.dense;
	mark_needs(w->plan.needs, item, w->in.after);
	go_on(w);
	w->r = record_rows_new(&w->in.choice->fingerprint, a->limits.vocab_size, &item->sequence, &item->query, &w->rows, &item->error);
	if (!w->r)
		w->r = features_keep(a, index, w->rows, &w->not_finite, &item->error);
}

static void end_work(struct work *w)
{
	record_rows_free(w->rows);
	w->rows = NULL;
	w->item = NULL;
}

// As much as may be under way: of this item, and when all of it is asked, of the next.
static void start_more(struct answer *a, struct work *w)
{
	struct work *next = &a->works[(w->in.index + 1) % 2];
	while (start_chunk(a, w))
		;
	if (!w->asked || w->alone || w->in.index + 1 == a->made->n_items)
		return;
	if (!next->item)
		begin_work(a, next, w->in.index + 1);
	while (start_chunk(a, next))
		;
}

// Of the item that is made next.
static struct work *next_work(struct answer *a)
{
	struct work *w = &a->works[a->n_made % 2];
	if (!w->item)
		begin_work(a, w, a->n_made);
	return w;
}

static void sum_spans(const struct plan *plan, struct record_rows *rows)
{
	const struct query *q = plan->query;
	for (uint32_t s = 0; s < q->n_spans; s++) {
		double sum = 0;
		for (uint32_t i = q->spans[s].begin; i < q->spans[s].end; i++)
			sum += plan->own[i - plan->after];
		rows->span_sums[s] = (float)sum;
	}
}

void answer_begin(struct answer *a, const struct answer_input *in, const struct batch *batch)
{
	a->in = *in;
	a->made = batch;
	a->n_made = 0;
	expect(a, batch);
	if (batch->n_items)
		start_more(a, next_work(a));
}

void answer_ask_last(struct answer *a)
{
	struct work *w = next_work(a);
	for (start_more(a, w); w->n_started && (!w->asked || w->alone); start_more(a, w))
		finish_chunk(a, w);
}

int answer_make(struct answer *a, struct answer_counts *ret_counts)
{
	struct work *w = next_work(a);
	for (start_more(a, w); w->n_started; start_more(a, w))
		finish_chunk(a, w);
	a->n_made++;
	if (!w->r) {
		sum_spans(&w->plan, w->rows);
		w->item->not_finite = w->not_finite || w->counts.n_not_finite;
		w->r = record_encode(w->rows, &w->item->record, &w->item->error);
	}
	*ret_counts = w->counts;
	end_work(w);
	return w->r;
}

void answer_end(struct answer *a)
{
	for (; a->n_started; a->n_started--)
		a->backend->ops->sweep_finish(a->backend);
	for (int i = 0; i < 2; i++)
		end_work(&a->works[i]);
	if (a->n_expected)
		head_expect(a->in.members[0].head, NULL, NULL, 0);
	a->n_expected = 0;
	a->made = NULL;
}
