// SPDX-License-Identifier: Apache-2.0
// kd_generate: pieces as they come, errors, a caller who has enough, servers that break their word.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "clients/kdclient.h"
#include "common/cursor.h"
#include "tests/unit/kdclient_fixture.h"

static const uint32_t prompt_tokens[] = {3, 1, 4};
static const struct kd_prompt prompt = {prompt_tokens, 3};

static void send_tokens(struct fake_server *s, uint64_t id, const struct frame_tokens *m)
{
	uint8_t body[1024];
	struct writer w = writer_init(body, sizeof body);
	frame_tokens_encode(m, &w);
	assert_false(w.failed);
	fake_server_send(s, FRAME_TOKENS, id, body, w.position);
}

static const uint32_t ids[] = {7, 8, 9, 10};
static const float numbers[] = {-0.5f, -1, -1.5f, -2};

// Tokens first.. of a sample: the number of each is that of its place, as are all its numbers.
static struct frame_tokens piece(uint32_t index, uint32_t first, uint32_t n, const char *text, bool last)
{
	return (struct frame_tokens){.index = index, .flags = last ? FRAME_TOKENS_LAST : 0, .first = first, .n = n, .rows = 1,
		.tokens = ids + first, .logprobs = numbers + first, .sampled_logprobs = numbers + first, .lse = numbers + first,
		.ids = ids + first, .logits = numbers + first, .text = text, .text_bytes = (uint32_t)strlen(text),
		.finish = FRAME_FINISH_STOP, .stop_id = 10, .stop = FRAME_TOKENS_NONE, .reused = 2, .seed = 77};
}

static struct frame_generate asked;          // what the server was asked, for a look at it

static uint64_t read_generate(struct fake_server *s)
{
	uint8_t *body;
	struct frame f = fake_server_read(s, &body);
	assert_int_equal(f.kind, FRAME_GENERATE);
	assert_int_equal(frame_generate_decode(body, f.body_bytes, &asked, NULL), 0);
	free(body);
	return f.request_id;
}

static void play_two_samples(struct fake_server *s)
{
	uint64_t id = read_generate(s);
	const struct frame_tokens pieces[] = {piece(1, 0, 1, "a", false), piece(0, 0, 2, "bc", false), piece(1, 1, 3, "de", true),
		piece(0, 2, 0, "", true)};
	for (size_t i = 0; i < 4; i++)
		send_tokens(s, id, &pieces[i]);
	fake_server_send(s, FRAME_DONE, id, NULL, 0);
}

struct seen { char text[2][8]; uint32_t n[2]; int n_last, stop_after; };

static int see(void *arg, const struct kd_piece *p)
{
	struct seen *s = arg;
	assert_true(p->index < 2 && p->first == s->n[p->index] && p->rows == 1);
	for (uint32_t i = 0; i < p->n; i++) {
		assert_true(p->tokens[i] == ids[p->first + i] && p->ids[i] == p->tokens[i] && p->logits[i] == numbers[p->first + i]);
		assert_true(p->logprobs[i] == numbers[p->first + i] && p->sampled_logprobs[i] == p->logprobs[i] &&
			p->lse[i] == p->logprobs[i]);
	}
	s->n[p->index] += p->n;
	strncat(s->text[p->index], p->text, p->text_bytes);
	if (p->last) {
		s->n_last++;
		assert_true(p->finish == KD_FINISH_STOP && p->stop_id == 10 && p->stop == -1 && p->n_reused == 2 && p->seed == 77);
	}
	return --s->stop_after == 0;
}

static struct kd_generation question(void)
{
	struct kd_generation g = KD_GENERATION_INIT;
	g.prompts = &prompt;
	g.n_prompts = 1;
	g.n = 2;
	g.rows = 1;
	return g;
}

static void pieces_come_in_the_order_of_each_sample(void **state)
{
	static const char *const stops[] = {"\n", "xy"};
	static const uint64_t seed = 5;
	(void)state;
	for (size_t size = 0; size < 3; size++) {
		struct fake_server s = {.play = play_two_samples, .piece = size};
		struct kd_client *client = kdclient_connect(&s);
		struct kd_generation g = question();
		struct kd_error err;
		struct seen seen = {0};
		g.temperature = 0.5f;
		g.top_k = 9;
		g.stops = stops;
		g.n_stops = 2;
		g.stop_ids = ids;
		g.n_stop_ids = 4;
		g.forced = ids;
		g.n_forced = 1;
		g.seed = &seed;
		g.ignore_eos = true;
		if (kd_generate(client, &g, see, &seen, &err))
			fail_msg("%s: %s", err.code, err.message);
		assert_true(seen.n[0] == 2 && seen.n[1] == 4 && seen.n_last == 2);
		assert_string_equal(seen.text[0], "bc");
		assert_string_equal(seen.text[1], "ade");
		kdclient_close(&s, client);
		assert_int_equal(asked.flags, FRAME_GENERATE_IGNORE_EOS | FRAME_GENERATE_STREAM | FRAME_GENERATE_SEED);
		assert_true(asked.n == 2 && asked.rows == 1 && asked.top_k == 9 && asked.seed == 5 && asked.temperature == 0.5f &&
			asked.top_p == 1);
		assert_true(asked.n_stops == 2 && asked.stop_ids.n_tokens == 4 && asked.forced.n_tokens == 1 &&
			asked.prompts[0].n_tokens == 3);
		assert_string_equal(asked.stops[1], "xy");
		frame_generate_done(&asked);
	}
}

static void play_until_cancelled(struct fake_server *s)
{
	uint64_t id = read_generate(s);
	struct frame_tokens one = piece(0, 0, 1, "a", false);
	uint8_t *body;
	struct error why = {0};
	frame_generate_done(&asked);
	send_tokens(s, id, &one);
	struct frame f = fake_server_read(s, &body);
	free(body);
	assert_true(f.kind == FRAME_CANCEL && f.request_id == id);
	one = piece(0, 1, 1, "late", false);
	send_tokens(s, id, &one);
	error_set(&why, ERROR_CANCELLED, NULL, "cancelled");
	fake_server_send_error(s, id, FRAME_WHOLE_REQUEST, ERROR_CANCELLED, "", "cancelled");
	f = fake_server_read(s, &body);        // a ping: the connection is as good as before
	assert_int_equal(f.kind, FRAME_PING);
	fake_server_send(s, FRAME_PONG, f.request_id, body, f.body_bytes);
	free(body);
}

static void a_caller_who_has_enough_cancels(void **state)
{
	struct fake_server s = {.play = play_until_cancelled};
	struct kd_client *client = kdclient_connect(&s);
	struct kd_generation g = question();
	struct kd_error err;
	struct seen seen = {.stop_after = 1};
	(void)state;
	assert_int_equal(kd_generate(client, &g, see, &seen, &err), -ECANCELED);
	assert_string_equal(err.code, "cancelled");
	assert_int_equal(kd_ping(client, NULL, &err), 0);
	kdclient_close(&s, client);
}

static int misbehaviour;

static void play_misbehave(struct fake_server *s)
{
	uint64_t id = read_generate(s);
	struct frame_tokens good = piece(0, 0, 1, "a", false), bad = good;
	uint8_t *body;
	frame_generate_done(&asked);
	switch (misbehaviour) {
	case 0: bad.index = 2; break;
	case 1: bad.first = 1; break;                              // a gap
	case 2: send_tokens(s, id, &good); break;                  // the same once more
	case 3: bad.rows = 0; break;                               // not what was asked
	case 4: bad = piece(0, 0, 4, "", true); send_tokens(s, id, &bad); bad = piece(0, 4, 0, "", false); break;    // after its last
	case 5: id++; break;
	case 6: fake_server_send(s, FRAME_DONE, id, NULL, 0); break;         // nothing was complete
	case 7: fake_server_send(s, FRAME_TOKENS, id, "short", 5); break;
	case 8: fake_server_send(s, FRAME_GENERATE, id, NULL, 0); break;
	}
	send_tokens(s, id, &bad);
	(void)fake_server_read(s, &body);
	free(body);
}

static void a_server_that_breaks_its_word_is_left(void **state)
{
	(void)state;
	for (misbehaviour = 0; misbehaviour < 9; misbehaviour++) {
		struct fake_server s = {.play = play_misbehave};
		struct kd_client *client = kdclient_connect(&s);
		struct kd_generation g = question();
		struct kd_error err;
		struct seen seen = {0};
		int r = kd_generate(client, &g, see, &seen, &err);
		if (r != -EBADMSG && r != -EINVAL)
			fail_msg("misbehaviour %d: %d, %s", misbehaviour, r, err.message);
		assert_true(kd_ping(client, NULL, &err) < 0);
		kdclient_close(&s, client);
	}
}

static void play_fail_one(struct fake_server *s)
{
	uint64_t id = read_generate(s);
	struct frame_tokens one = piece(0, 0, 1, "a", false);
	uint8_t *body;
	frame_generate_done(&asked);
	send_tokens(s, id, &one);
	fake_server_send_error(s, id, 1, ERROR_DEADLINE, "", "too late");
	free(fake_server_read(s, &body).kind ? body : NULL);
}

static void the_error_of_a_sample_is_the_calls(void **state)
{
	struct fake_server s = {.play = play_fail_one};
	struct kd_client *client = kdclient_connect(&s);
	struct kd_generation g = question();
	struct kd_error err;
	struct seen seen = {0};
	(void)state;
	assert_int_equal(kd_generate(client, &g, see, &seen, &err), -ETIMEDOUT);
	assert_string_equal(err.code, "deadline");
	assert_string_equal(err.field, "samples[1]");
	kdclient_close(&s, client);
}

static void play_nothing(struct fake_server *s)
{
	uint8_t *body;
	assert_int_equal(fake_server_read(s, &body).kind, 0);      // not a byte
	free(body);
}

static void what_no_frame_can_hold_is_refused_here(void **state)
{
	char long_text[258];
	const char *stops[17];
	struct fake_server s = {.play = play_nothing};
	struct kd_client *client = kdclient_connect(&s);
	struct kd_error err;
	(void)state;
	memset(long_text, 'x', 257);
	long_text[257] = '\0';
	for (int i = 0; i < 17; i++)
		stops[i] = "x";
	struct kd_generation none = question(), n = question(), many = question(), count = question(), length = question(),
		empty = question(), old = question();
	none.n_prompts = 0;
	n.n = 0;
	many.n = 1000;
	count.stops = length.stops = empty.stops = stops;
	count.n_stops = 17;
	length.n_stops = empty.n_stops = 1;
	old.size = 8;
	const struct { const struct kd_generation *g; int r; const char *field; } cases[] = {
		{&none, -EINVAL, "prompts"}, {&n, -EINVAL, "n"}, {&many, -E2BIG, "prompts"}, {&count, -E2BIG, "stop"},
		{&length, -E2BIG, "stop[0]"}, {&empty, -EINVAL, "stop[0]"}, {&old, -EINVAL, "request"}};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		stops[0] = cases[i].g == &length ? long_text : cases[i].g == &empty ? "" : "x";
		assert_int_equal(kd_generate(client, cases[i].g, see, NULL, &err), cases[i].r);
		assert_string_equal(err.field, cases[i].field);
	}
	kdclient_close(&s, client);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pieces_come_in_the_order_of_each_sample),
		cmocka_unit_test(a_caller_who_has_enough_cancels),
		cmocka_unit_test(a_server_that_breaks_its_word_is_left),
		cmocka_unit_test(the_error_of_a_sample_is_the_calls),
		cmocka_unit_test(what_no_frame_can_hold_is_refused_here),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
