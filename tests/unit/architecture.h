// SPDX-License-Identifier: Apache-2.0
// config.json read, or refused, in tests; cmocka.h and string.h come before.
#pragma once

#include "common/error.h"
#include "daemon/model/config.h"

#define SIZES "\"hidden_size\":64,\"intermediate_size\":128,\"num_hidden_layers\":2,\"num_attention_heads\":4," \
	      "\"num_key_value_heads\":2,\"vocab_size\":100,\"max_position_embeddings\":512"

static struct architecture parsed(const char *json)
{
	struct architecture a;
	struct error err = {0};
	if (architecture_from_json(json, strlen(json), &a, &err) < 0)
		fail_msg("%s: %s", json, err.message);
	return a;
}

static void refused(const char *json, int code, const char *part)
{
	struct architecture a;
	struct error err = {0};
	int r = architecture_from_json(json, strlen(json), &a, &err);
	if (r != code || !strstr(err.message, part))
		fail_msg("%s: wanted %d \"%s\", got %d \"%s\"", json, code, part, r, err.message);
}
