// SPDX-License-Identifier: Apache-2.0
#include "daemon/model/packing.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/tokenizer.h"

int packing_init(struct packing *p, uint32_t length, const uint32_t *prefix, uint32_t n_prefix, struct error *err)
{
	*p = (struct packing){.length = length, .n_prefix = n_prefix};
	if (!n_prefix)
		return 0;
	p->prefix = malloc(n_prefix * sizeof *p->prefix);
	if (!p->prefix)
		return error_set(err, ERROR_MEMORY, "corpus", "out of memory");
	memcpy(p->prefix, prefix, n_prefix * sizeof *p->prefix);
	return 0;
}

void packing_done(struct packing *p)
{
	free(p->prefix);
	free(p->tokens);
	*p = (struct packing){0};
}

static int packing_reserve(struct packing *p, size_t n, struct error *err)
{
	size_t need, bytes;
	if (__builtin_add_overflow(p->n_tokens, n, &need) || need > UINT32_MAX)
		return error_set(err, ERROR_TOO_LARGE, "corpus", "more than %u tokens", UINT32_MAX);
	if (need <= p->capacity)
		return 0;
	size_t capacity = p->capacity ? p->capacity : 1 << 16;
	while (capacity < need)
		capacity *= 2;         // need < 2^32: cannot wrap
	if (__builtin_mul_overflow(capacity, sizeof *p->tokens, &bytes))
		return error_set(err, ERROR_MEMORY, "corpus", "out of memory");
	uint32_t *tokens = realloc(p->tokens, bytes);
	if (!tokens)
		return error_set(err, ERROR_MEMORY, "corpus", "out of memory for %zu tokens", capacity);
	p->tokens = tokens;
	p->capacity = capacity;
	return 0;
}

int packing_append(struct packing *p, const uint32_t *tokens, size_t n, struct error *err)
{
	for (size_t done = 0; done < n;) {
		int r = packing_reserve(p, p->length, err);
		if (r)
			return r;
		if (p->n_tokens % p->length == 0) {
			if (p->n_prefix)
				memcpy(p->tokens + p->n_tokens, p->prefix, p->n_prefix * sizeof *p->prefix);
			p->n_tokens += p->n_prefix;
		}
		size_t room = p->length - p->n_tokens % p->length, take = n - done < room ? n - done : room;
		memcpy(p->tokens + p->n_tokens, tokens + done, take * sizeof *tokens);
		p->n_tokens += take;
		done += take;
	}
	return 0;
}

void packing_drop(struct packing *p, size_t n)
{
	size_t dropped = n * p->length;
	p->n_tokens -= dropped;
	if (dropped)                   // there may be no tokens yet
		memmove(p->tokens, p->tokens + dropped, p->n_tokens * sizeof *p->tokens);
}

int packing_prefix(const struct tokenizer *t, uint32_t *ret_prefix, uint32_t *ret_n, struct error *err)
{
	struct tokens tokens = {0};
	int r = tokenizer_encode(t, "", 0, false, true, 16, &tokens, err);
	*ret_n = r == 0 && tokens.n == 1 && (int64_t)tokens.ids[0] == tokenizer_bos(t);
	*ret_prefix = *ret_n ? tokens.ids[0] : 0;
	tokens_done(&tokens);
	return r;
}
