// SPDX-License-Identifier: Apache-2.0
#include "daemon/model/document.h"

#include <errno.h>
#include <string.h>

#include "common/error.h"
#include "daemon/jansson.h"

// Counts depth and values without building anything. Strings are skipped; whether the text is JSON at all is jansson's to say.
static int look(const char *text, size_t n, const char *name, size_t max_values, struct error *err)
{
	size_t depth = 0, n_values = 1;
	bool in_string = false;
	for (size_t i = 0; i < n; i++) {
		char c = text[i];
		if (in_string) {
			if (c == '\\')
				i++;
			else if (c == '"')
				in_string = false;
			continue;
		}
		in_string = c == '"';
		if (c == '{' || c == '[') {
			if (++depth > DOCUMENT_MAX_DEPTH)
				return error_set(err, ERROR_INVALID, name, "%s: JSON nested deeper than %d", name, DOCUMENT_MAX_DEPTH);
		} else if ((c == '}' || c == ']') && depth) {
			depth--;
		}
		if ((c == '{' || c == '[' || c == ',') && ++n_values > max_values)
			return error_set(err, ERROR_TOO_LARGE, name, "%s: JSON with more than %zu values", name, max_values);
	}
	return 0;
}

int document_parse(const char *text, size_t n, const char *name, size_t max_values, json_t **ret_object, struct error *err)
{
	json_error_t e;
	int r = look(text, n, name, max_values, err);
	if (r < 0)
		return r;
	bool starved;
	json_t *object = jansson_load(text, n, JSON_REJECT_DUPLICATES, &e, &starved);
	if (starved)
		return error_set(err, ERROR_MEMORY, name, "%s: no memory to read it", name);
	if (!object)
		return error_set(err, ERROR_INVALID, name, "%s: not valid JSON: line %d: %s", name, e.line, e.text);
	if (!json_is_object(object)) {
		json_decref(object);
		return error_set(err, ERROR_INVALID, name, "%s: not a JSON object", name);
	}
	*ret_object = object;
	return 0;
}

static const json_t *member(const json_t *object, const char *key)
{
	const json_t *v = json_object_get(object, key);
	return json_is_null(v) ? NULL : v;
}

static int wrong(const char *name, const char *key, const char *wanted, struct error *err)
{
	return error_set(err, ERROR_INVALID, key, "%s: %s must be %s", name, key, wanted);
}

int document_u64(const json_t *object, const char *name, const char *key, uint64_t min, uint64_t max, uint64_t *ret, struct error *err)
{
	const json_t *v = member(object, key);
	if (!v)
		return -ENOENT;
	if (!json_is_integer(v))
		return wrong(name, key, "an integer", err);
	json_int_t i = json_integer_value(v);
	if (i < 0 || (uint64_t)i < min || (uint64_t)i > max)
		return error_set(err, ERROR_INVALID, key, "%s: %s is %lld; supported: %llu to %llu", name, key, (long long)i,
				 (unsigned long long)min, (unsigned long long)max);
	*ret = (uint64_t)i;
	return 0;
}

int document_real(const json_t *object, const char *name, const char *key, double *ret, struct error *err)
{
	const json_t *v = member(object, key);
	if (!v)
		return -ENOENT;
	if (!json_is_number(v))
		return wrong(name, key, "a number", err);
	*ret = json_number_value(v);
	return 0;
}

int document_bool(const json_t *object, const char *name, const char *key, bool *ret, struct error *err)
{
	const json_t *v = member(object, key);
	if (!v)
		return -ENOENT;
	if (!json_is_boolean(v))
		return wrong(name, key, "true or false", err);
	*ret = json_is_true(v);
	return 0;
}

int document_string(const json_t *object, const char *name, const char *key, const char **ret, struct error *err)
{
	const json_t *v = member(object, key);
	if (!v)
		return -ENOENT;
	if (!json_is_string(v))
		return wrong(name, key, "a string", err);
	*ret = json_string_value(v);
	return 0;
}
