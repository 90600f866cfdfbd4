// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <cmocka.h>

#include "clients/kdclient.h"
#include "common/cursor.h"
#include "tests/unit/kdclient_fixture.h"

static void learns_the_servers_limits(void **state)
{
	(void)state;
	struct fake_server s = {.play = kdclient_answer_all};
	struct kd_options options = {.size = sizeof options, .address = s.address, .token = "s3cret",
		.teacher = "AB00000000000000000000000000000000000000000000000000000000000000"};
	struct kd_client *client;
	struct kd_error err;
	double ms = -1;
	fake_server_open(&s);
	assert_int_equal(kd_open(&options, &client, &err), 0);
	const struct kd_server *server = kd_server(client);
	assert_int_equal(server->vocab_size, 1000);
	assert_int_equal(server->max_tokens, 64);
	assert_int_equal(server->credits, 2);
	assert_string_equal(server->teacher, "ab00000000000000000000000000000000000000000000000000000000000000");
	assert_int_equal(kd_ping(client, &ms, &err), 0);
	assert_true(ms >= 0);
	assert_true(kd_fd(client) >= 0);
	kdclient_close(&s, client);
	assert_string_equal(s.hello.token, "s3cret");
	assert_int_equal(s.hello.teacher.bytes[0], 0xab);
}

static void scores_more_than_one_request_holds(void **state)
{
	(void)state;
	// 9 sequences, 4 to a request, 2 credits; and the same a byte at a time.
	for (size_t piece = 0; piece < 4; piece++) {
		struct fake_server s = {.play = kdclient_answer_all, .piece = piece};
		struct kd_client *client = kdclient_connect(&s);
		struct kd_request request = kdclient_ask(9);
		struct kd_answer *answers[9];
		struct kd_error err;
		if (kd_score(client, &request, answers, &err))
			fail_msg("%s: %s", err.code, err.message);
		for (uint32_t i = 0; i < 9; i++) {
			kdclient_check_answer(answers[i], i);
			assert_int_equal(kd_answer_cached(answers[i]), i % 4 % 2);
			kd_answer_free(answers[i]);
		}
		kdclient_close(&s, client);
	}
}

// Short ones are asked for; a server may send whole ones.
static void whole_records_are_taken_as_well(void **state)
{
	(void)state;
	struct fake_server s = {.play = kdclient_answer_all, .whole_records = true};
	struct kd_client *client = kdclient_connect(&s);
	struct kd_request request = kdclient_ask(2);
	struct kd_answer *answers[2];
	assert_int_equal(kd_score(client, &request, answers, NULL), 0);
	for (uint32_t i = 0; i < 2; i++) {
		kdclient_check_answer(answers[i], i);
		kd_answer_free(answers[i]);
	}
	kdclient_close(&s, client);
}

static void play_out_of_order(struct fake_server *s)
{
	struct frame_score a, b;
	struct frame fa = fake_server_read_score(s, &a), fb = fake_server_read_score(s, &b);
	fake_server_send(s, FRAME_PING, 77, "are you there", 13);
	fake_server_send_answer(s, fb.request_id, &b, 1, 1);
	fake_server_send_answer(s, fa.request_id, &a, 2, 2);
	fake_server_send_error(s, fb.request_id, 0, ERROR_NOT_FINITE, "", "the teacher gave no number");
	fake_server_send(s, FRAME_DONE, fb.request_id, NULL, 0);
	fake_server_send_answer(s, fa.request_id, &a, 0, 0);
	fake_server_send_answer(s, fa.request_id, &a, 1, 1);
	fake_server_send(s, FRAME_DONE, fa.request_id, NULL, 0);
	frame_score_done(&a);
	frame_score_done(&b);
	uint8_t *body;
	struct frame pong = fake_server_read(s, &body);
	if (pong.kind != FRAME_PONG || pong.request_id != 77 || memcmp(body, "are you there", 13) != 0)
		abort();
	free(body);
}

static void pipelined_answers_come_in_any_order(void **state)
{
	(void)state;
	struct fake_server s = {.play = play_out_of_order};
	struct kd_client *client = kdclient_connect(&s);
	struct kd_request three = kdclient_ask(3), two = kdclient_ask(2);
	struct kd_event e;
	struct kd_error err;
	uint64_t a, b, c;
	assert_int_equal(kd_next(client, 0, &e, &err), -ENODATA);
	assert_int_equal(kd_submit(client, &three, &a, &err), 0);
	assert_int_equal(kd_next(client, 0, &e, &err), -ETIMEDOUT);
	assert_int_equal(kd_submit(client, &two, &b, &err), 0);
	assert_int_equal(kd_submit(client, &two, &c, &err), -EAGAIN);
	assert_string_equal(err.code, "overloaded");
	const struct { enum kd_event_kind kind; uint64_t id; uint32_t index; } want[] = {
		{KD_EVENT_ANSWER, b, 1}, {KD_EVENT_ANSWER, a, 2}, {KD_EVENT_SEQUENCE_FAILED, b, 0}, {KD_EVENT_DONE, b, 0},
		{KD_EVENT_ANSWER, a, 0}, {KD_EVENT_ANSWER, a, 1}, {KD_EVENT_DONE, a, 0},
	};
	for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
		if (kd_next(client, -1, &e, &err))
			fail_msg("event %zu: %s", i, err.message);
		assert_int_equal(e.kind, want[i].kind);
		assert_true(e.id == want[i].id);
		assert_int_equal(e.index, want[i].index);
		if (e.kind == KD_EVENT_ANSWER)
			kdclient_check_answer(e.answer, e.index);
		if (e.kind == KD_EVENT_SEQUENCE_FAILED)
			assert_string_equal(e.error.code, "not_finite");
		kd_answer_free(e.answer);
	}
	assert_int_equal(kd_next(client, -1, &e, &err), -ENODATA);
	kdclient_close(&s, client);
}

static void faults_are_found_before_anything_is_sent(void **state)
{
	(void)state;
	struct fake_server s = {.play = kdclient_answer_all};
	struct kd_client *client = kdclient_connect(&s);
	struct kd_request request = kdclient_ask(3);
	struct kd_answer *answers[9];
	struct kd_error err;
	struct kd_query query = kdclient_query;
	query.top_k = 9;
	request.query = &query;
	assert_int_equal(kd_score(client, &request, answers, &err), -E2BIG);
	assert_string_equal(err.field, "top_k");
	request = kdclient_ask(3);
	struct kd_sequence bad[] = {kdclient_sequences[0], kdclient_sequences[1], {.tokens = (const uint32_t[]){1, 1000}, .n_tokens = 2}};
	request.sequences = bad;
	assert_int_equal(kd_score(client, &request, answers, &err), -EINVAL);
	assert_string_equal(err.field, "sequences[2].tokens[1]");
	assert_string_equal(err.message, "id 1000 is outside the vocabulary (1000)");
	uint64_t id;
	request = kdclient_ask(5);
	assert_int_equal(kd_submit(client, &request, &id, &err), -E2BIG);
	request = kdclient_ask(2);
	request.flags = 4;
	assert_int_equal(kd_submit(client, &request, &id, &err), -EINVAL);
	request = kdclient_ask(2);
	assert_int_equal(kd_score(client, &request, answers, &err), 0);    // the connection is as good as before
	kd_answer_free(answers[0]);
	kd_answer_free(answers[1]);
	kdclient_close(&s, client);
}

static void play_refuse_request(struct fake_server *s)
{
	struct frame_score score;
	struct frame f = fake_server_read_score(s, &score);
	fake_server_send_answer(s, f.request_id, &score, 0, 0);
	fake_server_send_error(s, f.request_id, FRAME_WHOLE_REQUEST, ERROR_OVERLOADED, "", "the queue is full");
	frame_score_done(&score);
	kdclient_answer_all(s);
}

static void refused_request_says_why_and_the_next_may_succeed(void **state)
{
	(void)state;
	struct fake_server s = {.play = play_refuse_request};
	struct kd_client *client = kdclient_connect(&s);
	struct kd_request request = kdclient_ask(2);
	struct kd_answer *answers[2];
	struct kd_error err;
	assert_int_equal(kd_score(client, &request, answers, &err), -EAGAIN);
	assert_string_equal(err.code, "overloaded");
	assert_string_equal(err.message, "the queue is full");
	assert_null(answers[0]);
	assert_int_equal(kd_score(client, &request, answers, &err), 0);
	kdclient_check_answer(answers[0], 0);
	kd_answer_free(answers[0]);
	kd_answer_free(answers[1]);
	kdclient_close(&s, client);
}

static void play_calls(struct fake_server *s)
{
	for (int i = 0; i < 3; i++) {
		uint8_t *body, out[256];
		struct frame_call call;
		struct frame f = fake_server_read(s, &body);
		if (f.kind != FRAME_CALL || frame_call_decode(body, f.body_bytes, &call, NULL))
			abort();
		free(body);
		struct writer w = writer_init(out, sizeof out);
		char text[300];
		int n = snprintf(text, sizeof text, "%s %s %s", call.method, call.path, call.body);
		struct frame_reply reply = {.status = i == 1 ? 404 : 200, .body = text, .body_bytes = (size_t)n};
		frame_reply_encode(&reply, &w);
		if (i < 2)
			fake_server_send(s, FRAME_REPLY, f.request_id, out, w.position);
		else
			fake_server_send_error(s, f.request_id, FRAME_WHOLE_REQUEST, ERROR_UNAVAILABLE, "", "starting");
		frame_call_done(&call);
	}
}

static void calls_bring_status_and_body(void **state)
{
	(void)state;
	struct fake_server s = {.play = play_calls};
	struct kd_client *client = kdclient_connect(&s);
	struct kd_error err;
	int status;
	char *body;
	size_t n;
	assert_int_equal(kd_call(client, "POST", "/v1/tokenize", "{}", 2, &status, &body, &n, &err), 0);
	assert_int_equal(status, 200);
	assert_string_equal(body, "POST /v1/tokenize {}");
	assert_int_equal(n, 20);
	free(body);
	assert_int_equal(kd_call(client, "GET", "/nothing", NULL, 0, &status, &body, &n, &err), 0);
	assert_int_equal(status, 404);
	free(body);
	assert_int_equal(kd_call(client, "GET", "/v1/model", NULL, 0, &status, &body, &n, &err), -ESHUTDOWN);
	assert_string_equal(err.message, "starting");
	kdclient_close(&s, client);
}

static void play_drain(struct fake_server *s)
{
	struct frame_score score;
	struct frame f = fake_server_read_score(s, &score);
	fake_server_send(s, FRAME_GOAWAY, 0, NULL, 0);
	fake_server_send_answer(s, f.request_id, &score, 0, 0);
	fake_server_send(s, FRAME_DONE, f.request_id, NULL, 0);
	frame_score_done(&score);
}

static void goaway_finishes_what_is_in_flight(void **state)
{
	(void)state;
	struct fake_server s = {.play = play_drain};
	struct kd_client *client = kdclient_connect(&s);
	struct kd_request request = kdclient_ask(1);
	struct kd_answer *answer;
	struct kd_error err;
	uint64_t id;
	assert_false(kd_is_draining(client));
	assert_int_equal(kd_score(client, &request, &answer, &err), 0);
	kdclient_check_answer(answer, 0);
	kd_answer_free(answer);
	assert_true(kd_is_draining(client));
	assert_int_equal(kd_submit(client, &request, &id, &err), -ESHUTDOWN);
	assert_string_equal(err.code, "unavailable");
	kdclient_close(&s, client);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(learns_the_servers_limits),
		cmocka_unit_test(scores_more_than_one_request_holds),
		cmocka_unit_test(whole_records_are_taken_as_well),
		cmocka_unit_test(pipelined_answers_come_in_any_order),
		cmocka_unit_test(faults_are_found_before_anything_is_sent),
		cmocka_unit_test(refused_request_says_why_and_the_next_may_succeed),
		cmocka_unit_test(calls_bring_status_and_body),
		cmocka_unit_test(goaway_finishes_what_is_in_flight),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
