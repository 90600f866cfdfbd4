// SPDX-License-Identifier: Apache-2.0
// A GGUF file as a teacher is opened: parse, architecture, every tensor by name, token lists, and its tokenizer, which reads a text.
#include <stdlib.h>
#include <string.h>

#include "daemon/model/config.h"
#include "daemon/model/gguf.h"
#include "daemon/model/gguf_source.h"
#include "daemon/model/tokenizer.h"
#include "tests/fuzz/fuzz.h"

static void read_tensors(const struct gguf *f, const struct architecture *a)
{
	struct tensor t;
	for (size_t i = 0; i < gguf_count(f) && i < 64; i++) {
		if (gguf_read(f, gguf_name(f, i), &t, NULL) < 0)
			abort();      // the extents were checked at open
		free((void *)(uintptr_t)t.data);
	}
	if (a && gguf_source_read(f, a, "model.layers.0.self_attn.q_proj.weight", &t, NULL) == 0)
		free((void *)(uintptr_t)t.data);
}

static void read_lists(const struct gguf *f)
{
	uint64_t n = 0;
	int32_t *ids = NULL;
	volatile size_t sum = 0;
	if (gguf_get_strings(f, "tokenizer.ggml.tokens", &n, NULL) == 0) {
		for (uint64_t i = 0; i < n; i++) {
			const char *s;
			size_t s_n;
			if (gguf_string_at(f, "tokenizer.ggml.tokens", i, &s, &s_n) < 0)
				abort();
			for (size_t k = 0; k < s_n; k++)
				sum += (unsigned char)s[k];
		}
	}
	if (gguf_get_int32s(f, "tokenizer.ggml.token_type", &ids, &n, NULL) == 0)
		free(ids);
}

// What it reads into ids it reads back; the tokenizer.json made of it is a tokenizer of the same meaning.
static void read_text(const struct gguf *f)
{
	static const char text[] = "  the aab 12 ab\n</s>\xe2\x96\x81\xc3\xa9<x> \xff";
	struct tokenizer *t = NULL, *again = NULL;
	struct tokens tokens = {0};
	char *back = NULL, *json = NULL;
	size_t n_back, n;
	if (tokenizer_open_gguf(f, &t, NULL))
		return;
	for (int special = 0; special < 2; special++) {
		if (tokenizer_encode(t, text, sizeof text - 1, special, special, SIZE_MAX, &tokens, NULL))
			continue;
		for (size_t i = 0; i < tokens.n; i++)
			if (tokens.ids[i] >= tokenizer_vocab_size(t) || tokens.offsets[i].end >= sizeof text)
				abort();
		if (tokenizer_decode(t, tokens.ids, tokens.n, false, &back, &n_back, NULL))
			abort();
		free(back);
	}
	if (tokenizer_to_json(t, &json, &n, NULL) || tokenizer_open_json(json, n, &again, NULL))
		abort();
	struct content_id a = tokenizer_id(t), b = tokenizer_id(again);
	if (memcmp(&a, &b, sizeof a) != 0)
		abort();
	free(json);
	tokens_done(&tokens);
	tokenizer_close(again);
	tokenizer_close(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct gguf *f = NULL;
	struct architecture a;
	if (gguf_open_bytes(data, size, &f, NULL) < 0)
		return 0;
	int r = architecture_from_gguf(f, &a, NULL);
	if (r == 0 && architecture_check(&a, NULL) < 0)
		abort();
	read_tensors(f, r == 0 ? &a : NULL);
	read_lists(f);
	read_text(f);
	gguf_close(f);
	return 0;
}
