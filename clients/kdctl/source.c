// SPDX-License-Identifier: Apache-2.0
// The input, one sequence at a time and never whole in memory: runs of tokens (a text, a line, a row of an array) cut into windows.
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "clients/kdctl/score.h"

int source_fail(struct source *s, const char *format, ...)
{
	char text[sizeof s->fault.message];
	const char *path = strcmp(s->options->path, "-") == 0 ? "standard input" : s->options->path;
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	if (s->quiet) {
		s->fault = (struct kd_error){.code = "invalid"};
		snprintf(s->fault.message, sizeof s->fault.message, "%s", text);
		return 1;
	}
	return s->n_lines ? kdctl_fail(s->k, "%s: line %zu: %s", path, (size_t)s->n_lines, text) : kdctl_fail(s->k, "%s: %s", path, text);
}

// Adds a piece of the text. What is left in s->text was not tokenized yet.
static int fill_text(struct source *s)
{
	if (!s->text && !(s->text = malloc(s->text_size = 2 * TEXT_PIECE_BYTES)))
		return kdctl_fail(s->k, "no memory");
	size_t n = fread(s->text + s->n_text, 1, s->text_size - s->n_text, s->file);
	if (ferror(s->file))
		return source_fail(s, "%s", strerror(errno));
	s->n_text += n;
	size_t size = text_piece(s->text, s->n_text);
	int status = size ? text_tokenize_piece(s->k, s->text, size, s->at, s->at == 0, &s->tokens) : 0;
	s->at += size;
	s->n_text -= size;
	memmove(s->text, s->text + size, s->n_text);
	s->ended = s->complete = !s->n_text && feof(s->file);
	return status;
}

static int fill(struct source *s)
{
	if (s->taken)
		memmove(s->tokens.ids, s->tokens.ids + s->taken, (s->tokens.n - s->taken) * sizeof *s->tokens.ids);
	s->tokens.n -= s->taken;
	s->taken = 0;
	switch (s->options->format) {
	case SOURCE_LINES: return source_fill_line(s);
	case SOURCE_U16: case SOURCE_U32: case SOURCE_NPY: return source_fill_tokens(s);
	default: return fill_text(s);
	}
}

// A span over the whole sequence, where that is wanted and the line asks for none of its own.
static bool add_sum(struct item *i)
{
	if (i->n_spans || i->n_tokens < 2)
		return true;
	i->spans = malloc(sizeof *i->spans);
	if (!i->spans)
		return false;
	i->spans[0] = (struct kd_span){1, i->n_tokens};
	i->n_spans = 1;
	return true;
}

// The next n tokens as an item.
static int take(struct source *s, size_t n, struct item **ret)
{
	struct item *i = s->part ? s->part : calloc(1, sizeof *i);
	s->part = NULL;
	if (i)
		i->tokens = malloc(n * sizeof *i->tokens);
	if (!i || !i->tokens) {
		item_free(i);
		return kdctl_fail(s->k, "no memory for %zu tokens", n);
	}
	memcpy(i->tokens, s->tokens.ids + s->taken, n * sizeof *i->tokens);
	s->taken += n;
	i->n_tokens = (uint32_t)n;
	i->number = s->n_items++;
	i->end = s->at;
	i->line = s->n_lines;
	if (s->options->sum && !add_sum(i)) {
		item_free(i);
		return kdctl_fail(s->k, "no memory");
	}
	*ret = i;
	return 0;
}

// The line that could not be read, as an item without tokens.
static int take_fault(struct source *s, struct item **ret)
{
	struct item *i = calloc(1, sizeof *i);
	if (!i)
		return kdctl_fail(s->k, "no memory");
	i->number = s->n_items++;
	i->end = s->at;
	i->line = s->n_lines;
	item_refuse(i, &s->fault);
	s->fault.code[0] = '\0';
	s->part = item_free(s->part);
	s->tokens.n = s->taken = 0;
	*ret = i;
	return 0;
}

// A whole document of n tokens that is longer than a sequence may be.
static int take_long(struct source *s, size_t n, struct item **ret)
{
	struct kd_error why = {.code = "too_large"};
	size_t length = s->options->length;
	int status = take(s, s->options->too_long == LONG_CUT ? length : n, ret);
	if (status)
		return status;
	if (s->options->too_long == LONG_CUT) {
		s->taken += n - length;
		s->n_cut++;
		s->n_cut_tokens += n - length;
		return 0;
	}
	snprintf(why.message, sizeof why.message, "%zu tokens, at most %zu are allowed", n, length);
	item_refuse(*ret, &why);
	return 0;
}

int source_next(struct source *s, struct item **ret)
{
	*ret = NULL;
	for (;;) {
		size_t n = s->tokens.n - s->taken, length = s->options->length;
		if (n > length && s->options->format == SOURCE_LINES && s->options->too_long != LONG_SPLIT)
			return take_long(s, n, ret);
		if (s->part && n > length)
			return source_fail(s, "%zu tokens are more than --length %zu, and what the line asks of its own cannot be cut", n,
					   length);
		if (n >= length || (n && s->complete))
			return take(s, n < length ? n : length, ret);
		if (s->ended)
			return 0;
		int status = fill(s);
		if (status)
			return *s->fault.code ? take_fault(s, ret) : status;
	}
}

int source_open(struct kdctl *k, const struct score_options *o, struct source *ret)
{
	struct stat st;
	*ret = (struct source){.k = k, .options = o, .item_bytes = o->format == SOURCE_U16 ? 2 : 4};
	bool standard = strcmp(o->path, "-") == 0;
	ret->file = standard ? stdin : fopen(o->path, "re");
	if (!ret->file)
		return source_fail(ret, "%s", strerror(errno));
	if (fstat(fileno(ret->file), &st) == 0) {
		if (S_ISDIR(st.st_mode))
			return source_fail(ret, "%s", strerror(EISDIR));
		ret->n_bytes = S_ISREG(st.st_mode) ? (uint64_t)st.st_size : 0;
	}
	return o->format == SOURCE_NPY ? source_open_npy(ret) : 0;
}

void source_close(struct source *s)
{
	if (s->file && s->file != stdin)
		fclose(s->file);
	free(s->tokens.ids);
	free(s->text);
	item_free(s->part);
	*s = (struct source){0};
}
