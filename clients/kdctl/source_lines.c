// SPDX-License-Identifier: Apache-2.0
// JSON lines: {"text":"..."} or {"tokens":[..]}, and what the line asks of its own as in /v1/score: first, last, gather, spans.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/score.h"
#include "daemon/jansson.h"

static bool to_id(const json_t *v, uint32_t *ret)
{
	json_int_t id = json_integer_value(v);
	if (!json_is_integer(v) || id < 0 || id > UINT32_MAX)
		return false;
	*ret = (uint32_t)id;
	return true;
}

static int read_span(struct source *s, const json_t *v, struct kd_span *ret)
{
	if (json_array_size(v) != 2 || !to_id(json_array_get(v, 0), &ret->begin) || !to_id(json_array_get(v, 1), &ret->end))
		return source_fail(s, "spans: [[begin,end],..] is expected");
	return 0;
}

static int read_spans(struct source *s, const json_t *v, struct item *i)
{
	size_t n = json_array_size(v);
	if (!n)
		return source_fail(s, "spans: [[begin,end],..] is expected");
	i->spans = calloc(n, sizeof *i->spans);
	if (!i->spans)
		return kdctl_fail(s->k, "no memory for %zu spans", n);
	for (; i->n_spans < n; i->n_spans++)
		if (read_span(s, json_array_get(v, i->n_spans), &i->spans[i->n_spans]))
			return 1;
	return 0;
}

// [[5,9],[7],..], a list for each row; or [5,9], one for all of them.
static int read_gather(struct source *s, const json_t *v, struct item *i)
{
	bool nested = json_is_array(json_array_get(v, 0));
	size_t n_lists = nested ? json_array_size(v) : 1, n = 0;
	for (size_t l = 0; nested && l < n_lists; l++)
		n += json_array_size(json_array_get(v, l));
	if (!nested)
		n = json_array_size(v);
	i->gather_offsets = calloc(n_lists + 1, sizeof *i->gather_offsets);
	i->gather_ids = calloc(n + 1, sizeof *i->gather_ids);
	if (!i->gather_offsets || !i->gather_ids)
		return kdctl_fail(s->k, "no memory for %zu ids", n);
	size_t at = 0;
	for (; i->n_lists < n_lists; i->n_lists++) {
		const json_t *list = nested ? json_array_get(v, i->n_lists) : v;
		if (!json_is_array(list))
			return source_fail(s, "gather: a list of ids, or one for each row, is expected");
		for (size_t j = 0; j < json_array_size(list); j++)
			if (!to_id(json_array_get(list, j), &i->gather_ids[at++]))
				return source_fail(s, "gather[%u][%zu]: not a token id", i->n_lists, j);
		i->gather_offsets[i->n_lists + 1] = (uint32_t)at;
	}
	return 0;
}

static int read_bound(struct source *s, const json_t *j, const char *name, int32_t absent, int32_t *ret)
{
	const json_t *v = json_object_get(j, name);
	json_int_t bound = v ? json_integer_value(v) : absent;
	if ((v && !json_is_integer(v)) || bound < INT32_MIN || bound > INT32_MAX)
		return source_fail(s, "%s: not a position", name);
	*ret = (int32_t)bound;
	return 0;
}

// What the line asks of its own; *ret stays NULL when that is nothing.
static int read_part(struct source *s, const json_t *j, struct item **ret)
{
	const json_t *gather = json_object_get(j, "gather"), *spans = json_object_get(j, "spans");
	bool rows = json_object_get(j, "first") || json_object_get(j, "last");
	if (!gather && !spans && !rows)
		return 0;
	struct item *i = calloc(1, sizeof *i);
	int status = i ? 0 : kdctl_fail(s->k, "no memory");
	if (!status && gather)
		status = read_gather(s, gather, i);
	if (!status && spans)
		status = read_spans(s, spans, i);
	if (!status && rows) {
		i->has_rows = true;
		status = read_bound(s, j, "first", s->options->query.first, &i->rows.first) ||
			read_bound(s, j, "last", s->options->query.last, &i->rows.last);
	}
	if (status)
		item_free(i);
	else
		*ret = i;
	return status;
}

static int read_tokens(struct source *s, const json_t *j)
{
	const json_t *text = json_object_get(j, "text"), *tokens = json_object_get(j, "tokens");
	size_t n = 0, before = s->tokens.n;
	uint32_t *ids = NULL;
	int status;
	if (json_is_string(text) && !tokens) {
		status = text_tokenize(s->k, json_string_value(text), json_string_length(text), &ids, &n);
		if (!status)
			status = id_list_reserve(s->k, &s->tokens, n);
		if (!status && n)
			memcpy(s->tokens.ids + s->tokens.n, ids, n * sizeof *ids);
		s->tokens.n += status ? 0 : n;
		free(ids);
	} else if (json_is_array(tokens) && !text) {
		uint32_t id;
		for (size_t i = 0; i < json_array_size(tokens); i++)
			if (!to_id(json_array_get(tokens, i), &id))
				return source_fail(s, "tokens[%zu]: not a token id", i);
		status = id_list_append_json(s->k, tokens, &s->tokens);
	} else {
		return source_fail(s, "{\"text\":\"...\"} or {\"tokens\":[..]} is expected");
	}
	if (!status && s->tokens.n == before) {
		s->n_empty++;
		s->part = item_free(s->part);
	}
	return status;
}

static int read_line(struct source *s, const char *line, size_t n)
{
	json_error_t why;
	json_t *j = jansson_load(line, n, JSON_REJECT_DUPLICATES, &why, NULL);
	if (!j)
		return source_fail(s, "%s", why.text);
	int status = read_part(s, j, &s->part);
	if (!status)
		status = read_tokens(s, j);
	json_decref(j);
	return status;
}

int source_fill_line(struct source *s)
{
	errno = 0;
	ssize_t n = getline(&s->text, &s->text_size, s->file);
	if (n < 0) {
		s->ended = true;
		return feof(s->file) && !ferror(s->file) ? 0 : source_fail(s, "%s", strerror(errno ? errno : EIO));
	}
	s->n_lines++;
	s->at += (uint64_t)n;
	s->complete = true;
	while (n && strchr(" \t\r\n", s->text[n - 1]))
		n--;
	if (!n) {
		s->n_empty++;
		return 0;
	}
	s->quiet = s->options->tolerant;
	int status = read_line(s, s->text, (size_t)n);
	s->quiet = false;
	return status;
}
