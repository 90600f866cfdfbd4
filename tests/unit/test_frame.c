// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/crc32c.h"
#include "common/cursor.h"
#include "common/frame.h"
#include "tests/unit/frame_golden.h"

// Compares header and body that our encoders make with bytes from elsewhere.
static void expect_frame(uint8_t kind, uint64_t request_id, const struct writer *body, const uint8_t *want, size_t n)
{
	uint8_t header[FRAME_HEADER_BYTES];
	struct frame f = {.kind = kind, .request_id = request_id, .body_bytes = (uint32_t)body->position,
			  .body_crc = crc32c(0, body->data, body->position)}, back;
	assert_false(body->failed);
	frame_encode(&f, header);
	assert_int_equal(FRAME_HEADER_BYTES + body->position, n);
	assert_memory_equal(header, want, FRAME_HEADER_BYTES);
	assert_memory_equal(body->data, want + FRAME_HEADER_BYTES, body->position);
	assert_int_equal(frame_decode(want, 1000, &back, NULL), 0);
	assert_int_equal(back.kind, kind);
	assert_true(back.request_id == request_id);
	assert_int_equal(frame_check_body(&back, want + FRAME_HEADER_BYTES, NULL), 0);
}

static struct sequence one_sequence = {(uint32_t[]){3, 1, 4}, 3};

static struct frame_score example_score(void)
{
	return (struct frame_score){.deadline_ms = 5000, .n_sequences = 1, .sequences = &one_sequence,
		.query = {.top_k = 2, .own = true, .first = 1, .last = -1, .values = QUERY_VALUES_F16}};
}

static struct frame_score parts_score(void)
{
	static uint32_t first[] = {3, 1, 4}, second[] = {1, 5};
	static struct sequence sequences[] = {{first, 3}, {second, 2}};
	static uint32_t one[] = {0, 1}, five[] = {5}, two[] = {0, 2, 2}, ids[] = {7, 300};
	static struct query_span span = {2, 3};
	static struct query_part parts[] = {
		{.n_spans = 1, .spans = &span}, {.has_rows = true, .first = 0, .last = 1, .gather = {2, two, ids}}};
	return (struct frame_score){.flags = FRAME_SCORE_SHORT, .n_sequences = 2, .sequences = sequences, .parts = parts,
		.query = {.last = -1, .n_temperatures = 1, .temperatures = {1}, .gather = {1, one, five}}};
}

static struct frame_welcome example_welcome(void)
{
	struct frame_welcome m = {
		.limits = {.max_tokens = 4096, .max_top_k = 1024, .max_gather = 1024, .max_draws = 1024, .max_spans = 65536,
		.vocab_size = 49152, .n_layers = 30, .width = 576, .q_width = 576, .kv_width = 192}, .max_sequences = 1024,
		.max_body_bytes = 1 << 25, .credits = 64};
	for (int i = 0; i < CONTENT_ID_BYTES; i++)
		m.teacher.bytes[i] = (uint8_t)i;
	return m;
}

static void examples_have_the_bytes_of_the_manual(void **state)
{
	(void)state;
	uint8_t bytes[256];
	struct writer w = writer_init(bytes, sizeof bytes);
	writer_bytes(&w, "hello", 5);
	expect_frame(FRAME_PING, 1, &w, ping_golden, sizeof ping_golden);
	w = writer_init(bytes, sizeof bytes);
	struct frame_hello hello = {.token = "s3cret"};
	frame_hello_encode(&hello, &w);
	expect_frame(FRAME_HELLO, 0, &w, hello_golden, sizeof hello_golden);
	w = writer_init(bytes, sizeof bytes);
	struct frame_score score = example_score();
	frame_score_encode(&score, &w);
	expect_frame(FRAME_SCORE, 7, &w, score_golden, sizeof score_golden);
	w = writer_init(bytes, sizeof bytes);
	struct frame_score parts = parts_score();
	frame_score_encode(&parts, &w);
	expect_frame(FRAME_SCORE, 8, &w, parts_golden, sizeof parts_golden);
	w = writer_init(bytes, sizeof bytes);
	struct frame_welcome welcome = example_welcome();
	frame_welcome_encode(&welcome, &w);
	expect_frame(FRAME_WELCOME, 0, &w, welcome_golden, sizeof welcome_golden);
	w = writer_init(bytes, sizeof bytes);
	struct frame_error error = {.index = 0};
	error_set(&error.error, ERROR_INVALID, "sequences[0].tokens[2]", "id %d is outside the vocabulary (%d)", 12, 10);
	frame_error_encode(&error, &w);
	expect_frame(FRAME_ERROR, 7, &w, error_golden, sizeof error_golden);
	w = writer_init(bytes, sizeof bytes);
	struct frame_call call = {.method = "GET", .path = "/v1/model"};
	frame_call_encode(&call, &w);
	expect_frame(FRAME_CALL, 8, &w, call_golden, sizeof call_golden);
}

static void header_faults_are_told_apart(void **state)
{
	(void)state;
	struct frame f = {.kind = FRAME_PING, .request_id = 5, .body_bytes = 64}, back;
	uint8_t good[FRAME_HEADER_BYTES], bad[FRAME_HEADER_BYTES];
	struct error err;
	frame_encode(&f, good);
	for (size_t bit = 0; bit < 8 * FRAME_HEADER_BYTES; bit++) {
		memcpy(bad, good, sizeof bad);
		bad[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_int_equal(frame_decode(bad, 64, &back, &err), bit < 32 ? -EINVAL : bit < 40 ? -EOPNOTSUPP : -EBADMSG);
	}
	assert_int_equal(frame_decode(good, 63, &back, &err), -E2BIG);
	assert_string_equal(err.message, "body of 64 bytes, the limit is 63");
	f.kind = 15;
	frame_encode(&f, bad);
	assert_int_equal(frame_decode(bad, 64, &back, &err), -EOPNOTSUPP);
	f = (struct frame){.kind = FRAME_PING, .flags = 1};
	frame_encode(&f, bad);
	assert_int_equal(frame_decode(bad, 64, &back, &err), -EINVAL);
	f = (struct frame){.kind = FRAME_PING, .body_bytes = 3, .body_crc = 1};
	assert_int_equal(frame_check_body(&f, "abc", &err), -EBADMSG);
}

// Every shorter body and one byte more must be refused.
#define EXPECT_EXACT(decode, type, done, bytes, n) do { \
	type exact_; \
	uint8_t *copy_ = calloc(1, (n) + 1); \
	assert_non_null(copy_); \
	memcpy(copy_, bytes, n); \
	for (size_t cut_ = 0; cut_ < (n) + 2; cut_++) { \
		struct error why_ = {0}; \
		int got_ = decode(copy_, cut_, &exact_, &why_); \
		if (cut_ == (n)) { \
			assert_int_equal(got_, 0); \
			done(&exact_); \
		} else { \
			assert_int_equal(got_, -EINVAL); \
			assert_int_equal(why_.code, ERROR_INVALID); \
		} \
	} \
	free(copy_); \
} while (0)

static void nothing(void *m) { (void)m; }

static void bodies_are_neither_short_nor_long(void **state)
{
	(void)state;
	uint8_t bytes[256];
	struct writer w = writer_init(bytes, sizeof bytes);
	struct frame_welcome welcome = {
		.limits = {.max_tokens = 100, .max_top_k = 10, .vocab_size = 1000}, .max_sequences = 4,
		.max_body_bytes = 1000, .credits = 2};
	EXPECT_EXACT(frame_hello_decode, struct frame_hello, nothing, hello_golden + 32, sizeof hello_golden - 32);
	EXPECT_EXACT(frame_score_decode, struct frame_score, frame_score_done, score_golden + 32, sizeof score_golden - 32);
	EXPECT_EXACT(frame_score_decode, struct frame_score, frame_score_done, parts_golden + 32, sizeof parts_golden - 32);
	EXPECT_EXACT(frame_welcome_decode, struct frame_welcome, nothing, welcome_golden + 32, sizeof welcome_golden - 32);
	EXPECT_EXACT(frame_error_decode, struct frame_error, nothing, error_golden + 32, sizeof error_golden - 32);
	EXPECT_EXACT(frame_call_decode, struct frame_call, frame_call_done, call_golden + 32, sizeof call_golden - 32);
	frame_welcome_encode(&welcome, &w);
	EXPECT_EXACT(frame_welcome_decode, struct frame_welcome, nothing, bytes, w.position);
	struct frame_reply reply = {.status = 200, .body = (char[]){"{}"}, .body_bytes = 2};
	w = writer_init(bytes, sizeof bytes);
	frame_reply_encode(&reply, &w);
	EXPECT_EXACT(frame_reply_decode, struct frame_reply, frame_reply_done, bytes, w.position);
}

static void what_was_said_is_understood(void **state)
{
	(void)state;
	struct frame_score score;
	struct frame_call call;
	struct frame_error error;
	struct frame_hello hello;
	assert_int_equal(frame_hello_decode(hello_golden + 32, sizeof hello_golden - 32, &hello, NULL), 0);
	assert_string_equal(hello.token, "s3cret");
	assert_int_equal(frame_score_decode(score_golden + 32, sizeof score_golden - 32, &score, NULL), 0);
	assert_int_equal(score.deadline_ms, 5000);
	assert_int_equal(score.query.top_k, 2);
	assert_int_equal(score.query.last, -1);
	assert_int_equal(score.n_sequences, 1);
	assert_memory_equal(score.sequences[0].tokens, one_sequence.tokens, 12);
	frame_score_done(&score);
	assert_int_equal(frame_score_decode(parts_golden + 32, sizeof parts_golden - 32, &score, NULL), 0);
	assert_int_equal(score.flags, FRAME_SCORE_SHORT | FRAME_SCORE_PARTS);
	assert_true(score.parts && !score.parts[0].has_rows && score.parts[1].has_rows && score.parts[1].last == 1);
	assert_true(score.parts[0].n_spans == 1 && score.parts[0].spans[0].begin == 2 && score.parts[0].spans[0].end == 3);
	assert_true(score.parts[1].gather.n_lists == 2 && score.parts[1].gather.ids[1] == 300 && !score.parts[0].gather.n_lists);
	frame_score_done(&score);
	struct frame_welcome welcome, want = example_welcome();
	assert_int_equal(frame_welcome_decode(welcome_golden + 32, sizeof welcome_golden - 32, &welcome, NULL), 0);
	assert_memory_equal(&welcome, &want, sizeof want);
	assert_int_equal(frame_call_decode(call_golden + 32, sizeof call_golden - 32, &call, NULL), 0);
	assert_string_equal(call.method, "GET");
	assert_string_equal(call.path, "/v1/model");
	assert_string_equal(call.body, "");
	frame_call_done(&call);
	assert_int_equal(frame_error_decode(error_golden + 32, sizeof error_golden - 32, &error, NULL), 0);
	assert_int_equal(error.error.code, ERROR_INVALID);
	assert_string_equal(error.error.field, "sequences[0].tokens[2]");
	assert_string_equal(error.error.message, "id 12 is outside the vocabulary (10)");
}

static void answer_is_a_view_of_its_record(void **state)
{
	(void)state;
	uint8_t bytes[64];
	struct writer w = writer_init(bytes, sizeof bytes);
	struct frame_answer answer = {.index = 3, .flags = FRAME_ANSWER_CACHED, .record = (const uint8_t *)"record", .record_bytes = 6};
	struct frame_answer back;
	frame_answer_encode(&answer, &w);
	assert_int_equal(frame_answer_decode(bytes, w.position, &back, NULL), 0);
	assert_int_equal(back.index, 3);
	assert_int_equal(back.flags, FRAME_ANSWER_CACHED);
	assert_ptr_equal(back.record, bytes + 8);
	assert_int_equal(back.record_bytes, 6);
	assert_int_equal(frame_answer_decode(bytes, 8, &back, NULL), -EINVAL);
	bytes[4] = 4;
	assert_int_equal(frame_answer_decode(bytes, w.position, &back, NULL), -EINVAL);
}

static void what_a_sequence_asks_of_its_own_replaces_the_query(void **state)
{
	(void)state;
	struct frame_score score;
	struct query first, second;
	assert_int_equal(frame_score_decode(parts_golden + 32, sizeof parts_golden - 32, &score, NULL), 0);
	assert_int_equal(query_copy(&first, &score.query), 0);
	assert_int_equal(query_copy(&second, &score.query), 0);
	query_take_part(&first, &score.parts[0]);
	query_take_part(&second, &score.parts[1]);
	assert_true(first.first == 0 && first.last == -1 && first.n_spans == 1 && first.gather.n_lists == 1);
	assert_true(second.first == 0 && second.last == 1 && second.n_spans == 0 && second.gather.n_lists == 2 &&
		second.gather.ids[0] == 7);
	assert_true(!score.parts[0].n_spans && !score.parts[1].has_rows && !score.parts[1].gather.n_lists);
	query_done(&first);
	query_done(&second);
	frame_score_done(&score);
}

static int decode_score_with(size_t at, uint32_t value)
{
	uint8_t body[sizeof score_golden - 32];
	struct frame_score score = {0};
	memcpy(body, score_golden + 32, sizeof body);
	struct writer w = {.data = body, .size = sizeof body, .position = at};
	writer_u32(&w, value);
	int r = frame_score_decode(body, sizeof body, &score, NULL);
	frame_score_done(&score);
	return r;
}

static void lying_lengths_are_refused(void **state)
{
	(void)state;
	assert_int_equal(decode_score_with(8, 20), 0);
	assert_int_equal(decode_score_with(8, 16), -EINVAL);                // query bytes
	assert_int_equal(decode_score_with(8, 24), -EINVAL);
	assert_int_equal(decode_score_with(8, UINT32_MAX), -EINVAL);
	assert_int_equal(decode_score_with(12, 0), -EINVAL);                // sequences
	assert_int_equal(decode_score_with(12, 2), -EINVAL);
	assert_int_equal(decode_score_with(12, 65536), -EINVAL);
	assert_int_equal(decode_score_with(12, 65537), -E2BIG);
	assert_int_equal(decode_score_with(36, 2), -EINVAL);                // tokens
	assert_int_equal(decode_score_with(36, 0x40000003), -EINVAL);       // times 4 wraps to the true length in 32 bits
	assert_int_equal(decode_score_with(0, 16), -EOPNOTSUPP);            // flags
	assert_int_equal(decode_score_with(0, FRAME_SCORE_SHORT), 0);
	assert_int_equal(decode_score_with(0, FRAME_SCORE_PARTS), -EINVAL);     // there are none
	uint8_t call[] = {3, 0, 9, 0, 0xff, 0xff, 0xff, 0xff, 'G', 'E', 'T', '/', 'v', '1', '/', 'm', 'o', 'd', 'e', 'l'};
	struct frame_call c;
	assert_int_equal(frame_call_decode(call, sizeof call, &c, NULL), -EINVAL);
}

static void texts_that_could_do_harm_are_refused(void **state)
{
	(void)state;
	const char *const calls[] = {"\3\0\1\0\0\0\0\0get/", "\3\0\1\0\0\0\0\0GETx", "\3\0\3\0\0\0\0\0GET/ x", "\3\0\2\0\0\0\0\0GET/\n",
		"\3\1\1\0\0\0\0\0GET/", "\0\0\1\0\0\0\0\0/"};
	const size_t lengths[] = {12, 12, 14, 13, 12, 9};
	struct frame_call call;
	for (size_t i = 0; i < 6; i++)
		assert_int_equal(frame_call_decode(calls[i], lengths[i], &call, NULL), -EINVAL);
	struct frame_error error;
	assert_int_equal(frame_error_decode("\0\0\0\0\2\0\1\0io\7", 11, &error, NULL), -EINVAL);
	assert_int_equal(frame_error_decode("\0\0\0\0\5\0\1\0novel!", 14, &error, NULL), 0);
	assert_int_equal(error.error.code, ERROR_INTERNAL);
	assert_int_equal(frame_error_decode("\0\0\0\0\4\0\1\0none!", 13, &error, NULL), -EINVAL);
	struct frame_hello hello;
	uint8_t body[300] = {2, 0, 2, 0};
	body[36] = 4;
	memcpy(body + 38, "a\nbc", 4);
	struct error err;
	assert_int_equal(frame_hello_decode(body, 42, &hello, &err), -EINVAL);
	assert_string_equal(err.field, "token");
	assert_null(strstr(err.message, "bc"));
}

static void only_common_versions_are_accepted(void **state)
{
	(void)state;
	uint8_t body[38] = {0, 0, 9, 0};
	struct frame_hello hello;
	assert_int_equal(frame_hello_decode(body, sizeof body, &hello, NULL), 0);
	body[0] = 3;
	assert_int_equal(frame_hello_decode(body, sizeof body, &hello, NULL), -EOPNOTSUPP);
	body[0] = body[2] = 0;
	assert_int_equal(frame_hello_decode(body, sizeof body, &hello, NULL), -EOPNOTSUPP);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(examples_have_the_bytes_of_the_manual),
		cmocka_unit_test(header_faults_are_told_apart),
		cmocka_unit_test(bodies_are_neither_short_nor_long),
		cmocka_unit_test(what_was_said_is_understood),
		cmocka_unit_test(answer_is_a_view_of_its_record),
		cmocka_unit_test(what_a_sequence_asks_of_its_own_replaces_the_query),
		cmocka_unit_test(lying_lengths_are_refused),
		cmocka_unit_test(texts_that_could_do_harm_are_refused),
		cmocka_unit_test(only_common_versions_are_accepted),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
