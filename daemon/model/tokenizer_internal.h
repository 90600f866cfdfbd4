// SPDX-License-Identifier: Apache-2.0
// What the tokenizer's files share. A reader (tokenizer_json.c, tokenizer_gguf.c) fills one of these and calls tokenizer_finish().
#pragma once

#include "common/error.h"
#include "daemon/model/added.h"
#include "daemon/model/bpe.h"
#include "daemon/model/pretokenizer.h"
#include "daemon/model/tokenizer.h"
#include "daemon/model/vocabulary.h"

#define TOKENIZER_MAX_TEMPLATE 16

struct template_ids { uint32_t ids[TOKENIZER_MAX_TEMPLATE]; unsigned n; };

struct tokenizer {
	struct vocabulary vocabulary;
	struct bpe bpe;
	struct pretokenizer pretokenizer;
	struct added added;
	bool nfc;                                  // normalizer
	bool ignore_merges;                        // a piece that is a token needs no merging
	struct template_ids before, after;         // the template: ids around the text
	int32_t bos, eos;                          // -1 = none known
	struct content_id id;
};

// Checks the whole, derives what look-ups need and computes the id.
int tokenizer_finish(struct tokenizer *t, struct error *err);
