// SPDX-License-Identifier: Apache-2.0
// The parts of tokenizer.json that BERT has: model WordPiece, BertNormalizer, BertPreTokenizer, WordPiece decoder.
#include <jansson.h>
#include <string.h>

#include "daemon/model/tokenizer_internal.h"

static bool is_type(const json_t *component, const char *type)
{
	const char *is = json_string_value(json_object_get(component, "type"));

	return is && !strcmp(is, type);
}

bool tokenizer_json_is_wordpiece(const json_t *root)
{
	return is_type(json_object_get(root, "model"), "WordPiece");
}

static int need_type(const json_t *root, const char *member, const char *type, struct error *err)
{
	if (is_type(json_object_get(root, member), type))
		return 0;
	return tokenizer_json_refuse(err, member, "WordPiece with a %s other than %s", member, type);
}

// A boolean member, which may be null or absent: then `otherwise`.
static int get_flag(const json_t *object, const char *name, bool otherwise, bool *ret, struct error *err)
{
	const json_t *value = json_object_get(object, name);

	if (value && !json_is_null(value) && !json_is_boolean(value))
		return error_set(err, ERROR_INVALID, name, "\"%s\" is not a boolean", name);
	*ret = value && json_is_boolean(value) ? json_is_true(value) : otherwise;
	return 0;
}

static int read_normalizer(struct bert_normalizer *n, const json_t *normalizer, struct error *err)
{
	int ret;

	if ((ret = get_flag(normalizer, "clean_text", true, &n->clean, err)) ||
	    (ret = get_flag(normalizer, "handle_chinese_chars", true, &n->ideographs, err)) ||
	    (ret = get_flag(normalizer, "lowercase", true, &n->lower, err)))
		return ret;
	return get_flag(normalizer, "strip_accents", n->lower, &n->strip_accents, err);
}

static bool is_prefix(const json_t *object, const char *name)
{
	const char *prefix = json_string_value(json_object_get(object, name));

	return prefix && !strcmp(prefix, WORDPIECE_PREFIX);
}

static int read_model(struct tokenizer *t, const json_t *model, struct error *err)
{
	const json_t *unknown = json_object_get(model, "unk_token"), *max = json_object_get(model, "max_input_chars_per_word");
	struct wordpiece *w = &t->wordpiece;

	if (!is_prefix(model, "continuing_subword_prefix"))
		return tokenizer_json_refuse(err, "model", "WordPiece with a prefix other than " WORDPIECE_PREFIX);
	int ret = tokenizer_json_vocabulary(t, json_object_get(model, "vocab"), true, err);
	if (ret)
		return ret;
	w->max_characters = 100;
	if (max && json_is_integer(max) && json_integer_value(max) > 0 && json_integer_value(max) <= WORDPIECE_MAX_CHARACTERS)
		w->max_characters = (uint32_t)json_integer_value(max);
	else if (max && !json_is_null(max))
		return tokenizer_json_refuse(err, "model", "max_input_chars_per_word other than 1 to %d", WORDPIECE_MAX_CHARACTERS);
	w->unknown = json_is_string(unknown) ? vocabulary_find(&t->vocabulary, json_string_value(unknown), json_string_length(unknown),
					       true) : VOCABULARY_NONE;
	return w->unknown == VOCABULARY_NONE ? error_set(err, ERROR_INVALID, "model", "the vocabulary has no unk_token") : 0;
}

int tokenizer_json_wordpiece(struct tokenizer *t, const json_t *root, struct error *err)
{
	const json_t *decoder = json_object_get(root, "decoder");
	int ret;

	// One that is looked for in normalized text would have to be normalized itself.
	for (size_t i = 0; i < t->added.n; i++)
		if (t->added.tokens[i].normalized)
			return tokenizer_json_refuse(err, "added_tokens", "WordPiece with added tokens that are normalized");
	if ((ret = need_type(root, "normalizer", "BertNormalizer", err)) ||
	    (ret = need_type(root, "pre_tokenizer", "BertPreTokenizer", err)) || (ret = need_type(root, "decoder", "WordPiece", err)))
		return ret;
	if (!is_prefix(decoder, "prefix"))
		return tokenizer_json_refuse(err, "decoder", "a decoder with a prefix other than " WORDPIECE_PREFIX);
	if ((ret = get_flag(decoder, "cleanup", true, &t->wordpiece.cleanup, err)) ||
	    (ret = read_normalizer(&t->wordpiece.normalizer, json_object_get(root, "normalizer"), err)))
		return ret;
	t->wordpiece.on = true;
	return read_model(t, json_object_get(root, "model"), err);
}

json_t *tokenizer_json_wordpiece_model(const struct tokenizer *t, json_t *vocab)
{
	const struct vocabulary_token *unknown = &t->vocabulary.tokens[t->wordpiece.unknown];

	return json_pack("{s:s, s:s%, s:s, s:i, s:o}", "type", "WordPiece", "unk_token", t->vocabulary.bytes + unknown->offset,
			 (size_t)unknown->n, "continuing_subword_prefix", WORDPIECE_PREFIX, "max_input_chars_per_word",
			 (int)t->wordpiece.max_characters, "vocab", vocab);
}

json_t *tokenizer_json_wordpiece_normalizer(const struct tokenizer *t)
{
	const struct bert_normalizer *n = &t->wordpiece.normalizer;

	return json_pack("{s:s, s:b, s:b, s:b, s:b}", "type", "BertNormalizer", "clean_text", n->clean,
			 "handle_chinese_chars", n->ideographs, "strip_accents", n->strip_accents, "lowercase", n->lower);
}
