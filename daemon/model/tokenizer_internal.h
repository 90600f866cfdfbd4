// SPDX-License-Identifier: Apache-2.0
// What the tokenizer's files share. A reader (tokenizer_json.c, tokenizer_gguf.c) fills one of these and calls tokenizer_finish().
#pragma once

#include <jansson.h>

#include "common/error.h"
#include "daemon/model/added.h"
#include "daemon/model/bpe.h"
#include "daemon/model/pretokenizer.h"
#include "daemon/model/sentencepiece.h"
#include "daemon/model/tokenizer.h"
#include "daemon/model/vocabulary.h"
#include "daemon/model/wordpiece.h"

#define TOKENIZER_MAX_TEMPLATE 16

struct template_ids { uint32_t ids[TOKENIZER_MAX_TEMPLATE]; unsigned n; };

struct tokenizer {
	struct vocabulary vocabulary;
	struct bpe bpe;                            // empty where wordpiece.on
	struct wordpiece wordpiece;
	struct sentencepiece sentencepiece;        // bpe's merges or ranks are its own
	struct pretokenizer pretokenizer;
	struct added added;
	bool nfc;                                  // normalizer
	bool ignore_merges;                        // a piece that is a token needs no merging
	struct template_ids before, after;         // the template: ids around the text
	int32_t bos, eos;                          // -1 = none known
	struct content_id id;
};

// Shared by the readers of tokenizer.json.
int tokenizer_json_refuse(struct error *err, const char *field, const char *format, ...) __attribute__((format(printf, 3, 4)));
int tokenizer_json_vocabulary(struct tokenizer *t, json_t *vocab, bool literal, struct error *err);
int tokenizer_json_merges(struct tokenizer *t, const json_t *merges, struct error *err);
bool tokenizer_json_is_type(const json_t *component, const char *type);
bool tokenizer_json_is_off(const json_t *value);       // what a switched-off option looks like
int tokenizer_json_flag(const json_t *object, const char *name, bool otherwise, bool *ret, struct error *err);
// A component or the members of its Sequence (one level), flattened. `list`: the member's name within.
size_t tokenizer_json_size(const json_t *component, const char *list);
const json_t *tokenizer_json_get(const json_t *component, const char *list, size_t i);
bool tokenizer_json_is_wordpiece(const json_t *root);
// All but the added tokens and the template.
int tokenizer_json_wordpiece(struct tokenizer *t, const json_t *root, struct error *err);
bool tokenizer_json_is_sentencepiece(const json_t *root);
int tokenizer_json_sentencepiece(struct tokenizer *t, const json_t *root, struct error *err);
// For the writer: members of a tokenizer of that kind; NULL without memory.
json_t *tokenizer_json_spaces(const struct sentencepiece *s);              // normalizer
json_t *tokenizer_json_metaspace(const struct sentencepiece *s);           // pre_tokenizer
json_t *tokenizer_json_joining(const struct sentencepiece *s);             // decoder
// merges that do what ranks do, and the ranks
int tokenizer_json_ranks(const struct bpe *bpe, const struct vocabulary *v, json_t *model);
// For the writer: a tokenizer of the WordPiece kind's members; NULL without memory. vocab is taken over.
json_t *tokenizer_json_wordpiece_model(const struct tokenizer *t, json_t *vocab);
json_t *tokenizer_json_wordpiece_normalizer(const struct tokenizer *t);

// What the normalizer makes of added tokens that are looked for behind it.
static inline struct space_normalizer tokenizer_added_spaces(const struct tokenizer *t)
{
	// SentencePiece's own (with ranks) are found before a space is put at the beginning.
	return (struct space_normalizer){ t->sentencepiece.normalizer.prepend && !t->bpe.ranks, t->sentencepiece.normalizer.replace };
}

// Checks the whole, derives what look-ups need and computes the id.
int tokenizer_finish(struct tokenizer *t, struct error *err);
