// SPDX-License-Identifier: Apache-2.0
// One completion: gathered from records, then written.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/model/tokenizer.h"
#include "daemon/server/buffer.h"
#include "daemon/server/openai_internal.h"
#include "daemon/teacher/teacher.h"

void openai_choice_done(struct openai_choice *c)
{
	record_rows_free(c->scored);
	openai_rows_done(&c->rows);
	free(c->ids);
	free(c->text);
}

static struct openai_row row_of(const struct record_rows *r, uint32_t i, uint32_t token, float logit)
{
	size_t k = r->query.top_k;
	double lse = (double)r->lse[i];    // the only temperature is 1
	return (struct openai_row){.token = token, .known = true, .logprob = (float)((double)logit - lse), .lse = lse,
		.ids = r->ids + i * k, .logits = r->logits + i * k, .n_ids = (uint32_t)k};
}

// Token i of the prompt is judged by row i - 1.
static int collect_prompt(struct openai_choice *c, struct error *err)
{
	const struct sequence *s = &c->prompt->tokens;
	struct openai_row first = {.token = s->tokens[0]};
	int e = openai_rows_append(&c->rows, &first, err);
	for (uint32_t i = 1; i < s->n_tokens && !e; i++) {
		struct openai_row row = row_of(c->scored, i - 1, s->tokens[i], c->scored->own_logit[i - 1]);
		e = openai_rows_append(&c->rows, &row, err);
	}
	c->n_prompt_rows = c->rows.n;
	return e;
}

// The token after the prompt, from the last row of its score.
static int collect_one_token(const struct openai *o, struct openai_choice *c, struct error *err)
{
	const struct record_rows *r = c->scored;
	uint32_t last = r->n_rows - 1;
	c->ids = malloc(sizeof *c->ids);
	if (!c->ids)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the reply");
	c->n_ids = 1;
	c->ids[0] = r->ids[(size_t)last * r->query.top_k];
	struct openai_row row = row_of(r, last, c->ids[0], r->logits[(size_t)last * r->query.top_k]);
	return o->ask.want_logprobs ? openai_rows_append(&c->rows, &row, err) : 0;
}

static bool ends(const struct exchange *x, const struct openai_ask *a, uint32_t id)
{
	if (!a->ignore_eos && (int64_t)id == openai_teacher(x)->architecture.eos_id)
		return true;
	for (uint32_t i = 0; i < a->stop_ids.n_tokens; i++)
		if (a->stop_ids.tokens[i] == id)
			return true;
	return false;
}

// Cuts the text at the first stop text.
static void apply_stops(const struct openai_ask *a, struct openai_choice *c)
{
	char *first = NULL;
	for (uint32_t i = 0; i < a->n_stop; i++) {
		char *at = memmem(c->text, c->n_text, a->stop[i], strlen(a->stop[i]));
		if (at && (!first || at < first)) {
			first = at;
			c->stop = a->stop[i];
		}
	}
	if (!first)
		return;
	c->finish = "stop";
	c->n_text = (size_t)(first - c->text) + (a->keep_stop ? strlen(c->stop) : 0);
}

static int finish_text(const struct exchange *x, struct openai_choice *c, struct error *err)
{
	const struct openai *o = x->own;
	uint32_t n = c->n_ids;
	c->finish = "length";
	if (n && ends(x, &o->ask, c->ids[n - 1])) {
		c->finish = "stop";
		n -= !o->ask.keep_stop;
	}
	int e = tokenizer_decode(o->writer.tokenizer, c->ids, n, !o->ask.keep_special, &c->text, &c->n_text, err);
	if (!e)
		apply_stops(&o->ask, c);
	return e;
}

int openai_choice_collect(struct exchange *x, uint32_t prompt, struct openai_choice *c, struct error *err)
{
	struct openai *o = x->own;
	c->prompt = &o->ask.prompts[prompt];
	int e = record_decode(x->requests[0]->items[prompt].record, &c->scored, err);
	if (!e && openai_wants_prompt(&o->ask))
		e = collect_prompt(c, err);
	if (!e && o->one_token)
		e = collect_one_token(o, c, err);
	if (!e)
		e = finish_text(x, c, err);
	if (!e && !o->writer.seen)
		e = openai_writer_reserve(&o->writer, c->scored->query.top_k, err);
	return e;
}

static int write_text(struct buffer *b, const struct openai *o, const struct openai_choice *c, struct error *err)
{
	char *echo = NULL;
	size_t n = 0;
	struct buffer whole = {0};
	const struct openai_prompt *p = c->prompt;
	int e = 0;
	if (o->ask.echo && !p->text)
		e = tokenizer_decode(o->writer.tokenizer, p->tokens.tokens, p->tokens.n_tokens, false, &echo, &n, err);
	if (e)
		return e;
	if (o->ask.echo)
		buffer_add(&whole, echo ? echo : p->text, echo ? n : p->n_text);
	buffer_add(&whole, c->text, c->n_text);      // joined first: a character may begin in one and end in the other
	buffer_string(b, whole.data, whole.n);
	b->failed |= whole.failed;
	buffer_done(&whole);
	free(echo);
	return 0;
}

static void write_logprobs(struct buffer *b, struct openai *o, const struct openai_choice *c)
{
	const struct openai_ask *a = &o->ask;
	uint32_t skip = a->echo ? 0 : c->n_prompt_rows;
	struct openai_rows shown = {.rows = c->rows.rows ? c->rows.rows + skip : NULL, .n = c->rows.n - skip};
	struct openai_rows prompt = {.rows = c->rows.rows, .n = c->n_prompt_rows};
	buffer_text(b, ",\"logprobs\":");
	if (a->want_logprobs)
		openai_logprobs(b, &o->writer, &shown, a->logprobs, 0);
	else
		buffer_text(b, "null");
	if (a->want_prompt_logprobs) {
		buffer_text(b, ",\"prompt_logprobs\":");
		openai_prompt_logprobs(b, &o->writer, &prompt, a->prompt_logprobs);
	}
}

int openai_choice_encode(struct buffer *b, struct openai *o, uint32_t index, const struct openai_choice *c, struct error *err)
{
	buffer_printf(b, "{\"index\":%" PRIu32 ",\"text\":", index);
	int e = write_text(b, o, c, err);
	if (e)
		return e;
	write_logprobs(b, o, c);
	buffer_printf(b, ",\"finish_reason\":\"%s\",\"stop_reason\":", c->finish);
	if (c->stop)
		buffer_string(b, c->stop, strlen(c->stop));
	else
		buffer_text(b, "null");
	if (o->ask.return_ids) {
		buffer_text(b, ",\"prompt_token_ids\":");
		reply_tokens(b, c->prompt->tokens.tokens, c->prompt->tokens.n_tokens);
		buffer_text(b, ",\"token_ids\":");
		reply_tokens(b, c->ids, c->n_ids);
	}
	buffer_text(b, "}");
	return 0;
}
