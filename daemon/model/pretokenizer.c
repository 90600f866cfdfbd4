// SPDX-License-Identifier: Apache-2.0
// The chain of steps, and patterns of unknown models through PCRE2. Those run in the interpreter, which keeps its frames on the heap
// (no recursion on the text) and whose work per match is bounded; the compiled form (JIT) is left alone, for it needs writable
// executable memory, which a hardened service has not.
#include "daemon/model/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <errno.h>
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/unicode.h"

// Steps of the interpreter per match: enough for a pattern to look at each byte left 8 times, plus a floor for short texts.
#define MATCH_STEPS_PER_BYTE 8
#define MATCH_STEPS_FLOOR 10000
#define MATCH_HEAP_KIB 65536    // backtracking frames of one match

static const struct { enum pretokenizer_kind kind; const char *pattern; } known_patterns[] = {
	{ PRETOKENIZER_GPT2, PATTERN_GPT2 },
	{ PRETOKENIZER_LLAMA3, PATTERN_LLAMA3 },
	{ PRETOKENIZER_QWEN2, PATTERN_QWEN2 },
	{ PRETOKENIZER_O200K, PATTERN_O200K },
	{ PRETOKENIZER_TEKKEN, PATTERN_TEKKEN },
};

static int step_append(struct pretokenizer *p, struct pretokenizer_step step, struct error *err)
{
	if (p->n_steps == PRETOKENIZER_MAX_STEPS) {
		free(step.pattern);
		pcre2_code_free(step.code);
		return error_set(err, ERROR_TOO_LARGE, "pre_tokenizer", "more than %d pre-tokenizer steps", PRETOKENIZER_MAX_STEPS);
	}
	p->steps[p->n_steps++] = step;
	return 0;
}

int pretokenizer_append(struct pretokenizer *p, enum pretokenizer_kind kind, struct error *err)
{
	return step_append(p, (struct pretokenizer_step){ .kind = kind }, err);
}

// Why the character at `p` (of n left) must not go to PCRE2, or NULL. Patterns are written for Oniguruma; where the same text means
// something else there, or could make matching recurse, it is refused.
static const char *pattern_objection(const char *p, size_t n, bool set)
{
	char next = n > 1 ? p[1] : 0, third = n > 2 ? p[2] : 0;

	if (p[0] == '\\' && next && strchr("hHgkKXRyYOGCQEBA", next))
		return "\\h, \\g, \\k, \\K, \\X, \\R, \\y, \\O, \\G, \\C, \\Q, \\E, \\A or \\B";
	if (p[0] == '\\' && ((!set && next == 'b') || (set && next == 'W')))
		return "\\b, or \\W in a set";
	if (set && p[0] == '[')
		return "a set inside a set";
	if (set && p[0] == '&' && next == '&')
		return "an intersection of sets (&&)";
	if (!set && p[0] == '(' && next == '*')
		return "a verb (*";
	if (!set && p[0] == '(' && next == '?' && third && strchr("mRCP&0123456789+", third))
		return "(?m, recursion or a call-out";
	return NULL;
}

// Classes that PCRE2 would read otherwise: its \s has U+180E as well, its \w no marks. Oniguruma's \w has the Latin-1 superscripts and
// fractions, but no others. NULL: copy what stands there.
#define WORD_CLASS "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\xb2\\xb3\\xb9\\xbc-\\xbe"
static const char *pattern_class(char letter, bool set)
{
	switch (letter) {
	case 's': return "\\p{White_Space}";
	case 'S': return "\\P{White_Space}";
	case 'w': return set ? WORD_CLASS : "[" WORD_CLASS "]";
	case 'W': return "[^" WORD_CLASS "]";
	}
	return NULL;
}

// Copies a pattern with its classes named. `ret` has room for PATTERN_GROWTH bytes per byte.
#define PATTERN_GROWTH 32
static int pattern_translate(const char *pattern, size_t n, char *ret, size_t *ret_n, struct error *err)
{
	bool set = false;
	size_t out = 0;

	for (size_t i = 0, used; i < n; i += used) {
		char next = i + 1 < n ? pattern[i + 1] : 0;
		const char *objection = pattern_objection(pattern + i, n - i, set), *class = NULL;

		if (objection)
			return error_set(err, ERROR_UNSUPPORTED, "pre_tokenizer", "a pattern with %s is not supported", objection);
		used = 1;
		if (pattern[i] == '\\' && next) {
			class = pattern_class(next, set);
			used = 2;
		} else if (!set && pattern[i] == '[') {
			set = true;
			used += next == '^';
			used += i + used < n && pattern[i + used] == ']';    // a first ] is a member
		} else if (pattern[i] == ']') {
			set = false;
		}
		// NOLINTNEXTLINE(bugprone-not-null-terminated-result): a pattern is counted, not terminated
		memcpy(ret + out, class ? class : pattern + i, class ? strlen(class) : used);
		out += class ? strlen(class) : used;
	}
	*ret_n = out;
	return 0;
}

static int pattern_compile(const char *pattern, size_t n, void **ret_code, struct error *err)
{
	char *translated = malloc(PATTERN_GROWTH * n + 1);
	size_t n_translated, at;
	int ret, code;

	if (!translated)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a pattern");
	ret = pattern_translate(pattern, n, translated, &n_translated, err);
	if (ret)
		goto out;
	*ret_code = pcre2_compile((PCRE2_SPTR)translated, n_translated, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
				  &code, &at, NULL);
	if (!*ret_code) {
		char why[128] = "";

		pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof(why));
		ret = error_set(err, ERROR_INVALID, "pre_tokenizer", "the pattern does not compile: %s (near byte %zu)", why, at);
	}
out:
	free(translated);
	return ret;
}

int pretokenizer_append_pattern(struct pretokenizer *p, const char *pattern, size_t n, bool plain, struct error *err)
{
	struct pretokenizer_step step = { .kind = PRETOKENIZER_REGEX };
	int ret;

	if (n > PRETOKENIZER_MAX_PATTERN)
		return error_set(err, ERROR_TOO_LARGE, "pre_tokenizer", "a pattern of %zu bytes is over the limit of %d", n,
			PRETOKENIZER_MAX_PATTERN);
	if (!n || memchr(pattern, 0, n))
		return error_set(err, ERROR_INVALID, "pre_tokenizer", "the pattern is empty or holds a NUL");
	for (size_t i = 0; i < sizeof(known_patterns) / sizeof(known_patterns[0]) && !plain; i++)
		if (strlen(known_patterns[i].pattern) == n && !memcmp(known_patterns[i].pattern, pattern, n))
			step.kind = known_patterns[i].kind;
	if (step.kind == PRETOKENIZER_REGEX && (ret = pattern_compile(pattern, n, &step.code, err)))
		return ret;
	step.pattern = strndup(pattern, n);
	if (!step.pattern) {
		pcre2_code_free(step.code);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a pattern");
	}
	return step_append(p, step, err);
}

void pretokenizer_done(struct pretokenizer *p)
{
	for (unsigned i = 0; i < p->n_steps; i++) {
		free(p->steps[i].pattern);
		pcre2_code_free(p->steps[i].code);
	}
	memset(p, 0, sizeof(*p));
}

int pretokenizer_walk_init(struct pretokenizer_walk *w, const struct pretokenizer *p, struct error *err)
{
	bool regex = false;

	memset(w, 0, sizeof(*w));
	w->pretokenizer = p;
	for (unsigned i = 0; i < p->n_steps; i++)
		regex |= p->steps[i].kind == PRETOKENIZER_REGEX;
	if (!regex)
		return 0;
	w->match_data = pcre2_match_data_create(1, NULL);
	w->match_context = pcre2_match_context_create(NULL);
	if (!w->match_data || !w->match_context) {
		pretokenizer_walk_done(w);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for matching");
	}
	pcre2_set_heap_limit(w->match_context, MATCH_HEAP_KIB);
	return 0;
}

void pretokenizer_walk_done(struct pretokenizer_walk *w)
{
	pcre2_match_data_free(w->match_data);
	pcre2_match_context_free(w->match_context);
	memset(w, 0, sizeof(*w));
}

static void level_start(struct pretokenizer_walk *w, unsigned depth, size_t begin, size_t end)
{
	w->depth = depth;
	w->level[depth].first = w->level[depth].at = begin;
	w->level[depth].end = end;
	w->level[depth].match_begin = w->level[depth].match_end = SIZE_MAX;
}

void pretokenizer_start(struct pretokenizer_walk *w, const char *text, size_t n)
{
	w->text = text;
	level_start(w, 0, 0, n);
}

// Finds the next match at or after `from` in the level's text: 1 with match_*, 0 when there is none. Look-around sees this text only.
static int regex_find(struct pretokenizer_walk *w, unsigned depth, size_t from, struct error *err)
{
	const struct pretokenizer_step *step = &w->pretokenizer->steps[depth];
	size_t begin = w->level[depth].first, end = w->level[depth].end, steps = MATCH_STEPS_FLOOR, more;
	PCRE2_SIZE *found;
	int rc;

	if (__builtin_mul_overflow(end - from, (size_t)MATCH_STEPS_PER_BYTE, &more) || more > UINT32_MAX - steps)
		more = UINT32_MAX - steps;
	pcre2_set_match_limit(w->match_context, (uint32_t)(steps + more));
	rc = pcre2_match(step->code, (PCRE2_SPTR)w->text + begin, end - begin, from - begin, PCRE2_NO_UTF_CHECK, w->match_data,
			 w->match_context);
	if (rc == PCRE2_ERROR_NOMATCH)
		return 0;
	if (rc < 0)
		return error_set(err, rc == PCRE2_ERROR_NOMEMORY ? ERROR_MEMORY : ERROR_TOO_LARGE, "text",
				 "the tokenizer's pattern needs too much work on this text (PCRE2 error %d)", rc);
	found = pcre2_get_ovector_pointer(w->match_data);
	w->level[depth].match_begin = begin + found[0];
	w->level[depth].match_end = begin + found[1];    // never before found[0]: \K is refused
	return 1;
}

// The next piece of a REGEX level: the gap before a match, then the match. An empty match only cuts.
static int regex_next(struct pretokenizer_walk *w, unsigned depth, size_t *ret_end, struct error *err)
{
	size_t at = w->level[depth].at, from = at;
	int ret = 1;

	if (w->level[depth].match_begin != at)
		ret = regex_find(w, depth, from, err);
	while (ret == 1 && w->level[depth].match_end == at) {    // empty, at the very start: look on from the next character
		unsigned bytes;

		unicode_utf8_decode(w->text + from, &bytes);
		from += bytes;
		ret = regex_find(w, depth, from, err);
	}
	if (ret < 0)
		return ret;
	if (!ret) {
		*ret_end = w->level[depth].end;
	} else if (w->level[depth].match_begin > at) {
		*ret_end = w->level[depth].match_begin;
	} else {
		*ret_end = w->level[depth].match_end;
	}
	return 0;
}

static int level_next(struct pretokenizer_walk *w, unsigned depth, size_t *ret_end, struct error *err)
{
	enum pretokenizer_kind kind = w->pretokenizer->steps[depth].kind;
	size_t at = w->level[depth].at, end = w->level[depth].end;

	switch (kind) {
	case PRETOKENIZER_DIGIT:
	case PRETOKENIZER_DIGITS:
		*ret_end = pattern_digits_next(w->text, end, at, kind == PRETOKENIZER_DIGIT);
		return 0;
	case PRETOKENIZER_GPT2:
		*ret_end = pattern_gpt2_next(w->text, end, at);
		return 0;
	case PRETOKENIZER_LLAMA3:
	case PRETOKENIZER_QWEN2:
		*ret_end = pattern_cl100k_next(w->text, end, at, kind == PRETOKENIZER_LLAMA3 ? 3 : 1);
		return 0;
	case PRETOKENIZER_O200K:
		*ret_end = pattern_cased_next(w->text, end, at, true, 3);
		return 0;
	case PRETOKENIZER_TEKKEN:
		*ret_end = pattern_cased_next(w->text, end, at, false, 1);
		return 0;
	case PRETOKENIZER_REGEX:
		return regex_next(w, depth, ret_end, err);
	}
	return error_set(err, ERROR_INTERNAL, NULL, "no such pre-tokenizer step");
}

int pretokenizer_next(struct pretokenizer_walk *w, size_t *ret_begin, size_t *ret_end, struct error *err)
{
	unsigned n_steps = w->pretokenizer->n_steps;

	for (;;) {
		unsigned depth = w->depth;
		size_t begin = w->level[depth].at, end;
		int ret;

		if (begin == w->level[depth].end) {
			if (!depth)
				return 0;
			w->depth--;
			continue;
		}
		end = w->level[depth].end;
		if (n_steps && (ret = level_next(w, depth, &end, err)))
			return ret;
		w->level[depth].at = end;
		if (depth + 1 < n_steps) {
			level_start(w, depth + 1, begin, end);
			continue;
		}
		*ret_begin = begin;
		*ret_end = end;
		return 1;
	}
}
