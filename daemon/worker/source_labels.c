// SPDX-License-Identifier: Apache-2.0
// No teacher: the text says which token follows. As an answer that is a row with one id of probability 1, so the divergence to this teacher
// is the cross-entropy, and everything that reads answers works as ever.
#include <stdlib.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/model/tokenizer.h"
#include "daemon/worker/source.h"

// A logit of 0 under a log-sum-exp of 0 is probability 1: of the numbers only the ids are not zero.
static int rows_make(const struct source *s, const struct question *q, struct error *err)
{
	int r = record_rows_new(&s->info.teacher, s->info.vocab_size, q->sequence, q->query, q->rows, err);
	if (r)
		return r;
	struct record_rows *rows = *q->rows;
	uint32_t first = (uint32_t)q->query->first;
	for (uint32_t i = 0; rows->ids && i < rows->n_rows; i++) {
		if (first + i + 1 < q->sequence->n_tokens)
			rows->ids[i] = q->sequence->tokens[first + i + 1];
		else
			rows->status[i] = ROW_NOT_FINITE;      // nothing follows
	}
	return 0;
}

static int labels_answer(struct source *s, const struct query *asked, const struct question *questions, size_t n, struct error *err)
{
	int r = 0;
	(void)asked;
	for (size_t i = 0; r == 0 && i < n; i++)
		r = rows_make(s, &questions[i], err);
	return r;
}

static void labels_close(struct source *s)
{
	free(s);
}

int source_labels_open(const struct answers_options *options, const atomic_bool *closing, struct source **ret, struct error *err)
{
	static const struct source_ops ops = {.answer = labels_answer, .close = labels_close};
	struct source *s = calloc(1, sizeof *s);
	if (!s)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	struct content_id id = tokenizer_id(options->labels);
	*s = (struct source){.ops = &ops, .stop = options->stop, .closing = closing,
			     .info = {.teacher = id, .vocab_size = tokenizer_vocab_size(options->labels), .max_tokens = options->max_tokens,
				      .max_top_k = 1, .described = true, .provenance = {.tokenizer = id}}};
	*ret = s;
	return 0;
}
