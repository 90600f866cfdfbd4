// SPDX-License-Identifier: Apache-2.0
// Answers: a record, and its rows once somebody asks for them.
#include <inttypes.h>
#include <stdlib.h>

#include "clients/client.h"

int answer_new(struct record *record, bool cached, struct kd_answer **ret, struct error *err)
{
	struct kd_answer *answer = calloc(1, sizeof *answer);
	if (!answer) {
		record_unref(record);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for an answer");
	}
	answer->record = record;
	answer->cached = cached;
	*ret = answer;
	return 0;
}

static void drop_decoded(struct kd_answer *answer)
{
	answer->decoded = record_rows_free(answer->decoded);
	free(answer->gather_starts);
	free(answer->spans);
	answer->gather_starts = NULL;
	answer->spans = NULL;
}

int kd_answer_from_record(const void *bytes, size_t n, struct kd_answer **ret_answer, struct kd_error *err)
{
	struct error why = {0};
	struct record *record = NULL;
	int r = record_from_bytes(bytes, n, &record, &why);
	if (!r)
		r = answer_new(record, false, ret_answer, &why);
	return r ? report(err, &why, r) : 0;
}

// What the record does not hold as the caller wants to see it.
static int make_extras(struct kd_answer *answer, struct error *err)
{
	const struct record_rows *d = answer->decoded;
	const struct query *q = &d->query;
	if (q->gather.n_lists && !(answer->gather_starts = calloc((size_t)d->n_rows + 1, sizeof *answer->gather_starts)))
		return error_set(err, ERROR_MEMORY, NULL, "no memory for %" PRIu32 " rows", d->n_rows);
	if (q->n_spans && !(answer->spans = calloc(q->n_spans, sizeof *answer->spans)))
		return error_set(err, ERROR_MEMORY, NULL, "no memory for %" PRIu32 " spans", q->n_spans);
	for (uint32_t row = 0; answer->gather_starts && row <= d->n_rows; row++)
		answer->gather_starts[row] = record_gather_at(d, row);
	for (uint32_t i = 0; i < q->n_spans; i++)
		answer->spans[i] = (struct kd_span){q->spans[i].begin, q->spans[i].end};
	return 0;
}

static void make_view(struct kd_answer *answer)
{
	const struct record_rows *d = answer->decoded;
	const struct query *q = &d->query;
	answer->view = (struct kd_rows){
		.n_rows = d->n_rows, .first = (uint32_t)q->first, .n_tokens = d->sequence.n_tokens, .top_k = q->top_k,
		.n_temperatures = q->n_temperatures, .vocab_size = d->vocab_size, .tokens = d->sequence.tokens,
		.temperatures = q->temperatures, .status = d->status, .max_logit = d->max_logit, .lse = d->lse, .n_top = d->n_top,
		.ids = d->ids, .logits = d->logits, .own_logit = d->own_logit, .entropy = d->entropy, .max_prob = d->max_prob,
		.sum_squares = d->sum_squares, .argmax = d->argmax, .tail = d->tail,
		.n_dense = !d->dense ? 0 : q->n_keep ? q->n_keep : d->vocab_size, .dense = d->dense, .n_keep = q->n_keep, .keep = q->keep,
		.gather = {q->gather.n_lists, q->gather.offsets, q->gather.ids}, .gather_starts = answer->gather_starts,
		.gathered = d->gathered, .draw_starts = d->draw_starts, .draw_ids = d->draw_ids, .draw_counts = d->draw_counts,
		.draw_log_ratios = d->draw_log_ratios, .n_spans = q->n_spans, .spans = answer->spans, .span_sums = d->span_sums,
		.n_features = q->n_features, .n_feature_rows = q->pooling == QUERY_POOLING_NONE ? d->n_rows : 1,
		.feature_widths = d->feature_widths, .features = (const float *const *)d->features,
	};
}

int kd_answer_rows(struct kd_answer *answer, const struct kd_rows **ret_rows, struct kd_error *err)
{
	struct error why = {0};
	if (!answer->decoded) {
		int r = record_decode(answer->record, &answer->decoded, &why);
		if (!r)
			r = make_extras(answer, &why);
		if (r) {
			drop_decoded(answer);
			return report(err, &why, r);
		}
		make_view(answer);
	}
	*ret_rows = &answer->view;
	return 0;
}

const void *kd_answer_record(const struct kd_answer *answer, size_t *ret_n)
{
	return record_bytes(answer->record, ret_n);
}

void kd_answer_key(const struct kd_answer *answer, char ret_key[65])
{
	content_id_to_hex(record_key(answer->record), ret_key);
}

bool kd_answer_cached(const struct kd_answer *answer)
{
	return answer->cached;
}

void kd_answer_free(struct kd_answer *answer)
{
	if (!answer)
		return;
	drop_decoded(answer);
	record_unref(answer->record);
	free(answer);
}
