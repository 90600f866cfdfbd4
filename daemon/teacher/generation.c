// SPDX-License-Identifier: Apache-2.0
#include "daemon/teacher/generation.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/teacher/request.h"

void generation_query_init(struct generation_query *q)
{
	*q = (struct generation_query){.n = 1, .max_tokens = 16};
	sampler_options_init(&q->sampling);
}

void generation_query_done(struct generation_query *q)
{
	free(q->forced);
	for (uint32_t i = 0; i < q->n_stops; i++)
		free(q->stops[i]);
	q->forced = NULL;
	q->n_forced = q->n_stops = 0;
}

static int request_open(const struct generation_query *q, uint32_t n_prompts, uint32_t max_items, struct request **ret_request,
			struct error *err)
{
	uint64_t n = (uint64_t)n_prompts * q->n;
	if (n > max_items)
		return error_set(err, ERROR_TOO_LARGE, "prompts",
			"%" PRIu64 " samples of all prompts, the limit is %" PRIu32, n, max_items);
	int result = request_new((uint32_t)n, ret_request, err);
	if (result)
		return result;
	(*ret_request)->generate = malloc(sizeof *q);
	if ((*ret_request)->generate)
		return 0;
	*ret_request = request_free(*ret_request);
	return error_set(err, ERROR_MEMORY, NULL, "no memory for the request");
}

int generation_request_new(struct generation_query *q, struct sequence *prompts, uint32_t n_prompts, uint32_t max_items,
			   struct request **ret_request, struct error *err)
{
	int result = request_open(q, n_prompts, max_items, ret_request, err);
	if (result == 0) {
		*(*ret_request)->generate = *q;
		*q = (struct generation_query){0};
	}
	for (uint32_t i = 0; i < n_prompts; i++) {
		uint32_t n = result == 0 ? (*ret_request)->generate->n : 0;
		if (n)
			(*ret_request)->items[i * n].sequence = prompts[i];
		else
			sequence_done(&prompts[i]);
		prompts[i] = (struct sequence){0};
	}
	if (result)
		generation_query_done(q);
	return result;
}

static int generation_new(const struct generation_query *q, struct generation **ret_generation, struct error *err)
{
	size_t capacity = (size_t)q->n_forced + q->max_tokens;
	struct generation *g = calloc(1, sizeof *g);
	if (g) {
		g->capacity = (uint32_t)capacity;
		g->stop_id = g->stop = -1;
		g->tokens = calloc(capacity, sizeof *g->tokens);
		g->logprobs = calloc(capacity, sizeof *g->logprobs);
		g->sampled_logprobs = calloc(capacity, sizeof *g->sampled_logprobs);
		g->lse = calloc(capacity, sizeof *g->lse);
		g->ids = q->top_k ? calloc(capacity * q->top_k, sizeof *g->ids) : NULL;
		g->logits = q->top_k ? calloc(capacity * q->top_k, sizeof *g->logits) : NULL;
	}
	if (!g || !g->tokens || !g->logprobs || !g->sampled_logprobs || !g->lse || (q->top_k && (!g->ids || !g->logits))) {
		generation_free(g);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for an answer of %zu tokens", capacity);
	}
	*ret_generation = g;
	return 0;
}

struct generation *generation_free(struct generation *g)
{
	if (!g)
		return NULL;
	free(g->tokens);
	free(g->logprobs);
	free(g->sampled_logprobs);
	free(g->lse);
	free(g->ids);
	free(g->logits);
	free(g);
	return NULL;
}

int generation_prepare(struct request *r, struct error *err)
{
	int result = 0;
	for (uint32_t i = 0; i < r->n_items && result == 0; i++)
		result = generation_new(r->generate, &r->items[i].generation, err);
	return result;
}

const struct sequence *generation_prompt(const struct request_item *item)
{
	return &item->request->items[item->index - item->index % item->request->generate->n].sequence;
}

uint32_t generation_sample(const struct request_item *item)
{
	return item->request->generate->first_sample + item->index % item->request->generate->n;
}

static int check_ids(const uint32_t *ids, uint32_t n, uint32_t vocab_size, const char *name, struct error *err)
{
	for (uint32_t i = 0; i < n; i++) {
		char field[64];
		if (ids[i] < vocab_size)
			continue;
		snprintf(field, sizeof field, "%s[%" PRIu32 "]", name, i);
		return error_set(err, ERROR_INVALID, field, "id %" PRIu32 " is not in the vocabulary of %" PRIu32, ids[i], vocab_size);
	}
	return 0;
}

static int check_stops(const struct generation_query *q, uint32_t vocab_size, struct error *err)
{
	if (q->n_stops > GENERATION_MAX_STOPS)
		return error_set(err, ERROR_TOO_LARGE, "stop", "%" PRIu32 " strings, the limit is %d", q->n_stops, GENERATION_MAX_STOPS);
	if (q->n_stop_ids > GENERATION_MAX_STOP_IDS)
		return error_set(err, ERROR_TOO_LARGE, "stop_ids", "%" PRIu32 " ids, the limit is %d", q->n_stop_ids,
			GENERATION_MAX_STOP_IDS);
	for (uint32_t i = 0; i < q->n_stops; i++) {
		char field[32];
		size_t n = strlen(q->stops[i]);
		snprintf(field, sizeof field, "stop[%" PRIu32 "]", i);
		if (!n)
			return error_set(err, ERROR_INVALID, field, "is empty");
		if (n > GENERATION_MAX_STOP_BYTES)
			return error_set(err, ERROR_TOO_LARGE, field, "%zu bytes, the limit is %d", n, GENERATION_MAX_STOP_BYTES);
	}
	return check_ids(q->stop_ids, q->n_stop_ids, vocab_size, "stop_ids", err);
}

static int check_query(const struct generation_query *q, const struct generation_limits *limits, struct error *err)
{
	if (!q->n || q->n > limits->max_samples)
		return error_set(err, q->n ? ERROR_TOO_LARGE : ERROR_INVALID, "n", "%" PRIu32 " samples, expected 1 to %" PRIu32, q->n,
				 limits->max_samples);
	if (q->first_sample > UINT32_MAX - q->n)
		return error_set(err, ERROR_INVALID, "first_sample", "%" PRIu32 " leaves no numbers for %" PRIu32 " samples",
				 q->first_sample, q->n);
	if (!q->max_tokens)
		return error_set(err, ERROR_INVALID, "max_tokens", "is 0");
	if (q->top_k > limits->max_top_k)
		return error_set(err, ERROR_TOO_LARGE, "rows", "%" PRIu32 " ids of each row, the limit is %" PRIu32, q->top_k,
				 limits->max_top_k);
	int r = sampler_options_check(&q->sampling, err);
	if (!r)
		r = check_ids(q->forced, q->n_forced, limits->vocab_size, "response_prefix", err);
	return r ? r : check_stops(q, limits->vocab_size, err);
}

static int check_prompt(const struct request *r, uint32_t i, const struct generation_limits *limits, struct error *err)
{
	const struct generation_query *q = r->generate;
	const struct sequence *s = &r->items[i * q->n].sequence;
	char name[32], field[64];
	snprintf(name, sizeof name, "prompts[%" PRIu32 "]", i);
	if (!s->n_tokens)
		return error_set(err, ERROR_INVALID, name, "has no tokens");
	uint64_t n = (uint64_t)s->n_tokens + q->n_forced + q->max_tokens;
	if (n > limits->max_tokens)
		return error_set(err, ERROR_TOO_LARGE, s->n_tokens < limits->max_tokens ? "max_tokens" : name,
				 "%" PRIu32 " tokens of prompt, %" PRIu32 " forced and %" PRIu32 " to come: the limit is %" PRIu32
				 " together", s->n_tokens, q->n_forced, q->max_tokens, limits->max_tokens);
	snprintf(field, sizeof field, "%s.tokens", name);
	return check_ids(s->tokens, s->n_tokens, limits->vocab_size, field, err);
}

int generation_check(const struct request *r, const struct generation_limits *limits, struct error *err)
{
	int result = check_query(r->generate, limits, err);
	if (!result && !r->n_items)
		result = error_set(err, ERROR_INVALID, "prompts", "there are none");
	if (!result && r->n_items % r->generate->n)
		result = error_set(err, ERROR_INTERNAL, NULL, "%" PRIu32 " items for %" PRIu32 " samples each", r->n_items, r->generate->n);
	for (uint32_t i = 0; i < r->n_items / (r->generate->n ? r->generate->n : 1) && result == 0; i++)
		result = check_prompt(r, i, limits, err);
	return result;
}
