// SPDX-License-Identifier: Apache-2.0
// tokenizer_config.json: which token begins a text and which ends one. Nothing else of it is read:
// what changes ids stands in tokenizer.json.
#include <string.h>

#include "daemon/jansson.h"
#include "daemon/model/tokenizer_internal.h"

// "</s>", or {"content":"</s>", ...}. A token that the vocabulary does not have is none.
static int32_t find_token(const struct tokenizer *t, const json_t *value)
{
	const json_t *content = json_is_object(value) ? json_object_get(value, "content") : value;
	const char *text = json_string_value(content);
	size_t n = json_string_length(content);
	if (!text)
		return -1;
	for (size_t i = 0; i < t->added.n; i++)
		if (strlen(t->added.tokens[i].content) == n && memcmp(t->added.tokens[i].content, text, n) == 0)
			return (int32_t)t->added.tokens[i].id;
	uint32_t id = vocabulary_find_spelling(&t->vocabulary, text, n);
	return id == VOCABULARY_NONE ? -1 : (int32_t)id;
}

int tokenizer_read_ends(struct tokenizer *t, const char *json, size_t n, struct error *err)
{
	json_error_t why;
	bool starved;
	json_t *root = jansson_load(json, n, 0, &why, &starved);
	if (!root)
		return error_set(err, starved ? ERROR_MEMORY : ERROR_INVALID, "tokenizer_config.json",
				 "tokenizer_config.json is not JSON: %s (line %d)", why.text, why.line);
	if (t->bos < 0)
		t->bos = find_token(t, json_object_get(root, "bos_token"));
	if (t->eos < 0)
		t->eos = find_token(t, json_object_get(root, "eos_token"));
	json_decref(root);
	return 0;
}
