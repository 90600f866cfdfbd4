// SPDX-License-Identifier: Apache-2.0
#include "daemon/teacher/generation_reader.h"

#include <stdlib.h>

#include "common/error.h"
#include "daemon/model/tokenizer.h"
#include "daemon/teacher/generation.h"

// How many of the bytes up to `to` are whole characters: the last may still be on its way. (What is no UTF-8 at all is not waited for.)
static size_t whole_characters(const char *text, size_t from, size_t to)
{
	for (size_t back = 1; back <= 3 && back <= to - from; back++) {
		unsigned char c = (unsigned char)text[to - back];
		size_t length = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : c >= 0xc0 ? 2 : 1;
		if (c >= 0xc0)
			return length > back ? to - back : to;
		if (c < 0x80)
			return to;
	}
	return to;
}

int generation_reader_take(struct generation_reader *r, const struct generation *g, const struct tokenizer *tokenizer, bool complete,
			   struct generation_news *ret_news, struct error *err)
{
	char *text = NULL;
	size_t n_text = 0, sure = atomic_load(&g->n_text);     // before the count of tokens: theirs is at least this text
	uint32_t n = atomic_load(&g->n_tokens);
	int result = tokenizer_decode_part(tokenizer, g->tokens + r->n_tokens, n - r->n_tokens, true, &text, &n_text, err);
	if (result)
		return result;
	buffer_add(&r->text, text, n_text);
	free(text);
	if (r->text.failed)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the answer's text");
	if (!complete && sure > r->n_text)
		sure = whole_characters(r->text.data, r->n_text, sure);
	sure = sure > r->n_text ? sure : r->n_text;
	*ret_news = (struct generation_news){.first = r->n_tokens, .n = n - r->n_tokens,
		.text = r->text.data ? r->text.data + r->n_text : "", .text_bytes = sure - r->n_text};
	r->n_tokens = n;
	r->n_text = sure;
	return 0;
}

void generation_reader_done(struct generation_reader *r)
{
	buffer_done(&r->text);
}
