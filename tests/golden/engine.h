// SPDX-License-Identifier: Apache-2.0
// The engine as a test sees it: questions in, decoded records out, through the codec as a client gets them.
#pragma once

#include "tests/golden/golden.h"

#include "common/query.h"
#include "common/record.h"
#include "daemon/teacher/generation.h"
#include "daemon/teacher/request.h"
#include "daemon/teacher/teacher.h"

struct engine {
	struct teacher *teacher;
	struct query_limits limits;        // the first teacher's
	struct choice_query asked;         // who answers; zeroed at first: the first teacher
};

// Fails the test when it does not load.
void engine_open(struct engine *e, const char *path, const char *device, const char *numeric);
void engine_close(struct engine *e);

// One request of n sequences with one question (not canonical; kept by the caller); rows[i] are freed by the caller. Each record goes
// through the codec. Errors fail the test.
void engine_ask(struct engine *e, const struct query *query, const struct sequence *sequences, uint32_t n, struct record_rows **ret_rows);
struct record_rows *engine_ask_one(struct engine *e, const struct query *query, const uint32_t *tokens, uint32_t n_tokens);

// The same engine, and one that generates: threads, tokens of a pass (of scores; while generating), places in the cache, samples at once.
struct engine_sizes { uint32_t n_threads, batch_tokens, generate_batch, cache_tokens, max_generating; };
void engine_open_sizes(struct engine *e, const char *path, const char *device, const char *numeric, const struct engine_sizes *sizes);
// And one of several teachers. Returns -errno with the reason when they do not load.
int engine_open_sources(struct engine *e, const struct teacher_source *sources, uint32_t n, const char *device, const char *numeric,
			const struct engine_sizes *sizes, struct error *err);

// A request to be submitted and waited for before anything but `cancelled` is touched, and freed with engine_free. `q` is copied, but its
// lists stay the caller's, who keeps them until then.
struct request *engine_request_score(struct engine *e, const struct query *query, const struct sequence *sequences, uint32_t n);
struct request *engine_request_generate(struct engine *e, const struct generation_query *q, const struct sequence *prompts, uint32_t n);
void engine_submit(struct engine *e, struct request *r);
void engine_wait(struct request *r);
void engine_free(struct request *r);
// All of it, and no item failed.
struct request *engine_generate(struct engine *e, const struct generation_query *q, const struct sequence *prompts, uint32_t n);
