// SPDX-License-Identifier: Apache-2.0
// The OpenAPI document and the table of routes say the same. (tests/e2e/test_openapi.py holds real replies against its schemas.)
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <jansson.h>

#include "daemon/server/auth.h"
#include "daemon/server/control.h"
#include "daemon/server/openapi.h"

static json_t *load(void)
{
	size_t n;
	const char *text = openapi_document(&n);
	json_error_t why;
	json_t *document = json_loadb(text, n, JSON_REJECT_DUPLICATES, &why);
	if (!document)
		fail_msg("openapi.json: %s (line %d)", why.text, why.line);
	return document;
}

static void lower(const char *method, char name[16])
{
	snprintf(name, 16, "%s", method);
	for (char *c = name; *c; c++)
		*c = (char)(*c | 0x20);
}

static void every_route_is_in_the_document(void **state)
{
	(void)state;
	json_t *document = load(), *paths = json_object_get(document, "paths");
	assert_true(control_n_routes() > 10);
	for (size_t i = 0; i < control_n_routes(); i++) {
		const char *method, *path;
		char verb[16];
		control_route(i, &method, &path);
		lower(method, verb);
		json_t *operation = json_object_get(json_object_get(paths, path), verb);
		if (!operation)
			fail_msg("%s %s is not in openapi.json", method, path);
		if (!json_object_size(json_object_get(operation, "responses")) ||
			!json_string_length(json_object_get(operation, "operationId")))
			fail_msg("%s %s has no responses, or no operationId", method, path);
		if (strcmp(method, "POST") == 0 && !json_is_object(json_object_get(operation, "requestBody")))
			fail_msg("%s %s has no requestBody", method, path);
	}
	json_decref(document);
}

static bool is_route(const char *name, const char *verb)
{
	for (size_t i = 0; i < control_n_routes(); i++) {
		const char *method, *path;
		char other_verb[16];
		control_route(i, &method, &path);
		lower(method, other_verb);
		if (strcmp(path, name) == 0 && strcmp(other_verb, verb) == 0)
			return true;
	}
	return false;
}

static void every_operation_of_the_document_is_a_route(void **state)
{
	(void)state;
	json_t *document = load(), *item, *operation;
	const char *path, *verb;
	json_object_foreach(json_object_get(document, "paths"), path, item)
		json_object_foreach(item, verb, operation)
			if (strcmp(verb, "parameters") != 0 && !is_route(path, verb))
				fail_msg("there is no route %s %s", verb, path);
	json_decref(document);
}

// Every {"$ref":"#/a/b/c"} leads somewhere. Recursion is bounded by the document's own depth: it is ours.
static void check_references(const json_t *root, const json_t *at)
{
	const char *key, *reference = json_string_value(json_object_get(at, "$ref"));
	json_t *value;
	size_t i;
	if (reference) {
		char copy[128], *rest = copy, *part;
		const json_t *found = root;
		assert_true(strncmp(reference, "#/", 2) == 0 && strlen(reference) < sizeof copy);
		strcpy(copy, reference + 2);
		while ((part = strsep(&rest, "/")))
			found = json_object_get(found, part);
		if (!found)
			fail_msg("%s leads nowhere", reference);
	}
	json_object_foreach((json_t *)at, key, value)
		check_references(root, value);
	json_array_foreach(at, i, value)
		check_references(root, value);
}

// The scopes of one operation: its own, else those of the whole document.
static unsigned scopes_of(const json_t *document, const json_t *operation)
{
	const json_t *list = json_object_get(operation, "security"), *one;
	unsigned scopes = AUTH_ANY;
	size_t i;
	list = list ? list : json_object_get(document, "security");
	if (!json_array_size(list))
		return CONTROL_PUBLIC;
	json_array_foreach(list, i, one) {
		const char *name = json_string_value(json_array_get(json_object_get(one, "bearer"), 0));
		unsigned bit = 0;
		if (name)
			assert_int_equal(bearer_decode_scopes(name, &bit), 0);
		scopes |= bit;
	}
	return scopes;
}

static void every_operation_says_which_scopes_it_needs(void **state)
{
	(void)state;
	json_t *document = load(), *paths = json_object_get(document, "paths");
	for (size_t i = 0; i < control_n_routes(); i++) {
		const char *method, *path;
		char verb[16];
		control_route(i, &method, &path);
		lower(method, verb);
		if (scopes_of(document, json_object_get(json_object_get(paths, path), verb)) != control_scopes(i))
			fail_msg("%s %s needs other scopes than the document says", method, path);
	}
	json_decref(document);
}

static void every_reference_leads_somewhere(void **state)
{
	(void)state;
	json_t *document = load();
	check_references(document, document);
	assert_string_equal(json_string_value(json_object_get(document, "openapi")), "3.1.0");
	json_decref(document);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_route_is_in_the_document), cmocka_unit_test(every_operation_of_the_document_is_a_route),
		cmocka_unit_test(every_reference_leads_somewhere), cmocka_unit_test(every_operation_says_which_scopes_it_needs),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
