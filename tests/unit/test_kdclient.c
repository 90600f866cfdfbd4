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
#include "tests/unit/fake_server.h"

static const uint32_t tokens[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
static const struct kd_sequence sequences[] = {{tokens, 3}, {tokens + 1, 4}, {tokens + 2, 5}, {tokens, 6}, {tokens + 3, 2},
	{tokens + 4, 1}, {tokens, 10}, {tokens + 1, 9}, {tokens + 2, 2}};

static struct kd_request ask(uint32_t n)
{
	return (struct kd_request){.query = {.top_k = 3, .own = true, .last = -1}, .sequences = sequences, .n_sequences = n};
}

static struct kd_client *connect_to(struct fake_server *s)
{
	struct kd_options options = {.address = s->address, .timeout_ms = 5000};
	struct kd_client *client = NULL;
	struct kd_error err;
	fake_server_open(s);
	if (kd_open(&options, &client, &err))
		fail_msg("%s: %s", err.code, err.message);
	return client;
}

static void hang_up(struct fake_server *s, struct kd_client *client)
{
	kd_close(client);
	fake_server_close(s);
}

// Answers every SCORE fully and in order, and every PING.
static void answer_all(struct fake_server *s)
{
	for (;;) {
		uint8_t *body;
		struct frame_score score = {0};
		struct frame f = fake_server_read(s, &body);
		if (f.kind == FRAME_SCORE && frame_score_decode(body, f.body_bytes, &score, NULL) == 0) {
			for (uint32_t i = 0; i < score.n_sequences; i++)
				fake_server_send_answer(s, f.request_id, &score, i, i);
			fake_server_send(s, FRAME_DONE, f.request_id, NULL, 0);
		} else if (f.kind == FRAME_PING) {
			fake_server_send(s, FRAME_PONG, f.request_id, body, f.body_bytes);
		}
		frame_score_done(&score);
		free(body);
		if (!f.kind)
			return;
	}
}

static void check_answer(struct kd_answer *answer, uint32_t i)
{
	const struct kd_rows *rows;
	size_t n;
	assert_non_null(answer);
	assert_int_equal(kd_answer_rows(answer, &rows, NULL), 0);
	assert_int_equal(rows->n_tokens, sequences[i].n_tokens);
	assert_memory_equal(rows->tokens, sequences[i].tokens, 4 * (size_t)rows->n_tokens);
	assert_int_equal(rows->n_rows, sequences[i].n_tokens);
	assert_int_equal(rows->top_k, 3);
	assert_int_equal(rows->ids[1], 1);
	assert_true(rows->logits[0] == 4 && rows->logits[1] == 3 && rows->max_logit[0] == 4);
	assert_true(rows->lse[rows->n_rows - 1] == 5 + (float)(rows->n_rows - 1));
	assert_true(isnan(rows->own_logit[rows->n_rows - 1]));
	assert_null(rows->entropy);
	const void *bytes = kd_answer_record(answer, &n);
	struct kd_answer *again;
	assert_int_equal(kd_answer_from_record(bytes, n, &again, NULL), 0);
	kd_answer_free(again);
}

static void learns_the_servers_limits(void **state)
{
	(void)state;
	struct fake_server s = {.play = answer_all};
	struct kd_options options = {.address = s.address, .token = "s3cret",
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
	hang_up(&s, client);
	assert_string_equal(s.hello.token, "s3cret");
	assert_int_equal(s.hello.teacher.bytes[0], 0xab);
}

static void scores_more_than_one_request_holds(void **state)
{
	(void)state;
	// 9 sequences, 4 to a request, 2 credits; and the same a byte at a time.
	for (size_t piece = 0; piece < 4; piece++) {
		struct fake_server s = {.play = answer_all, .piece = piece};
		struct kd_client *client = connect_to(&s);
		struct kd_request request = ask(9);
		struct kd_answer *answers[9];
		struct kd_error err;
		if (kd_score(client, &request, answers, &err))
			fail_msg("%s: %s", err.code, err.message);
		for (uint32_t i = 0; i < 9; i++) {
			check_answer(answers[i], i);
			assert_int_equal(kd_answer_cached(answers[i]), i % 4 % 2);
			kd_answer_free(answers[i]);
		}
		hang_up(&s, client);
	}
}

static struct frame read_score(struct fake_server *s, struct frame_score *ret)
{
	uint8_t *body;
	struct frame f = fake_server_read(s, &body);
	if (f.kind != FRAME_SCORE || frame_score_decode(body, f.body_bytes, ret, NULL))
		abort();
	free(body);
	return f;
}

static void play_out_of_order(struct fake_server *s)
{
	struct frame_score a, b;
	struct frame fa = read_score(s, &a), fb = read_score(s, &b);
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
	struct kd_client *client = connect_to(&s);
	struct kd_request three = ask(3), two = ask(2);
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
			check_answer(e.answer, e.index);
		if (e.kind == KD_EVENT_SEQUENCE_FAILED)
			assert_string_equal(e.error.code, "not_finite");
		kd_answer_free(e.answer);
	}
	assert_int_equal(kd_next(client, -1, &e, &err), -ENODATA);
	hang_up(&s, client);
}

static void faults_are_found_before_anything_is_sent(void **state)
{
	(void)state;
	struct fake_server s = {.play = answer_all};
	struct kd_client *client = connect_to(&s);
	struct kd_request request = ask(3);
	struct kd_answer *answers[9];
	struct kd_error err;
	request.query.top_k = 9;
	assert_int_equal(kd_score(client, &request, answers, &err), -E2BIG);
	assert_string_equal(err.field, "top_k");
	request = ask(3);
	struct kd_sequence bad[] = {sequences[0], sequences[1], {(const uint32_t[]){1, 1000}, 2}};
	request.sequences = bad;
	assert_int_equal(kd_score(client, &request, answers, &err), -EINVAL);
	assert_string_equal(err.field, "sequences[2].tokens[1]");
	assert_string_equal(err.message, "id 1000 is outside the vocabulary (1000)");
	uint64_t id;
	request = ask(5);
	assert_int_equal(kd_submit(client, &request, &id, &err), -E2BIG);
	request = ask(2);
	request.flags = 4;
	assert_int_equal(kd_submit(client, &request, &id, &err), -EINVAL);
	request = ask(2);
	assert_int_equal(kd_score(client, &request, answers, &err), 0);    // the connection is as good as before
	kd_answer_free(answers[0]);
	kd_answer_free(answers[1]);
	hang_up(&s, client);
}

static void play_refuse_request(struct fake_server *s)
{
	struct frame_score score;
	struct frame f = read_score(s, &score);
	fake_server_send_answer(s, f.request_id, &score, 0, 0);
	fake_server_send_error(s, f.request_id, FRAME_WHOLE_REQUEST, ERROR_OVERLOADED, "", "the queue is full");
	frame_score_done(&score);
	answer_all(s);
}

static void refused_request_says_why_and_the_next_may_succeed(void **state)
{
	(void)state;
	struct fake_server s = {.play = play_refuse_request};
	struct kd_client *client = connect_to(&s);
	struct kd_request request = ask(2);
	struct kd_answer *answers[2];
	struct kd_error err;
	assert_int_equal(kd_score(client, &request, answers, &err), -EAGAIN);
	assert_string_equal(err.code, "overloaded");
	assert_string_equal(err.message, "the queue is full");
	assert_null(answers[0]);
	assert_int_equal(kd_score(client, &request, answers, &err), 0);
	check_answer(answers[0], 0);
	kd_answer_free(answers[0]);
	kd_answer_free(answers[1]);
	hang_up(&s, client);
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
	struct kd_client *client = connect_to(&s);
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
	hang_up(&s, client);
}

static void play_drain(struct fake_server *s)
{
	struct frame_score score;
	struct frame f = read_score(s, &score);
	fake_server_send(s, FRAME_GOAWAY, 0, NULL, 0);
	fake_server_send_answer(s, f.request_id, &score, 0, 0);
	fake_server_send(s, FRAME_DONE, f.request_id, NULL, 0);
	frame_score_done(&score);
}

static void goaway_finishes_what_is_in_flight(void **state)
{
	(void)state;
	struct fake_server s = {.play = play_drain};
	struct kd_client *client = connect_to(&s);
	struct kd_request request = ask(1);
	struct kd_answer *answer;
	struct kd_error err;
	uint64_t id;
	assert_false(kd_is_draining(client));
	assert_int_equal(kd_score(client, &request, &answer, &err), 0);
	check_answer(answer, 0);
	kd_answer_free(answer);
	assert_true(kd_is_draining(client));
	assert_int_equal(kd_submit(client, &request, &id, &err), -ESHUTDOWN);
	assert_string_equal(err.code, "unavailable");
	hang_up(&s, client);
}

// What a broken or hostile server may send instead of an answer; each loses the connection with a reason.
static int misbehaviour;

static void send_damaged(struct fake_server *s, const struct frame *f, const struct frame_score *score)
{
	struct record *record = fake_server_record(s, score, 0);
	struct frame_answer answer = {0};
	answer.record = record_bytes(record, &answer.record_bytes);
	uint8_t bytes[FRAME_HEADER_BYTES + 4096];
	struct writer w = writer_init(bytes + FRAME_HEADER_BYTES, 4096);
	frame_answer_encode(&answer, &w);
	record_unref(record);
	switch (misbehaviour) {
	case 0: w.data[w.position - 1] ^= 1; break;                         // record checksum wrong, frame's right
	case 1: fake_server_send(s, FRAME_ANSWER, f->request_id, bytes, 4); return;
	case 2: fake_server_send_answer(s, f->request_id, score, 1, 0); return;    // the neighbour's record
	case 3: fake_server_send_answer(s, f->request_id, score, 0, 2); return;    // no such index
	case 4: fake_server_send_answer(s, f->request_id + 1, score, 0, 0); return;
	case 5: fake_server_send_answer(s, f->request_id, score, 0, 0); fake_server_send_answer(s, f->request_id, score, 0, 0); return;
	case 6: fake_server_send(s, FRAME_DONE, f->request_id, NULL, 0); return;   // nothing answered
	case 7: fake_server_send(s, FRAME_HELLO, 0, NULL, 0); return;
	case 8: fake_server_write(s, "HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n", 39); return;
	}
	fake_server_send(s, FRAME_ANSWER, f->request_id, w.data, w.position);
}

static void play_misbehave(struct fake_server *s)
{
	struct frame_score score;
	struct frame f = read_score(s, &score);
	send_damaged(s, &f, &score);
	frame_score_done(&score);
	uint8_t *body;
	(void)fake_server_read(s, &body);    // stay until the client hangs up
	free(body);
}

static void misbehaving_server_is_left_with_a_reason(void **state)
{
	(void)state;
	const struct { int want; const char *message; } cases[] = {
		{-EBADMSG, "checksum is wrong"}, {-EINVAL, "answer: cut short"},
		{-EBADMSG, "the server broke the protocol: a record that answers another question"},
		{-EBADMSG, "the server broke the protocol: an answer that nobody waits for"},
		{-EBADMSG, "the server broke the protocol: an answer that nobody waits for"},
		{-EBADMSG, "the server broke the protocol: an answer that nobody waits for"},
		{-EBADMSG, "the server broke the protocol: done, but not every sequence was answered"},
		{-EBADMSG, "the server broke the protocol: a frame that only clients send"},
		{-EINVAL, "this is not a kdserved frame (magic 0x50545448)"},
	};
	for (misbehaviour = 0; misbehaviour < 9; misbehaviour++) {
		struct fake_server s = {.play = play_misbehave};
		struct kd_client *client = connect_to(&s);
		struct kd_request request = ask(2);
		struct kd_answer *answers[2];
		struct kd_error err;
		if (kd_score(client, &request, answers, &err) != cases[misbehaviour].want)
			fail_msg("case %d: %s", misbehaviour, err.message);
		assert_string_equal(err.message, cases[misbehaviour].message);
		assert_null(answers[0]);
		uint64_t id;
		assert_int_equal(kd_submit(client, &request, &id, &err), cases[misbehaviour].want);    // it stays lost
		hang_up(&s, client);
	}
}

static size_t cut_at;

static void play_cut(struct fake_server *s)
{
	struct frame_score score;
	struct frame f = read_score(s, &score);
	struct frame done = {.kind = FRAME_DONE, .request_id = f.request_id};
	uint8_t header[FRAME_HEADER_BYTES];
	frame_encode(&done, header);
	fake_server_write(s, header, cut_at);
	frame_score_done(&score);
}

static void truncated_frame_is_told_from_a_closed_connection(void **state)
{
	(void)state;
	for (cut_at = 0; cut_at < FRAME_HEADER_BYTES; cut_at += 7) {
		struct fake_server s = {.play = play_cut};
		struct kd_client *client = connect_to(&s);
		struct kd_request request = ask(1);
		struct kd_answer *answer;
		struct kd_error err;
		assert_int_equal(kd_score(client, &request, &answer, &err), -ESHUTDOWN);
		assert_string_equal(err.message, cut_at ? "the server closed the connection in the middle of a frame"
							: "the server closed the connection");
		hang_up(&s, client);
	}
}

static uint8_t refusal_byte;

static void play_refuse_hello(struct fake_server *s)
{
	struct frame f = {.kind = FRAME_WELCOME};
	uint8_t header[FRAME_HEADER_BYTES], *body;
	(void)fake_server_read(s, &body);
	free(body);
	if (refusal_byte == 0) {
		fake_server_send_error(s, 0, FRAME_WHOLE_REQUEST, ERROR_UNAUTHORIZED, "token", "wrong token");
		return;
	}
	frame_encode(&f, header);
	if (refusal_byte == 1)
		header[4] = 2;           // version
	else
		header[28] ^= 1;         // header checksum
	fake_server_write(s, header, sizeof header);
}

static void refused_greeting_says_why(void **state)
{
	(void)state;
	const struct { int want; const char *code, *message; } cases[] = {
		{-EACCES, "unauthorized", "wrong token"},
		{-EOPNOTSUPP, "unsupported", "protocol version 2, this build speaks 1"},
		{-EBADMSG, "corrupt", "header checksum is wrong"},
	};
	for (refusal_byte = 0; refusal_byte < 3; refusal_byte++) {
		struct fake_server s = {.play = play_refuse_hello, .silent = true};
		struct kd_options options = {.address = s.address};
		struct kd_client *client = NULL;
		struct kd_error err;
		fake_server_open(&s);
		assert_int_equal(kd_open(&options, &client, &err), cases[refusal_byte].want);
		assert_string_equal(err.code, cases[refusal_byte].code);
		assert_string_equal(err.message, cases[refusal_byte].message);
		assert_null(client);
		fake_server_close(&s);
	}
}

static void play_nothing(struct fake_server *s)
{
	uint8_t *body;
	for (struct frame f; f = fake_server_read(s, &body), free(body), f.kind;)
		;
}

// Answers only when the client has given up.
static void play_late(struct fake_server *s)
{
	struct frame_score score;
	struct frame f = read_score(s, &score);
	uint8_t *cancel, *ping;
	struct frame c = fake_server_read(s, &cancel), p = fake_server_read(s, &ping);
	if (c.kind != FRAME_CANCEL || c.request_id != f.request_id || p.kind != FRAME_PING)
		abort();
	fake_server_send_answer(s, f.request_id, &score, 0, 0);
	fake_server_send(s, FRAME_DONE, f.request_id, NULL, 0);
	fake_server_send(s, FRAME_PONG, p.request_id, ping, p.body_bytes);
	frame_score_done(&score);
	free(cancel);
	free(ping);
}

static void silence_has_an_end_and_late_answers_are_dropped(void **state)
{
	(void)state;
	struct fake_server mute = {.play = play_nothing, .silent = true}, s = {.play = play_late};
	struct kd_options options = {.address = mute.address, .connect_timeout_ms = 50, .timeout_ms = 300};
	struct kd_client *client = NULL;
	struct kd_error err;
	fake_server_open(&mute);
	assert_int_equal(kd_open(&options, &client, &err), -ETIMEDOUT);
	assert_string_equal(err.code, "deadline");
	fake_server_close(&mute);
	fake_server_open(&s);
	options.address = s.address;
	options.connect_timeout_ms = 5000;
	assert_int_equal(kd_open(&options, &client, &err), 0);
	struct kd_request request = ask(1);
	struct kd_answer *answer;
	struct kd_event e;
	assert_int_equal(kd_score(client, &request, &answer, &err), -ETIMEDOUT);
	assert_int_equal(kd_next(client, 0, &e, &err), -ENODATA);
	assert_int_equal(kd_ping(client, NULL, &err), 0);
	assert_int_equal(kd_next(client, 0, &e, &err), -ENODATA);
	hang_up(&s, client);
}

static void addresses_are_checked(void **state)
{
	(void)state;
	const char *const bad[] = {"", "http://x", "unix:", "tcp:", "tcp:host", "tcp::1", "tcp:[::1", "tcp:[]:1", "tcp:127.0.0.1:"};
	struct kd_client *client;
	struct kd_error err;
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct kd_options options = {.address = bad[i]};
		assert_int_equal(kd_open(&options, &client, &err), -EINVAL);
		assert_string_equal(err.field, "server");
	}
	struct kd_options absent = {.address = "unix:/nonexistent/socket"};
	assert_int_equal(kd_open(&absent, &client, &err), -ENOENT);
	struct fake_server s = {.play = play_nothing, .silent = true};
	fake_server_open(&s);
	struct kd_options strange = {.address = s.address, .teacher = "xyz"};
	assert_int_equal(kd_open(&strange, &client, &err), -EINVAL);
	assert_string_equal(err.field, "teacher");
	fake_server_close(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(learns_the_servers_limits),
		cmocka_unit_test(scores_more_than_one_request_holds),
		cmocka_unit_test(pipelined_answers_come_in_any_order),
		cmocka_unit_test(faults_are_found_before_anything_is_sent),
		cmocka_unit_test(refused_request_says_why_and_the_next_may_succeed),
		cmocka_unit_test(calls_bring_status_and_body),
		cmocka_unit_test(goaway_finishes_what_is_in_flight),
		cmocka_unit_test(misbehaving_server_is_left_with_a_reason),
		cmocka_unit_test(truncated_frame_is_told_from_a_closed_connection),
		cmocka_unit_test(refused_greeting_says_why),
		cmocka_unit_test(silence_has_an_end_and_late_answers_are_dropped),
		cmocka_unit_test(addresses_are_checked),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
