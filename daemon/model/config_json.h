// SPDX-License-Identifier: Apache-2.0
// Shared by the readers and writers of config.json only (config_json.c, config_layernorm.c).
#pragma once

#include <jansson.h>

#include "common/error.h"
#include "daemon/model/config.h"

#define CONFIG_NAME "config.json"
#define CONFIG_REFUSE(key, ...) error_set(err, ERROR_UNSUPPORTED, key, CONFIG_NAME ": " __VA_ARGS__)

// An integer that must be there, or has a fallback (0: none).
int config_read_size(const json_t *o, const char *key, uint64_t fallback, uint32_t *ret, struct error *err);
int config_refuse_set(const json_t *o, const char *key, const char *what, struct error *err);    // when the boolean is true
json_t *config_token_json(int32_t id);
// The shortest decimal that reads back as the same float: 1e-05 rather than 9.9999997e-06.
double config_decimal_of(float f);

int config_read_gpt2(const json_t *o, struct architecture *a, struct error *err);
json_t *config_write_gpt2(const struct architecture *a);        // NULL without memory
int config_read_bert(const json_t *o, struct architecture *a, struct error *err);
json_t *config_write_bert(const struct architecture *a);
