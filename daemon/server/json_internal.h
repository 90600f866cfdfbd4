// SPDX-License-Identifier: Apache-2.0
// Shared by the json_*.c files only: readers of values, each told the field's full name for its errors.
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/teacher/request.h"

struct error;

#define JSON_NAME_BYTES 64     // of a field's full name, as in struct error
#define JSON_MAX_DEADLINE_MS 86400000

struct json_field {
	const char *name;
	int (*read)(void *to, const json_t *value, const char *name, struct error *err);
	bool required;
	size_t offset;         // of what the reader gets as `to`, in what json_read_object got
};

// One object, not nested too deep, no key twice. json_decref frees.
int json_parse(const char *body, size_t n, json_t **ret_root, struct error *err);
// Reads every member by its field; `prefix` ("sequences[3].") goes before names in errors. An unknown member is an error.
int json_read_object(const json_t *object, const char *prefix, const struct json_field *fields, size_t n, void *to, struct error *err);
int json_read_whole(const char *body, size_t n_body, const struct json_field *fields, size_t n, void *to, struct error *err);
int json_wrong_type(const json_t *v, const char *name, const char *expected, struct error *err);
int json_read_integer(const json_t *v, int64_t min, int64_t max, const char *name, int64_t *ret, struct error *err);
int json_read_bool(const json_t *v, const char *name, bool *ret, struct error *err);
// One of the words of `words`, NULL-terminated: its index.
int json_read_word(const json_t *v, const char *name, const char *const *words, int *ret, struct error *err);
int json_field_bool(void *to, const json_t *v, const char *name, struct error *err);     // to: bool
// Who is asked: a teacher's name, or a mixture of several. `to` is the struct choice_query, which takes one of the two.
int json_read_teacher(void *to, const json_t *v, const char *name, struct error *err);
int json_read_mixture(void *to, const json_t *v, const char *name, struct error *err);
int json_read_tokens(const json_t *v, const char *name, struct sequence *ret, struct error *err);
// A copy the caller frees; an earlier *ret is freed. ret_n may be NULL (jansson refuses zero bytes in strings).
int json_read_text(const json_t *v, const char *name, char **ret, size_t *ret_n, struct error *err);

// json_query.c: readers of struct query's fields. `to` is the field, or (temperatures, keep, features) the query.
int json_read_top_k(void *to, const json_t *v, const char *name, struct error *err);      // an integer from 1
int json_read_mass(void *to, const json_t *v, const char *name, struct error *err);
int json_read_temperatures(void *to, const json_t *v, const char *name, struct error *err);
int json_read_row(void *to, const json_t *v, const char *name, struct error *err);        // first, last: int32_t
int json_read_values(void *to, const json_t *v, const char *name, struct error *err);
int json_read_draws(void *to, const json_t *v, const char *name, struct error *err);
int json_read_keep(void *to, const json_t *v, const char *name, struct error *err);
int json_read_features(void *to, const json_t *v, const char *name, struct error *err);
int json_read_pooling(void *to, const json_t *v, const char *name, struct error *err);
int json_read_feature_values(void *to, const json_t *v, const char *name, struct error *err);
// Into the request's question, or into the parts of its items where there is one for each.
int json_read_gather(const json_t *v, struct request *to, struct error *err);
int json_read_spans(const json_t *v, struct request *to, struct error *err);
int json_span_whole(struct request *to, struct error *err);      // one span over all of each sequence
