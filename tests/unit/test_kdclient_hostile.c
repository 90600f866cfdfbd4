// SPDX-License-Identifier: Apache-2.0
// libkdclient against servers that are broken, hostile, silent or absent.
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
	case 1: fake_server_send(s, FRAME_ANSWER, f->request_id, w.data, 4); return;
	case 2: fake_server_send_answer(s, f->request_id, score, 1, 0); return;    // the neighbour's record
	case 3: fake_server_send_answer(s, f->request_id, score, 0, 2); return;    // no such index
	case 4: fake_server_send_answer(s, f->request_id + 1, score, 0, 0); return;
	case 5: fake_server_send_answer(s, f->request_id, score, 0, 0); fake_server_send_answer(s, f->request_id, score, 0, 0); return;
	case 6: fake_server_send(s, FRAME_DONE, f->request_id, NULL, 0); return;   // nothing answered
	case 7: fake_server_send(s, FRAME_HELLO, 0, NULL, 0); return;
	case 9:
		s->whole_records = true;
		fake_server_send_answer(s, f->request_id, score, 1, 0);
		return;
	case 8: fake_server_write(s, "HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n", 39); return;
	}
	fake_server_send(s, FRAME_ANSWER, f->request_id, w.data, w.position);
}

static void play_misbehave(struct fake_server *s)
{
	struct frame_score score;
	struct frame f = fake_server_read_score(s, &score);
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
		{-EBADMSG, "a short record answers another question"},
		{-EBADMSG, "the server broke the protocol: an answer that nobody waits for"},
		{-EBADMSG, "the server broke the protocol: an answer that nobody waits for"},
		{-EBADMSG, "the server broke the protocol: an answer that nobody waits for"},
		{-EBADMSG, "the server broke the protocol: done, but not every sequence was answered"},
		{-EBADMSG, "the server broke the protocol: a frame that only clients send"},
		{-EINVAL, "this is not a kdserved frame (magic 0x50545448)"},
		{-EBADMSG, "the server broke the protocol: a record that answers another question"},
	};
	for (misbehaviour = 0; misbehaviour < 10; misbehaviour++) {
		struct fake_server s = {.play = play_misbehave};
		struct kd_client *client = kdclient_connect(&s);
		struct kd_request request = kdclient_ask(2);
		struct kd_answer *answers[2];
		struct kd_error err;
		if (kd_score(client, &request, answers, &err) != cases[misbehaviour].want)
			fail_msg("case %d: %s", misbehaviour, err.message);
		assert_string_equal(err.message, cases[misbehaviour].message);
		assert_null(answers[0]);
		uint64_t id;
		assert_int_equal(kd_submit(client, &request, &id, &err), cases[misbehaviour].want);    // it stays lost
		kdclient_close(&s, client);
	}
}

static size_t cut_at;

static void play_cut(struct fake_server *s)
{
	struct frame_score score;
	struct frame f = fake_server_read_score(s, &score);
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
		struct kd_client *client = kdclient_connect(&s);
		struct kd_request request = kdclient_ask(1);
		struct kd_answer *answer;
		struct kd_error err;
		assert_int_equal(kd_score(client, &request, &answer, &err), -ESHUTDOWN);
		assert_string_equal(err.message, cut_at ? "the server closed the connection in the middle of a frame"
							: "the server closed the connection");
		kdclient_close(&s, client);
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
		header[4] = 3;           // version
	else
		header[28] ^= 1;         // header checksum
	fake_server_write(s, header, sizeof header);
}

static void refused_greeting_says_why(void **state)
{
	(void)state;
	const struct { int want; const char *code, *message; } cases[] = {
		{-EACCES, "unauthorized", "wrong token"},
		{-EOPNOTSUPP, "unsupported", "protocol version 3, this build speaks 2"},
		{-EBADMSG, "corrupt", "header checksum is wrong"},
	};
	for (refusal_byte = 0; refusal_byte < 3; refusal_byte++) {
		struct fake_server s = {.play = play_refuse_hello, .silent = true};
		struct kd_options options = {.size = sizeof options, .address = s.address};
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
	struct frame f = fake_server_read_score(s, &score);
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
	struct kd_options options = {.size = sizeof options, .address = mute.address, .connect_timeout_ms = 50, .timeout_ms = 2000};
	struct kd_client *client = NULL;
	struct kd_error err;
	fake_server_open(&mute);
	assert_int_equal(kd_open(&options, &client, &err), -ETIMEDOUT);
	assert_string_equal(err.code, "deadline");
	fake_server_close(&mute);
	fake_server_open(&s);
	options.address = s.address;
	options.connect_timeout_ms = 60000;
	assert_int_equal(kd_open(&options, &client, &err), 0);
	struct kd_request request = kdclient_ask(1);
	struct kd_answer *answer;
	struct kd_event e;
	assert_int_equal(kd_score(client, &request, &answer, &err), -ETIMEDOUT);
	assert_int_equal(kd_next(client, 0, &e, &err), -ENODATA);
	assert_int_equal(kd_ping(client, NULL, &err), 0);
	assert_int_equal(kd_next(client, 0, &e, &err), -ENODATA);
	kdclient_close(&s, client);
}

static void addresses_are_checked(void **state)
{
	(void)state;
	const char *const bad[] = {"", "http://x", "unix:", "tcp:", "tcp:host", "tcp::1", "tcp:[::1", "tcp:[]:1", "tcp:127.0.0.1:"};
	struct kd_client *client;
	struct kd_error err;
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct kd_options options = {.size = sizeof options, .address = bad[i]};
		assert_int_equal(kd_open(&options, &client, &err), -EINVAL);
		assert_string_equal(err.field, "server");
	}
	struct kd_options absent = {.size = sizeof absent, .address = "unix:/nonexistent/socket"};
	assert_int_equal(kd_open(&absent, &client, &err), -ENOENT);
	struct fake_server s = {.play = play_nothing, .silent = true};
	fake_server_open(&s);
	struct kd_options strange = {.size = sizeof strange, .address = s.address, .teacher = "xyz"};
	assert_int_equal(kd_open(&strange, &client, &err), -EINVAL);
	assert_string_equal(err.field, "teacher");
	fake_server_close(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(misbehaving_server_is_left_with_a_reason),
		cmocka_unit_test(truncated_frame_is_told_from_a_closed_connection),
		cmocka_unit_test(refused_greeting_says_why),
		cmocka_unit_test(silence_has_an_end_and_late_answers_are_dropped),
		cmocka_unit_test(addresses_are_checked),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
