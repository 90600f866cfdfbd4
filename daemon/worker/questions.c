// SPDX-License-Identifier: Apache-2.0
// Questions are asked some micro-batches ahead, so that the teacher works while the student trains. A question that names the student's own
// likeliest ids, or is about text that the student has yet to write, cannot be asked before the student is what it will be when it learns
// from the answer: those are asked within a step alone, where its parameters stand still. So ids and text are exactly the step's, and a run
// that goes on after a stop asks what it would have asked.
#include "daemon/worker/questions.h"

#include <stdlib.h>

#include "common/error.h"
#include "daemon/worker/dataset.h"
#include "daemon/worker/domains.h"
#include "daemon/worker/mask.h"
#include "daemon/worker/panel.h"
#include "daemon/worker/passage.h"
#include "daemon/worker/policy.h"
#include "daemon/worker/share.h"
#include "daemon/worker/trainer.h"

#define QUESTIONS_HELD_OUT_TOP_K 64    // teacher ids of evaluation where training asks for none

void questions_at(const struct trainer *t, uint32_t teacher, uint64_t step, struct query *ret)
{
	query_init(ret);
	ret->last = t->settings->mlm ? -1 : -2;        // the last token has no label, but where it is masked
	ret->values = (enum query_values)t->settings->values;
	ret->feature_values = (enum query_feature_values)t->settings->feature_values;
	objective_query(t->objective, teacher, step, (uint64_t)t->settings->seed, t->vocab_size, ret);
}

// Evaluation is at temperature 1 over the teacher's top-k; what training asks too is asked here as well, so that answers that were kept
// serve a run whatever part of them it holds out.
void questions_prepare(struct trainer *t)
{
	uint32_t most = answers_info(t->answers)->max_top_k < t->vocab_size ? answers_info(t->answers)->max_top_k : t->vocab_size;
	uint32_t least = QUESTIONS_HELD_OUT_TOP_K < most ? QUESTIONS_HELD_OUT_TOP_K : most;
	questions_at(t, 0, 0, &t->query);
	t->held_out_query = t->query;
	if (t->held_out_query.top_k == 0)
		t->held_out_query.top_k = least;
	t->held_out_query.own = !t->settings->mlm;     // (a masked token's own is the mask) for the teacher's own perplexity
}

// The student's k likeliest ids at each position from row `first` on, as the lists of each sequence; *ret_ids is what they lie in.
static int own_ids(struct trainer *t, const struct sequence *sequences, uint32_t n, uint32_t first, uint32_t k, struct id_lists *lists,
		   uint32_t **ret_ids, struct error *err)
{
	size_t n_rows = 0, longest = 0;
	for (uint32_t i = 0; i < n; i++) {
		n_rows += sequences[i].n_tokens - 1;
		longest = sequences[i].n_tokens > longest ? sequences[i].n_tokens : longest;
	}
	uint32_t *ids = *ret_ids = reallocarray(NULL, n_rows * k + longest, sizeof *ids), *offsets = ids ? ids + n_rows * k : NULL;
	if (!ids)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	for (uint32_t row = 0; row < longest; row++)
		offsets[row] = row * k;                        // the same for all: a shorter sequence reads fewer
	int r = student_likeliest(t->student, sequences, n, k, ids, err);
	for (uint32_t i = 0; i < n; i++) {
		lists[i] = (struct id_lists){sequences[i].n_tokens - 1 - first, offsets, ids + (size_t)first * k};
		ids += (size_t)(sequences[i].n_tokens - 1) * k;
	}
	return r;
}

static uint32_t passages_first(const struct passages *p)
{
	uint32_t first = UINT32_MAX;
	for (uint32_t i = 0; i < p->n; i++)
		first = p->list[i].first < first ? p->list[i].first : first;
	return first - 1;
}

static void query_add_drawn(const struct passages *p, struct query *q)
{
	bool one = false, drawn = false;
	for (uint32_t i = 0; i < p->n; i++)
		drawn |= p->list[i].logprobs != NULL;
	q->own |= drawn;
	for (uint32_t i = 0; i < q->n_temperatures; i++)
		one |= q->temperatures[i] == 1;
	if (drawn && !one && q->n_temperatures < QUERY_MAX_TEMPERATURES)
		q->temperatures[q->n_temperatures++] = 1;
}

// Rows of prompts are not asked for, as far as one question can say so. Of what the student wrote, the run's own teacher's word for each
// token is.
static int panel_ask(struct trainer *t, const struct passages *p, const struct sequence *sequences, const struct id_lists *own_ids,
		     uint32_t n, struct error *err)
{
	uint64_t step = t->asked / t->state.batch;
	int r = 0;
	for (uint32_t i = 0; r == 0 && i < objective_n_teachers(t->objective); i++) {
		struct query query;
		bool own = own_ids && objective_own_k(t->objective, i);
		if (!objective_asks(t->objective, i, step))
			continue;
		questions_at(t, i, step, &query);
		query.first = (int32_t)passages_first(p);
		if (i == 0)
			query_add_drawn(p, &query);
		r = answers_submit(panel_answers(t, i), &query, sequences, own ? own_ids : NULL, n, err);
		query_done(&query);
	}
	return r;
}

static void outstanding_append(struct trainer *t, struct passages *p)
{
	struct passages **end = &t->outstanding;
	while (*end)
		end = &(*end)->next;
	*end = p;
}

// n_places of the stream; sequences and lists are room for as many as there may be in them.
static int micro_batch_ask(struct trainer *t, struct sequence *sequences, struct id_lists *lists, uint32_t n_places, struct error *err)
{
	uint32_t k = objective_any_own_k(t->objective), *ids = NULL;
	struct passages *passages = NULL;
	int r = policy_passages(t->policy, t->rollout, t->dataset, t->asked, n_places, &passages, err);
	if (r)
		return r;
	uint32_t n = passages->n;
	for (uint32_t i = 0; t->mask && r == 0 && i < n; i++)
		r = mask_passage(t->mask, t->asked, i, &passages->list[i]);
	if (r) {
		passages_free(passages);
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	}
	for (uint32_t i = 0; i < n; i++)
		sequences[i] = passages->list[i].sequence;
	if (k)
		r = own_ids(t, sequences, n, passages_first(passages), k < t->vocab_size ? k : t->vocab_size, lists, &ids, err);
	r = r ? r : panel_ask(t, passages, sequences, k ? lists : NULL, n, err);
	free(ids);
	if (r)
		passages_free(passages);
	else
		outstanding_append(t, passages);
	return r;
}

// Whether the question at this place of the stream can be asked now: not before the student is what it depends on.
static bool may_ask(const struct trainer *t, uint64_t position)
{
	uint64_t step = position / t->state.batch;
	if (domains_wait(t, step))
		return false;
	return step == t->state.step || !(objective_any_own_k(t->objective) || policy_waits(t->policy, t->state.step, step));
}

int questions_ask(struct trainer *t, uint32_t ahead, struct error *err)
{
	uint32_t n = (uint32_t)t->settings->micro_batch;
	uint64_t end = t->steps * t->state.batch;
	size_t room = (size_t)n * dataset_per_place(t->dataset);
	struct sequence *sequences = calloc(room, sizeof *sequences);
	struct id_lists *lists = calloc(room, sizeof *lists);
	int r = sequences && lists ? 0 : error_set(err, ERROR_MEMORY, NULL, "out of memory");
	while (r == 0 && t->n_outstanding < ahead && t->asked < end && may_ask(t, t->asked)) {
		bool mine = share_is_mine(t, t->asked % t->state.batch / n);
		r = mine ? micro_batch_ask(t, sequences, lists, n, err) : 0;
		if (r == 0) {
			t->asked += n;
			t->n_outstanding += mine;
		}
	}
	free(lists);
	free(sequences);
	return r;
}
