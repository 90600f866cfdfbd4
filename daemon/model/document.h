// SPDX-License-Identifier: Apache-2.0
// JSON from model files (config.json, safetensors headers, shard indexes): hostile text, parsed by jansson after a look that bounds what
// jansson would make of it (it recurses on depth, and a value of two bytes can cost it 150).
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

#define DOCUMENT_MAX_DEPTH 32

// An object, or an error that starts with `name` (the file). max_values bounds the number of values. Duplicate keys are refused.
int document_parse(const char *text, size_t n, const char *name, size_t max_values, json_t **ret_object, struct error *err);

// Members by key; `object` may be any value. Absent or null: -ENOENT, err untouched. Another type or outside [min, max]: -EINVAL, err
// names key.
int document_u64(const json_t *object, const char *name, const char *key, uint64_t min, uint64_t max, uint64_t *ret, struct error *err);
int document_real(const json_t *object, const char *name, const char *key, double *ret, struct error *err);      // integers too
int document_bool(const json_t *object, const char *name, const char *key, bool *ret, struct error *err);
int document_string(const json_t *object, const char *name, const char *key, const char **ret, struct error *err);      // a view
