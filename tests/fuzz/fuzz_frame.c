// SPDX-License-Identifier: Apache-2.0
// A frame header and the body of every kind. First byte = kind; what decodes must encode to the same bytes again.
#include <stdlib.h>
#include <string.h>

#include "common/crc32c.h"
#include "common/cursor.h"
#include "common/frame.h"
#include "common/record_layout.h"
#include "tests/fuzz/fuzz.h"

// `left` is what an encoder made of a decoded body.
static void expect_same(const struct writer *left, const uint8_t *body, size_t n)
{
	if (left->failed || left->position != n || memcmp(left->data, body, n) != 0)
		abort();
}

static void try_hello(const uint8_t *body, size_t n, struct writer *w)
{
	struct frame_hello m;
	if (frame_hello_decode(body, n, &m, NULL) == 0) {
		frame_hello_encode(&m, w);    // versions other than 1 to 1 may be offered: lengths alone must agree
		if (w->position != n)
			abort();
	}
}

static void try_welcome(const uint8_t *body, size_t n, struct writer *w)
{
	struct frame_welcome m;
	if (frame_welcome_decode(body, n, &m, NULL) == 0) {
		frame_welcome_encode(&m, w);
		expect_same(w, body, n);
	}
}

static void try_score(const uint8_t *body, size_t n, struct writer *w)
{
	struct frame_score m = {0};
	struct query_limits limits = {
		.max_tokens = 64, .max_top_k = 64, .max_gather = 8, .max_draws = 8, .max_spans = 8,
		.vocab_size = 1000, .n_layers = 4};
	if (frame_score_decode(body, n, &m, NULL) == 0) {
		frame_score_encode(&m, w);
		expect_same(w, body, n);
		for (uint32_t i = 0; i < m.n_sequences; i++) {
			struct query q;
			if (query_copy(&q, &m.query))
				continue;
			if (m.parts)
				query_take_part(&q, &m.parts[i]);
			if (query_check(&q, &m.sequences[i], &limits, "", NULL) == 0 && query_rows(&q) > m.sequences[i].n_tokens)
				abort();
			query_done(&q);
		}
	}
	frame_score_done(&m);
}

static void try_answer(const uint8_t *body, size_t n, struct writer *w)
{
	struct frame_answer m;
	if (frame_answer_decode(body, n, &m, NULL) == 0) {
		frame_answer_encode(&m, w);
		expect_same(w, body, n);
	}
}

static void try_error(const uint8_t *body, size_t n, struct writer *w)
{
	struct frame_error m;
	if (frame_error_decode(body, n, &m, NULL) == 0)
		frame_error_encode(&m, w);    // an unknown code becomes "internal": the bytes may differ
}

static void try_call(const uint8_t *body, size_t n, struct writer *w)
{
	struct frame_call m = {0};
	if (frame_call_decode(body, n, &m, NULL) == 0) {
		frame_call_encode(&m, w);
		expect_same(w, body, n);
	}
	frame_call_done(&m);
}

static void try_reply(const uint8_t *body, size_t n, struct writer *w)
{
	struct frame_reply m = {0};
	if (frame_reply_decode(body, n, &m, NULL) == 0) {
		frame_reply_encode(&m, w);
		expect_same(w, body, n);
	}
	frame_reply_done(&m);
}

static void try_generate(const uint8_t *body, size_t n, struct writer *w)
{
	struct frame_generate m = {0};
	if (frame_generate_decode(body, n, &m, NULL) == 0) {
		frame_generate_encode(&m, w);
		expect_same(w, body, n);
	}
	frame_generate_done(&m);
}

static void try_tokens(const uint8_t *body, size_t n, struct writer *w)
{
	struct frame_tokens m = {0};
	if (frame_tokens_decode(body, n, &m, NULL) == 0) {
		frame_tokens_encode(&m, w);
		expect_same(w, body, n);
	}
	frame_tokens_done(&m);
}

static void try_header(const uint8_t *data, size_t size)
{
	uint8_t again[FRAME_HEADER_BYTES];
	struct frame f;
	if (size < FRAME_HEADER_BYTES || frame_decode(data, 1 << 20, &f, NULL) != 0)
		return;
	frame_encode(&f, again);
	if (memcmp(again, data, sizeof again) != 0)
		abort();
	if (f.body_bytes <= size - FRAME_HEADER_BYTES)
		frame_check_body(&f, data + FRAME_HEADER_BYTES, NULL);
}

// Again with the checksums put right, so that mutations reach what lies behind them.
static void try_mended(const uint8_t *data, size_t size)
{
	struct frame f;
	uint8_t *copy = size < FRAME_HEADER_BYTES ? NULL : malloc(size);
	if (!copy)
		return;
	size_t n = size - FRAME_HEADER_BYTES;
	memcpy(copy, data, size);
	store_u32(copy + 24, 0, n ? crc32c(0, copy + FRAME_HEADER_BYTES, n) : 0);
	store_u32(copy + 28, 0, crc32c(0, copy, 28));
	if (frame_decode(copy, 1 << 20, &f, NULL) == 0 && f.body_bytes == n && frame_check_body(&f, copy + FRAME_HEADER_BYTES, NULL) != 0)
		abort();
	try_header(copy, size);
	free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static void (*const body_of[16])(const uint8_t *, size_t, struct writer *) = {
		[FRAME_HELLO] = try_hello, [FRAME_WELCOME] = try_welcome, [FRAME_SCORE] = try_score, [FRAME_ANSWER] = try_answer,
		[FRAME_ERROR] = try_error, [FRAME_CALL] = try_call, [FRAME_REPLY] = try_reply,
		[FRAME_GENERATE] = try_generate, [FRAME_TOKENS] = try_tokens,
	};
	try_header(data, size);
	try_mended(data, size);
	if (!size || !body_of[data[0] & 15])
		return 0;
	uint8_t *again = malloc(size + 1024);
	if (!again)
		return 0;
	struct writer w = writer_init(again, size + 1024);
	body_of[data[0] & 15](data + 1, size - 1, &w);
	free(again);
	return 0;
}
