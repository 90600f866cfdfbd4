// SPDX-License-Identifier: Apache-2.0
// Control resources, and the commands that only show them.
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/kdctl.h"
#include "daemon/jansson.h"

#define PRINT_DEPTH 4
#define PLAIN_DEPTH 8

// {"error":{"message":..,"field":..}} of a refused call, on stderr.
static void show_refusal(const struct kdctl *k, int status, const json_t *reply)
{
	const json_t *error = json_object_get(reply, "error");
	const char *message = json_string_value(json_object_get(error, "message"));
	const char *field = json_string_value(json_object_get(error, "field"));
	if (message)
		kdctl_fail_with(k, field ? field : "", message);
	else
		kdctl_fail(k, "the server answered %d", status);
}

// A server's words may end on a terminal: control characters (also those of two bytes, U+0080 to U+009F) become question marks. In place.
static void make_plain(char *text)
{
	for (unsigned char *c = (unsigned char *)text; *c; c++) {
		if (*c < 0x20 || *c == 0x7f)
			*c = '?';
		else if (c[0] == 0xc2 && c[1] >= 0x80 && c[1] < 0xa0)
			c[0] = c[1] = '?';
	}
}

// Every string of a reply; deeper than this nothing is printed but as JSON, which escapes them itself.
static bool make_reply_plain(json_t *j, int depth)
{
	const char *key;
	size_t i;
	json_t *item;
	if (json_is_string(j)) {
		char *text = strdup(json_string_value(j));
		if (text)
			make_plain(text);
		bool good = text && json_string_set(j, text) == 0;
		free(text);
		return good;
	}
	bool good = true;
	if (depth) {
		json_array_foreach(j, i, item)
			good &= make_reply_plain(item, depth - 1);
		json_object_foreach(j, key, item)
			good &= make_reply_plain(item, depth - 1);
	}
	return good;
}

json_t *kdctl_call(struct kdctl *k, const char *method, const char *path, json_t *body)
{
	struct kd_error err;
	int status;
	char *reply = NULL, *text = body ? jansson_dump(body, JSON_COMPACT) : NULL;
	size_t n;
	bool broken = body && !text;
	json_decref(body);
	if (broken) {
		kdctl_fail(k, "no memory for the request, or its text is not UTF-8");
		return NULL;
	}
	int r = kd_call(k->client, method, path, text, text ? strlen(text) : 0, &status, &reply, &n, &err);
	free(text);
	if (r) {
		kdctl_fail_with(k, err.field, err.message);
		return NULL;
	}
	bool starved;
	json_t *parsed = jansson_load(reply, n, JSON_REJECT_DUPLICATES, NULL, &starved);
	free(reply);
	if (starved || (!k->json && parsed && !make_reply_plain(parsed, PLAIN_DEPTH))) {
		json_decref(parsed);
		kdctl_fail(k, "no memory for the reply");
		return NULL;
	}
	if (status >= 400)
		show_refusal(k, status, parsed);
	else if (!parsed)
		kdctl_fail(k, "%s: the server's reply is not JSON", path);
	if (status >= 400) {
		json_decref(parsed);
		return NULL;
	}
	return parsed;
}

void kdctl_print_json(const json_t *j)
{
	json_dumpf(j, stdout, JSON_COMPACT | JSON_REAL_PRECISION(10));
	putchar('\n');
}

// Values of one level; nested objects become "outer.inner". Replies are a few levels deep: the depth is bounded for safety.
static void print_level(const char *prefix, const json_t *j, int depth)
{
	const char *key;
	json_t *value;
	json_object_foreach((json_t *)j, key, value) {
		char name[128];
		snprintf(name, sizeof name, "%s%s%s", prefix, *prefix ? "." : "", key);
		make_plain(name);
		if (json_is_object(value) && depth < PRINT_DEPTH) {
			print_level(name, value, depth + 1);
		} else if (json_is_string(value)) {
			printf("%-24s %s\n", name, json_string_value(value));
		} else {
			char *text = jansson_dump(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
			printf("%-24s %s\n", name, text ? text : "?");
			free(text);
		}
	}
}

void kdctl_print_object(const json_t *j)
{
	print_level("", j, 0);
}

static int show(struct kdctl *k, int argc, char **argv, const char *path, const char *help)
{
	static const struct option options[] = {{"help", no_argument, NULL, 'h'}, {0}};
	for (int c; (c = getopt_long(argc, argv, "+:", options, NULL)) != -1;) {
		if (c != 'h')
			return kdctl_bad_option(k, argc, argv);
		printf("Usage: kdctl %s\n%s\n", k->command, help);
		return 0;
	}
	if (optind != argc)
		return kdctl_usage(k, "%s: no argument is expected", argv[optind]);
	int status = kdctl_connect(k);
	if (status)
		return status;
	json_t *reply = kdctl_call(k, "GET", path, NULL);
	if (!reply)
		return 1;
	if (k->json)
		kdctl_print_json(reply);
	else
		kdctl_print_object(reply);
	json_decref(reply);
	return 0;
}

int command_status(struct kdctl *k, int argc, char **argv)
{
	return show(k, argc, argv, "/v1/status", "Shows how the server fares: uptime, readiness, queue, store.");
}

int command_model(struct kdctl *k, int argc, char **argv)
{
	return show(k, argc, argv, "/v1/model", "Shows the teacher: fingerprint, tokenizer, architecture, sizes, device.");
}
