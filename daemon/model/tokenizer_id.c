// SPDX-License-Identifier: Apache-2.0
// The last step of opening: checks across parts, and the id. The id covers what decides ids and text: a tokenizer.json and the GGUF
// made from it have the same one, though the one lists special tokens beside the vocabulary and the other within.
#include <stdlib.h>
#include <string.h>

#include "daemon/model/tokenizer_internal.h"

static void hash_u32(struct hasher *h, uint32_t v)
{
	hasher_update(h, (const uint8_t[]){ (uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16), (uint8_t)(v >> 24) }, 4);
}

static void hash_bytes(struct hasher *h, const char *bytes, size_t n)
{
	hash_u32(h, (uint32_t)n);
	hasher_update(h, bytes, n);
}

static void hash_vocabulary(struct hasher *h, const struct vocabulary *v)
{
	hash_u32(h, v->n_tokens);
	for (uint32_t id = 0; id < v->n_ids; id++) {
		if (!(v->tokens[id].flags & TOKEN_PRESENT))
			continue;
		hash_u32(h, id);
		hash_u32(h, v->tokens[id].flags);
		hash_bytes(h, vocabulary_bytes(v, id), v->tokens[id].n);
	}
}

static void hash_added(struct hasher *h, const struct added *a)
{
	hash_u32(h, (uint32_t)a->n);
	for (size_t i = 0; i < a->n; i++) {
		const struct added_token *t = &a->tokens[i];

		hash_u32(h, t->id);
		hash_bytes(h, t->content, strlen(t->content));
		hash_u32(h, (uint32_t)(t->special | t->normalized << 1 | t->lstrip << 2 | t->rstrip << 3 | t->single_word << 4));
	}
}

static void hash_template(struct hasher *h, const struct template_ids *ids)
{
	hash_u32(h, ids->n);
	for (unsigned i = 0; i < ids->n; i++)
		hash_u32(h, ids->ids[i]);
}

static void hash_wordpiece(struct hasher *h, const struct wordpiece *w)
{
	const struct bert_normalizer *n = &w->normalizer;

	hash_u32(h, (uint32_t)(n->clean | n->ideographs << 1 | n->strip_accents << 2 | n->lower << 3 | w->cleanup << 4));
	hash_u32(h, w->unknown);
	hash_u32(h, w->max_characters);
}

static void hash_sentencepiece(struct hasher *h, const struct tokenizer *t)
{
	const struct sentencepiece *s = &t->sentencepiece;

	hash_bytes(h, "sentencepiece", 13);
	hash_u32(h, (uint32_t)(s->normalizer.prepend | s->normalizer.replace << 1 | s->metaspace << 2 | s->split << 3 | s->fallback << 4 |
			       s->fuse << 5 | s->decode_bytes << 6 | (t->bpe.ranks != NULL) << 7));
	hash_u32(h, (uint32_t)s->prefix);
	hash_u32(h, (uint32_t)s->strip);
	hash_u32(h, s->unknown);
	for (uint32_t id = 0; t->bpe.ranks && id < t->vocabulary.n_ids; id++)
		hash_u32(h, t->bpe.ranks[id]);
}

static int id_compute(struct tokenizer *t, struct error *err)
{
	static const char name[] = "kdserved tokenizer 1\n";
	struct hasher *h = hasher_new();

	if (!h)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the tokenizer's id");
	hasher_update(h, name, sizeof(name) - 1);
	hash_vocabulary(h, &t->vocabulary);
	hash_u32(h, t->bpe.n_merges);
	for (uint32_t i = 0; i < t->bpe.n_merges; i++) {
		hash_u32(h, t->bpe.merges[i].left);
		hash_u32(h, t->bpe.merges[i].right);
	}
	hash_u32(h, t->pretokenizer.n_steps);
	for (unsigned i = 0; i < t->pretokenizer.n_steps; i++) {
		const struct pretokenizer_step *step = &t->pretokenizer.steps[i];

		hash_u32(h, step->kind == PRETOKENIZER_DIGIT ? 1 : step->kind == PRETOKENIZER_DIGITS ? 2 : 3);
		hash_bytes(h, step->pattern ? step->pattern : "", step->pattern ? strlen(step->pattern) : 0);
	}
	hash_added(h, &t->added);
	hash_u32(h, (uint32_t)(t->nfc | t->ignore_merges << 1));
	hash_template(h, &t->before);
	hash_template(h, &t->after);
	if (t->wordpiece.on)
		hash_wordpiece(h, &t->wordpiece);
	if (t->sentencepiece.on)
		hash_sentencepiece(h, t);
	t->id = hasher_free(h);
	return 0;
}

static int template_check(const struct tokenizer *t, const struct template_ids *ids, struct error *err)
{
	for (unsigned i = 0; i < ids->n; i++)
		if (ids->ids[i] >= t->vocabulary.n_ids || !(t->vocabulary.tokens[ids->ids[i]].flags & TOKEN_PRESENT))
			return error_set(err, ERROR_INVALID, "post_processor",
				"the template's id %u is not in the vocabulary", ids->ids[i]);
	return 0;
}

static void id_or_none(const struct tokenizer *t, int32_t *id)
{
	if (*id < 0 || (uint32_t)*id >= t->vocabulary.n_ids || !(t->vocabulary.tokens[*id].flags & TOKEN_PRESENT))
		*id = -1;
}

int tokenizer_finish(struct tokenizer *t, struct error *err)
{
	int ret = added_finish(&t->added, t->nfc, tokenizer_added_spaces(t), err);

	if (!ret && t->sentencepiece.on)
		ret = sentencepiece_finish(&t->sentencepiece, &t->vocabulary, &t->added, err);
	if (ret || (ret = template_check(t, &t->before, err)) || (ret = template_check(t, &t->after, err)))
		return ret;
	for (size_t i = 0; i < t->added.n; i++)
		t->vocabulary.tokens[t->added.tokens[i].id].flags |= TOKEN_ADDED | (t->added.tokens[i].special ? TOKEN_SPECIAL : 0);
	id_or_none(t, &t->bos);
	id_or_none(t, &t->eos);
	return id_compute(t, err);
}
