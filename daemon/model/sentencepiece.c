// SPDX-License-Identifier: Apache-2.0
#include "daemon/model/sentencepiece.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/unicode.h"

#define NONE VOCABULARY_NONE
#define BYTE_SPELLING 6    // "<0x41>"

static int hex_digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// The byte that a spelling such as "<0x41>" names, or -1.
static int spelled_byte(const char *spelling, size_t n)
{
	if (n != BYTE_SPELLING || memcmp(spelling, "<0x", 3) != 0 || spelling[5] != '>')
		return -1;
	int high = hex_digit(spelling[3]), low = hex_digit(spelling[4]);

	return high < 0 || low < 0 ? -1 : 16 * high + low;
}

// What a spelling stands for; ret has room for n bytes. Returns how many.
static size_t spelled_text(const struct sentencepiece *s, const char *spelling, size_t n, char *ret)
{
	int byte = s->decode_bytes ? spelled_byte(spelling, n) : -1;
	size_t out = 0;

	if (byte >= 0) {
		*ret = (char)byte;
		return 1;
	}
	for (size_t i = 0; i < n; out++) {
		bool mark = n - i >= SPACE_MARK_BYTES && !memcmp(spelling + i, SPACE_MARK, SPACE_MARK_BYTES);

		ret[out] = mark ? ' ' : spelling[i];
		i += mark ? SPACE_MARK_BYTES : 1;
	}
	return out;
}

static int check_fallback(const struct sentencepiece *s, struct error *err)
{
	// With some of the bytes, the reference gives unknown tokens behind the bytes of characters that stand behind them.
	for (unsigned byte = 0; s->fallback && byte < 256; byte++)
		if (s->byte_ids[byte] == NONE)
			return error_set(err, ERROR_UNSUPPORTED, "model",
				"byte_fallback without a token for byte %u is not supported", byte);
	return 0;
}

// Added tokens that are looked for normalized are found with what the normalizer puts before them: they stand for that, too.
static size_t id_text(const struct sentencepiece *s, const struct vocabulary *v, const struct added *added, uint32_t id, char *ret)
{
	const struct added_token *token = added_find(added, id);

	if (token && token->normalized)
		return spelled_text(s, token->match, token->n, ret);
	return spelled_text(s, vocabulary_bytes(v, id), v->tokens[id].n, ret);
}

int sentencepiece_finish(struct sentencepiece *s, const struct vocabulary *v, const struct added *added, struct error *err)
{
	size_t n_bytes = added->n, at = 0;       // each may get a space

	for (unsigned byte = 0; byte < 256; byte++) {
		char spelling[BYTE_SPELLING + 1];

		snprintf(spelling, sizeof(spelling), "<0x%02X>", byte);
		s->byte_ids[byte] = vocabulary_find(v, spelling, BYTE_SPELLING, true);
	}
	for (uint32_t id = 0; id < v->n_ids; id++)
		n_bytes += v->tokens[id].n;
	s->text = malloc(n_bytes + 1);
	s->ends = calloc(v->n_ids, sizeof(*s->ends));
	if (!s->text || !s->ends)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the texts of %u tokens", v->n_ids);
	for (uint32_t id = 0; id < v->n_ids; id++) {
		if (v->tokens[id].flags & TOKEN_PRESENT)
			at += id_text(s, v, added, id, s->text + at);
		s->ends[id] = at;
	}
	return check_fallback(s, err);
}

void sentencepiece_done(struct sentencepiece *s)
{
	free(s->text);
	free(s->ends);
	memset(s, 0, sizeof(*s));
}

bool sentencepiece_prefixes(const struct sentencepiece *s, bool first)
{
	enum space_prefix least = first ? SPACE_PREFIX_FIRST : SPACE_PREFIX_ALWAYS;

	return s->on && (s->normalizer.prepend || (s->metaspace && s->prefix >= least));
}

const char *sentencepiece_text(const struct sentencepiece *s, uint32_t id, size_t *ret_n)
{
	size_t begin = id ? s->ends[id - 1] : 0;

	*ret_n = s->ends[id] - begin;
	return s->text + begin;
}

size_t sentencepiece_strip(const char *spelling, size_t n, char *ret)
{
	size_t out = 0;

	for (size_t i = 0; i < n;)
		if (n - i >= SPACE_MARK_BYTES && !memcmp(spelling + i, SPACE_MARK, SPACE_MARK_BYTES))
			i += SPACE_MARK_BYTES;
		else
			ret[out++] = spelling[i++];
	return out;
}

// One character, or several that have merged, of id `id`. *unknown: the symbol before was unknown, and becomes whether this one is.
static void character_append(const struct sentencepiece *s, struct bpe_work *work, const char *bytes, uint32_t begin, uint32_t end,
			     uint32_t id, bool *unknown)
{
	bool fuse = s->fuse && *unknown;

	*unknown = id == NONE && !s->fallback && s->unknown != NONE;
	if (id != NONE)
		bpe_work_append(work, begin, end, id);
	else if (s->fallback)
		for (uint32_t i = begin; i < end; i++)
			bpe_work_append(work, i, i + 1, s->byte_ids[(uint8_t)bytes[i]]);
	else if (*unknown && fuse)
		work->symbols[work->last].end = end;
	else if (*unknown)
		bpe_work_append(work, begin, end, s->unknown);
}

// Merging by what is spelled knows no ids: gives them.
static void symbols_name(const struct sentencepiece *s, const struct bpe *bpe, const struct vocabulary *v, struct bpe_work *work,
			 const char *bytes)
{
	uint32_t i = work->first, end;
	bool unknown = false;

	work->first = work->last = NONE;
	for (uint32_t next; i != NONE; i = next) {
		uint32_t id;

		next = work->symbols[i].next;
		end = work->symbols[i].end;
		id = end - i <= bpe->longest ? vocabulary_find(v, bytes + i, end - i, true) : NONE;
		character_append(s, work, bytes, i, end, id != NONE && bpe->ranks[id] != NONE ? id : NONE, &unknown);
	}
}

int sentencepiece_encode(const struct sentencepiece *s, const struct bpe *bpe, const struct vocabulary *v, struct bpe_work *work,
			 const char *bytes, size_t n)
{
	bool unknown = false;
	unsigned length;

	if (bpe_work_start(work, n))
		return -ENOMEM;
	for (uint32_t i = 0; i < n; i += length) {
		unicode_utf8_decode(bytes + i, &length);
		if (bpe->ranks)
			bpe_work_append(work, i, i + length, NONE);
		else
			character_append(s, work, bytes, i, i + length, vocabulary_find(v, bytes + i, length, true), &unknown);
	}
	bpe_merge(bpe, work, bytes);
	if (bpe->ranks)
		symbols_name(s, bpe, v, work, bytes);
	return 0;
}

size_t sentencepiece_cut(const char *text, size_t n, size_t at)
{
	const char *next = memmem(text + at + 1, n - at - 1, SPACE_MARK, SPACE_MARK_BYTES);

	return next ? (size_t)(next - text) : n;
}

struct scored { float score; uint32_t id; };

static int scored_compare(const void *a, const void *b)
{
	const struct scored *x = a, *y = b;

	if (x->score != y->score)
		return x->score > y->score ? -1 : 1;
	return x->id < y->id ? -1 : x->id > y->id;
}

int sentencepiece_rank(struct bpe *bpe, const struct vocabulary *v, const float *scores, const bool *mergeable, struct error *err)
{
	struct scored *list = calloc(v->n_ids, sizeof(*list));
	uint32_t n = 0, rank = 0;
	int ret = 0;

	bpe->vocabulary = v;
	bpe->ranks = calloc(v->n_ids, sizeof(*bpe->ranks));
	if (!list || !bpe->ranks)
		ret = error_set(err, ERROR_MEMORY, NULL, "no memory for the scores of %u tokens", v->n_ids);
	for (uint32_t id = 0; id < v->n_ids && !ret; id++) {
		bpe->ranks[id] = NONE;
		if (!mergeable[id])
			continue;
		if (isnan(scores[id]))
			ret = error_set(err, ERROR_INVALID, "scores", "the score of token %u is no number", id);
		else if (v->tokens[id].n > SENTENCEPIECE_MAX_SCORED)
			ret = error_set(err, ERROR_TOO_LARGE, "vocab", "token %u has %u bytes, %d are allowed", id, v->tokens[id].n,
					SENTENCEPIECE_MAX_SCORED);
		bpe->longest = v->tokens[id].n > bpe->longest ? v->tokens[id].n : bpe->longest;
		list[n++] = (struct scored){ scores[id], id };
	}
	if (!ret && n)
		qsort(list, n, sizeof(*list), scored_compare);
	for (uint32_t i = 0; i < n && !ret; i++) {
		rank += i && list[i].score != list[i - 1].score;
		bpe->ranks[list[i].id] = rank;
	}
	free(list);
	return ret;
}
