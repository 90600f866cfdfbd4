// SPDX-License-Identifier: Apache-2.0
#include "clients/kdctl/ngrams.h"

#include <errno.h>
#include <limits.h>
#include <locale.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>
#include <wctype.h>

#include "common/sequence.h"

#define SMALLEST_SHARE 1e-8

int ngrams_init(void)
{
	return setlocale(LC_CTYPE, "C.UTF-8") ? 0 : -ENOENT;
}

static uint32_t bucket(const char *text, size_t n)
{
	struct content_id id = content_id_of(text, n);
	uint32_t rest = 0;
	for (size_t i = 0; i < sizeof id.bytes; i++)
		rest = (rest * 256 + id.bytes[i]) % NGRAMS_BUCKETS;
	return rest;
}

enum kind { SPACE, WORD, SIGN };

static enum kind kind_of(wint_t c)
{
	return iswalnum(c) || c == L'_' ? WORD : iswspace(c) ? SPACE : SIGN;
}

// The next character in lower case, as UTF-8 in `out`; how many bytes it took of the text.
static size_t next(const char *text, size_t n, enum kind *ret_kind, char out[MB_LEN_MAX], size_t *ret_n)
{
	mbstate_t state = {0};
	wchar_t c;
	size_t took = mbrtowc(&c, text, n, &state);
	if (took == 0 || took > n) {           // NUL, or not UTF-8
		out[0] = *text;
		*ret_n = 1;
		*ret_kind = SIGN;
		return 1;
	}
	memset(&state, 0, sizeof state);
	size_t wrote = wcrtomb(out, (wchar_t)towlower((wint_t)c), &state);
	*ret_kind = kind_of((wint_t)c);
	*ret_n = wrote <= MB_LEN_MAX ? wrote : 0;
	return took;
}

// `words` holds "before word": the pair, whose second word begins at `at`.
static void count(struct ngrams *g, const char *words, size_t at, size_t n)
{
	g->n_words++;
	g->counts[bucket(words + at, n - at)]++;
	if (at)
		g->counts[bucket(words, n)]++;
}

int ngrams_add(struct ngrams *g, const char *text, size_t n)
{
	char *words = malloc(2 * n + 2 + 2 * MB_LEN_MAX), out[MB_LEN_MAX];   // a letter may grow by one byte when lowered
	size_t at = 0, end = 0, took = 1;
	enum kind now = SPACE;
	if (!words)
		return -ENOMEM;
	for (size_t i = 0; i <= n; i += took) {
		enum kind kind = SPACE;
		size_t n_out = 0;
		if (i < n)
			took = next(text + i, n - i, &kind, out, &n_out);
		if (kind != now && now != SPACE) {
			count(g, words, at, end);
			memmove(words, words + at, end - at);        // the next word's neighbour
			end -= at;
			words[end++] = ' ';
			at = end;
		}
		if (kind != SPACE)
			memcpy(words + end, out, n_out);
		end += kind != SPACE ? n_out : 0;
		now = kind;
	}
	free(words);
	return 0;
}

void ngrams_log_ratios(const uint64_t *target, const uint64_t *raw, double *ret)
{
	double n_target = 0, n_raw = 0;
	for (uint32_t b = 0; b < NGRAMS_BUCKETS; b++) {
		n_target += (double)target[b];
		n_raw += (double)raw[b];
	}
	for (uint32_t b = 0; b < NGRAMS_BUCKETS; b++)
		ret[b] = log((n_target > 0 ? (double)target[b] / n_target : 0) + SMALLEST_SHARE) -
			 log((n_raw > 0 ? (double)raw[b] / n_raw : 0) + SMALLEST_SHARE);
}

double ngrams_log_weight(const struct ngrams *g, const double *log_ratios)
{
	double sum = 0;
	for (uint32_t b = 0; b < NGRAMS_BUCKETS; b++)
		sum += g->counts[b] * log_ratios[b];
	return sum;
}
