// SPDX-License-Identifier: Apache-2.0
// Bodies of HTTP requests. What was read must be whole, and a refusal must say where and why. Texts go through a tokenizer
// of a few letters.
#include <string.h>

#include "common/error.h"
#include "daemon/server/json.h"
#include "daemon/server/openai.h"
#include "daemon/teacher/generation.h"
#include "daemon/teacher/request.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/letters.h"

static void require(int ok)
{
	if (!ok)
		__builtin_trap();
}

static const struct json_limits limits = {.max_tokens = 64, .max_sequences = 8};

static void fuzz_score(const char *body, size_t n)
{
	struct json_score s = {0};
	struct error err = {0};
	if (json_read_score(body, n, letters(), &limits, &s, &err)) {
		require(err.code && err.field[0] && err.message[0]);
		return;
	}
	require(s.request && s.request->n_items >= 1 && s.request->n_items <= 8);
	for (uint32_t i = 0; i < s.request->n_items; i++)
		require(s.request->items[i].sequence.tokens != NULL);
	json_score_done(&s);
}

static void fuzz_generate(const char *body, size_t n)
{
	struct json_generate g = {0};
	struct error err = {0};
	if (json_read_generate(body, n, letters(), &limits, &g, &err)) {
		require(err.code && err.field[0] && err.message[0] && !g.request);
		return;
	}
	const struct generation_query *q = g.request->generate;
	require(g.request->n_items <= 8 && q->n_stops <= GENERATION_MAX_STOPS && q->n_stop_ids <= GENERATION_MAX_STOP_IDS);
	require(q->n ? g.request->n_items % q->n == 0 : g.request->n_items == 0);
	require(generation_check(g.request, &(struct generation_limits){64, 4, 8, 5}, &err) == 0 || (err.code && err.message[0]));
	json_generate_done(&g);
}

static void fuzz_completion(const char *body, size_t n)
{
	struct openai_ask a = {0};
	struct error err = {0};
	if (openai_ask_read(body, n, letters(), &limits, &a, &err)) {
		require(err.code && err.field[0] && err.message[0] && !a.prompts);
		return;
	}
	require(a.n_prompts >= 1 && (uint64_t)a.n_prompts * a.n <= 8);
	for (uint32_t i = 0; i < a.n_prompts; i++)
		require(a.prompts[i].tokens.n_tokens >= 1);
	for (uint32_t i = 0; i < a.n_stop; i++)
		require(a.stop[i][0] != '\0');
	openai_ask_done(&a);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	const char *body = (const char *)data;
	struct json_tokenize t;
	struct json_detokenize d;
	struct json_run run;
	struct json_weights w;
	fuzz_score(body, n);
	fuzz_generate(body, n);
	fuzz_completion(body, n);
	if (json_read_tokenize(body, n, &t, NULL) == 0) {
		require(t.text && t.text[t.n] == '\0');
		json_tokenize_done(&t);
	}
	if (json_read_detokenize(body, n, &d, NULL) == 0)
		json_detokenize_done(&d);
	if (json_read_weights(body, n, &w, NULL) == 0) {
		require(!w.ids.tokens || (w.ids.n_tokens && w.tensor != JSON_FINAL_NORM));
		json_weights_done(&w);
	}
	if (json_read_run(body, n, &run, NULL) == 0) {
		require(run.config != NULL);
		json_run_done(&run);
	}
	return 0;
}
