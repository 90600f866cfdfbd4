// SPDX-License-Identifier: Apache-2.0
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/buffer.h"
#include "common/record.h"
#include "common/record_json.h"

static struct record_rows *rows_of(struct query *q, uint32_t n_tokens, uint32_t vocab_size)
{
	static uint32_t tokens[] = {1, 2, 0};
	struct sequence s = {tokens, n_tokens};
	struct query_limits limits = {
		.max_tokens = 9, .max_top_k = 9, .max_gather = 9, .max_draws = 9, .max_spans = 9,
		.vocab_size = vocab_size, .n_layers = 1, .width = 2, .q_width = 2, .kv_width = 2};
	struct content_id teacher = {{1}};
	struct record_rows *rows;
	assert_int_equal(query_check(q, &s, &limits, NULL, NULL), 0);
	assert_int_equal(record_rows_new(&teacher, vocab_size, &s, q, &rows, NULL), 0);
	return rows;
}

static void expect_members(const struct record_rows *rows, const char *want)
{
	struct buffer b = {0};
	record_json_members(&b, rows);
	assert_false(b.failed);
	assert_string_equal(b.data, want);
	buffer_done(&b);
}

static void every_signal_has_its_member(void **state)
{
	(void)state;
	uint32_t offsets[] = {0, 2, 3}, ids[] = {3, 1, 2};
	struct query_span spans[] = {{1, 2}};
	struct query q;
	query_init(&q);
	q.top_k = 2;
	q.top_mass = 0.75f;
	q.dense = q.own = q.entropy = q.max_prob = q.argmax = q.sum_squares = q.tail = true;
	q.draws = (struct query_draws){.n = 4, .tau = 2};
	q.gather = (struct id_lists){2, offsets, ids};
	q.n_spans = 1;
	q.spans = spans;
	q.n_features = 1;
	q.features[0] = (struct query_feature){QUERY_FEATURE_HIDDEN, 1};
	struct record_rows *r = rows_of(&q, 2, 4);
	for (uint32_t i = 0; i < 2; i++) {
		r->lse[i] = 3.5f + (float)i;
		r->n_top[i] = 1 + i;
		r->ids[2 * i] = 3;
		r->ids[2 * i + 1] = i ? 0 : RECORD_NO_ID;
		r->logits[2 * i] = 2;
		r->logits[2 * i + 1] = i ? 1.5f : 0;
		for (uint32_t v = 0; v < 4; v++)
			r->dense[4 * i + v] = (float)v / 2;
		r->own_logit[i] = i ? NAN : 1;
		r->entropy[i] = 0.25f;
		r->max_prob[i] = 0.5f;
		r->argmax[i] = 3;
		r->sum_squares[i] = 0.375f;
		r->tail[i] = i ? -INFINITY : -1;
	}
	assert_int_equal(record_rows_reserve_draws(r, 2, NULL), 0);
	r->draw_starts[1] = r->draw_starts[2] = 2;
	r->draw_ids[0] = 1;
	r->draw_ids[1] = 3;
	r->draw_counts[0] = 3;
	r->draw_counts[1] = 1;
	r->draw_log_ratios[0] = 0.5f;
	r->draw_log_ratios[1] = -0.5f;
	r->gathered[0] = 1.5f;
	r->gathered[1] = 0.5f;
	r->gathered[2] = 1;
	r->span_sums[0] = -2.5f;
	assert_int_equal(record_rows_add_feature(r, 0, 2, NULL), 0);
	r->features[0][1] = 0.1f;
	expect_members(r, "\"rows\":["
		       "{\"status\":\"ok\",\"lse\":[3.5],\"ids\":[3],\"logits\":[2],\"dense\":[0,0.5,1,1.5],\"own_logit\":1,"
		       "\"entropy\":0.25,\"max_prob\":0.5,\"argmax\":3,\"sum_squares\":0.375,\"tail\":-1,\"gather\":[1.5,0.5],"
		       "\"draws\":{\"ids\":[1,3],\"counts\":[3,1],\"log_ratios\":[0.5,-0.5],\"weights\":[1.23654091,0.151632667]},"
		       "\"features\":[[0,0.100000001]]},"
		       "{\"status\":\"ok\",\"lse\":[4.5],\"ids\":[3,0],\"logits\":[2,1.5],\"dense\":[0,0.5,1,1.5],\"own_logit\":null,"
		       "\"entropy\":0.25,\"max_prob\":0.5,\"argmax\":3,\"sum_squares\":0.375,\"tail\":null,\"gather\":[1],"
		       "\"draws\":{\"ids\":[],\"counts\":[],\"log_ratios\":[],\"weights\":[]},\"features\":[[0,0]]}],\"spans\":[-2.5]");
	r->status[0] = ROW_NOT_FINITE;
	struct buffer b = {0};
	record_json_row(&b, r, 0);
	assert_string_equal(b.data, "{\"status\":\"not_finite\"}");
	buffer_done(&b);
	q.gather = (struct id_lists){0};     // not ours to free
	record_rows_free(r);
}

static void what_is_asked_of_the_whole_sequence_has_no_rows(void **state)
{
	(void)state;
	struct query_span spans[] = {{1, 3}, {2, 3}};
	struct query q;
	query_init(&q);
	q.n_spans = 2;
	q.spans = spans;
	struct record_rows *r = rows_of(&q, 3, 4);
	r->span_sums[0] = -1;
	r->span_sums[1] = NAN;
	expect_members(r, "\"spans\":[-1,null]");
	record_rows_free(r);
	q.n_features = 1;
	q.features[0] = (struct query_feature){QUERY_FEATURE_FINAL, 0};
	q.pooling = QUERY_POOLING_MEAN;
	r = rows_of(&q, 3, 4);
	assert_int_equal(record_rows_add_feature(r, 0, 2, NULL), 0);
	r->features[0][0] = 2;
	expect_members(r, "\"spans\":[0,0],\"pooled\":[[2,0]]");
	record_rows_free(r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_signal_has_its_member),
		cmocka_unit_test(what_is_asked_of_the_whole_sequence_has_no_rows),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
