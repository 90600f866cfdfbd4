// SPDX-License-Identifier: Apache-2.0
// Answers: a record, and its rows once somebody asks for them.
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

int kd_answer_from_record(const void *bytes, size_t n, struct kd_answer **ret_answer, struct kd_error *err)
{
	struct error why = {0};
	struct record *record = NULL;
	int r = record_from_bytes(bytes, n, &record, &why);
	if (!r)
		r = answer_new(record, false, ret_answer, &why);
	return r ? report(err, &why, r) : 0;
}

int kd_answer_rows(struct kd_answer *answer, const struct kd_rows **ret_rows, struct kd_error *err)
{
	struct error why = {0};
	if (!answer->decoded) {
		int r = record_decode(answer->record, &answer->decoded, &why);
		if (r)
			return report(err, &why, r);
		const struct record_rows *d = answer->decoded;
		answer->view = (struct kd_rows){
			.n_rows = d->n_rows, .first = (uint32_t)d->query.first, .n_tokens = d->sequence.n_tokens, .top_k = d->query.top_k,
			.n_temperatures = d->query.n_temperatures, .vocab_size = d->vocab_size, .tokens = d->sequence.tokens,
			.temperatures = d->query.temperatures, .status = d->status, .max_logit = d->max_logit, .lse = d->lse, .ids = d->ids,
			.logits = d->logits, .own_logit = d->own_logit, .entropy = d->entropy,
		};
	}
	*ret_rows = &answer->view;
	return 0;
}

const void *kd_answer_record(const struct kd_answer *answer, size_t *ret_n)
{
	return record_bytes(answer->record, ret_n);
}

bool kd_answer_cached(const struct kd_answer *answer)
{
	return answer->cached;
}

void kd_answer_free(struct kd_answer *answer)
{
	if (!answer)
		return;
	record_rows_free(answer->decoded);
	record_unref(answer->record);
	free(answer);
}
