// SPDX-License-Identifier: Apache-2.0
// Encoding: repair UTF-8, cut out added tokens, normalize, cut out added tokens that are looked for normalized, cut pieces, merge.
// Every stage carries the way back to the caller's bytes (struct source_text).
#include "daemon/model/tokenizer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/model/normalizer.h"
#include "daemon/model/tokenizer_internal.h"

struct encoding {
	const struct tokenizer *tokenizer;
	bool specials;
	bool part;                  // the text goes on from another: no space is put before it
	size_t max_tokens;
	struct tokens *out;
	struct pretokenizer_walk walk;
	struct bpe_work work;
	struct error *err;
};

void tokens_done(struct tokens *t)
{
	free(t->ids);
	free(t->offsets);
	memset(t, 0, sizeof(*t));
}

static int tokens_grow(struct tokens *t)
{
	size_t capacity = t->capacity ? 2 * t->capacity : 64;
	uint32_t *ids = realloc(t->ids, capacity * sizeof(*ids));
	struct token_offsets *offsets = ids ? realloc(t->offsets, capacity * sizeof(*offsets)) : NULL;

	if (ids)
		t->ids = ids;
	if (!offsets)
		return -ENOMEM;
	t->offsets = offsets;
	t->capacity = capacity;
	return 0;
}

static int token_push(struct encoding *e, uint32_t id, uint32_t begin, uint32_t end)
{
	struct tokens *out = e->out;

	if (out->n >= e->max_tokens)
		return error_set(e->err, ERROR_TOO_LARGE, "text", "the text has more than %zu tokens", e->max_tokens);
	if (out->n == out->capacity && tokens_grow(out))
		return error_set(e->err, ERROR_MEMORY, NULL, "no memory for tokens");
	out->ids[out->n] = id;
	out->offsets[out->n++] = (struct token_offsets){ begin, end };
	return 0;
}

// What bpe_encode() or its like has left, of a piece that begins at byte `begin`.
static int push_symbols(struct encoding *e, const struct source_text *text, size_t begin)
{
	int ret = 0;

	for (uint32_t i = e->work.first; i != VOCABULARY_NONE && !ret; i = e->work.symbols[i].next) {
		const struct symbol *s = &e->work.symbols[i];

		ret = token_push(e, s->id, source_text_begin(text, begin + i), source_text_end(text, begin + s->end - 1));
	}
	return ret;
}

static int encode_piece(struct encoding *e, const struct source_text *text, size_t begin, size_t end)
{
	const struct tokenizer *t = e->tokenizer;
	uint32_t id = VOCABULARY_NONE;

	if (end - begin == 1)
		id = t->bpe.byte_ids[(uint8_t)text->bytes[begin]];
	else if (t->ignore_merges)
		id = vocabulary_find(&t->vocabulary, text->bytes + begin, end - begin, false);
	if (id != VOCABULARY_NONE)
		return token_push(e, id, source_text_begin(text, begin), source_text_end(text, end - 1));
	if (bpe_encode(&t->bpe, &e->work, (const uint8_t *)text->bytes + begin, end - begin))
		return error_set(e->err, ERROR_MEMORY, NULL, "no memory for a piece of %zu bytes", end - begin);
	return push_symbols(e, text, begin);
}

static int encode_characters(struct encoding *e, const struct source_text *text, size_t begin, size_t end)
{
	const struct tokenizer *t = e->tokenizer;
	uint32_t id = VOCABULARY_NONE;

	if (t->ignore_merges)
		id = vocabulary_find(&t->vocabulary, text->bytes + begin, end - begin, true);
	if (id != VOCABULARY_NONE)
		return token_push(e, id, source_text_begin(text, begin), source_text_end(text, end - 1));
	if (sentencepiece_encode(&t->sentencepiece, &t->bpe, &t->vocabulary, &e->work, text->bytes + begin, end - begin))
		return error_set(e->err, ERROR_MEMORY, NULL, "no memory for a piece of %zu bytes", end - begin);
	return push_symbols(e, text, begin);
}

static bool is_first(const struct source_text *text, size_t begin)
{
	return !source_text_begin(text, begin);
}

static bool starts_with(const struct source_text *text, size_t begin, size_t end, const char *what)
{
	return end - begin >= strlen(what) && !memcmp(text->bytes + begin, what, strlen(what));
}

// Spaces as marks, one before the stretch where it has none and the rule asks for it; then piece by piece.
static int encode_metaspace(struct encoding *e, const struct source_text *text, size_t begin, size_t end)
{
	const struct sentencepiece *s = &e->tokenizer->sentencepiece;
	bool first = is_first(text, begin), has = starts_with(text, begin, end, " ") || starts_with(text, begin, end, SPACE_MARK);
	bool wanted = s->prefix == SPACE_PREFIX_ALWAYS || (s->prefix == SPACE_PREFIX_FIRST && first);
	struct source_text spaced;
	int ret = 0;

	if (source_text_spaces(&spaced, text, begin, end, (struct space_normalizer){ wanted && !has && !(first && e->part), true }))
		return error_set(e->err, ERROR_MEMORY, NULL, "no memory to normalize the text");
	for (size_t from = 0, to; from < spaced.n && !ret; from = to) {
		to = s->split ? sentencepiece_cut(spaced.bytes, spaced.n, from) : spaced.n;
		ret = encode_characters(e, &spaced, from, to);
	}
	source_text_done(&spaced);
	return ret;
}

static int encode_words(struct encoding *e, const struct source_text *text, size_t begin, size_t end)
{
	struct wordpiece_token tokens[WORDPIECE_MAX_CHARACTERS];
	const struct tokenizer *t = e->tokenizer;
	size_t at = begin, from, to;
	int ret = 0;

	while (!ret && wordpiece_next(text->bytes, end, &at, &from, &to)) {
		size_t n = wordpiece_encode(&t->wordpiece, &t->vocabulary, text->bytes + from, to - from, tokens);

		for (size_t i = 0; i < n && !ret; i++)
			ret = token_push(e, tokens[i].id, source_text_begin(text, from + tokens[i].begin),
					 source_text_end(text, from + tokens[i].end - 1));
	}
	return ret;
}

// Text without added tokens.
static int encode_plain(struct encoding *e, const struct source_text *text, size_t begin, size_t end)
{
	size_t from, to;
	int ret;

	if (e->tokenizer->wordpiece.on)
		return encode_words(e, text, begin, end);
	if (e->tokenizer->sentencepiece.on)
		return e->tokenizer->sentencepiece.metaspace ? encode_metaspace(e, text, begin, end)
			: encode_characters(e, text, begin, end);

	pretokenizer_start(&e->walk, text->bytes + begin, end - begin);
	while ((ret = pretokenizer_next(&e->walk, &from, &to, e->err)) == 1)
		if ((ret = encode_piece(e, text, begin + from, begin + to)))
			return ret;
	return ret;
}

static int encode_part(struct encoding *e, const struct source_text *text, size_t begin, size_t end, bool normalized);

// Cuts out the added tokens of one phase; what lies between goes on.
static int encode_added(struct encoding *e, const struct source_text *text, bool normalized)
{
	size_t at = 0, covered = 0;
	struct added_match m;
	int ret = 0;

	while (!ret && added_next(&e->tokenizer->added.set[normalized], text->bytes, text->n, e->specials, covered, &at, &m)) {
		ret = encode_part(e, text, covered, m.begin, normalized);
		if (!ret)
			ret = token_push(e, m.token->id, source_text_begin(text, m.begin), source_text_end(text, m.end - 1));
		covered = m.end;
	}
	return ret ? ret : encode_part(e, text, covered, text->n, normalized);
}

static int normalize(struct encoding *e, struct source_text *part, const struct source_text *text, size_t begin, size_t end)
{
	const struct tokenizer *t = e->tokenizer;
	struct space_normalizer spaces = t->sentencepiece.normalizer;
	int ret = 0;

	spaces.prepend &= !(e->part && is_first(text, begin));
	if (t->wordpiece.on)
		ret = source_text_bert(part, text, begin, end, &t->wordpiece.normalizer);
	else if (t->nfc)
		ret = source_text_nfc(part, text, begin, end);
	else if (spaces.prepend || spaces.replace)
		ret = source_text_spaces(part, text, begin, end, spaces);
	else
		source_text_view(part, text, begin, end);
	return ret ? error_set(e->err, ERROR_MEMORY, NULL, "no memory to normalize the text") : 0;
}

// A stretch between added tokens: before normalization it is normalized and searched again, after it is plain text.
static int encode_part(struct encoding *e, const struct source_text *text, size_t begin, size_t end, bool normalized)
{
	struct source_text part;
	int ret;

	if (begin >= end)
		return 0;
	if (normalized)
		return encode_plain(e, text, begin, end);
	ret = normalize(e, &part, text, begin, end);
	if (ret)
		return ret;
	ret = encode_added(e, &part, true);
	source_text_done(&part);
	return ret;
}

static int encode_template(struct encoding *e, const struct template_ids *ids)
{
	int ret = 0;

	for (unsigned i = 0; i < ids->n && !ret; i++)
		ret = token_push(e, ids->ids[i], 0, 0);
	return ret;
}

static int encode_text(struct encoding *e, const char *text, size_t n, bool add_special)
{
	const struct tokenizer *t = e->tokenizer;
	struct source_text source = { 0 };
	struct error *err = e->err;
	int rc;

	e->out->n = 0;
	if (n >= UINT32_MAX / 4)    // repair, or the mark of a space, may make 3 bytes of one
		return error_set(err, ERROR_TOO_LARGE, "text", "a text of %zu bytes is too large", n);
	rc = pretokenizer_walk_init(&e->walk, &t->pretokenizer, err);
	if (rc)
		return rc;
	if (source_text_init(&source, text, n)) {
		rc = error_set(err, ERROR_MEMORY, NULL, "no memory for a text of %zu bytes", n);
		goto out;
	}
	if (add_special)
		rc = encode_template(e, &t->before);
	if (!rc)
		rc = encode_added(e, &source, false);
	if (!rc && add_special)
		rc = encode_template(e, &t->after);
out:
	source_text_done(&source);
	bpe_work_done(&e->work);
	pretokenizer_walk_done(&e->walk);
	return rc;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, bool specials, bool add_special, size_t max_tokens,
		     struct tokens *ret, struct error *err)
{
	struct encoding e = { .tokenizer = t, .specials = specials, .max_tokens = max_tokens, .out = ret, .err = err };

	return encode_text(&e, text, n, add_special);
}

int tokenizer_encode_part(const struct tokenizer *t, const char *text, size_t n, bool specials, size_t max_tokens, struct tokens *ret,
			  struct error *err)
{
	struct encoding e = { .tokenizer = t, .specials = specials, .part = true, .max_tokens = max_tokens, .out = ret, .err = err };

	return encode_text(&e, text, n, false);
}

bool tokenizer_puts_space(const struct tokenizer *t, bool first)
{
	return sentencepiece_prefixes(&t->sentencepiece, first);
}

// What an id stands for.
static const char *token_bytes(const struct tokenizer *t, uint32_t id, size_t *ret_n)
{
	if (t->sentencepiece.on)
		return sentencepiece_text(&t->sentencepiece, id, ret_n);
	*ret_n = t->vocabulary.tokens[id].n;
	return vocabulary_bytes(&t->vocabulary, id);
}

// One token's part of the text; returns its bytes.
static size_t join(const struct tokenizer *t, uint32_t id, bool first, char *to)
{
	bool space = false;
	size_t n, skip;
	const char *bytes = token_bytes(t, id, &n);

	if (first && t->sentencepiece.on && t->sentencepiece.strip == SPACE_STRIP_MARKS)
		return sentencepiece_strip(vocabulary_bytes(&t->vocabulary, id), t->vocabulary.tokens[id].n, to);
	skip = t->wordpiece.on && !first ? wordpiece_join(&t->wordpiece, bytes, n, &space) : 0;
	if (space)
		*to++ = ' ';
	memcpy(to, bytes + skip, n - skip);
	return space + n - skip;
}

// Room that the ids' text needs at most, or an error.
static int measure(const struct tokenizer *t, const uint32_t *ids, size_t n, size_t *ret_bytes, struct error *err)
{
	const struct vocabulary *v = &t->vocabulary;
	size_t n_bytes = 0;

	for (size_t i = 0; i < n; i++) {
		if (ids[i] >= v->n_ids || !(v->tokens[ids[i]].flags & TOKEN_PRESENT)) {
			char field[40];

			snprintf(field, sizeof(field), "tokens[%zu]", i);
			return error_set(err, ERROR_INVALID, field, "id %u is not in the vocabulary", ids[i]);
		}
		if (__builtin_add_overflow(n_bytes, (size_t)v->tokens[ids[i]].n + 1, &n_bytes))    // a space before each
			return error_set(err, ERROR_TOO_LARGE, "tokens", "the text is too long");
	}
	*ret_bytes = n_bytes;
	return 0;
}

static int decode_text(const struct tokenizer *t, const uint32_t *ids, size_t n, bool skip_special, bool first, char **ret_text,
		       size_t *ret_n, struct error *err)
{
	bool strip = first && t->sentencepiece.on && t->sentencepiece.strip == SPACE_STRIP_ONE;
	size_t n_bytes = 0, at = 0;
	char *text;
	int ret = measure(t, ids, n, &n_bytes, err);

	if (ret)
		return ret;
	text = malloc(n_bytes + 1);
	if (!text)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a text of %zu bytes", n_bytes);
	for (size_t i = 0; i < n; i++) {
		if (skip_special && t->vocabulary.tokens[ids[i]].flags & TOKEN_SPECIAL)
			continue;
		at += join(t, ids[i], first, text + at);
		first = false;
	}
	if (strip && at && text[0] == ' ')
		memmove(text, text + 1, --at);
	text[at] = 0;
	*ret_text = text;
	*ret_n = at;
	return 0;
}

int tokenizer_decode(const struct tokenizer *t, const uint32_t *ids, size_t n, bool skip_special, char **ret_text, size_t *ret_n,
		     struct error *err)
{
	return decode_text(t, ids, n, skip_special, true, ret_text, ret_n, err);
}

int tokenizer_decode_part(const struct tokenizer *t, const uint32_t *ids, size_t n, bool skip_special, char **ret_text, size_t *ret_n,
			  struct error *err)
{
	return decode_text(t, ids, n, skip_special, t->wordpiece.on, ret_text, ret_n, err);
}

const char *tokenizer_bytes(const struct tokenizer *t, uint32_t id, size_t *ret_n, bool *ret_special)
{
	const struct vocabulary *v = &t->vocabulary;
	if (id >= v->n_ids || !(v->tokens[id].flags & TOKEN_PRESENT))
		return NULL;
	size_t n;
	const char *bytes = token_bytes(t, id, &n);
	if (ret_n)
		*ret_n = n;
	if (ret_special)
		*ret_special = v->tokens[id].flags & TOKEN_SPECIAL;
	return bytes;
}

bool tokenizer_is_fallback(const struct tokenizer *t, uint32_t id)
{
	const struct sentencepiece *s = &t->sentencepiece;
	size_t n;
	const char *bytes = s->on && s->fallback && id < t->vocabulary.n_ids ? sentencepiece_text(s, id, &n) : NULL;

	return bytes && n == 1 && s->byte_ids[(uint8_t)*bytes] == id;
}

struct tokenizer *tokenizer_close(struct tokenizer *t)
{
	if (!t)
		return NULL;
	vocabulary_done(&t->vocabulary);
	bpe_done(&t->bpe);
	sentencepiece_done(&t->sentencepiece);
	pretokenizer_done(&t->pretokenizer);
	added_done(&t->added);
	free(t);
	return NULL;
}

uint32_t tokenizer_vocab_size(const struct tokenizer *t)
{
	return t->vocabulary.n_ids;
}

int32_t tokenizer_bos(const struct tokenizer *t)
{
	return t->bos;
}

int32_t tokenizer_eos(const struct tokenizer *t)
{
	return t->eos;
}

struct content_id tokenizer_id(const struct tokenizer *t)
{
	return t->id;
}
