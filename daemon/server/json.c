// SPDX-License-Identifier: Apache-2.0
// Each object is read by a table of its fields; a reader gets the value and the full name of the field for its errors.
#include "daemon/server/json.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/jansson.h"
#include "daemon/server/json_internal.h"

// Depth without building anything: brackets outside strings. Unbalanced text is left to the parser.
static int check_depth(const char *body, size_t n, struct error *err)
{
	bool in_string = false;
	int depth = 0;
	for (size_t i = 0; i < n; i++) {
		char c = body[i];
		if (in_string && c == '\\')
			i++;
		else if (c == '"')
			in_string = !in_string;
		else if (!in_string && (c == '[' || c == '{') && ++depth > JSON_MAX_DEPTH)
			return error_set(err, ERROR_INVALID, "body", "nested deeper than %d", JSON_MAX_DEPTH);
		else if (!in_string && (c == ']' || c == '}'))
			depth--;
	}
	return 0;
}

int json_parse(const char *body, size_t n, json_t **ret_root, struct error *err)
{
	json_error_t why;
	int r = check_depth(body, n, err);
	if (r)
		return r;
	bool starved;
	json_t *root = jansson_load(body, n, JSON_REJECT_DUPLICATES, &why, &starved);
	if (starved)
		return error_set(err, ERROR_MEMORY, "body", "no memory to read it");
	if (!root)
		return error_set(err, ERROR_INVALID, "body", "not JSON: %s (line %d, column %d)", why.text, why.line, why.column);
	if (!json_is_object(root)) {
		json_decref(root);
		return error_set(err, ERROR_INVALID, "body", "expected a JSON object");
	}
	*ret_root = root;
	return 0;
}

static const char *type_name(const json_t *v)
{
	static const char *const names[] = {"an object", "an array", "a string", "an integer", "a fraction", "true", "false", "null"};
	return names[json_typeof(v)];
}

int json_wrong_type(const json_t *v, const char *name, const char *expected, struct error *err)
{
	return error_set(err, ERROR_INVALID, name, "expected %s, not %s", expected, type_name(v));
}

static const struct json_field *field_find(const struct json_field *fields, size_t n, const char *name)
{
	for (size_t i = 0; i < n; i++)
		if (strcmp(fields[i].name, name) == 0)
			return &fields[i];
	return NULL;
}

// Reads every member by its field; `prefix` ("sequences[3].") goes before names in errors.
int json_read_object(const json_t *object, const char *prefix, const struct json_field *fields, size_t n, void *to, struct error *err)
{
	char name[JSON_NAME_BYTES];
	const char *key;
	json_t *value;
	int r = 0;
	json_object_foreach((json_t *)object, key, value) {
		const struct json_field *f = field_find(fields, n, key);
		snprintf(name, sizeof name, "%s%s", prefix, *key ? key : "\"\"");
		if (!f)
			return error_set(err, ERROR_INVALID, name, "unknown field");
		r = f->read((char *)to + f->offset, value, name, err);
		if (r)
			return r;
	}
	for (size_t i = 0; i < n; i++)
		if (fields[i].required && !json_object_get(object, fields[i].name)) {
			snprintf(name, sizeof name, "%s%s", prefix, fields[i].name);
			return error_set(err, ERROR_INVALID, name, "is required");
		}
	return 0;
}

int json_read_whole(const char *body, size_t n_body, const struct json_field *fields, size_t n, void *to, struct error *err)
{
	json_t *root = NULL;
	int r = json_parse(body, n_body, &root, err);
	if (!r)
		r = json_read_object(root, "", fields, n, to, err);
	json_decref(root);
	return r;
}

int json_read_integer(const json_t *v, int64_t min, int64_t max, const char *name, int64_t *ret, struct error *err)
{
	if (!json_is_integer(v))
		return json_wrong_type(v, name, "an integer", err);
	int64_t i = json_integer_value(v);
	if (i < min || i > max)
		return error_set(err, ERROR_INVALID, name, "%" PRId64 " is not between %" PRId64 " and %" PRId64, i, min, max);
	*ret = i;
	return 0;
}

int json_read_bool(const json_t *v, const char *name, bool *ret, struct error *err)
{
	if (!json_is_boolean(v))
		return json_wrong_type(v, name, "true or false", err);
	*ret = json_is_true(v);
	return 0;
}

int json_field_bool(void *to, const json_t *v, const char *name, struct error *err)
{
	return json_read_bool(v, name, to, err);
}

int json_read_word(const json_t *v, const char *name, const char *const *words, int *ret, struct error *err)
{
	char list[128] = "";
	size_t n = 0;
	if (!json_is_string(v))
		return json_wrong_type(v, name, "a string", err);
	for (int i = 0; words[i]; i++) {
		if (strcmp(json_string_value(v), words[i]) == 0) {
			*ret = i;
			return 0;
		}
		if (n < sizeof list)
			n += (size_t)snprintf(list + n, sizeof list - n, "%s\"%s\"", i ? ", " : "", words[i]);
	}
	return error_set(err, ERROR_INVALID, name, "expected one of %s", list);
}

int json_read_tokens(const json_t *v, const char *name, struct sequence *ret, struct error *err)
{
	if (!json_is_array(v))
		return json_wrong_type(v, name, "an array of token ids", err);
	size_t n = json_array_size(v);
	if (n > UINT32_MAX)
		return error_set(err, ERROR_TOO_LARGE, name, "too many tokens");
	uint32_t *tokens = malloc((n ? n : 1) * sizeof *tokens);
	if (!tokens)
		return error_set(err, ERROR_MEMORY, name, "no memory for %zu tokens", n);
	for (size_t i = 0; i < n; i++) {
		char item[JSON_NAME_BYTES];
		int64_t id = 0;
		snprintf(item, sizeof item, "%.40s[%zu]", name, i);
		int r = json_read_integer(json_array_get(v, i), 0, UINT32_MAX, item, &id, err);
		if (r) {
			free(tokens);
			return r;
		}
		tokens[i] = (uint32_t)id;
	}
	sequence_done(ret);
	*ret = (struct sequence){tokens, (uint32_t)n};
	return 0;
}


int json_read_text(const json_t *v, const char *name, char **ret, size_t *ret_n, struct error *err)
{
	if (!json_is_string(v))
		return json_wrong_type(v, name, "a string", err);
	size_t n = json_string_length(v);
	char *copy = malloc(n + 1);
	if (!copy)
		return error_set(err, ERROR_MEMORY, name, "no memory for %zu bytes", n);
	memcpy(copy, json_string_value(v), n + 1);
	free(*ret);
	*ret = copy;
	if (ret_n)
		*ret_n = n;
	return 0;
}

static int read_tokenize_text(void *to, const json_t *v, const char *name, struct error *err)
{
	struct json_tokenize *t = to;
	return json_read_text(v, name, &t->text, &t->n, err);
}

static int read_tokenize_specials(void *to, const json_t *v, const char *name, struct error *err)
{
	return json_read_bool(v, name, &((struct json_tokenize *)to)->specials, err);
}

static int read_tokenize_add(void *to, const json_t *v, const char *name, struct error *err)
{
	return json_read_bool(v, name, &((struct json_tokenize *)to)->add_special, err);
}

static int read_tokenize_part(void *to, const json_t *v, const char *name, struct error *err)
{
	return json_read_bool(v, name, &((struct json_tokenize *)to)->part, err);
}

int json_read_tokenize(const char *body, size_t n, struct json_tokenize *ret, struct error *err)
{
	static const struct json_field fields[] = {
		{"text", read_tokenize_text, true, 0}, {"specials", read_tokenize_specials, false, 0},
		{"add_special", read_tokenize_add, false, 0}, {"part", read_tokenize_part, false, 0},
	};
	struct json_tokenize t = {.add_special = true};
	int r = json_read_whole(body, n, fields, sizeof fields / sizeof *fields, &t, err);
	if (r)
		json_tokenize_done(&t);
	else
		*ret = t;
	return r;
}

void json_tokenize_done(struct json_tokenize *t)
{
	free(t->text);
	t->text = NULL;
}

static int read_detokenize_tokens(void *to, const json_t *v, const char *name, struct error *err)
{
	return json_read_tokens(v, name, &((struct json_detokenize *)to)->sequence, err);
}

static int read_detokenize_skip(void *to, const json_t *v, const char *name, struct error *err)
{
	return json_read_bool(v, name, &((struct json_detokenize *)to)->skip_special, err);
}

int json_read_detokenize(const char *body, size_t n, struct json_detokenize *ret, struct error *err)
{
	static const struct json_field fields[] = {
		{"tokens", read_detokenize_tokens, true, 0}, {"skip_special", read_detokenize_skip, false, 0}};
	struct json_detokenize d = {0};
	int r = json_read_whole(body, n, fields, sizeof fields / sizeof *fields, &d, err);
	if (r)
		json_detokenize_done(&d);
	else
		*ret = d;
	return r;
}

void json_detokenize_done(struct json_detokenize *d)
{
	sequence_done(&d->sequence);
}

static int read_run_name(void *to, const json_t *v, const char *name, struct error *err)
{
	return json_read_text(v, name, &((struct json_run *)to)->name, NULL, err);
}

static int read_run_config(void *to, const json_t *v, const char *name, struct error *err)
{
	return json_read_text(v, name, &((struct json_run *)to)->config, NULL, err);
}

int json_read_run(const char *body, size_t n, struct json_run *ret, struct error *err)
{
	static const struct json_field fields[] = {{"config", read_run_config, true, 0}, {"name", read_run_name, false, 0}};
	struct json_run run = {0};
	int r = json_read_whole(body, n, fields, sizeof fields / sizeof *fields, &run, err);
	if (r)
		json_run_done(&run);
	else
		*ret = run;
	return r;
}

void json_run_done(struct json_run *r)
{
	free(r->name);
	free(r->config);
	r->name = r->config = NULL;
}
