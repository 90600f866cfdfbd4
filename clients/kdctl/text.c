// SPDX-License-Identifier: Apache-2.0
// Texts become tokens: the server tokenizes (it has the teacher's tokenizer), or a copy of its tokenizer here; in pieces.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/kdctl.h"
#include "common/error.h"
#include "daemon/model/tokenizer.h"

int id_list_append_json(struct kdctl *k, const json_t *list, struct id_list *t)
{
	size_t n = json_array_size(list);
	if (!json_is_array(list))
		return kdctl_fail(k, "a list of tokens is expected");
	if (id_list_reserve(k, t, n))
		return 1;
	for (size_t i = 0; i < n; i++) {
		const json_t *item = json_array_get(list, i);
		json_int_t id = json_integer_value(item);
		if (!json_is_integer(item) || id < 0 || id > UINT32_MAX)
			return kdctl_fail(k, "tokens[%zu]: not a token id", i);
		t->ids[t->n++] = (uint32_t)id;
	}
	return 0;
}

int id_list_reserve(struct kdctl *k, struct id_list *t, size_t n)
{
	size_t need = t->n + n;
	if (need <= t->capacity)
		return 0;
	size_t capacity = t->capacity * 2 > need ? t->capacity * 2 : need;
	uint32_t *larger = realloc(t->ids, capacity * sizeof *larger);
	if (!larger)
		return kdctl_fail(k, "no memory for %zu tokens", need);
	t->ids = larger;
	t->capacity = capacity;
	return 0;
}

void id_list_done(struct id_list *t)
{
	free(t->ids);
	*t = (struct id_list){0};
}

// Where a piece of a longer text ends. Between a line's end and a letter, when the line before is not blank, no tokenizer pattern in use
// looks across; failing that at any line's end, then at a UTF-8 boundary.
size_t text_piece(const char *text, size_t n)
{
	if (n <= TEXT_PIECE_BYTES)
		return n;
	for (size_t i = TEXT_PIECE_BYTES; i > TEXT_PIECE_BYTES / 2; i--)
		if (text[i - 1] == '\n' && !strchr(" \t\r\n", text[i]) && !strchr(" \t\r\n", text[i - 2]))
			return i;
	for (size_t i = TEXT_PIECE_BYTES; i > TEXT_PIECE_BYTES / 2; i--)
		if (text[i - 1] == '\n')
			return i;
	size_t i = TEXT_PIECE_BYTES;
	while (i > TEXT_PIECE_BYTES - 4 && ((unsigned char)text[i] & 0xc0) == 0x80)
		i--;
	return i;
}

static int tokenize_here(struct kdctl *k, const char *text, size_t n, bool first, struct id_list *t)
{
	struct tokens tokens = {0};
	struct error err = {0};
	// No text makes more tokens than an ill-formed byte does, whose U+FFFD has three bytes.
	int r = first ? tokenizer_encode(k->tokenizer, text, n, k->specials, true, 3 * n + 16, &tokens, &err)
		: tokenizer_encode_part(k->tokenizer, text, n, k->specials, 3 * n + 16, &tokens, &err);
	int status = r ? kdctl_fail(k, "%s", err.message) : id_list_reserve(k, t, tokens.n);
	if (!status && tokens.n) {
		memcpy(t->ids + t->n, tokens.ids, tokens.n * sizeof *t->ids);
		t->n += tokens.n;
	}
	tokens_done(&tokens);
	return status;
}

int text_tokenize_piece(struct kdctl *k, const char *text, size_t n, uint64_t at, bool first, struct id_list *t)
{
	if (k->tokenizer)
		return tokenize_here(k, text, n, first, t);
	json_t *piece = json_stringn(text, n);
	if (!piece)
		return kdctl_fail(k, "the text is not UTF-8 between bytes %" PRIu64 " and %" PRIu64, at, at + n);
	// A template's leading token (such as BOS) and a space put first belong before the text, not before each piece of it.
	json_t *reply = kdctl_call(k, "POST", "/v1/tokenize", json_pack("{s:o, s:b}", "text", piece, "part", (int)!first));
	int status = reply ? id_list_append_json(k, json_object_get(reply, "tokens"), t) : 1;
	json_decref(reply);
	return status;
}

int text_tokenize(struct kdctl *k, const char *text, size_t n, uint32_t **ret_tokens, size_t *ret_n)
{
	struct id_list t = {0};
	int status = 0;
	for (size_t at = 0, size; !status && at < n; at += size) {
		size = text_piece(text + at, n - at);
		status = text_tokenize_piece(k, text + at, size, at, at == 0, &t);
	}
	if (status) {
		id_list_done(&t);
		return status;
	}
	*ret_tokens = t.ids;
	*ret_n = t.n;
	return 0;
}
