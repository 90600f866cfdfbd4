// SPDX-License-Identifier: Apache-2.0
// Reads tokenizer.json (Hugging Face `tokenizers`). Whatever could change ids and is not implemented is refused by its name.
// `truncation` and `padding` are ignored: they are defaults of a batch, which callers of a server set themselves.
#include <errno.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/jansson.h"
#include "daemon/model/tokenizer_internal.h"

#define refuse tokenizer_json_refuse
#define is_type tokenizer_json_is_type
#define is_off tokenizer_json_is_off
#define get_flag tokenizer_json_flag
#define sequence_size tokenizer_json_size
#define sequence_get tokenizer_json_get

int tokenizer_json_refuse(struct error *err, const char *field, const char *format, ...)
{
	char what[200];
	va_list ap;

	va_start(ap, format);
	vsnprintf(what, sizeof(what), format, ap);
	va_end(ap);
	return error_set(err, ERROR_UNSUPPORTED, field, "%s is not supported", what);
}

static const char *type_of(const json_t *component)
{
	const char *type = json_string_value(json_object_get(component, "type"));

	return type ? type : "(none)";
}

bool tokenizer_json_is_type(const json_t *component, const char *type)
{
	return !strcmp(type_of(component), type);
}

// null, absent, false, 0, "".
bool tokenizer_json_is_off(const json_t *value)
{
	return !value || json_is_null(value) || json_is_false(value) || (json_is_string(value) && !json_string_length(value)) ||
	       (json_is_number(value) && json_number_value(value) == 0);
}

// A boolean member; `otherwise` when absent.
int tokenizer_json_flag(const json_t *object, const char *name, bool otherwise, bool *ret, struct error *err)
{
	const json_t *value = json_object_get(object, name);

	if (value && !json_is_boolean(value))
		return error_set(err, ERROR_INVALID, name, "\"%s\" is not a boolean", name);
	*ret = value ? json_is_true(value) : otherwise;
	return 0;
}

static int get_id(const json_t *value, const char *field, uint32_t *ret, struct error *err)
{
	json_int_t id = json_integer_value(value);

	if (!json_is_integer(value) || id < 0)
		return error_set(err, ERROR_INVALID, field, "an id is not a whole number >= 0");
	if (id >= VOCABULARY_MAX_IDS)
		return error_set(err, ERROR_TOO_LARGE, field, "id %lld is over the limit of %u", (long long)id, VOCABULARY_MAX_IDS - 1);
	*ret = (uint32_t)id;
	return 0;
}

static int read_added_token(struct tokenizer *t, const json_t *item, struct error *err)
{
	const json_t *content = json_object_get(item, "content");
	struct added_token token = { 0 };
	int ret;

	if (!json_is_string(content))
		return error_set(err, ERROR_INVALID, "added_tokens", "an added token without content");
	if ((ret = get_id(json_object_get(item, "id"), "added_tokens", &token.id, err)) ||
	    (ret = get_flag(item, "special", false, &token.special, err)) ||
	    (ret = get_flag(item, "normalized", !token.special, &token.normalized, err)) ||
	    (ret = get_flag(item, "lstrip", false, &token.lstrip, err)) || (ret = get_flag(item, "rstrip", false, &token.rstrip, err)) ||
	    (ret = get_flag(item, "single_word", false, &token.single_word, err)))
		return ret;
	return added_append(&t->added, &token, json_string_value(content), json_string_length(content), err);
}

static int read_added(struct tokenizer *t, const json_t *list, struct error *err)
{
	const json_t *item;
	size_t i;
	int ret = 0;

	if (list && !json_is_null(list) && !json_is_array(list))
		return error_set(err, ERROR_INVALID, "added_tokens", "\"added_tokens\" is not a list");
	json_array_foreach((json_t *)list, i, item)
		if ((ret = read_added_token(t, item, err)))
			break;
	return ret;
}

// What the vocabulary says of an added token's text must be the added token's own id. *ret_news counts those it does not have.
static int check_added(const struct tokenizer *t, const json_t *vocab, uint64_t *max_id, size_t *ret_new, struct error *err)
{
	*ret_new = 0;
	for (size_t i = 0; i < t->added.n; i++) {
		const struct added_token *token = &t->added.tokens[i];
		const json_t *id = json_object_get(vocab, token->content);

		if (id && (!json_is_integer(id) || json_integer_value(id) != token->id))
			return error_set(err, ERROR_INVALID, "added_tokens", "added token %u has another id in the vocabulary", token->id);
		*ret_new += !id;
		*max_id = token->id > *max_id ? token->id : *max_id;
	}
	return 0;
}

int tokenizer_json_vocabulary(struct tokenizer *t, json_t *vocab, bool literal, struct error *err)
{
	uint64_t max_id = 0;
	const char *spelling;
	size_t n_new;
	json_t *value;
	uint32_t id;
	int ret;

	if (!json_is_object(vocab) || !json_object_size(vocab))
		return error_set(err, ERROR_INVALID, "vocab", "the vocabulary is empty or not an object");
	json_object_foreach(vocab, spelling, value) {
		if ((ret = get_id(value, "vocab", &id, err)))
			return ret;
		max_id = id > max_id ? id : max_id;
	}
	if ((ret = check_added(t, vocab, &max_id, &n_new, err)) ||
	    (ret = vocabulary_init(&t->vocabulary, max_id + 1, json_object_size(vocab) + n_new, err)))
		return ret;
	// Added tokens first and as they are spelled, whether the vocabulary has them, too, or not.
	for (size_t i = 0; i < t->added.n; i++) {
		const struct added_token *token = &t->added.tokens[i];

		ret = vocabulary_append(&t->vocabulary, token->id, token->content, strlen(token->content), true, err);
		if (ret)
			return ret;
	}
	json_object_foreach(vocab, spelling, value) {
		size_t n = strlen(spelling);

		id = (uint32_t)json_integer_value(value);
		if (vocabulary_find(&t->vocabulary, spelling, n, true) == id)
			continue;
		if ((ret = vocabulary_append(&t->vocabulary, id, spelling, n, literal, err)))
			return ret;
	}
	return 0;
}

int tokenizer_json_merges(struct tokenizer *t, const json_t *merges, struct error *err)
{
	const json_t *item;
	size_t i;
	int ret;

	if (!json_is_array(merges))
		return error_set(err, ERROR_INVALID, "merges", "\"merges\" is not a list");
	ret = bpe_init(&t->bpe, &t->vocabulary, json_array_size(merges), err);
	if (ret)
		return ret;
	json_array_foreach((json_t *)merges, i, item) {
		const json_t *left = json_array_get(item, 0), *right = json_array_get(item, 1);

		if (json_is_string(item))
			ret = bpe_append_line(&t->bpe, &t->vocabulary, json_string_value(item), json_string_length(item), err);
		else if (json_array_size(item) == 2 && json_is_string(left) && json_is_string(right))
			ret = bpe_append(&t->bpe, &t->vocabulary, json_string_value(left), json_string_length(left),
					 json_string_value(right), json_string_length(right), err);
		else
			ret = error_set(err, ERROR_INVALID, "merges", "merge %zu is neither a string nor a pair", i);
		if (ret)
			return ret;
	}
	return 0;
}

static int read_model(struct tokenizer *t, const json_t *model, struct error *err)
{
	static const char *const off[] = { "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback" };
	int ret;

	if (!json_is_object(model))
		return error_set(err, ERROR_INVALID, "model", "there is no model");
	if (json_object_get(model, "type") ? !is_type(model, "BPE") : !json_object_get(model, "merges"))    // old files leave the type out
		return refuse(err, "model", "model type %s", type_of(model));
	for (size_t i = 0; i < sizeof(off) / sizeof(off[0]); i++)
		if (!is_off(json_object_get(model, off[i])))
			return refuse(err, "model", "model with %s", off[i]);
	if ((ret = get_flag(model, "ignore_merges", false, &t->ignore_merges, err)) ||
	    (ret = tokenizer_json_vocabulary(t, json_object_get(model, "vocab"), false, err)))
		return ret;
	return tokenizer_json_merges(t, json_object_get(model, "merges"), err);
}

size_t tokenizer_json_size(const json_t *component, const char *list)
{
	return is_type(component, "Sequence") ? json_array_size(json_object_get(component, list)) : component && !json_is_null(component);
}

const json_t *tokenizer_json_get(const json_t *component, const char *list, size_t i)
{
	return is_type(component, "Sequence") ? json_array_get(json_object_get(component, list), i) : component;
}

static int read_normalizer(struct tokenizer *t, const json_t *normalizer, struct error *err)
{
	for (size_t i = 0, n = sequence_size(normalizer, "normalizers"); i < n; i++) {
		const json_t *step = sequence_get(normalizer, "normalizers", i);

		if (!is_type(step, "NFC"))
			return refuse(err, "normalizer", "normalizer type %s", type_of(step));
		t->nfc = true;
	}
	return 0;
}

static int read_split(struct tokenizer *t, const json_t *step, struct error *err)
{
	const json_t *pattern = json_object_get(step, "pattern"), *regex = json_object_get(pattern, "Regex");
	const char *behavior = json_string_value(json_object_get(step, "behavior"));
	bool invert = false;
	int ret;

	if (!json_is_string(regex))
		return refuse(err, "pre_tokenizer", "Split without a Regex pattern");
	if (!behavior || strcmp(behavior, "Isolated") != 0)
		return refuse(err, "pre_tokenizer", "Split behavior %s", behavior ? behavior : "(none)");
	ret = get_flag(step, "invert", false, &invert, err);    // swaps matches and gaps: with Isolated the pieces are the same
	return ret ? ret : pretokenizer_append_pattern(&t->pretokenizer, json_string_value(regex), json_string_length(regex), false, err);
}

static int read_byte_level(struct tokenizer *t, const json_t *step, struct error *err)
{
	bool use_regex = true, prefix = true;
	int ret;

	if ((ret = get_flag(step, "use_regex", true, &use_regex, err)) || (ret = get_flag(step, "add_prefix_space", true, &prefix, err)))
		return ret;
	if (prefix)
		return refuse(err, "pre_tokenizer", "ByteLevel with add_prefix_space");
	return use_regex ? pretokenizer_append_pattern(&t->pretokenizer, PATTERN_GPT2, strlen(PATTERN_GPT2), false, err) : 0;
}

static int read_pretokenizer(struct tokenizer *t, const json_t *pretokenizer, struct error *err)
{
	size_t n = sequence_size(pretokenizer, "pretokenizers");
	bool each = false;
	int ret = 0;

	for (size_t i = 0; i < n && !ret; i++) {
		const json_t *step = sequence_get(pretokenizer, "pretokenizers", i);
		bool last = i + 1 == n;

		// ByteLevel spells bytes, which every later step would see: it comes once, at the end.
		if (is_type(step, "ByteLevel") != last)
			ret = refuse(err, "pre_tokenizer", "pre_tokenizer type %s %s", type_of(step), last ? "without ByteLevel after it" :
				     "before the end");
		else if (last)
			ret = read_byte_level(t, step, err);
		else if (is_type(step, "Split"))
			ret = read_split(t, step, err);
		else if (!is_type(step, "Digits"))
			ret = refuse(err, "pre_tokenizer", "pre_tokenizer type %s", type_of(step));
		else if (!(ret = get_flag(step, "individual_digits", false, &each, err)))
			ret = pretokenizer_append(&t->pretokenizer, each ? PRETOKENIZER_DIGIT : PRETOKENIZER_DIGITS, err);
	}
	return ret || n ? ret : refuse(err, "pre_tokenizer", "a tokenizer without pre_tokenizer");
}

static int read_template_special(const json_t *table, const json_t *piece, struct template_ids *side, struct error *err)
{
	const char *name = json_string_value(json_object_get(piece, "id"));
	const json_t *ids = json_object_get(name ? json_object_get(table, name) : NULL, "ids"), *id;
	size_t i;
	int ret;

	if (!json_is_array(ids))
		return error_set(err, ERROR_INVALID, "post_processor", "the template names a special token without ids");
	json_array_foreach((json_t *)ids, i, id) {
		if (side->n == TOKENIZER_MAX_TEMPLATE)
			return error_set(err, ERROR_TOO_LARGE, "post_processor", "the template has more than %d tokens",
				TOKENIZER_MAX_TEMPLATE);
		if ((ret = get_id(id, "post_processor", &side->ids[side->n], err)))
			return ret;
		side->n++;
	}
	return 0;
}

static int read_template(struct tokenizer *t, const json_t *template, struct error *err)
{
	const json_t *single = json_object_get(template, "single"), *table = json_object_get(template, "special_tokens"), *piece;
	struct template_ids *side = &t->before;
	size_t i;
	int ret = 0;

	json_array_foreach((json_t *)single, i, piece) {
		const json_t *special = json_object_get(piece, "SpecialToken"), *sequence = json_object_get(piece, "Sequence");
		const char *id = json_string_value(json_object_get(sequence, "id"));

		if (special)
			ret = read_template_special(table, special, side, err);
		else if (id && !strcmp(id, "A") && side == &t->before)
			side = &t->after;
		else
			ret = refuse(err, "post_processor", "a template other than specials, one A, specials");
		if (ret)
			return ret;
	}
	return side == &t->after ? 0 : refuse(err, "post_processor", "a template without A");
}

// "cls" and "sep": [text, id], around the text.
static int read_bert_processing(struct tokenizer *t, const json_t *post, struct error *err)
{
	int ret = get_id(json_array_get(json_object_get(post, "cls"), 1), "post_processor", &t->before.ids[0], err);

	if (!ret)
		ret = get_id(json_array_get(json_object_get(post, "sep"), 1), "post_processor", &t->after.ids[0], err);
	t->before.n = t->after.n = 1;
	return ret;
}

static int read_post_processor(struct tokenizer *t, const json_t *post, struct error *err)
{
	unsigned n_templates = 0;
	int ret = 0;

	if (is_type(post, "BertProcessing"))
		return read_bert_processing(t, post, err);

	for (size_t i = 0, n = sequence_size(post, "processors"); i < n && !ret; i++) {
		const json_t *step = sequence_get(post, "processors", i);

		if (is_type(step, "TemplateProcessing") && !n_templates++)
			ret = read_template(t, step, err);
		else if (!is_type(step, "ByteLevel"))    // changes offsets only; ours are exact bytes
			ret = refuse(err, "post_processor", "post_processor type %s%s", type_of(step), n_templates > 1 ? " twice" : "");
	}
	return ret;
}

static int read_decoder(const json_t *decoder, struct error *err)
{
	size_t n = sequence_size(decoder, "decoders");

	for (size_t i = 0; i < n; i++)
		if (!is_type(sequence_get(decoder, "decoders", i), "ByteLevel"))
			return refuse(err, "decoder", "decoder type %s", type_of(sequence_get(decoder, "decoders", i)));
	return n == 1 ? 0 : refuse(err, "decoder", "a decoder other than one ByteLevel");
}

static int read_byte_level_parts(struct tokenizer *t, const json_t *root, struct error *err)
{
	int ret;

	if ((ret = read_model(t, json_object_get(root, "model"), err)) ||
	    (ret = read_normalizer(t, json_object_get(root, "normalizer"), err)) ||
	    (ret = read_pretokenizer(t, json_object_get(root, "pre_tokenizer"), err)))
		return ret;
	return read_decoder(json_object_get(root, "decoder"), err);
}

static int read_parts(struct tokenizer *t, const json_t *root, struct error *err)
{
	if (tokenizer_json_is_wordpiece(root))
		return tokenizer_json_wordpiece(t, root, err);
	return tokenizer_json_is_sentencepiece(root) ? tokenizer_json_sentencepiece(t, root, err) : read_byte_level_parts(t, root, err);
}

static int read_root(struct tokenizer *t, json_t *root, struct error *err)
{
	static const char *const known[] = { "version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
					     "post_processor", "decoder", "model" };
	const char *key;
	json_t *value;
	size_t i;
	int ret;

	if (!json_is_object(root))
		return error_set(err, ERROR_INVALID, "tokenizer.json", "the file is not a JSON object");
	json_object_foreach(root, key, value) {
		for (i = 0; i < sizeof(known) / sizeof(known[0]) && strcmp(key, known[i]) != 0; i++)
			;
		if (i == sizeof(known) / sizeof(known[0]))
			return refuse(err, "tokenizer.json", "member \"%.60s\"", key);
	}
	if ((ret = read_added(t, json_object_get(root, "added_tokens"), err)) ||
	    (ret = read_parts(t, root, err)) ||
	    (ret = read_post_processor(t, json_object_get(root, "post_processor"), err)))
		return ret;
	// The file names neither; the template tells what stands around a text.
	t->bos = t->before.n ? (int32_t)t->before.ids[0] : -1;
	t->eos = t->after.n ? (int32_t)t->after.ids[t->after.n - 1] : -1;
	return 0;
}

int tokenizer_open_json(const char *json, size_t n, struct tokenizer **ret, struct error *err)
{
	struct tokenizer *t = calloc(1, sizeof(*t));
	json_error_t why;
	json_t *root = NULL;
	bool starved;
	int rc;

	if (!t)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a tokenizer");
	root = jansson_load(json, n, JSON_REJECT_DUPLICATES, &why, &starved);
	if (!root) {
		rc = error_set(err, starved ? ERROR_MEMORY : ERROR_INVALID, "tokenizer.json", "not JSON: %s (line %d)", why.text, why.line);
		goto out;
	}
	rc = read_root(t, root, err);
	if (!rc)
		rc = tokenizer_finish(t, err);
	if (!rc) {
		*ret = t;
		t = NULL;
	}
out:
	json_decref(root);
	tokenizer_close(t);
	return rc;
}
