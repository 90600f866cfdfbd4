// SPDX-License-Identifier: Apache-2.0
// SentencePiece's vocabulary in GGUF: a score for each token; of two merges the one into the token of higher score comes first. What the
// file says is read as SentencePiece itself would: user-defined tokens are found in the text with its spaces marked, and nothing merges
// across them. Control tokens are for the caller, who may have them found in the text as in other tokenizers; each stretch between them is
// then a text of its own.
#include <stdlib.h>

#include "daemon/model/tokenizer_gguf.h"

static int read_scores(const struct gguf *file, uint32_t n_ids, float **ret, struct error *err)
{
	uint64_t n = 0;
	int r = required(gguf_get_floats(file, KEY("scores"), ret, &n, err), KEY("scores"), err);

	if (!r && n < n_ids)
		return error_set(err, ERROR_INVALID, KEY("scores"), "%llu scores for %u tokens", (unsigned long long)n, n_ids);
	return r;
}

static int read_unknown(struct tokenizer *t, const struct gguf *file, const int32_t *types, struct error *err)
{
	struct vocabulary *v = &t->vocabulary;
	uint64_t id = VOCABULARY_NONE;
	int r = optional(gguf_get_u64(file, KEY("unknown_token_id"), &id, err));

	for (uint32_t i = 0; types && i < v->n_ids && id == VOCABULARY_NONE; i++)
		if (types[i] == TYPE_UNKNOWN)
			id = i;
	if (r)
		return r;
	if (id != VOCABULARY_NONE && (id >= v->n_ids || !(v->tokens[id].flags & TOKEN_PRESENT)))
		return error_set(err, ERROR_INVALID, KEY("unknown_token_id"), "%llu is not in the vocabulary", (unsigned long long)id);
	t->sentencepiece.unknown = (uint32_t)id;
	t->sentencepiece.fallback = vocabulary_find(v, "<0x00>", 6, true) != VOCABULARY_NONE;
	if (id == VOCABULARY_NONE && !t->sentencepiece.fallback)
		return error_set(err, ERROR_INVALID, KEY("tokens"), "there are tokens neither for unknown characters nor for bytes");
	return 0;
}

int tokenizer_gguf_scores(struct tokenizer *t, const struct gguf *file, const int32_t *types, struct error *err)
{
	struct vocabulary *v = &t->vocabulary;
	bool *mergeable = calloc(v->n_ids, sizeof(*mergeable));
	float *scores = NULL;
	int ret = mergeable ? read_scores(file, v->n_ids, &scores, err) : error_set(err, ERROR_MEMORY, NULL, "no memory for scores");

	for (uint32_t id = 0; id < v->n_ids && !ret; id++)
		mergeable[id] = v->tokens[id].flags & TOKEN_PRESENT && (!types || types[id] == TYPE_NORMAL);
	if (!ret)
		ret = sentencepiece_rank(&t->bpe, v, scores, mergeable, err);
	if (!ret)
		ret = read_unknown(t, file, types, err);
	free(mergeable);
	free(scores);
	return ret;
}
