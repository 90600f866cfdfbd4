// SPDX-License-Identifier: Apache-2.0
// Shared by the readers and writers of config.json only (config_json.c, config_layernorm.c).
#pragma once

#include <jansson.h>

#include "common/error.h"
#include "daemon/model/config.h"

#define CONFIG_NAME "config.json"
#define CONFIG_REFUSE(key, ...) error_set(err, ERROR_UNSUPPORTED, key, CONFIG_NAME ": " __VA_ARGS__)

bool config_has(const json_t *o, const char *key);      // null and {} are as if it were not there
// An integer that must be there, or has a fallback (0: none).
int config_read_size(const json_t *o, const char *key, uint64_t fallback, uint32_t *ret, struct error *err);
int config_refuse_set(const json_t *o, const char *key, const char *what, struct error *err);    // when the boolean is true
json_t *config_token_json(int32_t id);
// The shortest decimal that reads back as the same float: 1e-05 rather than 9.9999997e-06.
double config_decimal_of(float f);

// How a family says which layers slide: not at all; all of them (Mistral); those from a number on (Qwen); a pattern that its reader has set
// in a->sliding before (Gemma). layer_types goes before all of it.
enum config_window { CONFIG_WINDOW_NONE, CONFIG_WINDOW_ALL, CONFIG_WINDOW_LATE, CONFIG_WINDOW_MIXED };
int config_read_window(const json_t *o, enum config_window rule, struct architecture *a, struct error *err);
int config_write_window(const struct architecture *a, enum config_window rule, json_t *o);    // -ENOMEM

// Parts of the Llama family's reader.
int config_read_sizes(const json_t *o, uint32_t default_head_size, double default_epsilon, bool n_kv_heads_may_lack,
		      struct architecture *a, struct error *err);

// Rotation (config_rope.c). What partial_rotary_factor says is left in a->rope_size for every family; those without it refuse it.
int config_read_theta(const json_t *o, double default_theta, struct architecture *a, struct error *err);
int config_read_rope(const json_t *o, double default_theta, struct architecture *a, struct error *err);
// Theta and scaling of one kind of layer; o: the file's object, or NULL where the kind has all it needs in its own.
int config_read_rope_object(const json_t *o, const json_t *scaling, struct architecture *a, struct error *err);
json_t *config_rope_json(const struct architecture *a);     // rope_scaling

int config_read_mixtral(const json_t *o, struct architecture *a, struct error *err);
int config_read_qwen3_moe(const json_t *o, struct architecture *a, struct error *err);
int config_read_phi3(const json_t *o, struct architecture *a, struct error *err);
int config_read_smollm3(const json_t *o, struct architecture *a, struct error *err);
int config_read_granite(const json_t *o, struct architecture *a, struct error *err);
int config_read_gemma2(const json_t *o, struct architecture *a, struct error *err);
int config_read_gemma3(const json_t *o, struct architecture *a, struct error *err);
// The document of a Gemma 3 that sees becomes that of its text half (as Gemma3ForCausalLM), any other stays as it is.
#define CONFIG_GEMMA3_VISION "Gemma3ForConditionalGeneration"
int config_take_text(json_t **document, struct error *err);
int config_read_gpt2(const json_t *o, struct architecture *a, struct error *err);
json_t *config_write_gpt2(const struct architecture *a);        // NULL without memory
int config_read_bert(const json_t *o, struct architecture *a, struct error *err);
json_t *config_write_bert(const struct architecture *a);
