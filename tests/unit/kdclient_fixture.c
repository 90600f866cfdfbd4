// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/kdclient_fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

static const uint32_t tokens[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
const struct kd_sequence kdclient_sequences[N_KDCLIENT_SEQUENCES] = {{.tokens = tokens, .n_tokens = 3},
	{.tokens = tokens + 1, .n_tokens = 4}, {.tokens = tokens + 2, .n_tokens = 5}, {.tokens = tokens, .n_tokens = 6},
	{.tokens = tokens + 3, .n_tokens = 2}, {.tokens = tokens + 4, .n_tokens = 1}, {.tokens = tokens, .n_tokens = 10},
	{.tokens = tokens + 1, .n_tokens = 9}, {.tokens = tokens + 2, .n_tokens = 2}};

const struct kd_query kdclient_query = {.size = sizeof(struct kd_query), .top_k = 3, .own = true, .last = -1};

struct kd_request kdclient_ask(uint32_t n)
{
	return (struct kd_request){.size = sizeof(struct kd_request), .query = &kdclient_query, .sequences = kdclient_sequences,
		.n_sequences = n};
}

struct kd_client *kdclient_connect(struct fake_server *s)
{
	struct kd_options options = {.size = sizeof options, .address = s->address, .timeout_ms = 60000};
	struct kd_client *client = NULL;
	struct kd_error err;
	fake_server_open(s);
	if (kd_open(&options, &client, &err))
		fail_msg("%s: %s", err.code, err.message);
	return client;
}

void kdclient_close(struct fake_server *s, struct kd_client *client)
{
	kd_close(client);
	fake_server_close(s);
}

void kdclient_answer_all(struct fake_server *s)
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

struct frame fake_server_read_score(struct fake_server *s, struct frame_score *ret)
{
	uint8_t *body;
	struct frame f = fake_server_read(s, &body);
	if (f.kind != FRAME_SCORE || frame_score_decode(body, f.body_bytes, ret, NULL))
		abort();
	free(body);
	return f;
}

void kdclient_check_answer(struct kd_answer *answer, uint32_t i)
{
	const struct kd_rows *rows;
	size_t n;
	assert_non_null(answer);
	assert_int_equal(kd_answer_rows(answer, &rows, NULL), 0);
	assert_int_equal(rows->n_tokens, kdclient_sequences[i].n_tokens);
	assert_memory_equal(rows->tokens, kdclient_sequences[i].tokens, 4 * (size_t)rows->n_tokens);
	assert_int_equal(rows->n_rows, kdclient_sequences[i].n_tokens);
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
