// SPDX-License-Identifier: Apache-2.0
// One sequence of the input, and what is asked of it.
#include <stdlib.h>

#include "clients/convert.h"
#include "clients/kdctl/score.h"

struct item *item_free(struct item *i)
{
	if (i) {
		free(i->tokens);
		free(i->spans);
		free(i->gather_offsets);
		free(i->gather_ids);
		kd_answer_free(i->answer);
		free(i);
	}
	return NULL;
}

void item_ask(const struct item *i, struct kd_sequence *ret, struct kd_lists *ret_lists)
{
	*ret_lists = (struct kd_lists){i->n_lists, i->gather_offsets, i->gather_ids};
	*ret = (struct kd_sequence){.tokens = i->tokens, .n_tokens = i->n_tokens, .n_spans = i->n_spans, .spans = i->spans,
				    .gather = i->n_lists ? ret_lists : NULL, .rows = i->has_rows ? &i->rows : NULL};
}

void item_refuse(struct item *i, const struct kd_error *why)
{
	i->refused = true;
	i->refusal = *why;
}

int item_key(const struct kd_server *v, const struct content_id *teacher, const struct query *query, const struct item *i,
	     struct content_id *ret_key, struct query *ret_query, struct error *err)
{
	struct query_limits limits = {.max_tokens = v->max_tokens, .max_top_k = v->max_top_k, .max_gather = v->max_gather,
		.max_draws = v->max_draws, .max_spans = v->max_spans, .vocab_size = v->vocab_size, .n_layers = v->n_layers,
		.width = v->width, .q_width = v->q_width, .kv_width = v->kv_width};
	struct sequence sequence = {i->tokens, i->n_tokens};
	struct kd_sequence asked;
	struct kd_lists lists;
	struct query_part part = {0};
	struct query resolved = {0};
	item_ask(i, &asked, &lists);
	int r = convert_part(&asked, &part, err);
	if (!r)
		r = query_resolve(query, &part, &sequence, &limits, NULL, &resolved, err);
	if (!r)
		*ret_key = query_key(teacher, &sequence, &resolved);
	query_part_done(&part);
	if (r || !ret_query)
		query_done(&resolved);
	else
		*ret_query = resolved;
	return r;
}
