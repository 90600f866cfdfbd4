// SPDX-License-Identifier: Apache-2.0
// Bodies of HTTP requests. What was read must be whole, and a refusal must say where and why. (Text sequences would need a tokenizer,
// which has targets of its own: bodies that hold "text" are passed over.)
#include <string.h>

#include "common/error.h"
#include "daemon/server/json.h"
#include "daemon/teacher/request.h"
#include "tests/fuzz/fuzz.h"

static void require(int ok)
{
	if (!ok)
		__builtin_trap();
}

static void fuzz_score(const char *body, size_t n)
{
	struct json_score s = {0};
	struct error err = {0};
	const struct json_limits limits = {.max_tokens = 64, .max_sequences = 8};
	if (memmem(body, n, "text", 4) || memmem(body, n, "\\u", 2))
		return;
	if (json_read_score(body, n, NULL, &limits, &s, &err)) {
		require(err.code && err.field[0] && err.message[0]);
		return;
	}
	require(s.request && s.request->n_items >= 1 && s.request->n_items <= 8);
	for (uint32_t i = 0; i < s.request->n_items; i++)
		require(s.request->items[i].sequence.tokens != NULL);
	json_score_done(&s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	const char *body = (const char *)data;
	struct json_tokenize t;
	struct json_detokenize d;
	struct json_run run;
	fuzz_score(body, n);
	if (json_read_tokenize(body, n, &t, NULL) == 0) {
		require(t.text && t.text[t.n] == '\0');
		json_tokenize_done(&t);
	}
	if (json_read_detokenize(body, n, &d, NULL) == 0)
		json_detokenize_done(&d);
	if (json_read_run(body, n, &run, NULL) == 0) {
		require(run.config != NULL);
		json_run_done(&run);
	}
	return 0;
}
