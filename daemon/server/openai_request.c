// SPDX-License-Identifier: Apache-2.0
// What a completion asks of the service. What is said about the prompt comes from a score of it. So does the first token after it where
// that is all that is asked (as evaluation harnesses and trainers do): the row after the last token is there anyway, its largest id is the
// greedy choice, and a random draw at tau = 1 / temperature is a sample. One pass instead of two.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/server/openai_internal.h"
#include "daemon/server/service.h"
#include "daemon/teacher/generation.h"
#include "daemon/teacher/teacher.h"

bool openai_is_greedy(const struct openai_ask *a)
{
	return a->temperature == 0 || a->top_k == 1;
}

// A draw from p^(1/T) is a sample at temperature T; its own logit is not in the answer.
static bool is_draw(const struct openai_ask *a)
{
	double tau = a->temperature > 0 ? 1 / a->temperature : 0;
	return !openai_is_greedy(a) && a->n == 1 && !a->want_logprobs && a->top_k == 0 && a->top_p == 1 && a->min_p == 0 &&
		tau >= (double)QUERY_MIN_TAU && tau <= (double)QUERY_MAX_TAU;
}

bool openai_wants_prompt(const struct openai_ask *a)
{
	return a->want_prompt_logprobs || (a->echo && a->want_logprobs);
}

static uint32_t larger(uint32_t a, uint32_t b)
{
	return a > b ? a : b;
}

// "All of them" becomes a number; then the limit, under the names of the body.
static int resolve_counts(const struct exchange *x, struct openai_ask *a, struct error *err)
{
	const struct teacher_info *info = openai_teacher(x);
	struct { bool wanted; uint32_t *n; const char *name; } counts[] = {
		{a->want_logprobs, &a->logprobs, "logprobs"}, {a->want_prompt_logprobs, &a->prompt_logprobs, "prompt_logprobs"}};
	for (int i = 0; i < 2; i++) {
		if (!counts[i].wanted)
			continue;
		if (*counts[i].n == UINT32_MAX)
			*counts[i].n = info->architecture.vocab_size;
		if (*counts[i].n > info->max_top_k)
			return error_set(err, ERROR_INVALID, counts[i].name, "%" PRIu32 " is over the limit of %" PRIu32, *counts[i].n,
					 info->max_top_k);
	}
	return 0;
}

static uint32_t score_top_k(const struct openai *o)
{
	const struct openai_ask *a = &o->ask;
	uint32_t k = o->one_token && openai_is_greedy(a);
	if (a->want_logprobs && (a->echo || o->one_token))
		k = larger(k, a->logprobs);
	return a->want_prompt_logprobs ? larger(k, a->prompt_logprobs) : k;
}

static int copy_prompt(const struct openai_ask *a, uint32_t i, struct request_item *item, struct error *err)
{
	const struct sequence *s = &a->prompts[i].tokens;
	return sequence_init(&item->sequence, s->tokens, s->n_tokens) ? error_set(err, ERROR_MEMORY, "prompt", "no memory for it") : 0;
}

static void ask_model(const struct openai_ask *a, struct request *r)
{
	r->asked.n_members = a->model != NULL;
	if (a->model)
		snprintf(r->asked.members[0].name, sizeof r->asked.members[0].name, "%s", a->model);
}

static int make_score(const struct openai *o, struct request **ret_request, struct error *err)
{
	const struct openai_ask *a = &o->ask;
	struct request *r = NULL;
	int e = request_new(a->n_prompts, &r, err);
	if (e)
		return e;
	ask_model(a, r);
	r->query.top_k = score_top_k(o);
	r->query.own = true;
	r->query.first = openai_wants_prompt(a) ? 0 : -1;
	if (o->one_token && !openai_is_greedy(a))
		r->query.draws = (struct query_draws){.n = 1, .tau = (float)(1 / a->temperature), .seed = a->seed};
	for (uint32_t i = 0; i < a->n_prompts && !e; i++)
		e = copy_prompt(a, i, &r->items[i], err);
	if (e)
		request_free(r);
	else
		*ret_request = r;
	return e;
}

static void set_query(const struct openai_ask *a, struct generation_query *q)
{
	generation_query_init(q);
	q->n = a->n;
	q->max_tokens = a->max_tokens;
	q->sampling.temperature = (float)a->temperature;
	q->sampling.top_k = a->top_k;
	q->sampling.top_p = (float)a->top_p;
	q->sampling.min_p = (float)a->min_p;
	q->seed = a->seed;
	q->has_seed = true;
	q->ignore_eos = a->ignore_eos;
	q->stream = a->stream;
	q->top_k = a->want_logprobs ? a->logprobs : 0;
	for (uint32_t i = 0; i < a->stop_ids.n_tokens; i++)
		q->stop_ids[q->n_stop_ids++] = a->stop_ids.tokens[i];
}

static int copy_stops(const struct openai_ask *a, struct generation_query *q, struct error *err)
{
	for (uint32_t i = 0; i < a->n_stop; i++) {
		q->stops[i] = strdup(a->stop[i]);
		if (!q->stops[i])
			return error_set(err, ERROR_MEMORY, "stop", "no memory for it");
		q->n_stops++;
	}
	return 0;
}

static int make_generation(const struct openai *o, struct request **ret_request, struct error *err)
{
	const struct openai_ask *a = &o->ask;
	struct request *r = NULL;
	int e = request_new(a->n_prompts * a->n, &r, err);
	if (e)
		return e;
	r->generate = calloc(1, sizeof *r->generate);
	if (!r->generate) {
		request_free(r);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the request");
	}
	ask_model(a, r);
	set_query(a, r->generate);
	e = copy_stops(a, r->generate, err);
	for (uint32_t i = 0; i < a->n_prompts && !e; i++)
		e = copy_prompt(a, i, &r->items[i * a->n], err);
	if (e)
		request_free(r);
	else
		*ret_request = r;
	return e;
}

// The service speaks of sequences[i].tokens[j] or prompts[i].tokens[j]; in the body that was prompt[i][j], or prompt[j].
void openai_rename(const struct openai_ask *a, struct error *err)
{
	static const struct { const char *from, *to; } names[] = {{"rows", "logprobs"}, {"stop_ids", "stop_token_ids"}};
	uint32_t i = 0, j = 0;
	for (size_t k = 0; k < sizeof names / sizeof *names; k++)
		if (strncmp(err->field, names[k].from, strlen(names[k].from)) == 0)
			snprintf(err->field, sizeof err->field, "%s", names[k].to);
	// NOLINTNEXTLINE(cert-err34-c): the service wrote the numbers, from some of this type
	int n = sscanf(err->field, "%*[a-z][%" SCNu32 "].tokens[%" SCNu32 "]", &i, &j);
	if (n < 1 || (strncmp(err->field, "sequences", 9) != 0 && strncmp(err->field, "prompts", 7) != 0))
		return;
	if (!a->prompt_is_list)
		snprintf(err->field, sizeof err->field, n == 2 ? "prompt[%" PRIu32 "]" : "prompt", j);
	else if (n == 2)
		snprintf(err->field, sizeof err->field, "prompt[%" PRIu32 "][%" PRIu32 "]", i, j);
	else
		snprintf(err->field, sizeof err->field, "prompt[%" PRIu32 "]", i);
}

static int submit(struct exchange *x, int (*make)(const struct openai *o, struct request **ret_request, struct error *err),
		  struct request **ret_request, struct error *err)
{
	struct openai *o = x->own;
	struct request *r = NULL;
	int e = make(o, &r, err);
	if (!e && (e = exchange_submit(x, r, err))) {
		openai_rename(&o->ask, err);
		request_free(r);
	}
	if (!e)
		*ret_request = r;
	return e;
}

int openai_submit(struct exchange *x, struct error *err)
{
	struct openai *o = x->own;
	const struct openai_ask *a = &o->ask;
	if (openai_teacher(x)->architecture.masked)
		return error_set(err, ERROR_UNSUPPORTED, "model", "this teacher names masked tokens and completes nothing: ask /v1/score");
	int e = resolve_counts(x, &o->ask, err);
	if (!e)
		e = openai_writer_reserve(&o->writer, larger(a->logprobs, a->prompt_logprobs), err);
	if (e)
		return e;
	o->one_token = a->max_tokens == 1 && (openai_is_greedy(a) || is_draw(a));
	if (a->max_tokens > 0 && !o->one_token && (e = submit(x, make_generation, &o->generation, err)))
		return e;
	if (o->generation && !openai_wants_prompt(a))
		return 0;
	e = submit(x, make_score, &o->score, err);
	if (!e) {
		o->n_scores_left = a->n_prompts;
	} else if (o->generation) {    // under way: it must come back before anything can be answered
		o->failure = *err;
		exchange_cancel(x);
		e = 0;
	}
	return e;
}
