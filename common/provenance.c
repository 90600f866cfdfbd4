// SPDX-License-Identifier: Apache-2.0
#include "common/provenance.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "common/error.h"

#define FIRST_LINE "kdserved teacher 1\n"

struct content_id provenance_fingerprint(const struct provenance *p)
{
	uint8_t bytes[sizeof FIRST_LINE - 1 + 2 * CONTENT_ID_BYTES + 2 * PROVENANCE_WORD_BYTES], *at = bytes;
	size_t n_numeric = strnlen(p->numeric, sizeof p->numeric - 1), n_codec = strnlen(p->codec, sizeof p->codec - 1);
	memset(bytes, 0, sizeof bytes);
	at = (uint8_t *)memcpy(at, FIRST_LINE, sizeof FIRST_LINE - 1) + sizeof FIRST_LINE - 1;
	at = (uint8_t *)memcpy(at, p->weights.bytes, CONTENT_ID_BYTES) + CONTENT_ID_BYTES;
	at = (uint8_t *)memcpy(at, p->tokenizer.bytes, CONTENT_ID_BYTES) + CONTENT_ID_BYTES;
	at = (uint8_t *)memcpy(at, p->numeric, n_numeric) + n_numeric + 1;
	at = (uint8_t *)memcpy(at, p->codec, n_codec) + n_codec + 1;
	return content_id_of(bytes, (size_t)(at - bytes));
}

size_t provenance_encode(const struct provenance *p, char ret_text[PROVENANCE_MAX_BYTES])
{
	char weights[CONTENT_ID_HEX], tokenizer[CONTENT_ID_HEX], name[PROVENANCE_NAME_BYTES] = "";
	content_id_to_hex(&p->weights, weights);
	content_id_to_hex(&p->tokenizer, tokenizer);
	for (size_t i = 0; i + 1 < sizeof name && p->name[i]; i++)
		name[i] = p->name[i] >= 0x20 && p->name[i] < 0x7f ? p->name[i] : '?';
	int n = snprintf(ret_text, PROVENANCE_MAX_BYTES, FIRST_LINE "weights %s\ntokenizer %s\nnumeric %s\ncodec %s\nname %s\n", weights,
			 tokenizer, p->numeric, p->codec, name);
	return (size_t)n;              // every part is bounded: it fits
}

struct lines {
	const char *text;
	size_t n;
	bool failed;
};

// The value of the next line, which must have this key; cut out into `ret` of `size` bytes, printable ASCII.
static void line_take(struct lines *l, const char *key, char *ret, size_t size)
{
	const char *end = l->failed ? NULL : memchr(l->text, '\n', l->n);
	size_t n_key = strlen(key), n = end ? (size_t)(end - l->text) : 0;
	ret[0] = '\0';
	if (!end || n < n_key + 1 || memcmp(l->text, key, n_key) != 0 || l->text[n_key] != ' ' || n - n_key - 1 >= size) {
		l->failed = true;
		return;
	}
	for (size_t i = n_key + 1; i < n; i++)
		l->failed |= l->text[i] < 0x20 || l->text[i] >= 0x7f;
	memcpy(ret, l->text + n_key + 1, n - n_key - 1);
	ret[n - n_key - 1] = '\0';
	l->text += n + 1;
	l->n -= n + 1;
}

int provenance_decode(const char *text, size_t n, struct provenance *ret, struct error *err)
{
	struct lines l = {.text = text, .n = n, .failed = n > PROVENANCE_MAX_BYTES};
	struct provenance p = {0};
	char first[sizeof FIRST_LINE], weights[CONTENT_ID_HEX], tokenizer[CONTENT_ID_HEX];
	line_take(&l, "kdserved teacher", first, sizeof first);
	line_take(&l, "weights", weights, sizeof weights);
	line_take(&l, "tokenizer", tokenizer, sizeof tokenizer);
	line_take(&l, "numeric", p.numeric, sizeof p.numeric);
	line_take(&l, "codec", p.codec, sizeof p.codec);
	line_take(&l, "name", p.name, sizeof p.name);
	if (l.failed || l.n || strcmp(first, "1") != 0 || content_id_from_hex(weights, &p.weights) ||
	    content_id_from_hex(tokenizer, &p.tokenizer))
		return error_set(err, ERROR_CORRUPT, NULL, "the note about a teacher is damaged");
	p.fingerprint = provenance_fingerprint(&p);
	*ret = p;
	return 0;
}
