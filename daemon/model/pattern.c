// SPDX-License-Identifier: Apache-2.0
// Hand-written matchers of the well-known pre-tokenizer patterns: a few looks at each character, whatever the text. A run of spaces costs
// a backtracking engine its length at every place it may end; not so here. test_pretokenizer proves them equal to PCRE2.
#include "daemon/model/pretokenizer.h"

#include "daemon/model/unicode.h"

// Sets of characters, as the patterns divide them. kind_at answers with one of the first seven, or with none past the end.
enum {
	UPPER = 1, LOWER = 2, CASELESS = 4, MARK = 8, NUMBER = 16, SPACE = 32, SYMBOL = 64,
	LETTER = UPPER | LOWER | CASELESS,          // \p{L}
	OTHER = MARK | SYMBOL,                      // [^\s\p{L}\p{N}]
	WORD_HEAD = UPPER | CASELESS | MARK,        // [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]
	WORD_TAIL = LOWER | CASELESS | MARK,        // [\p{Ll}\p{Lm}\p{Lo}\p{M}]
};

static unsigned kind_at(const char *text, size_t n, size_t at, unsigned *ret_bytes)
{
	static const uint8_t kinds[] = {
		[UNICODE_OTHER] = SYMBOL, [UNICODE_UPPER] = UPPER, [UNICODE_LOWER] = LOWER, [UNICODE_CASELESS] = CASELESS,
		[UNICODE_MARK] = MARK, [UNICODE_NUMBER] = NUMBER, [UNICODE_NUMBER_NOT_WORD] = NUMBER, [UNICODE_SPACE] = SPACE,
		[UNICODE_WORD] = SYMBOL,
	};

	*ret_bytes = 0;
	if (at >= n)
		return 0;
	return kinds[unicode_class(unicode_utf8_decode(text + at, ret_bytes))];
}

// The end of the run of characters of `set` that begins at `at`.
static size_t run_end(const char *text, size_t n, size_t at, unsigned set)
{
	for (unsigned bytes; kind_at(text, n, at, &bytes) & set;)
		at += bytes;
	return at;
}

// 's|'t|'re|'ve|'m|'ll|'d at `at`: its end, or `at` when none. Folded: U+017F (long s) is an s, too.
static size_t contraction_end(const char *text, size_t n, size_t at, bool fold)
{
	char a, b;

	if (n - at < 2 || text[at] != '\'')
		return at;
	a = text[at + 1];
	b = n - at > 2 ? text[at + 2] : 0;
	if (fold) {
		if (a == '\xc5' && b == '\xbf')
			return at + 3;
		a |= a >= 'A' && a <= 'Z' ? 0x20 : 0;
		b |= b >= 'A' && b <= 'Z' ? 0x20 : 0;
	}
	if (a == 's' || a == 't' || a == 'm' || a == 'd')
		return at + 2;
	if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l'))
		return at + 3;
	return at;
}

// \s+(?!\S)|\s+ : all of a run that ends the text, else all but its last character (which may lead the next piece), but at least one.
static size_t space_end(const char *text, size_t n, size_t at)
{
	size_t last = at, end = at;

	for (unsigned bytes; kind_at(text, n, end, &bytes) == SPACE; end += bytes)
		last = end;
	return end == n || last == at ? end : last;
}

size_t pattern_gpt2_next(const char *text, size_t n, size_t at)
{
	size_t end = contraction_end(text, n, at, false);
	unsigned bytes, kind;

	if (end > at)
		return end;
	end = at + (text[at] == ' ');
	kind = kind_at(text, n, end, &bytes);
	if (!kind || kind == SPACE)
		return space_end(text, n, at);
	return run_end(text, n, end, kind & LETTER ? LETTER : kind & OTHER ? OTHER : NUMBER);
}

// \s*[\r\n]+ : up to the last line break of the run of spaces, or `at` when it has none.
static size_t line_break_end(const char *text, size_t n, size_t at)
{
	size_t end = at;

	for (unsigned bytes; kind_at(text, n, at, &bytes) == SPACE;) {
		at += bytes;
		if (text[at - 1] == '\r' || text[at - 1] == '\n')
			end = at;
	}
	return end;
}

static size_t number_end(const char *text, size_t n, size_t at, unsigned max_digits)
{
	unsigned bytes;

	while (max_digits-- && kind_at(text, n, at, &bytes) == NUMBER)
		at += bytes;
	return at;
}

//  ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ , with `slash` [\r\n/]* in it.
static size_t gap_end(const char *text, size_t n, size_t at, bool slash)
{
	size_t begin = at + (text[at] == ' '), end = run_end(text, n, begin, OTHER);

	if (end > begin) {
		while (end < n && (text[end] == '\r' || text[end] == '\n' || (slash && text[end] == '/')))
			end++;
		return end;
	}
	end = line_break_end(text, n, at);
	return end > at ? end : space_end(text, n, at);
}

size_t pattern_cl100k_next(const char *text, size_t n, size_t at, unsigned max_digits)
{
	size_t end = contraction_end(text, n, at, true);
	unsigned bytes, ignored, kind = kind_at(text, n, at, &bytes);

	if (end > at)
		return end;
	if (kind & LETTER)
		return run_end(text, n, at, LETTER);
	if (kind == NUMBER)
		return number_end(text, n, at, max_digits);
	if (text[at] != '\r' && text[at] != '\n' && kind_at(text, n, at + bytes, &ignored) & LETTER)
		return run_end(text, n, at + bytes, LETTER);
	return gap_end(text, n, at, false);
}

// A word of PATTERN_CASED, without what may lead it: capitals, then small letters, and what has no case is either. Where no small letter
// follows, the first alternative ends behind the last that has no case, and the capitals given back are a word of their own: looked at
// twice, not more. Where all are capitals, the second alternative takes them.
static size_t cased_word_end(const char *text, size_t n, size_t at)
{
	size_t end = at, caseless_end = at;
	unsigned bytes, kind;

	while ((kind = kind_at(text, n, end, &bytes)) & WORD_HEAD) {
		end += bytes;
		if (kind != UPPER)
			caseless_end = end;
	}
	if (kind == LOWER)
		return run_end(text, n, end, WORD_TAIL);
	return caseless_end > at ? caseless_end : end;
}

// A mark may lead a word as [^\r\n\p{L}\p{N}]? or be the first of it: the end is the same, and so it is taken for the latter.
size_t pattern_cased_next(const char *text, size_t n, size_t at, bool contractions, unsigned max_digits)
{
	unsigned bytes, kind = kind_at(text, n, at, &bytes);
	bool leads = kind == SYMBOL || (kind == SPACE && text[at] != '\r' && text[at] != '\n');
	size_t begin = leads ? at + bytes : at, end = cased_word_end(text, n, begin);

	if (end > begin)
		return contractions ? contraction_end(text, n, end, true) : end;
	return kind == NUMBER ? number_end(text, n, at, max_digits) : gap_end(text, n, at, true);
}

size_t pattern_digits_next(const char *text, size_t n, size_t at, bool each)
{
	unsigned bytes, kind;
	bool number = kind_at(text, n, at, &bytes) == NUMBER;

	if (number && each)
		return at + bytes;
	for (at += bytes; (kind = kind_at(text, n, at, &bytes)) && (kind == NUMBER) == number;)
		at += bytes;
	return at;
}
