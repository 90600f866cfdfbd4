// SPDX-License-Identifier: Apache-2.0
// Every signal through libkdclient and back, and the caller's structures: their sizes, their faults.
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "clients/kdclient.h"
#include "tests/unit/kdclient_fixture.h"

static const uint32_t two[] = {7, 9, 11, 4};
static const uint32_t flat_offsets[] = {0, 2}, flat[] = {5, 2};
static const uint32_t row_offsets[] = {0, 1, 1, 3, 3}, row_ids[] = {6, 8, 0};
static const struct kd_lists for_all = {1, flat_offsets, flat}, per_row = {4, row_offsets, row_ids};
static const struct kd_span spans[] = {{1, 3}, {2, 4}};
static const struct kd_rows_range last_two = {-2, -1};
static const float temperatures[] = {2, 0.5f};
static const struct kd_feature features[] = {{KD_HIDDEN, 2}, {KD_K, 0}};

// Everything that rows can carry.
static struct kd_query everything(void)
{
	struct kd_query q = KD_QUERY_INIT;
	q.top_k = 3;
	q.top_mass = 0.9f;
	q.own = q.entropy = q.max_prob = q.argmax = q.sum_squares = q.tail = q.dense = true;
	q.n_temperatures = 2;
	q.temperatures = temperatures;
	q.gather = for_all;
	q.draws = (struct kd_draws){.n = 5, .tau = 2, .seed = 1, .tail = true};
	q.n_spans = 2;
	q.spans = spans;
	q.n_features = 2;
	q.features = features;
	return q;
}

static struct kd_answer *ask(struct kd_client *client, const struct kd_query *q, const struct kd_sequence *s)
{
	struct kd_request request = KD_REQUEST_INIT;
	struct kd_answer *answer = NULL;
	struct kd_error err = {0};
	request.query = q;
	request.sequences = s;
	request.n_sequences = 1;
	if (kd_score(client, &request, &answer, &err))
		fail_msg("%s: %s: %s", err.code, err.field, err.message);
	return answer;
}

static const struct kd_rows *rows_of(struct kd_answer *answer)
{
	const struct kd_rows *rows;
	assert_int_equal(kd_answer_rows(answer, &rows, NULL), 0);
	return rows;
}

static void check_vocabulary(const struct kd_rows *r)
{
	assert_int_equal(r->n_rows, 4);
	assert_true(r->temperatures[0] == 0.5f && r->temperatures[1] == 2);
	assert_true(r->lse[2 * 3] == 8 && r->max_logit[3] == 4);
	assert_int_equal(r->n_top[3], 3);
	assert_int_equal(r->ids[3 * 3 + 2], 2);
	assert_true(r->logits[3 * 3 + 2] == 2);
	assert_true(r->own_logit[0] == 2 && isnan(r->own_logit[3]));
	assert_true(r->entropy[1] == 1.5f && r->max_prob[1] == 0.5f && r->sum_squares[1] == 0.25f && r->tail[1] == -1);
	assert_int_equal(r->argmax[1], 0);
	assert_int_equal(r->n_dense, 1000);
	assert_true(r->dense[1000 + 7] == -3);
}

static void every_signal_arrives(void **state)
{
	(void)state;
	struct fake_server s = {.play = kdclient_answer_all};
	struct kd_client *client = kdclient_connect(&s);
	struct kd_query q = everything();
	struct kd_sequence sequence = {.tokens = two, .n_tokens = 4};
	struct kd_answer *answer = ask(client, &q, &sequence);
	const struct kd_rows *r = rows_of(answer);
	char key[65];
	check_vocabulary(r);
	assert_int_equal(r->gather.n_lists, 1);
	assert_int_equal(r->gather_starts[4], 8);
	assert_true(r->gathered[r->gather_starts[3]] == -1 && r->gathered[r->gather_starts[3] + 1] == 2);
	assert_int_equal(r->draw_starts[4], 4);
	assert_int_equal(r->draw_ids[2], 3);
	assert_int_equal(r->draw_counts[2], 5);
	assert_true(r->draw_log_ratios[2] == 0.5f);
	assert_int_equal(r->n_spans, 2);
	assert_int_equal(r->spans[1].begin, 2);
	assert_true(r->span_sums[0] == -6);
	assert_int_equal(r->n_feature_rows, 4);
	assert_int_equal(r->feature_widths[0], 4);
	assert_int_equal(r->feature_widths[1], 2);
	assert_true(r->features[1][7] == 7);
	kd_answer_key(answer, key);
	assert_int_equal(strspn(key, "0123456789abcdef"), 64);
	kd_answer_free(answer);
	kdclient_close(&s, client);
}

static void u8_keep_and_pooling_are_asked_for(void **state)
{
	(void)state;
	struct fake_server s = {.play = kdclient_answer_all};
	struct kd_client *client = kdclient_connect(&s);
	struct kd_query q = KD_QUERY_INIT;
	static const uint32_t keep[] = {9, 3, 5, 3};
	struct kd_sequence sequence = {.tokens = two, .n_tokens = 4};
	q.top_k = 2;
	q.values = KD_U8;
	q.dense = true;
	q.n_keep = 4;
	q.keep = keep;
	struct kd_answer *answer = ask(client, &q, &sequence);
	const struct kd_rows *r = rows_of(answer);
	assert_int_equal(r->n_keep, 3);
	assert_int_equal(r->keep[0], 3);
	assert_int_equal(r->n_dense, 3);
	assert_true(r->max_logit[0] == 1 && r->dense[0] == 1);
	assert_true(fabsf(r->dense[2] - -5) <= 3.f / 255);
	assert_int_equal(r->ids[1], 5);
	kd_answer_free(answer);
	q = (struct kd_query)KD_QUERY_INIT;
	q.n_features = 1;
	q.features = features;
	q.pooling = KD_POOLING_MEAN;
	q.feature_values = KD_BF16;
	answer = ask(client, &q, &sequence);
	r = rows_of(answer);
	assert_null(r->status);
	assert_null(r->lse);
	assert_int_equal(r->n_feature_rows, 1);
	assert_true(r->features[0][3] == 3);
	kd_answer_free(answer);
	kdclient_close(&s, client);
}

// A batch whose sequences ask for ids, spans and rows of their own: the usual shape of a student's question.
static void sequences_ask_for_their_own(void **state)
{
	(void)state;
	struct fake_server s = {.play = kdclient_answer_all};
	struct kd_client *client = kdclient_connect(&s);
	struct kd_query q = KD_QUERY_INIT;
	struct kd_request request = KD_REQUEST_INIT;
	struct kd_answer *answers[6];
	const struct kd_sequence sequences[] = {
		{.tokens = two, .n_tokens = 4}, {.tokens = two, .n_tokens = 4, .gather = &per_row},
		{.tokens = two, .n_tokens = 4, .rows = &last_two}, {.tokens = two, .n_tokens = 3, .spans = spans, .n_spans = 1},
		{.tokens = two, .n_tokens = 2, .gather = &for_all},
		{.tokens = two, .n_tokens = 4, .gather = &per_row, .spans = spans, .n_spans = 2},
	};
	q.own = true;
	request.query = &q;
	request.sequences = sequences;
	request.n_sequences = 6;       // two requests
	assert_int_equal(kd_score(client, &request, answers, NULL), 0);
	assert_null(rows_of(answers[0])->gathered);
	const struct kd_rows *r = rows_of(answers[1]);
	assert_int_equal(r->gather.n_lists, 4);
	assert_int_equal(r->gather_starts[2], 1);
	assert_int_equal(r->gather_starts[3], 3);
	assert_true(r->gathered[0] == -2 && r->gathered[2] == 4);
	assert_int_equal(rows_of(answers[2])->n_rows, 2);
	assert_int_equal(rows_of(answers[2])->first, 2);
	assert_int_equal(rows_of(answers[3])->n_spans, 1);
	assert_int_equal(rows_of(answers[4])->gather_starts[2], 4);
	assert_int_equal(rows_of(answers[5])->n_spans, 2);
	for (int i = 0; i < 6; i++)
		kd_answer_free(answers[i]);
	kdclient_close(&s, client);
}

static void expect_refusal(struct kd_client *client, const struct kd_query *q, const struct kd_sequence *s, int want, const char *field)
{
	struct kd_request request = KD_REQUEST_INIT;
	struct kd_answer *answer;
	struct kd_error err = {0};
	request.query = q;
	request.sequences = s;
	request.n_sequences = 1;
	int r = kd_score(client, &request, &answer, &err);
	if (r != want || strcmp(err.field, field) != 0)
		fail_msg("%d, %s: %s (want %d, %s)", r, err.field, err.message, want, field);
}

static void faults_name_their_field(void **state)
{
	(void)state;
	struct fake_server s = {.play = kdclient_answer_all};
	struct kd_client *client = kdclient_connect(&s);
	const struct kd_sequence plain = {.tokens = two, .n_tokens = 4};
	struct kd_query q = KD_QUERY_INIT, good = everything();
	expect_refusal(client, &q, &plain, -EINVAL, "top_k");      // nothing asked
	expect_refusal(client, NULL, &plain, -EINVAL, "query");
	q = good; q.size = 0; expect_refusal(client, &q, &plain, -EINVAL, "query");
	q = good; q.values = 3; expect_refusal(client, &q, &plain, -EINVAL, "values");
	q = good; q.feature_values = KD_U8; expect_refusal(client, &q, &plain, -EINVAL, "feature_values");
	q = good; q.pooling = 3; expect_refusal(client, &q, &plain, -EINVAL, "pooling");
	q = good; q.n_temperatures = 17; expect_refusal(client, &q, &plain, -E2BIG, "temperatures");
	q = good; q.n_features = 65; expect_refusal(client, &q, &plain, -E2BIG, "features");
	q = good; q.draws.n = 17; expect_refusal(client, &q, &plain, -E2BIG, "draws.n");
	q = good; q.top_mass = 2; expect_refusal(client, &q, &plain, -EINVAL, "top_mass");
	q = good; q.gather = per_row; q.last = 2; expect_refusal(client, &q, &plain, -EINVAL, "gather");
	static const uint32_t backwards[] = {0, 2, 1}, late[] = {1, 2};
	q = good; q.gather = (struct kd_lists){2, backwards, row_ids}; expect_refusal(client, &q, &plain, -EINVAL, "gather");
	q = good; q.gather = (struct kd_lists){1, late, row_ids}; expect_refusal(client, &q, &plain, -EINVAL, "gather");
	static const struct kd_feature strange[] = {{9, 0}}, deep[] = {{KD_HIDDEN, 3}};
	q = good; q.n_features = 1; q.features = strange; expect_refusal(client, &q, &plain, -EINVAL, "features[0].kind");
	q = good; q.n_features = 1; q.features = deep; expect_refusal(client, &q, &plain, -EINVAL, "features[0].layer");
	static const struct kd_span beyond[] = {{1, 5}};
	struct kd_sequence own = {.tokens = two, .n_tokens = 4, .spans = beyond, .n_spans = 1};
	expect_refusal(client, &good, &own, -EINVAL, "sequences[0].spans[0].end");
	own = (struct kd_sequence){.tokens = two, .n_tokens = 3, .gather = &per_row};
	good.n_spans = 0;
	expect_refusal(client, &good, &own, -EINVAL, "sequences[0].gather");
	kdclient_close(&s, client);
}

// A program built with a later header, whose structures are longer.
static void later_structures_work_while_their_news_are_unused(void **state)
{
	(void)state;
	struct fake_server s = {.play = kdclient_answer_all};
	struct { struct kd_options known; uint64_t news; } options = {.known = {.size = sizeof options, .address = s.address}};
	struct { struct kd_query known; uint64_t news; } query = {.known = {.size = sizeof query, .own = true, .last = -1}};
	struct { struct kd_request known; uint64_t news; } request = {.known = {.size = sizeof request, .query = &query.known}};
	const struct kd_sequence sequence = {.tokens = two, .n_tokens = 4};
	struct kd_client *client = NULL;
	struct kd_answer *answer;
	struct kd_error err;
	request.known.sequences = &sequence;
	request.known.n_sequences = 1;
	fake_server_open(&s);
	options.news = 1;
	assert_int_equal(kd_open(&options.known, &client, &err), -EOPNOTSUPP);
	assert_string_equal(err.field, "options");
	options.news = 0;
	assert_int_equal(kd_open(&options.known, &client, &err), 0);
	assert_int_equal(kd_score(client, &request.known, &answer, &err), 0);
	kd_answer_free(answer);
	query.news = 1;
	assert_int_equal(kd_score(client, &request.known, &answer, &err), -EOPNOTSUPP);
	assert_string_equal(err.field, "query");
	request.known.size = 8;
	assert_int_equal(kd_score(client, &request.known, &answer, &err), -EINVAL);
	assert_string_equal(err.field, "request");
	kdclient_close(&s, client);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_signal_arrives),
		cmocka_unit_test(u8_keep_and_pooling_are_asked_for),
		cmocka_unit_test(sequences_ask_for_their_own),
		cmocka_unit_test(faults_name_their_field),
		cmocka_unit_test(later_structures_work_while_their_news_are_unused),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
