// SPDX-License-Identifier: Apache-2.0
#include "clients/kdctl/pull.h"

#include <stdlib.h>
#include <string.h>

struct pull pull_init(const char *text, size_t n)
{
	return (struct pull){.begin = text, .at = text, .end = text + n};
}

void pull_fail(struct pull *t, const char *what)
{
	if (t->failed)
		return;
	t->failed = true;
	t->what = what;
}

// The next character that is not white space, NUL at the end or after a failure.
static char pull_peek(struct pull *t)
{
	while (!t->failed && t->at < t->end && (*t->at == ' ' || *t->at == '\t' || *t->at == '\n' || *t->at == '\r'))
		t->at++;
	return t->failed || t->at >= t->end ? '\0' : *t->at;
}

static bool pull_take(struct pull *t, char c)
{
	if (pull_peek(t) != c || t->failed || t->at >= t->end)
		return false;
	t->at++;
	return true;
}

void pull_open(struct pull *t, char bracket)
{
	if (!pull_take(t, bracket))
		pull_fail(t, bracket == '[' ? "a list is expected" : "an object is expected");
	t->first = true;
}

// Before a value of a list or a member: false at the closing bracket.
static bool pull_step(struct pull *t, char bracket)
{
	bool first = t->first;
	t->first = false;
	if (pull_take(t, bracket))
		return false;
	if (!first && !pull_take(t, ','))
		pull_fail(t, "a comma or the end of a list is expected");
	return !t->failed;
}

bool pull_next(struct pull *t)
{
	return pull_step(t, ']');
}

static size_t min_size(size_t a, size_t b)
{
	return a < b ? a : b;
}

bool pull_next_member(struct pull *t, char *ret_name, size_t size)
{
	size_t n;
	*ret_name = '\0';
	if (!pull_step(t, '}'))
		return false;
	const char *name = pull_string_view(t, &n);
	if (!pull_take(t, ':'))
		pull_fail(t, "a colon is expected");
	if (t->failed)
		return false;
	memcpy(ret_name, name, min_size(n, size - 1));
	ret_name[min_size(n, size - 1)] = '\0';
	return true;
}

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static uint64_t pull_digits(struct pull *t, uint64_t max)
{
	uint64_t v = 0;
	if (t->at >= t->end || !is_digit(*t->at) || (*t->at == '0' && is_digit(t->at[1])))
		pull_fail(t, "a whole number is expected");
	for (; !t->failed && t->at < t->end && is_digit(*t->at); t->at++) {
		uint64_t digit = (uint64_t)(*t->at - '0');
		if (v > (max - digit) / 10 || digit > max)
			pull_fail(t, "a number that is too large");
		else
			v = 10 * v + digit;
	}
	if (!t->failed && (*t->at == '.' || *t->at == 'e' || *t->at == 'E'))
		pull_fail(t, "a whole number is expected");
	return t->failed ? 0 : v;
}

uint64_t pull_u64(struct pull *t, uint64_t max)
{
	pull_peek(t);
	return pull_digits(t, max);
}

int64_t pull_i64(struct pull *t)
{
	bool negative = pull_take(t, '-');
	int64_t v = (int64_t)pull_digits(t, UINT64_C(999999999999999999));
	return negative ? -v : v;
}

static const char *skip_digits(const char *p)
{
	while (is_digit(*p))
		p++;
	return p;
}

// The end of the number at p by JSON's grammar, NULL when there is none. Stops at the NUL.
static const char *number_end(const char *p)
{
	p += *p == '-';
	if (!is_digit(*p))
		return NULL;
	p = *p == '0' ? p + 1 : skip_digits(p);
	if (*p == '.') {
		if (!is_digit(p[1]))
			return NULL;
		p = skip_digits(p + 1);
	}
	if (*p != 'e' && *p != 'E')
		return p;
	p += 1 + (p[1] == '+' || p[1] == '-');
	return is_digit(*p) ? skip_digits(p) : NULL;
}

float pull_f32(struct pull *t)
{
	pull_peek(t);
	const char *end = t->failed ? NULL : number_end(t->at);
	if (!end) {
		pull_fail(t, "a number is expected");
		return 0;
	}
	char *stop;
	float v = strtof(t->at, &stop);        // a NUL, or what no number goes on with, stands behind it
	t->at = end;
	return v;
}

static bool pull_word(struct pull *t, const char *word)
{
	size_t n = strlen(word);
	pull_peek(t);
	if (t->failed || (size_t)(t->end - t->at) < n || memcmp(t->at, word, n) != 0)
		return false;
	t->at += n;
	return true;
}

bool pull_bool(struct pull *t)
{
	bool yes = pull_word(t, "true");
	if (!yes && !pull_word(t, "false"))
		pull_fail(t, "true or false is expected");
	return yes;
}

bool pull_null(struct pull *t)
{
	return pull_word(t, "null");
}

const char *pull_string_view(struct pull *t, size_t *ret_n)
{
	*ret_n = 0;
	if (!pull_take(t, '"')) {
		pull_fail(t, "a string is expected");
		return NULL;
	}
	const char *begin = t->at, *p = begin;
	for (; p < t->end && *p != '"'; p++)
		if ((unsigned char)*p < 0x20)
			break;
		else if (*p == '\\' && p + 1 < t->end)
			p++;                       // what it stands for is of no interest: names and ids have none
	if (p >= t->end || *p != '"') {
		pull_fail(t, "a string without an end");
		return NULL;
	}
	t->at = p + 1;
	*ret_n = (size_t)(p - begin);
	return begin;
}

size_t pull_string(struct pull *t, char *ret_text, size_t size)
{
	size_t n;
	const char *text = pull_string_view(t, &n);
	if (!t->failed && (n >= size || memchr(text, '\\', n)))
		pull_fail(t, "a string that is none of those known");
	if (t->failed)
		n = 0;
	else
		memcpy(ret_text, text, n);
	ret_text[n] = '\0';
	return n;
}

// A value that is no list and no object.
static void pull_skip_plain(struct pull *t)
{
	size_t n;
	char c = pull_peek(t);
	if (c == '"')
		pull_string_view(t, &n);
	else if (c == '-' || is_digit(c))
		pull_f32(t);
	else if (!pull_word(t, "null") && !pull_word(t, "true") && !pull_word(t, "false"))
		pull_fail(t, "a value is expected");
}

void pull_skip(struct pull *t)
{
	char closing[PULL_DEPTH], name[2];
	unsigned depth = 0;
	do {
		char c = pull_peek(t);
		if ((c == '[' || c == '{') && depth == PULL_DEPTH) {
			pull_fail(t, "lists in lists without end");
		} else if (c == '[' || c == '{') {
			pull_open(t, c);
			closing[depth++] = c;
		} else {
			pull_skip_plain(t);
		}
		while (depth && !t->failed && !(closing[depth - 1] == '[' ? pull_next(t) : pull_next_member(t, name, sizeof name)))
			depth--;
	} while (depth && !t->failed);
}

void pull_end(struct pull *t)
{
	if (pull_peek(t) || t->at != t->end)
		pull_fail(t, "something stands behind the value");
}

void pull_f32_list(struct pull *t, float *to, size_t n, float absent)
{
	size_t i = 0;
	pull_open(t, '[');
	while (pull_next(t)) {
		if (i == n)
			pull_fail(t, "a list that is too long");
		else if (absent != 0 && pull_null(t))
			to[i++] = absent;
		else
			to[i++] = pull_f32(t);
	}
	if (i < n)
		pull_fail(t, "a list that is too short");
}

void pull_append_id(struct pull *t, struct pull_ids *to, uint32_t id)
{
	if (t->failed)
		return;
	if (to->n == to->capacity) {
		size_t capacity = to->capacity ? 2 * to->capacity : 64;
		uint32_t *larger = realloc(to->ids, capacity * sizeof *larger);
		if (!larger) {
			pull_fail(t, "no memory");
			return;
		}
		to->ids = larger;
		to->capacity = capacity;
	}
	to->ids[to->n++] = id;
}

void pull_id_list(struct pull *t, struct pull_ids *to, size_t max)
{
	pull_open(t, '[');
	while (pull_next(t)) {
		if (to->n == max)
			pull_fail(t, "a list that is too long");
		pull_append_id(t, to, (uint32_t)pull_u64(t, UINT32_MAX));
	}
}
