// SPDX-License-Identifier: Apache-2.0
// The engine as a test sees it: questions in, decoded records out, through the codec as a client gets them.
#pragma once

#include "tests/golden/golden.h"

#include "common/query.h"
#include "common/record.h"

struct engine {
	struct teacher *teacher;
	struct query_limits limits;
};

// path: a model, by itself or as --teacher takes it. Fails the test when it does not load.
void engine_open(struct engine *e, const char *path, const char *device, const char *numeric);
void engine_close(struct engine *e);

// One request of n sequences with one question (not canonical; kept by the caller); rows[i] are freed by the caller. Each record goes through
// the codec. Errors fail the test.
void engine_ask(struct engine *e, const struct query *query, const struct sequence *sequences, uint32_t n, struct record_rows **ret_rows);
struct record_rows *engine_ask_one(struct engine *e, const struct query *query, const uint32_t *tokens, uint32_t n_tokens);
