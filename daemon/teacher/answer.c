// SPDX-License-Identifier: Apache-2.0
#include "daemon/teacher/answer.h"

#include <math.h>
#include <stdlib.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/model/head.h"
#include "daemon/teacher/request.h"

struct answer {
	uint32_t max_top_k;
	uint32_t rows[ANSWER_CHUNK_ROWS];
	struct sweep_row sweep[ANSWER_CHUNK_ROWS];
	double lse[ANSWER_CHUNK_ROWS * QUERY_MAX_TEMPERATURES];
	double own[ANSWER_CHUNK_ROWS];
	uint32_t *ids;                     // (ANSWER_CHUNK_ROWS, max_top_k)
	double *logits;
};

int answer_open(uint32_t max_top_k, struct answer **ret_answer, struct error *err)
{
	struct answer *a = calloc(1, sizeof *a);
	if (a) {
		a->max_top_k = max_top_k;
		a->ids = calloc((size_t)ANSWER_CHUNK_ROWS * (max_top_k + 1), sizeof *a->ids);
		a->logits = calloc((size_t)ANSWER_CHUNK_ROWS * (max_top_k + 1), sizeof *a->logits);
	}
	if (!a || !a->ids || !a->logits) {
		answer_close(a);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for answers of top_k %u", max_top_k);
	}
	*ret_answer = a;
	return 0;
}

struct answer *answer_close(struct answer *a)
{
	if (a) {
		free(a->ids);
		free(a->logits);
		free(a);
	}
	return NULL;
}

// Row `row` of the sequence: the token that really follows is token row + 1.
static void ask_row(struct answer *a, uint32_t i, uint32_t row, const struct answer_input *in, const struct request_item *item)
{
	const struct query *q = &item->query;
	bool own = q->own && row + 1 < item->sequence.n_tokens;
	a->rows[i] = in->rows[row];
	a->own[i] = NAN;
	a->sweep[i] = (struct sweep_row){
		.top_k = q->top_k, .n_temperatures = q->n_temperatures, .temperatures = q->temperatures,
		.n_gather = own, .gather = own ? item->sequence.tokens + row + 1 : NULL, .want_entropy = q->entropy,
		.lse = a->lse + (size_t)i * QUERY_MAX_TEMPERATURES, .ids = a->ids + (size_t)i * a->max_top_k,
		.logits = a->logits + (size_t)i * a->max_top_k, .gathered = a->own + i,
	};
}

// Result i of the sweep becomes row k of the record.
static void keep_row(const struct answer *a, uint32_t i, uint32_t k, struct record_rows *rows)
{
	const struct query *q = &rows->query;
	const struct sweep_row *s = &a->sweep[i];
	if (s->not_finite) {
		rows->status[k] = ROW_NOT_FINITE;
		return;
	}
	rows->status[k] = ROW_OK;
	rows->max_logit[k] = (float)s->max_logit;
	for (uint32_t j = 0; j < q->n_temperatures; j++)
		rows->lse[(size_t)k * q->n_temperatures + j] = (float)s->lse[j];
	for (uint32_t j = 0; j < q->top_k; j++) {
		rows->ids[(size_t)k * q->top_k + j] = s->ids[j];
		rows->logits[(size_t)k * q->top_k + j] = (float)s->logits[j];
	}
	if (q->own)
		rows->own_logit[k] = (float)a->own[i];
	if (q->entropy)
		rows->entropy[k] = (float)s->entropy;
}

int answer_make(struct answer *a, struct head *head, const struct answer_input *in, struct request_item *item, uint32_t *ret_not_finite)
{
	struct record_rows *rows = NULL;
	uint32_t n_not_finite = 0;
	int r = record_rows_new(in->teacher, in->vocab_size, &item->sequence, &item->query, &rows, &item->error);
	if (r)
		return r;
	for (uint32_t done = 0; done < rows->n_rows; done += ANSWER_CHUNK_ROWS) {
		uint32_t n = rows->n_rows - done < ANSWER_CHUNK_ROWS ? rows->n_rows - done : ANSWER_CHUNK_ROWS;
		for (uint32_t i = 0; i < n; i++)
			ask_row(a, i, (uint32_t)item->query.first + done + i, in, item);
		head_score(head, in->hidden, a->rows, n, a->sweep);
		for (uint32_t i = 0; i < n; i++) {
			keep_row(a, i, done + i, rows);
			n_not_finite += a->sweep[i].not_finite;
		}
	}
	item->not_finite = n_not_finite > 0;
	r = record_encode(rows, &item->record, &item->error);
	record_rows_free(rows);
	*ret_not_finite = n_not_finite;
	return r;
}
