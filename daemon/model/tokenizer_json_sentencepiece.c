// SPDX-License-Identifier: Apache-2.0
// The parts of tokenizer.json that Llama 2, Mistral, Mixtral and Gemma have: BPE over characters with byte fallback; spaces become U+2581
// in the normalizer (Prepend, Replace) or in the pre-tokenizer (Metaspace), and spaces again in the decoder.
//
// Scores out of a GGUF file have no place in that format: the model gets merges that do the same to all but contrived texts, and beside
// them "kdserved_ranks", which the reference passes over and which is read here instead of the merges.
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/model/tokenizer_internal.h"

#define refuse tokenizer_json_refuse
#define is_type tokenizer_json_is_type
#define RANKS "kdserved_ranks"

static bool is_string(const json_t *value, const char *text)
{
	const char *is = json_string_value(value);

	return is && !strcmp(is, text);
}

bool tokenizer_json_is_sentencepiece(const json_t *root)
{
	const json_t *model = json_object_get(root, "model"), *decoder = json_object_get(root, "decoder");
	bool found = json_is_true(json_object_get(model, "byte_fallback"));

	if (json_object_get(model, "type") ? !is_type(model, "BPE") : !json_object_get(model, "merges"))
		return false;
	for (size_t i = 0, n = tokenizer_json_size(decoder, "decoders"); i < n; i++) {
		const json_t *step = tokenizer_json_get(decoder, "decoders", i);

		found |= is_type(step, "Replace") || is_type(step, "ByteFallback") || is_type(step, "Metaspace");
	}
	return found;
}

// "pattern" is the string `from`, "content" is `to`.
static bool replaces(const json_t *step, const char *from, const char *to)
{
	return is_string(json_object_get(json_object_get(step, "pattern"), "String"), from) &&
		is_string(json_object_get(step, "content"), to);
}

static int read_normalizer(struct sentencepiece *s, const json_t *normalizer, struct error *err)
{
	for (size_t i = 0, n = tokenizer_json_size(normalizer, "normalizers"); i < n; i++) {
		const json_t *step = tokenizer_json_get(normalizer, "normalizers", i);
		const char *type = json_string_value(json_object_get(step, "type"));

		if (is_type(step, "Prepend") && is_string(json_object_get(step, "prepend"), SPACE_MARK) && !s->normalizer.prepend)
			s->normalizer.prepend = true;
		else if (is_type(step, "Replace") && replaces(step, " ", SPACE_MARK))
			s->normalizer.replace = true;
		else
			return refuse(err, "normalizer", "normalizer type %s of this kind", type ? type : "(none)");
	}
	return 0;
}

static int read_metaspace(struct sentencepiece *s, const json_t *step, struct error *err)
{
	const char *scheme = json_string_value(json_object_get(step, "prepend_scheme"));
	bool add = true;
	int ret;

	if (!is_string(json_object_get(step, "replacement"), SPACE_MARK))
		return refuse(err, "pre_tokenizer", "Metaspace with a replacement other than " SPACE_MARK);
	if ((ret = tokenizer_json_flag(step, "add_prefix_space", true, &add, err)) ||
		(ret = tokenizer_json_flag(step, "split", true, &s->split, err)))
		return ret;
	s->metaspace = true;
	if (!scheme || !strcmp(scheme, "always"))
		s->prefix = SPACE_PREFIX_ALWAYS;
	else if (!strcmp(scheme, "first"))
		s->prefix = SPACE_PREFIX_FIRST;
	else if (strcmp(scheme, "never") != 0)
		return refuse(err, "pre_tokenizer", "Metaspace with prepend_scheme %.40s", scheme);
	// Files older than prepend_scheme say it so; the reference refuses what contradicts itself.
	if (!add && s->prefix != SPACE_PREFIX_NEVER)
		return refuse(err, "pre_tokenizer", "Metaspace with add_prefix_space false and prepend_scheme %.40s",
			scheme ? scheme : "always");
	return 0;
}

static int read_pretokenizer(struct sentencepiece *s, const json_t *pretokenizer, struct error *err)
{
	for (size_t i = 0, n = tokenizer_json_size(pretokenizer, "pretokenizers"); i < n; i++) {
		const json_t *step = tokenizer_json_get(pretokenizer, "pretokenizers", i);
		const char *type = json_string_value(json_object_get(step, "type"));
		int ret = 0;

		// Gemma's cuts at spaces, of which its normalizer has left none.
		if (is_type(step, "Split") && s->normalizer.replace &&
			is_string(json_object_get(json_object_get(step, "pattern"), "String"), " "))
			continue;
		if (!is_type(step, "Metaspace") || s->metaspace)
			return refuse(err, "pre_tokenizer", "pre_tokenizer type %s of this kind", type ? type : "(none)");
		if ((ret = read_metaspace(s, step, err)))
			return ret;
	}
	return 0;
}

static int read_strip(struct sentencepiece *s, const json_t *step, struct error *err)
{
	json_int_t start = json_integer_value(json_object_get(step, "start")), stop = json_integer_value(json_object_get(step, "stop"));

	if (!is_string(json_object_get(step, "content"), " ") || start < 0 || start > 1 || stop)
		return refuse(err, "decoder", "Strip other than of one space at the beginning");
	s->strip = start ? SPACE_STRIP_ONE : SPACE_STRIP_NONE;
	return 0;
}

// Replace, ByteFallback (or not), Fuse, Strip (or not); or Metaspace alone.
static int read_decoder(struct sentencepiece *s, const json_t *decoder, struct error *err)
{
	size_t n = tokenizer_json_size(decoder, "decoders"), i = 0;
	const json_t *step = tokenizer_json_get(decoder, "decoders", 0);

	if (n == 1 && is_type(step, "Metaspace")) {
		s->strip = is_string(json_object_get(step, "prepend_scheme"), "never") ? SPACE_STRIP_NONE : SPACE_STRIP_MARKS;
		return is_string(json_object_get(step, "replacement"), SPACE_MARK) ? 0
			: refuse(err, "decoder", "Metaspace with another replacement");
	}
	if (n && is_type(step, "Replace") && replaces(step, SPACE_MARK, " "))
		step = tokenizer_json_get(decoder, "decoders", ++i);
	else
		return refuse(err, "decoder", "a decoder that does not begin by making " SPACE_MARK " a space");
	if (i < n && is_type(step, "ByteFallback")) {
		s->decode_bytes = true;
		step = tokenizer_json_get(decoder, "decoders", ++i);
	}
	if (i == n || !is_type(step, "Fuse"))
		return refuse(err, "decoder", "a decoder without Fuse after Replace and ByteFallback");
	if (++i == n)
		return 0;
	step = tokenizer_json_get(decoder, "decoders", i);
	return i + 1 == n && is_type(step, "Strip") ? read_strip(s, step, err)
		: refuse(err, "decoder", "a decoder with more after Fuse than Strip");
}

static int read_ranks(struct tokenizer *t, const json_t *ranks, struct error *err)
{
	struct vocabulary *v = &t->vocabulary;
	float *scores = calloc(v->n_ids, sizeof(*scores));
	bool *mergeable = calloc(v->n_ids, sizeof(*mergeable));
	int ret = 0;

	if (!scores || !mergeable)
		ret = error_set(err, ERROR_MEMORY, NULL, "no memory for the ranks");
	else if (json_array_size(ranks) != v->n_ids)
		ret = error_set(err, ERROR_INVALID, RANKS, "%zu ranks for %u ids", json_array_size(ranks), v->n_ids);
	for (uint32_t id = 0; id < v->n_ids && !ret; id++) {
		const json_t *rank = json_array_get(ranks, id);

		mergeable[id] = json_is_integer(rank) && v->tokens[id].flags & TOKEN_PRESENT;
		if (!mergeable[id] && !json_is_null(rank))
			ret = error_set(err, ERROR_INVALID, RANKS, "the rank of id %u is no number of a token", id);
		else if (mergeable[id] && (json_integer_value(rank) < 0 || json_integer_value(rank) >= VOCABULARY_MAX_IDS))
			ret = error_set(err, ERROR_INVALID, RANKS, "the rank of id %u is out of range", id);
		else if (mergeable[id])
			scores[id] = -(float)json_integer_value(rank);     // below 2^24: exact
	}
	if (!ret)
		ret = sentencepiece_rank(&t->bpe, v, scores, mergeable, err);
	free(scores);
	free(mergeable);
	// Written for the reference's sake as if they were looked for before normalization.
	for (size_t i = 0; i < t->added.n; i++)
		t->added.tokens[i].normalized = !t->added.tokens[i].special;
	return ret;
}

static int read_unknown(struct tokenizer *t, const json_t *unknown, struct error *err)
{
	if (json_is_string(unknown))
		t->sentencepiece.unknown = vocabulary_find(&t->vocabulary, json_string_value(unknown), json_string_length(unknown), true);
	if (json_is_string(unknown) && t->sentencepiece.unknown == VOCABULARY_NONE)
		return error_set(err, ERROR_INVALID, "model", "unk_token is not in the vocabulary");
	return 0;
}

static int read_model(struct tokenizer *t, const json_t *model, struct error *err)
{
	static const char *const off[] = { "dropout", "continuing_subword_prefix", "end_of_word_suffix" };
	struct sentencepiece *s = &t->sentencepiece;
	const json_t *ranks = json_object_get(model, RANKS);
	int ret;

	for (size_t i = 0; i < sizeof(off) / sizeof(off[0]); i++)
		if (!tokenizer_json_is_off(json_object_get(model, off[i])))
			return refuse(err, "model", "model with %s", off[i]);
	if ((ret = tokenizer_json_flag(model, "ignore_merges", false, &t->ignore_merges, err)) ||
	    (ret = tokenizer_json_flag(model, "byte_fallback", false, &s->fallback, err)) ||
	    (ret = tokenizer_json_flag(model, "fuse_unk", false, &s->fuse, err)) ||
	    (ret = tokenizer_json_vocabulary(t, json_object_get(model, "vocab"), true, err)) ||
	    (ret = read_unknown(t, json_object_get(model, "unk_token"), err)))
		return ret;
	return ranks ? read_ranks(t, ranks, err) : tokenizer_json_merges(t, json_object_get(model, "merges"), err);
}

int tokenizer_json_sentencepiece(struct tokenizer *t, const json_t *root, struct error *err)
{
	struct sentencepiece *s = &t->sentencepiece;
	int ret;

	s->on = true;
	s->unknown = VOCABULARY_NONE;
	if ((ret = read_normalizer(s, json_object_get(root, "normalizer"), err)) ||
	    (ret = read_pretokenizer(s, json_object_get(root, "pre_tokenizer"), err)) ||
	    (ret = read_decoder(s, json_object_get(root, "decoder"), err)))
		return ret;
	return read_model(t, json_object_get(root, "model"), err);
}

// ---- writing

static json_t *replace_to_json(const char *from, const char *to)
{
	return json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern", "String", from, "content", to);
}

json_t *tokenizer_json_spaces(const struct sentencepiece *s)
{
	json_t *replace = s->normalizer.replace ? replace_to_json(" ", SPACE_MARK) : NULL;

	if (!s->normalizer.prepend)
		return replace ? replace : json_null();
	if (!replace)
		return json_pack("{s:s, s:s}", "type", "Prepend", "prepend", SPACE_MARK);
	return json_pack("{s:s, s:[{s:s, s:s}, o]}", "type", "Sequence", "normalizers", "type", "Prepend", "prepend", SPACE_MARK, replace);
}

json_t *tokenizer_json_metaspace(const struct sentencepiece *s)
{
	static const char *const schemes[] = { "never", "first", "always" };

	return !s->metaspace ? json_null() : json_pack("{s:s, s:s, s:s, s:b}", "type", "Metaspace", "replacement", SPACE_MARK,
						       "prepend_scheme", schemes[s->prefix], "split", s->split);
}

json_t *tokenizer_json_joining(const struct sentencepiece *s)
{
	json_t *list;

	if (s->strip == SPACE_STRIP_MARKS)
		return json_pack("{s:s, s:s, s:s, s:b}", "type", "Metaspace", "replacement", SPACE_MARK, "prepend_scheme",
			"always", "split", 1);
	list = json_pack("[o]", replace_to_json(SPACE_MARK, " "));
	if (s->decode_bytes)
		json_array_append_new(list, json_pack("{s:s}", "type", "ByteFallback"));
	json_array_append_new(list, json_pack("{s:s}", "type", "Fuse"));
	if (s->strip)
		json_array_append_new(list, json_pack("{s:s, s:s, s:i, s:i}", "type", "Strip", "content", " ", "start", 1, "stop", 0));
	return json_pack("{s:s, s:o}", "type", "Sequence", "decoders", list);
}

struct derived { uint32_t rank, left, right; };

static int derived_compare(const void *a, const void *b)
{
	const struct derived *x = a, *y = b;

	if (x->rank != y->rank)
		return x->rank < y->rank ? -1 : 1;
	if (x->left != y->left)
		return x->left < y->left ? -1 : 1;
	return x->right < y->right ? -1 : x->right > y->right;
}

static uint32_t ranked_find(const struct bpe *bpe, const struct vocabulary *v, const char *bytes, size_t n)
{
	uint32_t id = vocabulary_find(v, bytes, n, true);

	return id == VOCABULARY_NONE || bpe->ranks[id] == VOCABULARY_NONE ? VOCABULARY_NONE : id;
}

// Every way to put token id together from two, appended to list. -ENOMEM.
static int splits_derive(const struct bpe *bpe, const struct vocabulary *v, uint32_t id, struct derived **list, size_t *n, size_t *capacity)
{
	const char *bytes = vocabulary_bytes(v, id);

	for (size_t i = 1; i < v->tokens[id].n; i++) {
		struct derived d = { bpe->ranks[id], ranked_find(bpe, v, bytes, i), ranked_find(bpe, v, bytes + i, v->tokens[id].n - i) };

		if (d.left == VOCABULARY_NONE || d.right == VOCABULARY_NONE)
			continue;
		if (*n == *capacity) {
			size_t more = *capacity ? 2 * *capacity : 4096;
			struct derived *grown = reallocarray(*list, more, sizeof(*grown));

			if (!grown)
				return -ENOMEM;
			*list = grown;
			*capacity = more;
		}
		(*list)[(*n)++] = d;
	}
	return 0;
}

static json_t *token_string(const struct vocabulary *v, uint32_t id)
{
	return json_stringn(vocabulary_bytes(v, id), v->tokens[id].n);
}

int tokenizer_json_ranks(const struct bpe *bpe, const struct vocabulary *v, json_t *model)
{
	json_t *ranks = json_array(), *merges = json_array();
	struct derived *list = NULL;
	size_t n = 0, capacity = 0;
	int ret = ranks && merges ? 0 : -ENOMEM;

	for (uint32_t id = 0; id < v->n_ids && !ret; id++) {
		bool has = bpe->ranks[id] != VOCABULARY_NONE;

		ret = json_array_append_new(ranks, has ? json_integer(bpe->ranks[id]) : json_null());
		if (!ret && has)
			ret = splits_derive(bpe, v, id, &list, &n, &capacity);
	}
	if (n)
		qsort(list, n, sizeof(*list), derived_compare);
	for (size_t i = 0; i < n && !ret; i++)
		ret = json_array_append_new(merges, json_pack("[o, o]", token_string(v, list[i].left), token_string(v, list[i].right)));
	free(list);
	if (!ret)
		ret = json_object_set(model, "merges", merges) || json_object_set(model, RANKS, ranks);
	json_decref(merges);
	json_decref(ranks);
	return ret ? -ENOMEM : 0;
}
