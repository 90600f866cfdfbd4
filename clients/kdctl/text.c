// SPDX-License-Identifier: Apache-2.0
// Texts become sequences: the server tokenizes (it has the teacher's tokenizer), the tokens are cut into windows.
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/kdctl.h"

#define PIECE_BYTES (256 * 1024)         // of text in one call: far below any server's limit for JSON

void windows_done(struct windows *w)
{
	for (size_t i = 0; i < w->n; i++)
		free((uint32_t *)w->items[i].tokens);
	free(w->items);
	*w = (struct windows){0};
}

static int windows_push(struct kdctl *k, struct windows *w, const uint32_t *tokens, uint32_t n)
{
	if (w->n == w->capacity) {
		size_t capacity = w->capacity ? 2 * w->capacity : 64;
		struct kd_sequence *larger = realloc(w->items, capacity * sizeof *larger);
		if (!larger)
			return kdctl_fail(k, "no memory for %zu sequences", capacity);
		w->items = larger;
		w->capacity = capacity;
	}
	uint32_t *copy = malloc(n * sizeof *copy);
	if (!copy)
		return kdctl_fail(k, "no memory for %u tokens", n);
	memcpy(copy, tokens, n * sizeof *copy);
	w->items[w->n++] = (struct kd_sequence){copy, n};
	return 0;
}

int windows_append_tokens(struct kdctl *k, struct windows *w, const uint32_t *tokens, size_t n, uint32_t length)
{
	for (size_t at = 0; at < n; at += length)
		if (windows_push(k, w, tokens + at, (uint32_t)(n - at < length ? n - at : length)))
			return 1;
	return 0;
}

// {"tokens":[..]} appended to a growing array.
static int append_reply(struct kdctl *k, const json_t *reply, uint32_t **tokens, size_t *n)
{
	const json_t *list = json_object_get(reply, "tokens");
	size_t count = json_array_size(list);
	uint32_t *larger = realloc(*tokens, (*n + count + 1) * sizeof *larger);
	if (!larger)
		return kdctl_fail(k, "no memory for %zu tokens", *n + count);
	*tokens = larger;
	for (size_t i = 0; i < count; i++) {
		json_int_t id = json_integer_value(json_array_get(list, i));
		if (!json_is_integer(json_array_get(list, i)) || id < 0 || id > UINT32_MAX)
			return kdctl_fail(k, "tokens[%zu]: not a token id", i);
		larger[(*n)++] = (uint32_t)id;
	}
	return json_is_array(list) ? 0 : kdctl_fail(k, "the server's reply has no tokens");
}

// Where a piece of a longer text ends. Between a line's end and a letter, when the line before is not blank, no tokenizer pattern in use
// looks across; failing that at any line's end, then at a UTF-8 boundary.
static size_t piece_size(const char *text, size_t n)
{
	if (n <= PIECE_BYTES)
		return n;
	for (size_t i = PIECE_BYTES; i > PIECE_BYTES / 2; i--)
		if (text[i - 1] == '\n' && !strchr(" \t\r\n", text[i]) && !strchr(" \t\r\n", text[i - 2]))
			return i;
	for (size_t i = PIECE_BYTES; i > PIECE_BYTES / 2; i--)
		if (text[i - 1] == '\n')
			return i;
	size_t i = PIECE_BYTES;
	while (i > PIECE_BYTES - 4 && ((unsigned char)text[i] & 0xc0) == 0x80)
		i--;
	return i;
}

int text_tokenize(struct kdctl *k, const char *text, size_t n, uint32_t **ret_tokens, size_t *ret_n)
{
	uint32_t *tokens = NULL;
	size_t n_tokens = 0;
	int status = 0;
	for (size_t at = 0, size; !status && at < n; at += size) {
		size = piece_size(text + at, n - at);
		json_t *piece = json_stringn(text + at, size);
		if (!piece) {
			status = kdctl_fail(k, "the text is not UTF-8 between bytes %zu and %zu", at, at + size);
			break;
		}
		json_t *reply = kdctl_call(k, "POST", "/v1/tokenize", json_pack("{s:o}", "text", piece));
		status = reply ? append_reply(k, reply, &tokens, &n_tokens) : 1;
		json_decref(reply);
	}
	if (status) {
		free(tokens);
		return status;
	}
	*ret_tokens = tokens;
	*ret_n = n_tokens;
	return 0;
}

int windows_append_text(struct kdctl *k, struct windows *w, const char *text, size_t n, uint32_t length)
{
	uint32_t *tokens = NULL;
	size_t n_tokens = 0;
	int status = text_tokenize(k, text, n, &tokens, &n_tokens);
	if (!status)
		status = windows_append_tokens(k, w, tokens, n_tokens, length);
	free(tokens);
	return status;
}

// One line: {"text":"..."} or {"tokens":[..]}.
static int append_line(struct kdctl *k, struct windows *w, const char *line, size_t n, size_t number, uint32_t length)
{
	json_error_t why;
	uint32_t *tokens = NULL;
	size_t n_tokens = 0;
	json_t *j = json_loadb(line, n, JSON_REJECT_DUPLICATES, &why);
	const json_t *text = json_object_get(j, "text");
	int status;
	if (!j)
		status = kdctl_fail(k, "line %zu: %s", number, why.text);
	else if (json_is_string(text))
		status = windows_append_text(k, w, json_string_value(text), json_string_length(text), length);
	else if (json_is_array(json_object_get(j, "tokens")))
		status = append_reply(k, j, &tokens, &n_tokens) || windows_append_tokens(k, w, tokens, n_tokens, length);
	else
		status = kdctl_fail(k, "line %zu: {\"text\":\"...\"} or {\"tokens\":[..]} is expected", number);
	free(tokens);
	json_decref(j);
	return status;
}

int windows_append_lines(struct kdctl *k, struct windows *w, const char *text, size_t n, uint32_t length)
{
	size_t number = 0;
	for (size_t at = 0; at < n;) {
		const char *end = memchr(text + at, '\n', n - at);
		size_t size = end ? (size_t)(end - (text + at)) : n - at;
		number++;
		if (size && text[at] != '\r' && append_line(k, w, text + at, size, number, length))
			return 1;
		at += size + 1;
	}
	return 0;
}
