// SPDX-License-Identifier: Apache-2.0
// What the readers of tokenizer.ggml.* share.
#pragma once

#include <errno.h>

#include "daemon/model/gguf.h"
#include "daemon/model/tokenizer_internal.h"

#define KEY(name) "tokenizer.ggml." name

enum token_type { TYPE_NORMAL = 1, TYPE_UNKNOWN = 2, TYPE_CONTROL = 3, TYPE_USER_DEFINED = 4, TYPE_UNUSED = 5, TYPE_BYTE = 6 };

// -ENOENT is set in err with the key's name, for a key that must be there.
static inline int required(int ret, const char *key, struct error *err)
{
	return ret == -ENOENT ? error_set(err, ERROR_INVALID, key, "the file has no %s", key) : ret;
}

static inline int optional(int ret)
{
	return ret == -ENOENT ? 0 : ret;
}

// model = "llama": the scores of the tokens that are in the vocabulary, and what becomes of characters that are not. types: of each id up
// to the last present; NULL = all are normal.
int tokenizer_gguf_scores(struct tokenizer *t, const struct gguf *file, const int32_t *types, struct error *err);
