// SPDX-License-Identifier: Apache-2.0
// What is reserved for the text of an answer is never less than it takes.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/buffer.h"
#include "common/error.h"
#include "common/record_json.h"
#include "daemon/model/tokenizer.h"
#include "daemon/server/openai.h"
#include "daemon/server/reply.h"
#include "tests/unit/rows_example.h"

#define MAX_TOKENS 64

// The text of these rows, in both encodings, with and without offsets; `asked` differs from their question in its temperatures alone.
static void expect_room(struct record_rows *rows, const struct query *asked)
{
	struct query_limits limits = {.vocab_size = rows->vocab_size, .width = 100, .q_width = 100, .kv_width = 100};
	uint32_t n_tokens = rows->sequence.n_tokens;
	struct token_offsets offsets[MAX_TOKENS];
	assert_in_range(n_tokens, 1, MAX_TOKENS);
	memset(offsets, 0xff, sizeof offsets);
	struct request_item item = {.sequence = rows->sequence, .record = rows_encode(rows)};
	struct query wide = rows->query;
	wide.n_temperatures += asked->n_temperatures;
	for (int variant = 0; variant < 4; variant++) {
		struct buffer b = {0};
		struct error err = {0};
		bool base64 = variant & 1;
		uint64_t most = reply_max_bytes(&wide, n_tokens, &limits, base64 ? REQUEST_BASE64 : REQUEST_JSON);
		if (reply_item(&b, &item, asked, variant & 2 ? offsets : NULL, base64, &err))
			fail_msg("%s: %s", err.field, err.message);
		if (b.n > most)
			fail_msg("%zu bytes of text, %llu were expected at most: %s", b.n, (unsigned long long)most, b.data);
		buffer_done(&b);
	}
	record_unref(item.record);
}

static void check(uint64_t seed, const struct query *q, uint32_t n_tokens, uint32_t vocab_size)
{
	for (int values = 0; values < 3; values++) {
		struct query v = *q;
		v.values = (enum query_values)values;
		struct record_rows *rows = rows_random(seed, &v, n_tokens, vocab_size, values == 1);
		expect_room(rows, q);
		record_rows_free(rows);
	}
}

static void every_signal_has_room(void **state)
{
	(void)state;
	struct query all;
	rows_everything(&all);
	const struct query queries[] = {
		all,
		{.last = -1, .own = true}, {.last = -1, .entropy = true}, {.last = -1, .argmax = true}, {.last = -1, .sum_squares = true},
		{.last = -1, .dense = true}, {.last = -1, .top_k = 1}, {.last = -1, .top_k = 64, .top_mass = 0.99f},
		{.last = -1, .gather = all.gather}, {.last = -1, .draws = {.n = 1, .tau = 2}},
		{.last = -1, .draws = {.n = 300, .tau = 1}}, {.last = -1, .draws = {.n = 300, .tau = 2}},
		{.last = -1, .draws.tau = 1, .n_spans = all.n_spans, .spans = all.spans},
		{.last = -1, .n_temperatures = 16, .temperatures = {2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1}},
	};
	for (size_t i = 0; i < sizeof queries / sizeof *queries; i++)
		check(i, &queries[i], 9, 500 + (uint32_t)i);
	for (int pooling = 0; pooling < 3; pooling++)
		for (int format = 0; format < 3; format++) {
			struct query q = {.last = -1, .draws.tau = 1, .n_features = all.n_features, .pooling = (enum query_pooling)pooling};
			q.feature_values = (enum query_feature_values)format;
			memcpy(q.features, all.features, sizeof q.features);
			check(77, &q, 9, 500);
		}
}

// The longest number there is.
static void long_numbers_have_room(void **state)
{
	(void)state;
	struct query q = {.last = -1, .dense = true, .own = true, .entropy = true};
	struct record_rows *rows = rows_random(5, &q, MAX_TOKENS, 3000, false);
	for (size_t i = 0; i < (size_t)MAX_TOKENS * 3000; i++)
		rows->dense[i] = -1.23456789e-38f;
	for (size_t row = 0; row < MAX_TOKENS; row++)
		rows->max_logit[row] = -1.23456789e-38f;
	expect_room(rows, &q);
	record_rows_free(rows);
}

static struct tokenizer *open_tokenizer(void)
{
	const char *source = getenv("top_srcdir");
	struct tokenizer *t = NULL;
	struct error err = {0};
	char path[4096];
	snprintf(path, sizeof path, "%s/etc/teacher", source ? source : ".");
	if (tokenizer_open_path(path, &t, &err))
		fail_msg("%s: %s", path, err.message);
	return t;
}

// A prompt of any ids, and as many alternatives to each, in all the shapes a completion shows them.
static void tokens_and_their_alternatives_have_room(void **state)
{
	(void)state;
	enum { N = 500, K = 20 };
	static uint32_t ids[N * K], tokens[N];
	static float logits[N * K];
	struct tokenizer *t = open_tokenizer();
	struct openai_writer w = {.tokenizer = t};
	struct openai_prompt prompt = {.tokens = {tokens, N}};
	struct openai_ask asked = {.prompts = &prompt, .n_prompts = 1, .echo = true, .want_logprobs = true, .want_prompt_logprobs = true,
		.return_ids = true};
	struct query q = {.last = N - 1, .top_k = K, .own = true, .n_temperatures = 1, .temperatures = {1}};
	struct query_limits limits = {.vocab_size = tokenizer_vocab_size(t)};
	struct openai_rows rows = {0};
	struct buffer b = {0};
	uint64_t random = 1;
	for (uint32_t i = 0; i < N * K; i++) {
		random = random * 6364136223846793005u + 1442695040888963407u;
		ids[i] = (uint32_t)(random >> 33) % limits.vocab_size;
		logits[i] = -1.23456789e-30f;
	}
	assert_int_equal(openai_writer_reserve(&w, K, NULL), 0);
	for (uint32_t i = 0; i < N; i++) {
		struct openai_row row = {.known = true, .logprob = -1.23456789e-30f, .n_ids = K};
		row.ids = ids + (size_t)i * K;
		row.logits = logits + (size_t)i * K;
		row.token = tokens[i] = ids[(i + 1) * 7 % (N * K)];
		assert_int_equal(openai_rows_append(&rows, &row, NULL), 0);
	}
	openai_logprobs(&b, &w, &rows, K, 0);
	openai_prompt_logprobs(&b, &w, &rows, K);
	record_json_ids(&b, tokens, N);
	for (uint32_t i = 0; i < N; i++) {
		size_t n;
		const char *text = tokenizer_bytes(t, tokens[i], &n, NULL);
		buffer_string(&b, text, text ? n : 0);
	}
	uint64_t most = reply_max_bytes(&q, N, &limits, REQUEST_TOKENS) + openai_shown_bytes(&asked, &w);
	assert_false(b.failed);
	if (b.n > most || most > 3 * b.n)
		fail_msg("%zu bytes of text, %llu are reserved", b.n, (unsigned long long)most);
	asked = (struct openai_ask){.prompts = &prompt, .n_prompts = 1};
	assert_int_equal(openai_shown_bytes(&asked, &w), 0);
	openai_rows_done(&rows);
	openai_writer_done(&w);
	buffer_done(&b);
	tokenizer_close(t);
}

static void absurd_questions_are_measured_too(void **state)
{
	(void)state;
	struct query_limits limits = {.vocab_size = 1 << 24, .width = 1 << 30, .q_width = 1, .kv_width = 1};
	struct query q = {.last = INT32_MAX - 1, .dense = true, .n_features = 1, .features = {{QUERY_FEATURE_HIDDEN, 0}}};
	assert_true(reply_max_bytes(&q, UINT32_MAX, &limits, REQUEST_JSON) > UINT64_C(1) << 60);
	assert_int_equal(reply_max_bytes(&q, UINT32_MAX, &limits, REQUEST_NO_TEXT), 0);
	assert_int_equal(reply_max_sample_bytes(100, 5, REQUEST_NO_TEXT), 0);
	assert_true(reply_max_sample_bytes(UINT32_MAX, 1 << 24, REQUEST_TOKENS) > UINT64_C(1) << 60);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_signal_has_room),
		cmocka_unit_test(long_numbers_have_room),
		cmocka_unit_test(tokens_and_their_alternatives_have_room),
		cmocka_unit_test(absurd_questions_are_measured_too),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
