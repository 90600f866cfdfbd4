// SPDX-License-Identifier: Apache-2.0
// Which rows, and what becomes of their results. What ends an answer is in generation_end.c.
#include "daemon/teacher/generator.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/cache.h"
#include "daemon/model/head.h"
#include "daemon/model/sampler.h"
#include "daemon/model/tokenizer.h"
#include "daemon/teacher/batch.h"
#include "daemon/teacher/generation.h"
#include "daemon/teacher/generation_end.h"
#include "daemon/teacher/lanes.h"
#include "daemon/teacher/request.h"
#include "kernels/backend.h"

struct sample {
	struct sample *next;
	struct request_item *item;
	struct cache_sequence places;
	uint32_t *tokens;                  // prompt, forced, chosen
	uint32_t n_prompt, n_known;        // n_known: tokens there are so far
	uint32_t n_read;                   // positions computed, or in this pass
	uint32_t row, n_rows;              // in this pass: the last n_rows positions before n_read, from this row
	uint32_t answered;                 // position whose row's result comes next
	uint32_t lane;                     // of who asked
	uint64_t turn;                     // the last pass that it had rows of, or could have
	struct generation_end end;
};

// One row of a pass that says something of an answer's token.
struct result {
	struct sample *sample;
	uint32_t row, position;            // of the row: the token is at position + 1
	double lse, gathered;
};

struct generator {
	struct generator_options options;
	struct sampler *sampler;
	struct sample *active, **active_end;
	uint32_t n_active;
	struct lanes lanes;                // and those that wait
	uint64_t pass;                     // number of the one being filled
	// of one tile of rows, (head_tile_rows)
	struct result *results;
	struct sweep_row *sweep;
	uint32_t *rows, *ids;              // ids: (tile, max_top_k)
	double *logits;                    // (tile, max_top_k)
	double *row_logits;                // (V)
};

int generator_open(const struct generator_options *options, struct generator **ret_generator, struct error *err)
{
	struct generator *g = calloc(1, sizeof *g);
	uint32_t tile = head_tile_rows(options->head);
	if (!g)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for generation");
	g->options = *options;
	g->active_end = &g->active;
	lanes_init(&g->lanes);
	g->results = calloc(tile, sizeof *g->results);
	g->sweep = calloc(tile, sizeof *g->sweep);
	g->rows = calloc(tile, sizeof *g->rows);
	g->ids = calloc((size_t)tile * (options->max_top_k + 1), sizeof *g->ids);
	g->logits = calloc((size_t)tile * (options->max_top_k + 1), sizeof *g->logits);
	g->row_logits = calloc(options->vocab_size, sizeof *g->row_logits);
	int r = 0;
	if (!g->results || !g->sweep || !g->rows || !g->ids || !g->logits || !g->row_logits)
		r = error_set(err, ERROR_MEMORY, NULL, "no memory for generation");
	if (!r)
		r = sampler_new(options->vocab_size, &g->sampler, err);
	if (r)
		generator_close(g);
	else
		*ret_generator = g;
	return r;
}

struct generator *generator_close(struct generator *g)
{
	if (!g)
		return NULL;
	sampler_free(g->sampler);
	free(g->results);
	free(g->sweep);
	free(g->rows);
	free(g->ids);
	free(g->logits);
	free(g->row_logits);
	free(g);
	return NULL;
}

void generator_submit(struct generator *g, struct request_item *item)
{
	lanes_append(&g->lanes, item);
	atomic_store(&g->options.counters->n_waiting, g->lanes.n_waiting);
}

bool generator_is_busy(const struct generator *g)
{
	return g->active || g->lanes.n_waiting;
}

// ---- samples

static void sample_free(struct generator *g, struct sample *s)
{
	cache_end(g->options.cache, &s->places);
	generation_end_done(&s->end);
	free(s->tokens);
	free(s);
}

static int sample_new(struct generator *g, struct request_item *item, struct sample **ret_sample, struct error *err)
{
	const struct generation_query *q = item->request->generate;
	const struct sequence *prompt = generation_prompt(item);
	uint32_t capacity = prompt->n_tokens + q->n_forced + q->max_tokens;
	struct sample *s = calloc(1, sizeof *s);
	if (s)
		s->tokens = calloc(capacity, sizeof *s->tokens);
	if (!s || !s->tokens) {
		free(s);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a sequence of %u tokens", capacity);
	}
	s->item = item;
	s->n_prompt = prompt->n_tokens;
	s->n_known = prompt->n_tokens + q->n_forced;
	memcpy(s->tokens, prompt->tokens, prompt->n_tokens * sizeof *s->tokens);
	if (q->n_forced)
		memcpy(s->tokens + prompt->n_tokens, q->forced, q->n_forced * sizeof *s->tokens);
	int r = generation_end_init(&s->end, item);
	if (r)
		error_set(err, ERROR_MEMORY, NULL, "no memory for stop strings");
	if (!r)
		r = cache_begin(g->options.cache, s->tokens, s->n_known, capacity, &s->places, err);
	if (r) {
		sample_free(g, s);
		return r;
	}
	// The row of the prompt's last token says what comes next: it is computed again even if it is known (into the same slot,
	// the same bits).
	s->n_read = s->places.n < s->n_prompt - 1 ? s->places.n : s->n_prompt - 1;
	s->answered = s->n_prompt - 1;
	item->generation->n_reused = s->n_read;
	atomic_fetch_add(&g->options.counters->n_reused, s->n_read);
	*ret_sample = s;
	return 0;
}

// Ends a sample: with its answer, or with the error that its item has. What it read stays in the cache.
static void sample_end(struct generator *g, struct sample **at)
{
	struct sample *s = *at;
	struct request_item *item = s->item;
	*at = s->next;
	if (g->active_end == &s->next)
		g->active_end = at;
	cache_share(g->options.cache, &s->places, s->tokens);
	g->lanes.n_active[s->lane]--;
	sample_free(g, s);
	atomic_store(&g->options.counters->n_active, --g->n_active);
	item->request->computed(item);
}

static void drop_waiting(struct generator *g, uint32_t lane, generator_fate_fn *fate, void *arg)
{
	struct batch_backlog alive;
	struct request_item *item;
	batch_backlog_init(&alive);
	while ((item = lanes_pop(&g->lanes, lane)))
		if (fate(arg, item))
			item->request->computed(item);
		else
			batch_backlog_append(&alive, &item->link);
	while ((item = (struct request_item *)batch_backlog_pop(&alive)))
		lanes_return(&g->lanes, lane, item);
}

void generator_drop(struct generator *g, generator_fate_fn *fate, void *arg)
{
	for (uint32_t lane = 0; lane < LANES && g->lanes.n_waiting; lane++)
		drop_waiting(g, lane, fate, arg);
	atomic_store(&g->options.counters->n_waiting, g->lanes.n_waiting);
	for (struct sample **at = &g->active; *at;)
		if (fate(arg, (*at)->item))
			sample_end(g, at);
		else
			at = &(*at)->next;
}

// ---- rows of the next pass

static bool in_prompt(const struct sample *s)
{
	return s->n_known - s->n_read > 1 || s->n_read < s->n_prompt;
}

static uint32_t n_ready(const struct generator *g)
{
	uint32_t n = 0;
	for (const struct sample *s = g->active; s; s = s->next)
		n += !in_prompt(s);
	return n;
}

uint32_t generator_n_steps(const struct generator *g)
{
	uint32_t n = n_ready(g);
	return n < g->options.max_active ? n : g->options.max_active;
}

// False when the cache has no slots now: those taken for scores in this pass come back.
static bool append_rows(struct generator *g, struct batch *b, struct sample *s, uint32_t n)
{
	uint32_t end = s->n_read + n;
	if (end > s->places.n && !cache_extend(g->options.cache, &s->places, end - s->places.n))
		return false;
	s->row = batch_append(b, s->tokens, s->places.slots, s->n_read, n);
	s->n_rows = n;
	s->n_read = end;
	return true;
}

static void take_step(struct generator *g, struct batch *b, struct sample *s)
{
	s->turn = g->pass;
	if (append_rows(g, b, s, 1))
		g->lanes.steps.served[s->lane]++;
}

// Of the samples whose turn has not come in this pass one of who was served least, and of those the one whose last turn was longest ago.
static struct sample *next_step(const struct generator *g)
{
	const uint64_t *served = g->lanes.steps.served;
	struct sample *best = NULL;
	for (struct sample *s = g->active; s; s = s->next)
		if (!in_prompt(s) && s->turn < g->pass &&
		    (!best || served[s->lane] < served[best->lane] || (s->lane == best->lane && s->turn < best->turn)))
			best = s;
	return best;
}

void generator_fill_steps(struct generator *g, struct batch *b)
{
	uint32_t n = generator_n_steps(g);
	bool all = n_ready(g) <= n;
	g->pass++;
	for (struct sample *s = g->active; s; s = s->next) {
		s->n_rows = 0;
		if (all && !in_prompt(s) && batch_room(b))
			take_step(g, b, s);
	}
	for (; !all && n && batch_room(b); n--)
		take_step(g, b, next_step(g));
}

// As much of a prompt as the budget allows; others may share it from this pass on. False when the budget (or the room) is spent.
static bool read_prompt(struct generator *g, struct batch *b, struct sample *s, uint32_t *budget)
{
	uint32_t left = s->n_known - s->n_read, room = batch_room(b);
	uint32_t n = left < *budget ? left : *budget;
	n = n < room ? n : room;
	s->turn = g->pass;
	if (!n || !append_rows(g, b, s, n))
		return false;
	g->lanes.prompts.served[s->lane] += n;
	cache_share(g->options.cache, &s->places, s->tokens);
	*budget -= n;
	return n == left;
}

// The oldest that waits in the lane becomes active; false when it failed.
static bool begin_sample(struct generator *g, uint32_t lane, struct sample **ret_sample)
{
	struct request_item *item = lanes_pop(&g->lanes, lane);
	atomic_store(&g->options.counters->n_waiting, g->lanes.n_waiting);
	if (sample_new(g, item, ret_sample, &item->error)) {
		item->request->computed(item);
		return false;
	}
	(*ret_sample)->lane = lane;
	*g->active_end = *ret_sample;
	g->active_end = &(*ret_sample)->next;
	g->lanes.n_active[lane]++;
	atomic_store(&g->options.counters->n_active, ++g->n_active);
	return true;
}

// Whose prompt is read next: of who was served least, first what was begun, then what waits. NULL when there is none, or no place.
static struct sample *next_prompt(struct generator *g)
{
	const uint64_t *served = g->lanes.prompts.served;
	struct sample *begun = NULL, *s = NULL;
	uint32_t lane;
	for (s = g->active; s; s = s->next)
		if (in_prompt(s) && s->turn < g->pass && (!begun || served[s->lane] < served[begun->lane]))
			begun = s;
	while ((lane = lanes_next(&g->lanes, g->n_active, g->options.max_active)) < LANES && (!begun || served[lane] < served[begun->lane]))
		if (begin_sample(g, lane, &s))
			return s;
	return begun;
}

static void settle(struct generator *g)
{
	bool steps[LANES] = {false}, prompts[LANES];
	for (uint32_t i = 0; i < LANES; i++)
		prompts[i] = g->lanes.waiting[i].first;
	for (const struct sample *s = g->active; s; s = s->next) {
		steps[s->lane] |= !in_prompt(s) && s->turn < g->pass;
		prompts[s->lane] |= in_prompt(s);
	}
	lanes_settle(&g->lanes.steps, steps);
	lanes_settle(&g->lanes.prompts, prompts);
}

void generator_fill_prompts(struct generator *g, struct batch *b, uint32_t budget)
{
	struct sample *s;
	for (uint32_t n = 0; n < g->options.max_active && budget && batch_room(b) && (s = next_prompt(g)); n++)
		if (!read_prompt(g, b, s, &budget))
			break;
	settle(g);
}

// ---- results

// What the sweep must say of the row: lse always; the token that follows where it is given; else the largest, for the choice of it.
static void ask(struct generator *g, uint32_t i)
{
	static const float one = 1;
	struct result *r = &g->results[i];
	const struct generation_query *q = r->sample->item->request->generate;
	bool given = r->position + 1 < r->sample->n_known;
	uint32_t top_k = q->top_k ? q->top_k : !given;
	g->rows[i] = r->row;
	g->sweep[i] = (struct sweep_row){
		.top_k = top_k, .n_temperatures = 1, .temperatures = &one, .lse = &r->lse, .n_gather = given,
		.gather = given ? r->sample->tokens + r->position + 1 : NULL, .gathered = &r->gathered,
		.ids = g->ids + (size_t)i * (g->options.max_top_k + 1), .logits = g->logits + (size_t)i * (g->options.max_top_k + 1),
	};
}

// The next token, and its raw logit; *ret_sampled: its log-probability where it was drawn from.
static uint32_t choose(struct generator *g, uint32_t i, struct real *logits, double *ret_logit, double *ret_sampled)
{
	const struct result *r = &g->results[i];
	const struct request_item *item = r->sample->item;
	const struct generation_query *q = item->request->generate;
	uint32_t V = g->options.vocab_size;
	*ret_sampled = 0;
	*ret_logit = g->sweep[i].logits[0];
	if (q->sampling.temperature == 0)
		return g->sweep[i].ids[0];
	struct backend *be = g->options.backend;
	be->ops->real_read(be, g->row_logits, be->ops->real_at(logits, (size_t)i * V), V);
	uint32_t id = sampler_choose(g->sampler, &q->sampling, g->row_logits,
				     sampler_uniform(q->seed, generation_sample(item), r->position + 1), ret_sampled);
	*ret_logit = g->row_logits[id];
	return id;
}

// Writes token `at` of the answer. The log-probability is made of the numbers that a score of the same tokens gives, as they are sent.
static void keep(struct generator *g, uint32_t i, uint32_t at, uint32_t id, double logit, double sampled)
{
	const struct result *r = &g->results[i];
	struct generation *a = r->sample->item->generation;
	uint32_t top_k = r->sample->item->request->generate->top_k;
	a->tokens[at] = id;
	a->lse[at] = (float)r->lse;
	a->logprobs[at] = (float)((double)(float)logit - (double)(float)r->lse);
	a->sampled_logprobs[at] = (float)sampled;
	for (uint32_t k = 0; k < top_k; k++) {
		a->ids[(size_t)at * top_k + k] = g->sweep[i].ids[k];
		a->logits[(size_t)at * top_k + k] = (float)g->sweep[i].logits[k];
	}
}

static void take_result(struct generator *g, uint32_t i, struct real *logits)
{
	const struct result *r = &g->results[i];
	struct sample *s = r->sample;
	struct request_item *item = s->item;
	bool given = r->position + 1 < s->n_known;
	double logit = r->gathered, sampled = 0;
	if (item->error.code)
		return;
	if (g->sweep[i].not_finite) {
		error_set(&item->error, ERROR_NOT_FINITE, NULL, "the teacher gave NaN or infinity after %u tokens", r->position + 1);
		return;
	}
	if (!given) {
		uint32_t id = choose(g, i, logits, &logit, &sampled);
		if (backend_failed(g->options.backend))
			return;            // what was read of it is no answer: nobody may see it
		s->tokens[s->n_known++] = id;
		atomic_fetch_add(&g->options.counters->n_tokens, 1);
	}
	uint32_t at = r->position + 1 - s->n_prompt;
	keep(g, i, at, s->tokens[r->position + 1], logit, sampled);
	generation_end_check(&s->end, item, g->options.tokenizer, g->options.eos_ids, at, given);
	if (item->request->generate->stream && !item->generation->finish && !item->error.code)
		request_item_tell(item, false);
}

// Up to a tile of the pass's rows that say something, in the order of samples and positions.
static uint32_t next_results(struct generator *g, uint32_t max)
{
	uint32_t n = 0;
	for (struct sample *s = g->active; s && n < max; s = s->next)
		for (; s->n_rows && s->answered < s->n_read && n < max; s->answered++)
			g->results[n++] = (struct result){.sample = s, .position = s->answered,
				.row = s->row + s->answered - (s->n_read - s->n_rows)};
	return n;
}

static void end_samples(struct generator *g)
{
	for (struct sample **at = &g->active; *at;)
		if ((*at)->item->error.code || (*at)->item->generation->finish)
			sample_end(g, at);
		else
			at = &(*at)->next;
}

int generator_take(struct generator *g, const struct act *hidden, struct error *err)
{
	struct backend *be = g->options.backend;
	uint32_t n, tile = head_tile_rows(g->options.head);
	while ((n = next_results(g, tile))) {
		for (uint32_t i = 0; i < n; i++)
			ask(g, i);
		struct real *logits = head_logits(g->options.head, hidden, g->rows, n);
		be->ops->sweep(be, logits, n, g->options.vocab_size, g->sweep);
		int r = backend_sync(be, err);
		if (r)
			return r;
		for (uint32_t i = 0; i < n; i++)
			take_result(g, i, logits);
		r = backend_sync(be, err);
		if (r)
			return r;
	}
	end_samples(g);
	return 0;
}
