// SPDX-License-Identifier: Apache-2.0
// This implementation against frames.txt: headers, bodies of every kind, and what becomes of a SCORE's questions.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/crc32c.h"
#include "common/cursor.h"
#include "common/frame.h"
#include "tests/conformance/suite.h"

#define MAX_BODY 65536
static const struct query_limits limits = {.max_tokens = 8, .max_top_k = 5, .max_gather = 4, .max_draws = 20, .max_spans = 3,
					   .vocab_size = 300, .n_layers = 2, .width = 8, .q_width = 8, .kv_width = 4};
static uint8_t again[2 * MAX_BODY];       // what an encoder makes of a decoded body

static void expect_text(const struct suite_case *c, const char *name, const char *found)
{
	const char *want = suite_words(c, name);
	if (want && strcmp(want, found) != 0)
		suite_fail(c, "%s is \"%s\", want \"%s\"", name, found, want);
}

static void expect_number(const struct suite_case *c, const char *name, uint32_t found)
{
	char text[16];
	snprintf(text, sizeof text, "%" PRIu32, found);
	expect_text(c, name, text);
}

static void expect_hex(const struct suite_case *c, const char *name, const void *found, size_t n)
{
	const char *want = suite_words(c, name);
	uint8_t *bytes = malloc(n + 1);
	if (want && bytes && (suite_hex(want, bytes, n + 1) != n || memcmp(bytes, found, n) != 0))
		suite_fail(c, "%s holds other bytes", name);
	free(bytes);
}

static void expect_question(const struct suite_case *c, uint32_t i, struct frame_score *m)
{
	char name[32], hex[CONTENT_ID_HEX], got[256];
	struct content_id teacher;
	struct query q;
	struct error err = {0};
	for (int j = 0; j < CONTENT_ID_BYTES; j++)
		teacher.bytes[j] = (uint8_t)j;
	if (query_copy(&q, &m->query))
		return;
	if (m->parts)
		query_take_part(&q, &m->parts[i]);
	snprintf(name, sizeof name, "sequences[%" PRIu32 "].", i);
	if (query_check(&q, &m->sequences[i], &limits, name, &err)) {
		snprintf(got, sizeof got, "refuse %s %s", error_name(err.code), err.field);
	} else {
		struct content_id key = query_key(&teacher, &m->sequences[i], &q);
		content_id_to_hex(&key, hex);
		snprintf(got, sizeof got, "key %s", hex);
	}
	query_done(&q);
	snprintf(name, sizeof name, "question %" PRIu32, i);
	expect_text(c, name, got);
}

static int run_hello(const struct suite_case *c, const uint8_t *body, size_t n, struct writer *w, struct error *err)
{
	struct frame_hello m;
	int r = frame_hello_decode(body, n, &m, err);
	if (!r)
		expect_text(c, "token", m.token);
	if (!r && body[0] == FRAME_VERSION && body[2] == FRAME_VERSION)    // others offer more versions than this side would
		frame_hello_encode(&m, w);
	return r;
}

static int run_welcome(const struct suite_case *c, const uint8_t *body, size_t n, struct writer *w, struct error *err)
{
	struct frame_welcome m;
	int r = frame_welcome_decode(body, n, &m, err);
	if (r)
		return r;
	const struct query_limits *l = &m.limits;
	const struct { const char *name; uint32_t value; } numbers[] = {
		{"max_tokens", l->max_tokens}, {"max_top_k", l->max_top_k}, {"max_gather", l->max_gather}, {"max_draws", l->max_draws},
		{"max_spans", l->max_spans}, {"vocab_size", l->vocab_size}, {"n_layers", l->n_layers}, {"width", l->width},
		{"q_width", l->q_width}, {"kv_width", l->kv_width}, {"max_sequences", m.max_sequences}, {"max_body", m.max_body_bytes},
		{"credits", m.credits},
	};
	for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
		expect_number(c, numbers[i].name, numbers[i].value);
	expect_hex(c, "teacher", m.teacher.bytes, sizeof m.teacher.bytes);
	frame_welcome_encode(&m, w);
	return 0;
}

static int run_score(const struct suite_case *c, const uint8_t *body, size_t n, struct writer *w, struct error *err)
{
	struct frame_score m;
	int r = frame_score_decode(body, n, &m, err);
	if (r)
		return r;
	frame_score_encode(&m, w);
	for (uint32_t i = 0; i < m.n_sequences; i++)
		expect_question(c, i, &m);
	frame_score_done(&m);
	return 0;
}

static int run_answer(const struct suite_case *c, const uint8_t *body, size_t n, struct writer *w, struct error *err)
{
	struct frame_answer m;
	int r = frame_answer_decode(body, n, &m, err);
	if (r)
		return r;
	expect_number(c, "index", m.index);
	expect_number(c, "flags", m.flags);
	expect_hex(c, "record", m.record, m.record_bytes);
	frame_answer_encode(&m, w);
	return 0;
}

static int run_error(const struct suite_case *c, const uint8_t *body, size_t n, struct writer *w, struct error *err)
{
	struct frame_error m;
	int r = frame_error_decode(body, n, &m, err);
	if (r)
		return r;
	expect_number(c, "index", m.index);
	expect_text(c, "code", error_name(m.error.code));
	expect_text(c, "field", m.error.field);
	expect_text(c, "message", m.error.message);
	if (m.error.code != ERROR_INTERNAL)    // an unknown code was read as internal
		frame_error_encode(&m, w);
	return 0;
}

static int run_call(const struct suite_case *c, const uint8_t *body, size_t n, struct writer *w, struct error *err)
{
	struct frame_call m;
	int r = frame_call_decode(body, n, &m, err);
	if (r)
		return r;
	expect_text(c, "method", m.method);
	expect_text(c, "path", m.path);
	expect_hex(c, "body", m.body, m.body_bytes);
	frame_call_encode(&m, w);
	frame_call_done(&m);
	return 0;
}

static int run_reply(const struct suite_case *c, const uint8_t *body, size_t n, struct writer *w, struct error *err)
{
	struct frame_reply m;
	int r = frame_reply_decode(body, n, &m, err);
	if (r)
		return r;
	expect_number(c, "status", m.status);
	expect_hex(c, "body", m.body, m.body_bytes);
	frame_reply_encode(&m, w);
	frame_reply_done(&m);
	return 0;
}

static void expect_u64(const struct suite_case *c, const char *name, uint64_t found)
{
	char text[24];
	snprintf(text, sizeof text, "%" PRIu64, found);
	expect_text(c, name, text);
}

static void expect_numbers(const struct suite_case *c, const char *name, const uint32_t *found, size_t n)
{
	char text[4096] = "";
	size_t at = 0;
	for (size_t i = 0; i < n && at + 16 < sizeof text; i++)
		at += (size_t)snprintf(text + at, sizeof text - at, i ? " %" PRIu32 : "%" PRIu32, found[i]);
	expect_text(c, name, text);
}

// As the eight digits of their bits.
static void expect_floats(const struct suite_case *c, const char *name, const float *found, size_t n)
{
	char text[4096] = "";
	size_t at = 0;
	for (size_t i = 0; i < n && at + 16 < sizeof text; i++) {
		uint32_t bits;
		memcpy(&bits, &found[i], sizeof bits);
		at += (size_t)snprintf(text + at, sizeof text - at, i ? " %08" PRIx32 : "%08" PRIx32, bits);
	}
	expect_text(c, name, text);
}

static int run_generate(const struct suite_case *c, const uint8_t *body, size_t n, struct writer *w, struct error *err)
{
	struct frame_generate m;
	int r = frame_generate_decode(body, n, &m, err);
	if (r)
		return r;
	const struct { const char *name; uint32_t value; } numbers[] = {
		{"flags", m.flags}, {"deadline_ms", m.deadline_ms}, {"n", m.n}, {"first_sample", m.first_sample},
		{"max_tokens", m.max_tokens}, {"rows", m.rows}, {"top_k", m.top_k},
	};
	const struct { const char *name; float value; } floats[] = {
		{"temperature", m.temperature}, {"top_p", m.top_p}, {"min_p", m.min_p}, {"typical_p", m.typical_p}};
	for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
		expect_number(c, numbers[i].name, numbers[i].value);
	for (size_t i = 0; i < sizeof floats / sizeof *floats; i++)
		expect_floats(c, floats[i].name, &floats[i].value, 1);
	expect_u64(c, "seed", m.seed);
	expect_numbers(c, "stop_ids", m.stop_ids.tokens, m.stop_ids.n_tokens);
	expect_numbers(c, "forced", m.forced.tokens, m.forced.n_tokens);
	for (uint32_t i = 0; i < m.n_stops + m.n_prompts; i++) {
		char name[32];
		bool is_stop = i < m.n_stops;
		snprintf(name, sizeof name, is_stop ? "stop_%" PRIu32 : "prompt_%" PRIu32, is_stop ? i : i - m.n_stops);
		if (is_stop)
			expect_hex(c, name, m.stops[i], strlen(m.stops[i]));
		else
			expect_numbers(c, name, m.prompts[i - m.n_stops].tokens, m.prompts[i - m.n_stops].n_tokens);
	}
	frame_generate_encode(&m, w);
	frame_generate_done(&m);
	return 0;
}

static int run_tokens(const struct suite_case *c, const uint8_t *body, size_t n, struct writer *w, struct error *err)
{
	struct frame_tokens m;
	int r = frame_tokens_decode(body, n, &m, err);
	if (r)
		return r;
	const struct { const char *name; uint32_t value; } numbers[] = {
		{"index", m.index}, {"flags", m.flags}, {"first", m.first}, {"finish", m.finish}, {"stop_id", m.stop_id}, {"stop", m.stop},
		{"reused", m.reused},
	};
	for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
		expect_number(c, numbers[i].name, numbers[i].value);
	expect_u64(c, "seed", m.seed);
	expect_numbers(c, "tokens", m.tokens, m.n);
	expect_floats(c, "logprobs", m.logprobs, m.n);
	expect_floats(c, "sampled_logprobs", m.sampled_logprobs, m.n);
	expect_floats(c, "lse", m.lse, m.n);
	expect_numbers(c, "ids", m.ids, (size_t)m.n * m.rows);
	expect_floats(c, "logits", m.logits, (size_t)m.n * m.rows);
	expect_hex(c, "text", m.text, m.text_bytes);
	frame_tokens_encode(&m, w);
	frame_tokens_done(&m);
	return 0;
}

// Header, checksum, body; *ret_same is false when an encoder makes other bytes.
static int run_frame(const struct suite_case *c, bool *ret_same, struct error *err)
{
	static int (*const body_of[FRAME_TOKENS + 1])(const struct suite_case *, const uint8_t *, size_t, struct writer *,
		struct error *) = {
		[FRAME_HELLO] = run_hello, [FRAME_WELCOME] = run_welcome, [FRAME_SCORE] = run_score, [FRAME_ANSWER] = run_answer,
		[FRAME_ERROR] = run_error, [FRAME_CALL] = run_call, [FRAME_REPLY] = run_reply,
		[FRAME_GENERATE] = run_generate, [FRAME_TOKENS] = run_tokens,
	};
	uint8_t header[FRAME_HEADER_BYTES];
	struct writer w = writer_init(again, sizeof again);
	const uint8_t *body = c->bytes + FRAME_HEADER_BYTES;
	size_t n = c->n - FRAME_HEADER_BYTES;
	struct frame f;
	int r = frame_decode(c->bytes, MAX_BODY, &f, err);
	if (!r)
		r = frame_check_body(&f, body, err);
	if (!r && f.body_bytes != n)
		suite_fail(c, "has %zu bytes of body, its header says %" PRIu32, n, f.body_bytes);
	if (!r && body_of[f.kind])
		r = body_of[f.kind](c, body, n, &w, err);
	if (r)
		return r;
	expect_number(c, "kind", f.kind);
	frame_encode(&f, header);
	*ret_same = memcmp(header, c->bytes, sizeof header) == 0 && (!w.position || (w.position == n && memcmp(again, body, n) == 0));
	return 0;
}

static void run(const struct suite_case *c)
{
	struct error err = {0};
	bool is_same = true;
	int r = run_frame(c, &is_same, &err);
	if (c->accept && r)
		suite_fail(c, "was refused: %s: %s", err.field, err.message);
	else if (!c->accept && !r)
		suite_fail(c, "was accepted");
	else if (!c->accept && strcmp(error_name(err.code), c->code) != 0)
		suite_fail(c, "was refused as %s (%s), not %s", error_name(err.code), err.message, c->code);
	else if (!is_same)
		suite_fail(c, "is encoded again to other bytes");
}

static void run_manual(const struct suite *s)
{
	size_t i = 0;
	for (size_t j = 0; j < s->n; j++) {
		uint8_t bytes[1024];
		if (strncmp(s->cases[j].name, "manual-", 7) != 0)
			continue;
		size_t n = manual_dump("man/kdserved-protocol.7", i++, bytes, sizeof bytes);
		if (n != s->cases[j].n || memcmp(bytes, s->cases[j].bytes, n) != 0)
			suite_fail(&s->cases[j], "the manual has %zu other bytes", n);
	}
}

int main(void)
{
	struct suite s = suite_load("tests/conformance/frames.txt");
	for (size_t i = 0; i < s.n; i++)
		run(&s.cases[i]);
	run_manual(&s);
	size_t n = s.n;
	suite_done(&s);
	return suite_result(n);
}
