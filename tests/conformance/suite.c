// SPDX-License-Identifier: Apache-2.0
#include "tests/conformance/suite.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t n_failures;

static void fatal(const char *what, const char *where)
{
	fprintf(stderr, "suite: %s: %s\n", what, where);
	exit(99);
}

static void *need(void *p)
{
	if (!p)
		fatal("no memory", "");
	return p;
}

static FILE *open_source(const char *path)
{
	const char *folder = getenv("srcdir");
	char name[1024];
	snprintf(name, sizeof name, "%s/%s", folder ? folder : ".", path);
	FILE *f = fopen(name, "r");
	if (!f)
		fatal("cannot read", name);
	return f;
}

static int digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

size_t suite_hex(const char *hex, uint8_t *to, size_t room)
{
	size_t n = 0;
	for (; digit(hex[2 * n]) >= 0; n++) {
		if (n == room || digit(hex[2 * n + 1]) < 0)
			fatal("bad or too many hexadecimal digits", hex);
		to[n] = (uint8_t)(digit(hex[2 * n]) << 4 | digit(hex[2 * n + 1]));
	}
	return n;
}

static struct suite_case *case_new(struct suite *s, const char *name)
{
	s->cases = need(realloc(s->cases, (s->n + 1) * sizeof *s->cases));
	struct suite_case *c = &s->cases[s->n++];
	*c = (struct suite_case){.n = 0};
	snprintf(c->name, sizeof c->name, "%s", name);
	return c;
}

static void case_append(struct suite_case *c, const char *line)
{
	if (strncmp(line, "is ", 3) == 0) {
		snprintf(c->kind, sizeof c->kind, "%s", line + 3);
	} else if (strcmp(line, "must accept") == 0) {
		c->accept = true;
	} else if (strncmp(line, "must refuse ", 12) == 0) {
		snprintf(c->code, sizeof c->code, "%s", line + 12);
	} else if (strncmp(line, "hex ", 4) == 0) {
		size_t more = strlen(line + 4) / 2;
		c->bytes = need(realloc(c->bytes, c->n + more + 1));
		c->n += suite_hex(line + 4, c->bytes + c->n, more);
	} else if (c->n_lines < SUITE_MAX_LINES) {
		c->lines[c->n_lines++] = need(strdup(line));
	} else {
		fatal("too many lines", c->name);
	}
}

struct suite suite_load(const char *path)
{
	struct suite s = {NULL, 0};
	struct suite_case *c = NULL;
	FILE *f = open_source(path);
	char *line = NULL;
	size_t room = 0;
	for (ssize_t n; (n = getline(&line, &room, f)) >= 0;) {
		while (n && isspace((unsigned char)line[n - 1]))
			line[--n] = '\0';
		if (!n || *line == '#')
			continue;
		if (strncmp(line, "case ", 5) == 0)
			c = case_new(&s, line + 5);
		else if (!c)
			fatal("a line outside any case", line);
		else if (strcmp(line, "end") == 0)
			c = NULL;
		else
			case_append(c, line);
	}
	free(line);
	fclose(f);
	if (c || !s.n)
		fatal("cut short", path);
	for (size_t i = 0; i < s.n; i++)    // no bytes at all are still a place, one that a sanitizer watches
		s.cases[i].bytes = s.cases[i].n ? s.cases[i].bytes : need(malloc(1));
	return s;
}

void suite_done(struct suite *s)
{
	for (size_t i = 0; i < s->n; i++) {
		for (size_t j = 0; j < s->cases[i].n_lines; j++)
			free(s->cases[i].lines[j]);
		free(s->cases[i].bytes);
	}
	free(s->cases);
}

const struct suite_case *suite_find(const struct suite *s, const char *name)
{
	for (size_t i = 0; i < s->n; i++)
		if (strcmp(s->cases[i].name, name) == 0)
			return &s->cases[i];
	return NULL;
}

const char *suite_words(const struct suite_case *c, const char *name)
{
	size_t n = strlen(name);
	for (size_t i = 0; i < c->n_lines; i++)
		if (strncmp(c->lines[i], name, n) == 0 && (c->lines[i][n] == ' ' || !c->lines[i][n]))
			return c->lines[i] + n + (c->lines[i][n] == ' ');
	return NULL;
}

bool suite_next(const char **words, int base, uint32_t *ret)
{
	char *end;
	unsigned long v = strtoul(*words, &end, base);
	if (end == *words)
		return false;
	*words = end;
	*ret = (uint32_t)v;
	return true;
}

// A line of a dump: four digits, two blanks, up to 16 bytes with a blank between, two blanks and text.
static size_t dump_line(const char *line, uint8_t *to, size_t room)
{
	size_t n = 0;
	for (const char *p = line + 6; n < 16 && digit(p[0]) >= 0 && digit(p[1]) >= 0; p += 3) {
		if (n == room)
			fatal("a dump is too long", line);
		to[n++] = (uint8_t)(digit(p[0]) << 4 | digit(p[1]));
		if (p[2] != ' ')
			break;
	}
	return n;
}

size_t manual_dump(const char *path, size_t n, uint8_t *to, size_t room)
{
	FILE *f = open_source(path);
	char line[512];
	size_t size = 0, seen = 0;
	bool inside = false;
	while (fgets(line, sizeof line, f)) {
		if (strncmp(line, ".Bd -literal", 12) == 0)
			inside = true;
		else if (strncmp(line, ".Ed", 3) == 0 && inside) {
			inside = false;
			seen++;
		} else if (inside && seen == n) {
			size += dump_line(line, to + size, room - size);
		}
	}
	fclose(f);
	return size;
}

void suite_fail(const struct suite_case *c, const char *format, ...)
{
	va_list arguments;
	printf("%s: ", c->name);
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\n");
	n_failures++;
}

int suite_result(size_t n_cases)
{
	printf("%zu cases, %zu failures\n", n_cases, n_failures);
	return n_failures != 0;
}
