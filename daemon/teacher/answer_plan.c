// SPDX-License-Identifier: Apache-2.0
// What is asked of the head. Its one complication: top_mass cuts a row only when its probabilities are known, so what lies outside the
// cut is asked in a second sweep of the same logits.
#include <math.h>

#include "daemon/teacher/answer_internal.h"
#include "daemon/teacher/request.h"

// Doubles first, so that all lie even.
size_t plan_row_bytes(uint32_t top_k, uint32_t n_gather, uint32_t n_draws)
{
	size_t doubles = (size_t)top_k + n_gather + 2 * (size_t)n_draws, ids = (size_t)top_k + n_gather + n_draws;
	return doubles * sizeof(double) + (ids + 1) / 2 * 2 * sizeof(uint32_t);
}

static uint32_t longest_list(const struct id_lists *lists)
{
	uint32_t longest = 0;
	for (uint32_t i = 0; i < lists->n_lists; i++) {
		uint32_t n = lists->offsets[i + 1] - lists->offsets[i];
		longest = n > longest ? n : longest;
	}
	return longest;
}

static uint32_t want_temperature(struct plan *plan, float temperature)
{
	for (uint32_t i = 0; i < plan->n_temperatures; i++)
		if (plan->temperatures[i] == temperature)
			return i;
	plan->temperatures[plan->n_temperatures] = temperature;
	return plan->n_temperatures++;
}

void plan_init(struct plan *plan, const struct answer *a, const struct request_item *item, uint32_t after, uint32_t tile_rows)
{
	const struct query *q = &item->query;
	*plan = (struct plan){.query = q, .sequence = &item->sequence, .V = q->n_keep ? q->n_keep : a->limits.vocab_size, .after = after,
			      .needs = plan->needs, .own = plan->own};
	plan->top_k = q->argmax && !q->top_k ? 1 : q->top_k;
	plan->n_gather = longest_list(&q->gather) + 1;
	plan->cut = q->top_mass != 0 && (q->tail || q->draws.tail);
	for (; plan->n_temperatures < q->n_temperatures; plan->n_temperatures++)
		plan->temperatures[plan->n_temperatures] = q->temperatures[plan->n_temperatures];
	if (q->n_spans || q->top_mass != 0 || q->max_prob || q->sum_squares || q->tail || q->draws.n)
		plan->one = want_temperature(plan, 1);
	if (q->sum_squares)
		plan->half = want_temperature(plan, 0.5f);
	if (q->draws.n) {
		struct content_id id = sequence_id(&item->sequence);
		plan->key = draw_key(q->draws.seed, &id);
	}
	plan->row_bytes = plan_row_bytes(plan->top_k, plan->n_gather, q->draws.n);
	size_t n = a->arena_bytes / plan->row_bytes;
	n = n < tile_rows ? n : tile_rows;
	plan->chunk_rows = n < ANSWER_CHUNK_ROWS ? (uint32_t)n : ANSWER_CHUNK_ROWS;
}

// Own token first, then the row's list.
static uint32_t ask_gather(const struct plan *plan, struct chunk *c, uint32_t i, uint32_t position, uint32_t *to)
{
	const struct query *q = plan->query;
	const struct id_lists *lists = &q->gather;
	bool row = plan->needs[position] & NEED_ROW, own = (row && q->own) || (plan->needs[position] & NEED_OWN);
	bool there = own && position + plan->after < plan->sequence->n_tokens;
	uint32_t n = 0, id = there ? query_keep_position(q, plan->sequence->tokens[position + plan->after]) : UINT32_MAX;
	c->has_own[i] = id != UINT32_MAX;
	if (c->has_own[i])
		to[n++] = id;
	if (!row || !lists->n_lists)
		return n;
	uint32_t list = lists->n_lists == 1 ? 0 : position - (uint32_t)q->first;
	for (uint32_t j = lists->offsets[list]; j < lists->offsets[list + 1]; j++)
		to[n++] = query_keep_position(q, lists->ids[j]);
	return n;
}

static void ask_outside(const struct plan *plan, struct sweep_row *s)
{
	const struct query *q = plan->query;
	s->want_tail = q->tail;
	s->n_draws = q->draws.n;
	s->draw_tail = q->draws.tail;
	s->draw_tau = (double)q->draws.tau;
}

void plan_ask(const struct plan *plan, struct chunk *c, uint32_t i, uint32_t position, uint32_t row)
{
	const struct query *q = plan->query;
	uint32_t k = plan->top_k, n_draws = q->draws.n;
	double *doubles = (double *)(void *)(c->arena + i * plan->row_bytes), *uniforms = doubles + k + plan->n_gather;
	uint32_t *ids = (uint32_t *)(void *)(uniforms + 2 * (size_t)n_draws), *gather = ids + k;
	c->positions[i] = position;
	c->rows[i] = row;
	c->sweep[i] = (struct sweep_row){
		.n_gather = ask_gather(plan, c, i, position, gather), .gather = gather, .gathered = doubles + k,
		.lse = c->lse + (size_t)i * PLAN_TEMPERATURES, .n_temperatures = 1, .temperatures = plan->temperatures + plan->one,
		.logits = doubles, .ids = ids, .uniforms = uniforms, .drawn_logits = uniforms + n_draws, .drawn = gather + plan->n_gather,
	};
	if (!(plan->needs[position] & NEED_ROW)) {
		c->sweep[i].lse += plan->one;
		return;
	}
	c->sweep[i].n_temperatures = plan->n_temperatures;
	c->sweep[i].temperatures = plan->temperatures;
	c->sweep[i].top_k = k;
	c->sweep[i].want_entropy = q->entropy;
	draw_uniforms(&plan->key, position, n_draws, uniforms);
	if (!plan->cut)
		ask_outside(plan, &c->sweep[i]);
}

// The fewest ids whose probability reaches top_mass, at most top_k.
static uint32_t cut(const struct plan *plan, const struct sweep_row *s)
{
	double sum = 0, wanted = (double)plan->query->top_mass;
	for (uint32_t j = 0; j < s->top_k; j++) {
		sum += exp(s->logits[j] - s->lse[plan->one]);
		if (sum >= wanted)
			return j + 1;
	}
	return s->top_k;
}

void plan_cut(const struct plan *plan, struct chunk *c)
{
	for (uint32_t i = 0; i < c->n; i++) {
		struct sweep_row *s = &c->sweep[i];
		bool row = (plan->needs[c->positions[i]] & NEED_ROW) && !s->not_finite;
		c->n_top[i] = row ? plan->query->top_k : 0;
		if (row && plan->query->top_mass != 0)
			c->n_top[i] = cut(plan, s);
		if (!plan->cut)
			continue;
		// The results of the first sweep stay where they are: nothing below writes to them, but for the same top ids again.
		s->top_k = c->n_top[i];
		s->n_temperatures = s->n_gather = 0;
		s->want_entropy = false;
		if (row)
			ask_outside(plan, s);
	}
}
