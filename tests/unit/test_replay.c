// SPDX-License-Identifier: Apache-2.0
// Steps out of the buffer of rollouts, and the chance that evaluations set (DistiLLM): what enters and leaves, what is picked, bytes of it
// that come back or are refused, and which kind a step is.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/train/settings.h"
#include "daemon/worker/passage.h"
#include "daemon/worker/policy.h"
#include "daemon/worker/replay.h"

#define CAPACITY 6
#define STEP 2
#define V 50

static struct replay *replay_make(void)
{
	struct replay *r = NULL;
	struct replay_options o = {.capacity = CAPACITY, .max_tokens = 8, .n_step = STEP, .vocab_size = V, .seed = 3};
	assert_int_equal(replay_new(&o, &r), 0);
	return r;
}

// A rollout that is told by its first token; of 3 to 5 tokens, of which the first is the prompt.
static void passage_make(uint32_t salt, struct passage *ret)
{
	uint32_t tokens[5] = {salt, salt + 1, 2, 3, 4}, n = 3 + salt % 3;
	struct sequence s = {tokens, n};
	assert_int_equal(passage_init(ret, &s, 1, PASSAGE_STUDENT), 0);
	ret->mixed = 0.25;
	ret->logprobs = calloc(n - 1, sizeof *ret->logprobs);
	ret->drawn = calloc(n - 1, sizeof *ret->drawn);
	for (uint32_t i = 0; i < n - 1; i++) {
		ret->logprobs[i] = -0.1 * (salt + i + 1);
		ret->drawn[i] = -0.3 * (salt + i + 1);
	}
}

static void assert_is(const struct passage *p, uint32_t salt)
{
	struct passage right;
	passage_make(salt, &right);
	assert_int_equal(p->sequence.n_tokens, right.sequence.n_tokens);
	assert_memory_equal(p->sequence.tokens, right.sequence.tokens, right.sequence.n_tokens * sizeof(uint32_t));
	assert_memory_equal(p->logprobs, right.logprobs, (right.sequence.n_tokens - 1) * sizeof(double));
	assert_memory_equal(p->drawn, right.drawn, (right.sequence.n_tokens - 1) * sizeof(double));
	assert_true(p->first == 1 && p->author == PASSAGE_STUDENT && p->mixed == 0.25);
	passage_done(&right);
}

// One step that writes `salt` and `salt + 1`, the second first.
static void step_write(struct replay *r, uint32_t salt)
{
	for (uint32_t i = STEP; i-- > 0;) {
		struct passage p;
		passage_make(salt + i, &p);
		assert_int_equal(replay_note(r, i, &p), 0);
		passage_done(&p);
	}
	assert_int_equal(replay_end_step(r, NULL, NULL), 0);
}

// Every sequence in the buffer, by its first token, as bits.
static uint64_t held(struct replay *r)
{
	uint64_t seen = 0;
	for (uint64_t step = 0; step < 200; step++)
		for (uint32_t i = 0; i < STEP; i++) {
			struct passage p;
			assert_int_equal(replay_pick(r, step, i, &p), 0);
			assert_is(&p, p.sequence.tokens[0]);
			seen |= UINT64_C(1) << p.sequence.tokens[0];
			passage_done(&p);
		}
	return seen;
}

static void the_oldest_leave_when_it_is_full(void **state)
{
	(void)state;
	struct replay *r = replay_make();
	for (uint32_t salt = 0; salt < 6; salt += 2) {
		assert_false(replay_full(r));
		step_write(r, salt);
		assert_int_equal(replay_n(r), salt + 2);
	}
	assert_true(replay_full(r));
	assert_int_equal(held(r), 0x3f);
	step_write(r, 6);
	assert_int_equal(replay_n(r), CAPACITY);
	assert_int_equal(held(r), 0xfc);
	step_write(r, 8), step_write(r, 10), step_write(r, 12);
	assert_int_equal(held(r), 0x3f00);
	replay_free(r);
}

static void a_step_that_is_not_over_changes_nothing(void **state)
{
	(void)state;
	struct replay *r = replay_make();
	struct passage p;
	step_write(r, 0), step_write(r, 2), step_write(r, 4);
	passage_make(20, &p);
	assert_int_equal(replay_note(r, 0, &p), 0);
	assert_int_equal(held(r), 0x3f);
	passage_done(&p);
	replay_free(r);
}

static void picks_are_distinct_equally_likely_and_the_same_again(void **state)
{
	(void)state;
	struct replay *r = replay_make(), *again = replay_make();
	uint32_t counts[CAPACITY] = {0}, pairs[CAPACITY][CAPACITY] = {{0}};
	for (uint32_t salt = 0; salt < 6; salt += 2)
		step_write(r, salt), step_write(again, salt);
	for (uint64_t step = 0; step < 6000; step++) {
		struct passage a, b, c;
		assert_int_equal(replay_pick(r, step, 0, &a), 0);
		assert_int_equal(replay_pick(r, step, 1, &b), 0);
		assert_int_equal(replay_pick(again, step, 1, &c), 0);          // whoever was picked before
		assert_int_equal(b.sequence.tokens[0], c.sequence.tokens[0]);
		assert_int_not_equal(a.sequence.tokens[0], b.sequence.tokens[0]);
		counts[a.sequence.tokens[0]]++;
		pairs[a.sequence.tokens[0]][b.sequence.tokens[0]]++;
		passage_done(&a), passage_done(&b), passage_done(&c);
	}
	for (uint32_t i = 0; i < CAPACITY; i++) {
		assert_in_range(counts[i], 1000 - 116, 1000 + 116);            // 4 standard deviations of a binomial(6000, 1/6)
		for (uint32_t k = 0; k < CAPACITY; k++)
			assert_true(i == k ? !pairs[i][k] : pairs[i][k] > 200 - 56 && pairs[i][k] < 200 + 56);
	}
	replay_free(r), replay_free(again);
}

static void what_was_saved_comes_back(void **state)
{
	(void)state;
	struct replay *r = replay_make(), *again = replay_make();
	uint8_t *bytes = NULL, *bytes_again = NULL;
	size_t n = 0, n_again = 0;
	for (uint32_t salt = 0; salt < 8; salt += 2)
		step_write(r, salt);
	step_write(again, 30);                 // goes
	assert_int_equal(replay_encode(r, &bytes, &n, NULL), 0);
	assert_int_equal(replay_decode(again, bytes, n, NULL), 0);
	assert_int_equal(held(again), held(r));
	for (uint64_t step = 0; step < 50; step++) {
		struct passage a, b;
		assert_int_equal(replay_pick(r, step, 1, &a) | replay_pick(again, step, 1, &b), 0);
		assert_int_equal(a.sequence.tokens[0], b.sequence.tokens[0]);
		passage_done(&a), passage_done(&b);
	}
	step_write(r, 40), step_write(again, 40);      // the same ones leave
	free(bytes);
	assert_int_equal(replay_encode(r, &bytes, &n, NULL) | replay_encode(again, &bytes_again, &n_again, NULL), 0);
	assert_int_equal(n, n_again);
	assert_memory_equal(bytes, bytes_again, n);
	free(bytes), free(bytes_again);
	replay_free(r), replay_free(again);
}

static void bytes_that_are_no_buffer_are_refused(void **state)
{
	(void)state;
	struct replay *r = replay_make(), *other = replay_make();
	uint8_t *bytes = NULL, *changed = NULL;
	size_t n = 0;
	uint32_t refused = 0;
	step_write(r, 0), step_write(r, 2);
	assert_int_equal(replay_encode(r, &bytes, &n, NULL), 0);
	changed = malloc(n + 1);
	for (size_t i = 0; i < n; i++) {
		struct error err = {0};
		assert_int_equal(replay_decode(other, bytes, i, &err), error_errno(ERROR_CORRUPT));    // cut off anywhere
		assert_string_equal(err.field, "rollout-replay");
		assert_int_equal(replay_n(other), 0);
		for (int bit = 0; bit < 8; bit++) {
			memcpy(changed, bytes, n);
			changed[i] ^= (uint8_t)(1 << bit);
			refused += replay_decode(other, changed, n, NULL) != 0;
		}
	}
	assert_true(refused > 8 * 8 * 4 && refused < 8 * n);
	memcpy(changed, bytes, n);
	changed[n] = 0;
	assert_int_equal(replay_decode(other, changed, n + 1, NULL), error_errno(ERROR_CORRUPT));      // more than it says
	changed[8 + 4 + 8 + 8] = V;                                                                    // a token that there is not
	assert_int_equal(replay_decode(other, changed, n, NULL), error_errno(ERROR_CORRUPT));
	changed[8 + 4 + 8 + 8] = V - 1;
	assert_int_equal(replay_decode(other, changed, n, NULL), 0);
	free(bytes), free(changed);
	replay_free(r), replay_free(other);
}

// ---- which steps

#define N_STEPS 4000

static struct policy *policy_make(const char *rollouts, int64_t replay, const char *fresh)
{
	struct run_settings s;
	struct policy *p = NULL;
	assert_int_equal(settings_init(&s, NULL), 0);
	free(s.rollouts), free(s.rollout_fresh);
	s.rollouts = strdup(rollouts);
	s.rollout_fresh = strdup(fresh);
	s.rollout_replay = replay;
	s.micro_batch = STEP;
	s.evaluate_every = 10;
	assert_int_equal(policy_new(&s, &p, NULL), 0);
	assert_int_equal(policy_begin(p, N_STEPS, STEP, V), 0);
	settings_done(&s);
	return p;
}

static void the_chance_rises_where_the_loss_has_risen(void **state)
{
	(void)state;
	// The loss before training, then evaluations; what methods make of each: worked out by hand.
	static const struct { double loss, chance, reference; } seen[] = {
		{3.0, 0, 3.0}, {2.5, 0, 3.0}, {3.05, 0, 3.0}, {3.1, 0.1, 3.1}, {3.15, 0.1, 3.1}, {2.0, 0.1, 3.1}, {4.0, 0.2, 4.0},
		{4.0, 0.2, 4.0}, {4.2, 0.3, 4.2},
	};
	struct policy *p = policy_make("adaptive", 0, "linear:1:0");
	for (size_t i = 0; i < sizeof seen / sizeof *seen; i++) {
		policy_evaluated(p, seen[i].loss, i == 0);
		struct policy_state s = policy_state(p);
		assert_true(fabs(s.chance - seen[i].chance) < 1e-12 && fabs(s.reference - seen[i].reference) < 1e-12);
	}
	for (double loss = 5; loss < 30; loss++)
		policy_evaluated(p, loss, false);
	assert_true(policy_state(p).chance == 1);
	policy_free(p);
}

static uint32_t count(const struct policy *p, enum policy_kind kind, uint64_t from, uint64_t to)
{
	uint32_t n = 0;
	for (uint64_t step = from; step < to; step++)
		n += policy_kind(p, step) == kind;
	return n;
}

static void fill(struct policy *p)
{
	for (uint32_t salt = 0; salt < CAPACITY; salt += STEP)
		step_write(policy_replay(p), salt);
}

static void steps_are_of_the_kind_that_the_coin_says(void **state)
{
	(void)state;
	struct policy *p = policy_make("adaptive", CAPACITY, "linear:1:0");
	assert_int_equal(count(p, POLICY_TEXT, 0, N_STEPS), N_STEPS);
	policy_restore(p, &(struct policy_state){0.5, 1});
	uint32_t own = N_STEPS - count(p, POLICY_TEXT, 0, N_STEPS);
	assert_in_range(own, 2000 - 127, 2000 + 127);                          // 4 standard deviations
	assert_int_equal(count(p, POLICY_FRESH, 0, N_STEPS), own);             // not full: no replay
	fill(p);
	assert_int_equal(N_STEPS - count(p, POLICY_TEXT, 0, N_STEPS), own);    // the buffer does not change how many
	// r < phi (1 - step / total): .5 at the first step, 0 at the last; the mean over a half .375 and .125
	assert_in_range(count(p, POLICY_FRESH, 0, N_STEPS / 2), 750 - 87, 750 + 87);
	assert_in_range(count(p, POLICY_FRESH, N_STEPS / 2, N_STEPS), 250 - 60, 250 + 60);
	policy_free(p);
	p = policy_make("1", CAPACITY, "0.25");
	assert_int_equal(count(p, POLICY_FRESH, 0, N_STEPS), N_STEPS);
	fill(p);
	assert_int_equal(count(p, POLICY_TEXT, 0, N_STEPS), 0);
	assert_in_range(count(p, POLICY_FRESH, 0, N_STEPS), 1000 - 110, 1000 + 110);
	policy_free(p);
}

static void text_is_known_ahead_as_far_as_no_evaluation_lies_between(void **state)
{
	(void)state;
	struct policy *p = policy_make("adaptive", 0, "1");
	assert_false(policy_waits(p, 3, 3));
	assert_false(policy_waits(p, 3, 9));
	assert_true(policy_waits(p, 3, 10));           // the evaluation after ten steps may change what the eleventh is
	policy_restore(p, &(struct policy_state){1, 1});
	assert_true(policy_waits(p, 3, 4));
	assert_false(policy_waits(p, 3, 3));
	policy_free(p);
	p = policy_make("0.5", 0, "1");
	for (uint64_t step = 4; step < 100; step++)
		assert_int_equal(policy_waits(p, 3, step), policy_kind(p, step) != POLICY_TEXT);
	policy_free(p);
	assert_false(policy_waits(NULL, 3, 10));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_oldest_leave_when_it_is_full),
		cmocka_unit_test(a_step_that_is_not_over_changes_nothing),
		cmocka_unit_test(picks_are_distinct_equally_likely_and_the_same_again),
		cmocka_unit_test(what_was_saved_comes_back),
		cmocka_unit_test(bytes_that_are_no_buffer_are_refused),
		cmocka_unit_test(the_chance_rises_where_the_loss_has_risen),
		cmocka_unit_test(steps_are_of_the_kind_that_the_coin_says),
		cmocka_unit_test(text_is_known_ahead_as_far_as_no_evaluation_lies_between),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
