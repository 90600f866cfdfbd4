// SPDX-License-Identifier: Apache-2.0
// Writes tokenizer.json and tokenizer_config.json for `transformers`. Added tokens are written into the vocabulary as well as beside
// it: the reference numbers a token that is only beside by its place, not by its id.
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/jansson.h"
#include "daemon/model/tokenizer_internal.h"

// A token as files spell it; the caller frees. NULL without memory or when the bytes are no text.
static json_t *token_to_json(const struct vocabulary *v, uint32_t id)
{
	size_t n = v->tokens[id].n;
	char *spelling;
	json_t *string;

	if (v->tokens[id].flags & TOKEN_LITERAL)
		return json_stringn(vocabulary_bytes(v, id), n);
	spelling = malloc(2 * n + 1);
	if (!spelling)
		return NULL;
	string = json_stringn(spelling, alphabet_encode(vocabulary_bytes(v, id), n, spelling));
	free(spelling);
	return string;
}

static json_t *vocabulary_to_json(const struct vocabulary *v)
{
	json_t *vocab = json_object();

	for (uint32_t id = 0; vocab && id < v->n_ids; id++) {
		json_t *spelling;

		if (!(v->tokens[id].flags & TOKEN_PRESENT))
			continue;
		spelling = token_to_json(v, id);
		if (!spelling || json_object_set_new(vocab, json_string_value(spelling), json_integer(id))) {
			json_decref(vocab);
			vocab = NULL;
		}
		json_decref(spelling);
	}
	return vocab;
}

// Pairs, not strings: a token may hold a space.
static json_t *merges_to_json(const struct tokenizer *t)
{
	json_t *list = json_array();

	for (uint32_t i = 0; list && i < t->bpe.n_merges; i++) {
		json_t *pair = json_pack("[o, o]", token_to_json(&t->vocabulary, t->bpe.merges[i].left),
					 token_to_json(&t->vocabulary, t->bpe.merges[i].right));

		if (json_array_append_new(list, pair)) {
			json_decref(list);
			list = NULL;
		}
	}
	return list;
}

static json_t *added_to_json(const struct tokenizer *tokenizer)
{
	const struct added *a = &tokenizer->added;
	// The reference would look for them with a space before, as its normalizer makes of them.
	bool plain = tokenizer->bpe.ranks && tokenizer->sentencepiece.normalizer.prepend;
	json_t *list = json_array();

	for (size_t i = 0; list && i < a->n; i++) {
		const struct added_token *t = &a->tokens[i];
		json_t *item = json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", (int)t->id, "content", t->content, "single_word",
					 t->single_word, "lstrip", t->lstrip, "rstrip", t->rstrip, "normalized", t->normalized && !plain,
					 "special", t->special);

		if (json_array_append_new(list, item)) {
			json_decref(list);
			list = NULL;
		}
	}
	return list;
}

static json_t *byte_level_to_json(bool use_regex)
{
	return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1, "use_regex", use_regex);
}

static json_t *pretokenizer_to_json(const struct pretokenizer *p)
{
	json_t *list = json_array();
	bool regex = false;
	int failed = !list;

	for (unsigned i = 0; i < p->n_steps && !failed; i++) {
		const struct pretokenizer_step *step = &p->steps[i];
		json_t *item;

		if (step->kind == PRETOKENIZER_GPT2 && i + 1 == p->n_steps) {
			regex = true;
			break;
		}
		if (step->pattern)
			item = json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern", "Regex", step->pattern, "behavior",
					 "Isolated", "invert", 0);
		else
			item = json_pack("{s:s, s:b}", "type", "Digits", "individual_digits", step->kind == PRETOKENIZER_DIGIT);
		failed = json_array_append_new(list, item);
	}
	if (!failed)
		failed = json_array_append_new(list, byte_level_to_json(regex));
	if (failed) {
		json_decref(list);
		return NULL;
	}
	return json_pack("{s:s, s:o}", "type", "Sequence", "pretokenizers", list);
}

static int template_side(const struct tokenizer *t, const struct template_ids *side, json_t *single, json_t *pair, json_t *table)
{
	for (unsigned i = 0; i < side->n; i++) {
		char name[24];
		json_t *spelling = token_to_json(&t->vocabulary, side->ids[i]);
		json_t *piece;
		int failed;

		snprintf(name, sizeof(name), "%u", side->ids[i]);
		piece = json_pack("{s:{s:s, s:i}}", "SpecialToken", "id", spelling ? json_string_value(spelling) : name, "type_id", 0);
		failed = !spelling || json_array_append(single, piece) || json_array_append(pair, piece) ||
			 json_object_set_new(table, json_string_value(spelling),
					     json_pack("{s:O, s:[i], s:[O]}", "id", spelling, "ids", (int)side->ids[i],
					     "tokens", spelling));
		json_decref(piece);
		json_decref(spelling);
		if (failed)
			return -1;
	}
	return 0;
}

// Pairs of texts are not ours to define; the reference wants a template for them and gets A B inside the same specials.
static json_t *template_to_json(const struct tokenizer *t)
{
	json_t *single = json_array(), *pair = json_array(), *table = json_object();
	int failed = template_side(t, &t->before, single, pair, table);

	failed |= json_array_append_new(single, json_pack("{s:{s:s, s:i}}", "Sequence", "id", "A", "type_id", 0));
	failed |= json_array_append_new(pair, json_pack("{s:{s:s, s:i}}", "Sequence", "id", "A", "type_id", 0));
	failed |= json_array_append_new(pair, json_pack("{s:{s:s, s:i}}", "Sequence", "id", "B", "type_id", 1));
	failed |= template_side(t, &t->after, single, pair, table);
	if (failed) {
		json_decref(single);
		json_decref(pair);
		json_decref(table);
		return NULL;
	}
	return json_pack("{s:s, s:o, s:o, s:o}", "type", "TemplateProcessing", "single", single, "pair", pair, "special_tokens", table);
}

static json_t *post_processor_to_json(const struct tokenizer *t)
{
	if ((t->wordpiece.on || t->sentencepiece.on) && !t->before.n && !t->after.n)
		return json_null();
	return t->before.n || t->after.n ? template_to_json(t) : byte_level_to_json(true);
}

static int dump(json_t *root, size_t flags, char **ret_json, size_t *ret_n, struct error *err)
{
	char *text = root ? jansson_dump(root, flags) : NULL;

	json_decref(root);
	if (!text)
		return error_set(err, ERROR_MEMORY, NULL, "no memory to write the tokenizer, or a token of it is not text");
	*ret_json = text;
	*ret_n = strlen(text);
	return 0;
}

static json_t *wordpiece_to_json(const struct tokenizer *t)
{
	return json_pack("{s:s, s:n, s:n, s:o, s:o, s:{s:s}, s:o, s:{s:s, s:s, s:b}, s:o}", "version", "1.0", "truncation", "padding",
			 "added_tokens", added_to_json(t), "normalizer", tokenizer_json_wordpiece_normalizer(t),
			 "pre_tokenizer", "type", "BertPreTokenizer",
			 "post_processor", post_processor_to_json(t), "decoder", "type", "WordPiece", "prefix", WORDPIECE_PREFIX, "cleanup",
			 t->wordpiece.cleanup, "model", tokenizer_json_wordpiece_model(t, vocabulary_to_json(&t->vocabulary)));
}

static json_t *sentencepiece_model_to_json(const struct tokenizer *t)
{
	const struct sentencepiece *s = &t->sentencepiece;
	json_t *unknown = s->unknown == VOCABULARY_NONE ? json_null() : token_to_json(&t->vocabulary, s->unknown);
	json_t *model = json_pack("{s:s, s:n, s:o, s:n, s:n, s:b, s:b, s:b, s:o}", "type", "BPE", "dropout", "unk_token", unknown,
				  "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", s->fuse, "byte_fallback", s->fallback,
				  "ignore_merges", t->ignore_merges, "vocab", vocabulary_to_json(&t->vocabulary));
	int failed = !model || (t->bpe.ranks ? tokenizer_json_ranks(&t->bpe, &t->vocabulary, model) :
						 json_object_set_new(model, "merges", merges_to_json(t)));

	if (failed) {
		json_decref(model);
		return NULL;
	}
	return model;
}

static json_t *sentencepiece_to_json(const struct tokenizer *t)
{
	return json_pack("{s:s, s:n, s:n, s:o, s:o, s:o, s:o, s:o, s:o}", "version", "1.0", "truncation", "padding", "added_tokens",
			 added_to_json(t), "normalizer", tokenizer_json_spaces(&t->sentencepiece), "pre_tokenizer",
			 tokenizer_json_metaspace(&t->sentencepiece), "post_processor", post_processor_to_json(t), "decoder",
			 tokenizer_json_joining(&t->sentencepiece), "model", sentencepiece_model_to_json(t));
}

int tokenizer_to_json(const struct tokenizer *t, char **ret_json, size_t *ret_n, struct error *err)
{
	if (t->wordpiece.on)
		return dump(wordpiece_to_json(t), JSON_COMPACT, ret_json, ret_n, err);
	if (t->sentencepiece.on)
		return dump(sentencepiece_to_json(t), JSON_COMPACT, ret_json, ret_n, err);
	json_t *model = json_pack("{s:s, s:n, s:n, s:n, s:n, s:b, s:b, s:b, s:o, s:o}", "type", "BPE", "dropout", "unk_token",
				  "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0, "byte_fallback", 0, "ignore_merges",
				  t->ignore_merges, "vocab", vocabulary_to_json(&t->vocabulary), "merges", merges_to_json(t));
	json_t *normalizer = t->nfc ? json_pack("{s:s}", "type", "NFC") : json_null();

	return dump(json_pack("{s:s, s:n, s:n, s:o, s:o, s:o, s:o, s:o, s:o}", "version", "1.0", "truncation", "padding", "added_tokens",
			      added_to_json(t), "normalizer", normalizer, "pre_tokenizer", pretokenizer_to_json(&t->pretokenizer),
			      "post_processor", post_processor_to_json(t), "decoder", byte_level_to_json(true), "model", model),
		    JSON_COMPACT, ret_json, ret_n, err);
}

static int config_token(json_t *config, const char *name, const struct tokenizer *t, int32_t id)
{
	if (id < 0)
		return 0;
	return json_object_set_new(config, name, token_to_json(&t->vocabulary, (uint32_t)id));
}

int tokenizer_config_to_json(const struct tokenizer *t, char **ret_json, size_t *ret_n, struct error *err)
{
	// Cleaning up "spaces before punctuation" would break the round trip.
	json_t *config = json_pack("{s:s, s:b}", "tokenizer_class", "PreTrainedTokenizerFast", "clean_up_tokenization_spaces", 0);

	if (!config || config_token(config, "bos_token", t, t->bos) || config_token(config, "eos_token", t, t->eos)) {
		json_decref(config);
		config = NULL;
	}
	return dump(config, JSON_INDENT(2) | JSON_SORT_KEYS, ret_json, ret_n, err);
}
