// SPDX-License-Identifier: Apache-2.0
// Reads the tokenizer out of GGUF metadata. GGUF names a pre-tokenizer instead of holding it; the table below says what the name means
// in the tokenizer.json of the models that use it, which is the truth here: `transformers` reading the same GGUF assumes the plain
// GPT-2 pattern for all of them, and so splits numbers of SmolLM2 differently from SmolLM2's own tokenizer. SentencePiece's kind ("llama")
// has scores instead of merges, see tokenizer_gguf_scores.c.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/model/gguf.h"
#include "daemon/model/tokenizer_gguf.h"

static const struct pre {
	const char *name;
	bool digits, nfc, ignore_merges, add_bos;    // add_bos: when the file does not say
	const char *pattern;
} pres[] = {
	{ "gpt-2", .pattern = PATTERN_GPT2 },
	{ "llama-bpe", .pattern = PATTERN_LLAMA3, .ignore_merges = true, .add_bos = true },
	{ "llama3", .pattern = PATTERN_LLAMA3, .ignore_merges = true, .add_bos = true },
	{ "llama-v3", .pattern = PATTERN_LLAMA3, .ignore_merges = true, .add_bos = true },
	{ "dbrx", .pattern = PATTERN_LLAMA3 },
	{ "smaug-bpe", .pattern = PATTERN_LLAMA3 },
	{ "gpt-4o", .pattern = PATTERN_O200K },
	{ "tekken", .pattern = PATTERN_TEKKEN, .ignore_merges = true, .add_bos = true },
	{ "qwen2", .pattern = PATTERN_QWEN2, .nfc = true },
	{ "smollm", .pattern = PATTERN_GPT2, .digits = true },
	{ "starcoder", .pattern = PATTERN_GPT2, .digits = true },
	{ "refact", .pattern = PATTERN_GPT2, .digits = true },
};

static bool text_is(const char *text, size_t n, const char *name)
{
	return strlen(name) == n && !memcmp(text, name, n);
}

static int read_pre(struct tokenizer *t, const struct gguf *file, const struct pre **ret_pre, struct error *err)
{
	const struct pre *pre = NULL;
	const char *text;
	size_t n;
	int ret = required(gguf_get_string(file, KEY("model"), &text, &n, err), KEY("model"), err);

	if (ret)
		return ret;
	t->sentencepiece.on = text_is(text, n, "llama");
	if (t->sentencepiece.on)
		return 0;
	if (!text_is(text, n, "gpt2"))
		return error_set(err, ERROR_UNSUPPORTED, KEY("model"), "tokenizer model %.*s is not supported",
			(int)(n < 60 ? n : 60), text);
	ret = required(gguf_get_string(file, KEY("pre"), &text, &n, err), KEY("pre"), err);
	if (ret)
		return ret;
	for (size_t i = 0; i < sizeof(pres) / sizeof(pres[0]); i++)
		if (text_is(text, n, pres[i].name))
			pre = &pres[i];
	if (!pre)
		return error_set(err, ERROR_UNSUPPORTED, KEY("pre"), "pre-tokenizer %.*s is not supported", (int)(n < 60 ? n : 60), text);
	t->nfc = pre->nfc;
	t->ignore_merges = pre->ignore_merges;
	if (pre->digits && (ret = pretokenizer_append(&t->pretokenizer, PRETOKENIZER_DIGIT, err)))
		return ret;
	*ret_pre = pre;
	return pretokenizer_append_pattern(&t->pretokenizer, pre->pattern, strlen(pre->pattern), false, err);
}

// A token that is looked for behind the normalizer, as that makes it. Files hold it with spaces.
static int append_user_defined(struct tokenizer *t, const struct added_token *token, const char *spelling, size_t n, struct error *err)
{
	struct source_text given = { .bytes = spelling, .n = n }, marked;

	if (source_text_spaces(&marked, &given, 0, n, (struct space_normalizer){ false, true }))
		return error_set(err, ERROR_MEMORY, NULL, "no memory for added tokens");
	int ret = added_append(&t->added, token, marked.bytes, marked.n, err);

	ret = ret ? ret : vocabulary_append(&t->vocabulary, token->id, marked.bytes, marked.n, true, err);
	source_text_done(&marked);
	return ret;
}

static int read_token(struct tokenizer *t, const char *spelling, size_t n, uint32_t id, int32_t type, struct error *err)
{
	struct added_token token = { .id = id, .special = type == TYPE_CONTROL || type == TYPE_UNKNOWN };

	if (type == TYPE_NORMAL || (t->sentencepiece.on && (type == TYPE_BYTE || type == TYPE_UNUSED)))
		return vocabulary_append(&t->vocabulary, id, spelling, n, t->sentencepiece.on, err);
	if (type == TYPE_UNUSED)    // padding of the embedding: no text has this id
		return 0;
	if (type != TYPE_CONTROL && type != TYPE_USER_DEFINED && type != TYPE_UNKNOWN)
		return error_set(err, ERROR_UNSUPPORTED, KEY("token_type"), "type %d of token %u is not supported", type, id);
	if (type == TYPE_USER_DEFINED && t->sentencepiece.on) {
		token.normalized = true;
		return append_user_defined(t, &token, spelling, n, err);
	}
	int ret = added_append(&t->added, &token, spelling, n, err);

	return ret ? ret : vocabulary_append(&t->vocabulary, id, spelling, n, true, err);
}

static int read_tokens(struct tokenizer *t, const struct gguf *file, struct error *err)
{
	uint64_t n_tokens, n_types = 0;
	int32_t *types = NULL;
	int ret = required(gguf_get_strings(file, KEY("tokens"), &n_tokens, err), KEY("tokens"), err);

	if (ret || (ret = optional(gguf_get_int32s(file, KEY("token_type"), &types, &n_types, err))))
		goto out;
	if (types && n_types != n_tokens) {
		ret = error_set(err, ERROR_INVALID, KEY("token_type"), "%llu types for %llu tokens", (unsigned long long)n_types,
				(unsigned long long)n_tokens);
		goto out;
	}
	while (types && n_tokens && types[n_tokens - 1] == TYPE_UNUSED)
		n_tokens--;
	ret = vocabulary_init(&t->vocabulary, n_tokens, n_tokens, err);
	for (uint32_t id = 0; id < n_tokens && !ret; id++) {
		const char *spelling;
		size_t n;

		ret = gguf_string_at(file, KEY("tokens"), id, &spelling, &n);
		if (ret)
			ret = error_set(err, ERROR_INVALID, KEY("tokens"), "token %u cannot be read", id);
		else
			ret = read_token(t, spelling, n, id, types ? types[id] : TYPE_NORMAL, err);
	}
	if (!ret && t->sentencepiece.on)
		ret = tokenizer_gguf_scores(t, file, types, err);
out:
	free(types);
	return ret;
}

static int read_merges(struct tokenizer *t, const struct gguf *file, struct error *err)
{
	uint64_t n_merges;
	int ret = required(gguf_get_strings(file, KEY("merges"), &n_merges, err), KEY("merges"), err);

	if (!ret)
		ret = bpe_init(&t->bpe, &t->vocabulary, n_merges, err);
	for (uint64_t i = 0; !ret && i < n_merges; i++) {
		const char *line;
		size_t n;

		ret = gguf_string_at(file, KEY("merges"), i, &line, &n);
		if (ret)
			ret = error_set(err, ERROR_INVALID, KEY("merges"), "merge %llu cannot be read", (unsigned long long)i);
		else
			ret = bpe_append_line(&t->bpe, &t->vocabulary, line, n, err);
	}
	return ret;
}

static int read_id(const struct gguf *file, const char *key, int32_t otherwise, int32_t *ret_id, struct error *err)
{
	uint64_t id = 0;
	int ret = gguf_get_u64(file, key, &id, err);

	*ret_id = ret == -ENOENT ? otherwise : ret || id >= VOCABULARY_MAX_IDS ? -1 : (int32_t)id;
	return optional(ret);
}

// add_bos_token and its like: the id on that side of the template.
static int read_side(const struct gguf *file, const char *key, bool add, int32_t id, struct template_ids *side, struct error *err)
{
	int ret = optional(gguf_get_bool(file, key, &add, err));

	if (ret || !add)
		return ret;
	if (id < 0)
		return error_set(err, ERROR_INVALID, key, "%s is set, but the file has no such token", key);
	side->ids[side->n++] = (uint32_t)id;
	return 0;
}

static int read_prefix(struct tokenizer *t, const struct gguf *file, struct error *err)
{
	bool spm = t->sentencepiece.on, prefix = spm, trim = false;
	int ret = optional(gguf_get_bool(file, KEY("add_space_prefix"), &prefix, err));

	if (ret || (ret = optional(gguf_get_bool(file, KEY("remove_extra_whitespaces"), &trim, err))))
		return ret;
	if (spm && trim)
		return error_set(err, ERROR_UNSUPPORTED, KEY("remove_extra_whitespaces"), "remove_extra_whitespaces is not supported");
	if (!spm && prefix)
		return error_set(err, ERROR_UNSUPPORTED, KEY("add_space_prefix"), "add_space_prefix is not supported");
	t->sentencepiece.normalizer = (struct space_normalizer){ prefix, spm };
	t->sentencepiece.strip = prefix ? SPACE_STRIP_ONE : SPACE_STRIP_NONE;
	t->sentencepiece.decode_bytes = t->sentencepiece.fuse = spm;
	return 0;
}

static int read_all(struct tokenizer *t, const struct gguf *file, struct error *err)
{
	const struct pre *pre = NULL;
	int ret = read_pre(t, file, &pre, err);

	if (ret)
		return ret;
	bool spm = t->sentencepiece.on;

	// SentencePiece's ids of both ends, and that a text begins with the one, need not be said.
	if ((ret = read_prefix(t, file, err)) || (ret = read_tokens(t, file, err)) || (!spm && (ret = read_merges(t, file, err))) ||
	    (ret = read_id(file, KEY("bos_token_id"), spm ? 1 : -1, &t->bos, err)) ||
	    (ret = read_id(file, KEY("eos_token_id"), spm ? 2 : -1, &t->eos, err)) ||
	    (ret = read_side(file, KEY("add_bos_token"), spm || pre->add_bos, t->bos, &t->before, err)) ||
	    (ret = read_side(file, KEY("add_eos_token"), false, t->eos, &t->after, err)))
		return ret;
	return tokenizer_finish(t, err);
}

int tokenizer_open_gguf(const struct gguf *file, struct tokenizer **ret, struct error *err)
{
	struct tokenizer *t = calloc(1, sizeof(*t));
	int rc;

	if (!t)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a tokenizer");
	t->bos = t->eos = -1;
	rc = read_all(t, file, err);
	if (rc) {
		tokenizer_close(t);
		return rc;
	}
	*ret = t;
	return 0;
}
