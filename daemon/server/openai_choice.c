// SPDX-License-Identifier: Apache-2.0
// One completion: what is new of it, taken from records and generations, then written. Without a stream everything is new at once.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/record.h"
#include "common/record_json.h"
#include "daemon/model/tokenizer.h"
#include "common/buffer.h"
#include "daemon/server/openai_internal.h"
#include "daemon/teacher/generation.h"
#include "daemon/teacher/teacher.h"

void openai_piece_done(struct openai_piece *p)
{
	record_rows_free(p->scored);
	openai_rows_done(&p->rows);
	buffer_done(&p->text);
}

static const struct generation *generation_of(const struct openai *o, uint32_t index)
{
	return o->generation ? o->generation->items[index].generation : NULL;
}

bool openai_choice_is_ready(const struct openai *o, uint32_t index)
{
	const struct openai_choice *c = &o->choices[index];
	const struct generation *g = generation_of(o, index);
	const struct request_item *score = o->score ? &o->score->items[index / o->ask.n] : NULL;
	if (c->ended || o->n_scores_left || (score && (score->error.code || score->not_finite)))
		return false;
	return c->complete || (g && o->ask.stream && atomic_load(&g->n_tokens) > c->n_ids);
}

// ---- rows

static struct openai_row row_of(const struct record_rows *r, uint32_t i, uint32_t token, float logit)
{
	size_t k = r->query.top_k;
	double lse = (double)r->lse[i];    // the only temperature is 1
	return (struct openai_row){.token = token, .known = true, .logprob = (float)((double)logit - lse), .lse = lse,
		.ids = r->ids + i * k, .logits = r->logits + i * k, .n_ids = (uint32_t)k};
}

// Token i of the prompt is judged by row i - 1.
static int take_prompt(struct openai_piece *p, struct error *err)
{
	const struct sequence *s = &p->prompt->tokens;
	struct openai_row first = {.token = s->tokens[0]};
	int e = openai_rows_append(&p->rows, &first, err);
	for (uint32_t i = 1; i < s->n_tokens && !e; i++) {
		struct openai_row row = row_of(p->scored, i - 1, s->tokens[i], p->scored->own_logit[i - 1]);
		e = openai_rows_append(&p->rows, &row, err);
	}
	p->n_prompt_rows = p->rows.n;
	return e;
}

static int take_generated_rows(const struct openai *o, const struct generation *g, uint32_t from, uint32_t to, struct openai_piece *p,
			       struct error *err)
{
	size_t k = o->generation->generate->top_k;
	int e = 0;
	for (uint32_t i = from; i < to && !e; i++) {
		struct openai_row row = {.token = g->tokens[i], .known = true, .logprob = g->logprobs[i], .lse = (double)g->lse[i],
			.n_ids = (uint32_t)k};
		if (k) {
			row.ids = g->ids + i * k;
			row.logits = g->logits + i * k;
		}
		e = openai_rows_append(&p->rows, &row, err);
	}
	return e;
}

// ---- new tokens and their text

// Cuts the text (that of the whole answer) at the first stop text.
static void apply_stops(const struct openai_ask *a, struct openai_piece *p)
{
	char *first = NULL;
	for (uint32_t i = 0; i < a->n_stop && p->text.n; i++) {
		char *at = memmem(p->text.data, p->text.n, a->stop[i], strlen(a->stop[i]));
		if (at && (!first || at < first)) {
			first = at;
			p->stop = a->stop[i];
		}
	}
	if (!first)
		return;
	p->finish = "stop";
	p->text.n = (size_t)(first - p->text.data) + (a->keep_stop ? strlen(p->stop) : 0);
}

static int decode(const struct openai *o, const uint32_t *ids, uint32_t n, struct buffer *to, struct error *err)
{
	char *text = NULL;
	size_t n_text = 0;
	int e = tokenizer_decode_part(o->writer.tokenizer, ids, n, !o->ask.keep_special, &text, &n_text, err);
	if (!e)
		buffer_add(to, text, n_text);
	free(text);
	return e;
}

static bool is_stop_id(const struct openai_ask *a, uint32_t id)
{
	for (uint32_t i = 0; i < a->stop_ids.n_tokens; i++)
		if (a->stop_ids.tokens[i] == id)
			return true;
	return false;
}

// The token after the prompt, from the last row of its score.
static int take_one_token(const struct exchange *x, struct openai_piece *p, struct error *err)
{
	const struct openai *o = x->own;
	const struct openai_ask *a = &o->ask;
	const struct record_rows *r = p->scored;
	size_t last = r->n_rows - 1, at = last * r->query.top_k;
	if (!openai_is_greedy(a) && (!r->draw_starts || r->draw_starts[last + 1] == r->draw_starts[last]))
		return error_set(err, ERROR_INTERNAL, NULL, "the answer has no draw");
	p->one = openai_is_greedy(a) ? r->ids[at] : r->draw_ids[r->draw_starts[last]];
	p->ids = &p->one;
	p->n_ids = 1;
	p->finish = "length";
	if (!a->ignore_eos && (int64_t)p->one == openai_teacher(x)->architecture.eos_id) {
		p->finish = "stop";
	} else if (is_stop_id(a, p->one)) {
		p->finish = "stop";
		p->stop_id = p->one;
	}
	int e = decode(o, p->ids, 1, &p->text, err);
	if (!e)
		apply_stops(a, p);
	if (e || !a->want_logprobs)
		return e;
	struct openai_row row = row_of(r, (uint32_t)last, p->one, r->logits[at]);
	return openai_rows_append(&p->rows, &row, err);
}

// Bytes at the end of a text that are only the beginning of a character.
static size_t cut_character(const char *text, size_t n)
{
	for (size_t i = 1; i <= 3 && i <= n; i++) {
		unsigned char c = (unsigned char)text[n - i];
		if ((c & 0xc0) == 0x80)
			continue;
		size_t length = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : c >= 0xc0 ? 2 : 1;
		return length > i ? i : 0;
	}
	return 0;
}

// Moves what is sure of the pending text into the piece; sure = bytes of the answer's text that are.
static void take_text(struct openai_choice *c, size_t sure, bool last, struct openai_piece *p)
{
	size_t n = sure > c->n_text ? sure - c->n_text : 0;
	if (n > c->pending.n)
		n = c->pending.n;
	if (!last)
		n -= cut_character(c->pending.data, n);
	buffer_add(&p->text, c->pending.data, n);
	c->n_text += n;
	c->pending.n -= n;
	if (n)
		memmove(c->pending.data, c->pending.data + n, c->pending.n);
}

static void take_finish(const struct openai *o, const struct generation *g, struct openai_piece *p)
{
	p->finish = g->finish == GENERATION_STOP ? "stop" : "length";
	if (g->stop >= 0)
		p->stop = o->ask.stop[g->stop];
	else if (g->stop_id >= 0 && is_stop_id(&o->ask, (uint32_t)g->stop_id))
		p->stop_id = g->stop_id;
}

static int take_generated(const struct openai *o, uint32_t index, struct openai_piece *p, struct error *err)
{
	struct openai_choice *c = &o->choices[index];
	const struct generation *g = generation_of(o, index);
	// In this order: the text that is sure never reaches beyond the tokens counted after it.
	size_t sure = atomic_load(&g->n_text);
	uint32_t n = atomic_load(&g->n_tokens);
	int e = decode(o, g->tokens + c->n_ids, n - c->n_ids, &c->pending, err);
	if (!e && o->ask.want_logprobs)
		e = take_generated_rows(o, g, c->n_ids, n, p, err);
	if (e)
		return e;
	p->ids = g->tokens + c->n_ids;
	p->n_ids = n - c->n_ids;
	if (c->complete)
		take_finish(o, g, p);
	if (c->complete && p->stop && o->ask.keep_stop)
		sure += strlen(p->stop);
	take_text(c, o->ask.keep_special ? SIZE_MAX : sure, c->complete, p);
	if (o->ask.keep_special)
		apply_stops(&o->ask, p);      // n_text speaks of text without special tokens; there is no stream then
	c->n_ids = n;
	return p->text.failed || c->pending.failed ? error_set(err, ERROR_MEMORY, NULL, "no memory for the reply") : 0;
}

int openai_choice_take(struct exchange *x, uint32_t index, struct openai_piece *p, struct error *err)
{
	struct openai *o = x->own;
	struct openai_choice *c = &o->choices[index];
	uint32_t prompt = index / o->ask.n;
	int e = 0;
	*p = (struct openai_piece){.prompt = &o->ask.prompts[prompt], .first = !c->begun, .stop_id = -1};
	if (p->first && o->score)
		e = record_decode(o->score->items[prompt].record, &p->scored, err);
	if (!e && p->first && openai_wants_prompt(&o->ask))
		e = take_prompt(p, err);
	if (!e && o->generation)
		e = take_generated(o, index, p, err);
	else if (!e && o->one_token)
		e = take_one_token(x, p, err);
	else if (!e)
		p->finish = "length";
	c->begun = true;
	c->ended = c->complete;
	o->n_ended += c->ended;
	o->n_new_tokens += p->n_ids;
	return e;
}

// ---- JSON

static int encode_text(struct buffer *b, const struct openai *o, const struct openai_piece *p, struct error *err)
{
	struct buffer whole = {0};
	const struct openai_prompt *prompt = p->prompt;
	bool echo = p->first && o->ask.echo;
	char *text = NULL;
	size_t n = 0;
	int e = 0;
	if (echo && !prompt->text)
		e = tokenizer_decode(o->writer.tokenizer, prompt->tokens.tokens, prompt->tokens.n_tokens, false, &text, &n, err);
	if (e)
		return e;
	if (echo)
		buffer_add(&whole, text ? text : prompt->text, text ? n : prompt->n_text);
	buffer_add(&whole, p->text.data, p->text.n);      // joined first: a character may begin in one and end in the other
	buffer_string(b, whole.data, whole.n);
	b->failed |= whole.failed;
	buffer_done(&whole);
	free(text);
	return 0;
}

static void encode_logprobs(struct buffer *b, struct openai *o, struct openai_choice *c, const struct openai_piece *p)
{
	const struct openai_ask *a = &o->ask;
	uint32_t skip = a->echo ? 0 : p->n_prompt_rows;
	struct openai_rows shown = {.rows = p->rows.rows ? p->rows.rows + skip : NULL, .n = p->rows.n - skip};
	struct openai_rows prompt = {.rows = p->rows.rows, .n = p->n_prompt_rows};
	buffer_text(b, ",\"logprobs\":");
	if (a->want_logprobs)
		c->n_characters = openai_logprobs(b, &o->writer, &shown, a->logprobs, c->n_characters);
	else
		buffer_text(b, "null");
	if (a->want_prompt_logprobs) {
		buffer_text(b, ",\"prompt_logprobs\":");
		openai_prompt_logprobs(b, &o->writer, &prompt, a->prompt_logprobs);
	}
}

static void encode_finish(struct buffer *b, const struct openai_piece *p)
{
	buffer_printf(b, p->finish ? ",\"finish_reason\":\"%s\",\"stop_reason\":" : ",\"finish_reason\":%s,\"stop_reason\":",
		      p->finish ? p->finish : "null");
	if (p->stop)
		buffer_string(b, p->stop, strlen(p->stop));
	else if (p->stop_id >= 0)
		buffer_printf(b, "%" PRId64, p->stop_id);
	else
		buffer_text(b, "null");
}

int openai_piece_encode(struct buffer *b, struct openai *o, uint32_t index, const struct openai_piece *p, struct error *err)
{
	buffer_printf(b, "{\"index\":%" PRIu32 ",\"text\":", index);
	int e = encode_text(b, o, p, err);
	if (e)
		return e;
	encode_logprobs(b, o, &o->choices[index], p);
	encode_finish(b, p);
	if (o->ask.return_ids && p->first) {
		buffer_text(b, ",\"prompt_token_ids\":");
		record_json_ids(b, p->prompt->tokens.tokens, p->prompt->tokens.n_tokens);
	}
	if (o->ask.return_ids) {
		buffer_text(b, ",\"token_ids\":");
		record_json_ids(b, p->ids, p->n_ids);
	}
	buffer_text(b, "}");
	return 0;
}
