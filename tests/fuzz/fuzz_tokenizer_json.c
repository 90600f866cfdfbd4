// SPDX-License-Identifier: Apache-2.0
// A tokenizer.json, and after the first NUL a text for it. What opens must encode any text, decode its own ids, and come back from the
// file it writes as the same tokenizer.
#include <stdlib.h>
#include <string.h>

#include "daemon/model/tokenizer.h"
#include "tests/fuzz/fuzz.h"

static void try_text(const struct tokenizer *t, const char *text, size_t n, bool specials)
{
	struct tokens tokens = { 0 };
	char *back = NULL;
	size_t n_back;

	if (tokenizer_encode(t, text, n, specials, specials, SIZE_MAX, &tokens, NULL) == 0) {
		for (size_t i = 0; i < tokens.n; i++)
			if (tokens.offsets[i].begin > tokens.offsets[i].end || tokens.offsets[i].end > n)
				abort();
		if (tokenizer_decode(t, tokens.ids, tokens.n, false, &back, &n_back, NULL))
			abort();
		free(back);
		if (tokenizer_decode_part(t, tokens.ids, tokens.n, true, &back, &n_back, NULL))
			abort();
		free(back);
	}
	if (tokenizer_encode_part(t, text, n, specials, SIZE_MAX, &tokens, NULL) == 0)
		for (size_t i = 0; i < tokens.n; i++)
			if (tokens.offsets[i].end > n)
				abort();
	tokens_done(&tokens);
}

static void try_copy(const struct tokenizer *t)
{
	struct content_id id = tokenizer_id(t), id_again;
	struct tokenizer *again = NULL;
	char *json = NULL;
	size_t n;

	if (tokenizer_to_json(t, &json, &n, NULL) || tokenizer_open_json(json, n, &again, NULL))
		abort();
	id_again = tokenizer_id(again);
	if (memcmp(&id, &id_again, sizeof(id)))
		abort();
	tokenizer_close(again);
	free(json);
}

// What stands behind the file is also read as a tokenizer_config.json, and what is written of it names the same ends.
static void try_ends(struct tokenizer *t, const char *text, size_t n)
{
	struct tokenizer *again = NULL;
	char *json = NULL, *config = NULL;
	size_t n_json, n_config;

	if (tokenizer_read_ends(t, text, n, NULL))
		return;
	if (tokenizer_eos(t) >= (int64_t)tokenizer_vocab_size(t) || tokenizer_bos(t) >= (int64_t)tokenizer_vocab_size(t))
		abort();
	if (tokenizer_to_json(t, &json, &n_json, NULL) || tokenizer_open_json(json, n_json, &again, NULL) ||
	    tokenizer_config_to_json(t, &config, &n_config, NULL) || tokenizer_read_ends(again, config, n_config, NULL))
		abort();
	if (tokenizer_eos(t) != tokenizer_eos(again) || tokenizer_bos(t) != tokenizer_bos(again))
		abort();
	tokenizer_close(again);
	free(json);
	free(config);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const uint8_t *end = size ? memchr(data, 0, size) : NULL;
	size_t n = end ? (size_t)(end - data) : size;
	struct tokenizer *t = NULL;

	if (tokenizer_open_json((const char *)data, n, &t, NULL) == 0) {
		const char *text = end ? (const char *)end + 1 : "a1 \n\n'S\xe6\xbc\xa2\xff";
		size_t n_text = end ? size - n - 1 : strlen(text);

		try_text(t, text, n_text, true);
		try_text(t, text, n_text, false);
		try_copy(t);
		try_ends(t, text, n_text);
	}
	tokenizer_close(t);
	return 0;
}
