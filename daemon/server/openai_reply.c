// SPDX-License-Identifier: Apache-2.0
// The JSON of log-probabilities, in OpenAI's shape and in vLLM's. Its one complication: OpenAI keys a row's alternatives by their text, and
// two ids may have the same text; the likelier one is kept, since readers take the last of two equal keys.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/tokenizer.h"
#include "common/buffer.h"
#include "daemon/server/openai.h"
#include "daemon/server/reply.h"

int openai_rows_append(struct openai_rows *to, const struct openai_row *row, struct error *err)
{
	if (to->n == to->capacity) {
		uint32_t capacity = to->capacity ? 2 * to->capacity : 64;
		struct openai_row *rows = reallocarray(to->rows, capacity, sizeof *rows);
		if (!rows)
			return error_set(err, ERROR_MEMORY, NULL, "no memory for the reply");
		to->rows = rows;
		to->capacity = capacity;
	}
	to->rows[to->n++] = *row;
	return 0;
}

void openai_rows_done(struct openai_rows *rows)
{
	free(rows->rows);
	*rows = (struct openai_rows){0};
}

int openai_writer_reserve(struct openai_writer *w, uint32_t max_ids, struct error *err)
{
	uint32_t n = 16;
	while (n / 2 < max_ids + 1 && n < 1u << 30)
		n *= 2;
	uint32_t *seen = calloc(n, sizeof *seen);
	if (!seen)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the reply");
	free(w->seen);
	w->seen = seen;
	w->n_seen = n;
	return 0;
}

void openai_writer_done(struct openai_writer *w)
{
	free(w->seen);
	w->seen = NULL;
}

void openai_token(struct buffer *b, const struct openai_writer *w, uint32_t id)
{
	size_t n = 0;
	const char *text = w->ids_as_text ? NULL : tokenizer_bytes(w->tokenizer, id, &n, NULL);
	if (!text) {
		buffer_printf(b, "\"token_id:%" PRIu32 "\"", id);
	} else if (buffer_is_utf8(text, n)) {
		buffer_string(b, text, n);
	} else {
		buffer_text(b, "\"bytes:");
		for (size_t i = 0; i < n; i++)
			buffer_printf(b, "\\\\x%02x", (unsigned char)text[i]);
		buffer_text(b, "\"");
	}
}

// At least what openai_token writes, and what the bytes take in a longer text.
static uint64_t token_bytes(const struct openai_writer *w, uint32_t id)
{
	size_t n = 0;
	const char *text = tokenizer_bytes(w->tokenizer, id, &n, NULL);
	uint64_t bytes = 24;                                    // quotes, a comma, "token_id:16777215"
	if (text && !buffer_is_utf8(text, n))
		return bytes + 5 * n;
	for (size_t i = 0; i < n; i++)
		bytes += (unsigned char)text[i] < ' ' ? 6 : text[i] == '"' || text[i] == '\\' ? 2 : 1;
	return bytes;
}

uint64_t openai_shown_bytes(const struct openai_ask *a, const struct openai_writer *w)
{
	unsigned places = a->echo + (a->echo && a->want_logprobs ? 2 : 0) + a->want_prompt_logprobs;
	uint64_t largest = 0;
	for (uint32_t i = 0; i < a->n_prompts; i++) {
		const struct sequence *s = &a->prompts[i].tokens;
		uint64_t bytes = a->return_ids ? s->n_tokens * REPLY_ID_BYTES : 0;
		for (uint32_t j = 0; j < s->n_tokens && places; j++)
			bytes += places * token_bytes(w, s->tokens[j]);
		largest = bytes > largest ? bytes : largest;
	}
	return largest;
}

// Whether an id with the same text was there already in this row; remembers this one. Ids are kept plus one: 0 is an empty slot.
static bool seen_before(struct openai_writer *w, uint32_t id)
{
	size_t n = 0, m = 0;
	const char *text = tokenizer_bytes(w->tokenizer, id, &n, NULL);
	uint32_t hash = 2166136261u;
	if (!text || w->ids_as_text)
		return false;      // named by the id, which no other has
	for (size_t i = 0; i < n; i++)
		hash = (hash ^ (unsigned char)text[i]) * 16777619u;
	for (uint32_t at = hash & (w->n_seen - 1);; at = (at + 1) & (w->n_seen - 1)) {
		if (!w->seen[at]) {
			w->seen[at] = id + 1;
			return false;
		}
		const char *other = tokenizer_bytes(w->tokenizer, w->seen[at] - 1, &m, NULL);
		if (m == n && memcmp(other, text, n) == 0)
			return true;
	}
}

static float logprob_of(const struct openai_row *row, uint32_t i)
{
	return (float)((double)row->logits[i] - row->lse);
}

static uint32_t smaller(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

static bool holds(const struct openai_row *row, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (row->ids[i] == row->token)
			return true;
	return false;
}

static void top_logprobs(struct buffer *b, struct openai_writer *w, const struct openai_row *row, uint32_t n_top)
{
	uint32_t n = smaller(n_top, row->n_ids);
	const char *comma = "";
	memset(w->seen, 0, w->n_seen * sizeof *w->seen);
	buffer_text(b, "{");
	for (uint32_t i = 0; i < n; i++) {
		if (seen_before(w, row->ids[i]))
			continue;
		buffer_text(b, comma);
		openai_token(b, w, row->ids[i]);
		buffer_text(b, ":");
		buffer_float(b, logprob_of(row, i));
		comma = ",";
	}
	if (!holds(row, n) && !seen_before(w, row->token)) {
		buffer_text(b, comma);
		openai_token(b, w, row->token);
		buffer_text(b, ":");
		buffer_float(b, row->logprob);
	}
	buffer_text(b, "}");
}

static size_t count_characters(const char *text, size_t n)
{
	size_t count = 0;
	for (size_t i = 0; i < n; i++)
		count += ((unsigned char)text[i] & 0xc0) != 0x80;
	return count;
}

static size_t text_offsets(struct buffer *b, const struct openai_writer *w, const struct openai_rows *rows, size_t at)
{
	for (uint32_t i = 0; i < rows->n; i++) {
		size_t n = 0;
		const char *text = tokenizer_bytes(w->tokenizer, rows->rows[i].token, &n, NULL);
		buffer_printf(b, i ? ",%zu" : "%zu", at);
		at += text ? count_characters(text, n) : 0;
	}
	return at;
}

size_t openai_logprobs(struct buffer *b, struct openai_writer *w, const struct openai_rows *rows, uint32_t n_top, size_t first_offset)
{
	buffer_text(b, "{\"tokens\":[");
	for (uint32_t i = 0; i < rows->n; i++) {
		buffer_text(b, i ? "," : "");
		openai_token(b, w, rows->rows[i].token);
	}
	buffer_text(b, "],\"token_logprobs\":[");
	for (uint32_t i = 0; i < rows->n; i++) {
		buffer_text(b, i ? "," : "");
		if (rows->rows[i].known)
			buffer_float(b, rows->rows[i].logprob);
		else
			buffer_text(b, "null");
	}
	buffer_text(b, "],\"top_logprobs\":[");
	for (uint32_t i = 0; i < rows->n; i++) {
		buffer_text(b, i ? "," : "");
		if (rows->rows[i].known)
			top_logprobs(b, w, &rows->rows[i], n_top);
		else
			buffer_text(b, "null");
	}
	buffer_text(b, "],\"text_offset\":[");
	size_t end = text_offsets(b, w, rows, first_offset);
	buffer_text(b, "]}");
	return end;
}

static void prompt_entry(struct buffer *b, const struct openai_writer *w, uint32_t id, float logprob, uint32_t rank)
{
	buffer_printf(b, "\"%" PRIu32 "\":{\"logprob\":", id);
	buffer_float(b, logprob);
	buffer_printf(b, ",\"rank\":%" PRIu32 ",\"decoded_token\":", rank);
	openai_token(b, w, id);
	buffer_text(b, "}");
}

// The token itself first, then the others by rank: vLLM's order.
static void prompt_row(struct buffer *b, const struct openai_writer *w, const struct openai_row *row, uint32_t n_top)
{
	uint32_t n = smaller(n_top, row->n_ids), own = 0;
	while (own < row->n_ids && row->ids[own] != row->token)
		own++;
	buffer_text(b, "{");
	prompt_entry(b, w, row->token, row->logprob, own + 1);
	for (uint32_t i = 0; i < n; i++) {
		if (i == own)
			continue;
		buffer_text(b, ",");
		prompt_entry(b, w, row->ids[i], logprob_of(row, i), i + 1);
	}
	buffer_text(b, "}");
}

void openai_prompt_logprobs(struct buffer *b, const struct openai_writer *w, const struct openai_rows *rows, uint32_t n_top)
{
	buffer_text(b, "[");
	for (uint32_t i = 0; i < rows->n; i++) {
		buffer_text(b, i ? "," : "");
		if (rows->rows[i].known)
			prompt_row(b, w, &rows->rows[i], n_top);
		else
			buffer_text(b, "null");
	}
	buffer_text(b, "]");
}
