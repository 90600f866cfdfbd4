// SPDX-License-Identifier: Apache-2.0
// What is reserved for the text of an answer is never less than it takes.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "common/buffer.h"
#include "common/error.h"
#include "daemon/model/tokenizer.h"
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

static void absurd_questions_are_measured_too(void **state)
{
	(void)state;
	struct query_limits limits = {.vocab_size = 1 << 24, .width = 1 << 30, .q_width = 1, .kv_width = 1};
	struct query q = {.last = INT32_MAX - 1, .dense = true, .n_features = 1, .features = {{QUERY_FEATURE_HIDDEN, 0}}};
	assert_true(reply_max_bytes(&q, UINT32_MAX, &limits, REQUEST_JSON) > UINT64_C(1) << 60);
	assert_int_equal(reply_max_bytes(&q, UINT32_MAX, &limits, REQUEST_NO_TEXT), 0);
	assert_int_equal(reply_max_sample_bytes(100, 5, REQUEST_NO_TEXT), 0);
	assert_true(reply_max_sample_bytes(UINT32_MAX, 1 << 24, REQUEST_TOKENS) > UINT64_C(1) << 62);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_signal_has_room),
		cmocka_unit_test(long_numbers_have_room),
		cmocka_unit_test(absurd_questions_are_measured_too),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
