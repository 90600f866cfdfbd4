// SPDX-License-Identifier: Apache-2.0
// Who generates beside somebody with far more to generate: counted in passes, by an engine that has no thread of its own here.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/teacher/generation.h"
#include "daemon/teacher/request.h"
#include "daemon/teacher/teacher_internal.h"
#include "tests/golden/golden.h"

#define MAX_ACTIVE 4
#define MAX_ASKERS 3

struct scene {
	struct teacher *teacher;
	struct generator *generator;
	struct request *requests[16];
	uint32_t n_requests;
	uint32_t n_left[MAX_ASKERS];       // samples not back
};

static uint32_t *left_of;                  // by asker, of the scene under way
static char askers[MAX_ASKERS];

static void computed(struct request_item *item)
{
	if (item->error.code)
		fail_msg("%s", item->error.message);
	left_of[(const char *)item->request->principal - askers]--;
}

static void open_scene(struct scene *s, uint32_t generate_batch)
{
	char path[4096];
	struct error err = {0};
	golden_path(path, sizeof path, "models/llama");
	struct teacher_source source = {.name = "teacher", .path = path};
	struct teacher_options options = {
		.sources = &source, .n_sources = 1, .device = "cpu", .numeric = "f32", .n_threads = 1, .max_tokens = 256,
		.batch_tokens = 256, .max_top_k = 64, .max_gather = 1, .max_draws = 1, .cache_tokens = 60000, .max_generating = MAX_ACTIVE,
		.generate_batch = generate_batch, .event_fd = -1};
	*s = (struct scene){0};
	if (teacher_new(&options, &s->teacher, &err) || teacher_load(s->teacher, &err))
		fail_msg("%s", err.message);
	s->generator = s->teacher->members[0].schedule.generator;
	left_of = s->n_left;
}

// What is still under way is given up, as a server gives up requests whose clients left.
static void close_scene(struct scene *s)
{
	for (uint32_t i = 0; i < s->n_requests; i++)
		atomic_store(&s->requests[i]->cancelled, true);
	while (generator_is_busy(s->generator))
		pass_run(s->teacher);
	for (uint32_t i = 0; i < s->n_requests; i++)
		request_free(s->requests[i]);
	teacher_unload(s->teacher);
	teacher_free(s->teacher);
}

// n samples of one prompt, or (apart) each of its own, all begun differently.
static struct request *ask(struct scene *s, uint32_t who, uint32_t n, bool apart, uint32_t n_prompt, uint32_t max_tokens)
{
	struct generation_query q;
	struct sequence prompts[256] = {0};
	uint32_t tokens[256], n_prompts = apart ? n : 1;
	struct request *r;
	struct error err = {0};
	assert_true(n_prompts <= 256 && n_prompt <= 256 && s->n_requests < 16);
	for (uint32_t p = 0; p < n_prompts; p++) {
		for (uint32_t i = 0; i < n_prompt; i++)
			tokens[i] = 3 + (p * 7 + i * 5 + i * i * p + who * 11) % 90;
		assert_int_equal(sequence_init(&prompts[p], tokens, n_prompt), 0);
	}
	generation_query_init(&q);
	q.n = apart ? 1 : n;
	q.max_tokens = max_tokens;
	q.ignore_eos = true;
	q.seed = 5;
	if (generation_request_new(&q, prompts, n_prompts, 1000, &r, &err) || generation_prepare(r, &err))
		fail_msg("%s", err.message);
	r->principal = (struct principal *)&askers[who];
	r->computed = computed;
	s->requests[s->n_requests++] = r;
	s->n_left[who] += n;
	for (uint32_t i = 0; i < n; i++)
		generator_submit(s->generator, &r->items[i]);
	return r;
}

static void run(struct scene *s, uint32_t n_passes)
{
	while (n_passes--)
		pass_run(s->teacher);
	assert_int_equal(teacher_state(s->teacher), TEACHER_LOADING);      // and never FAILED
}

// Passes until all of theirs are back.
static uint32_t run_until_back(struct scene *s, uint32_t who)
{
	uint32_t n = 0;
	for (; s->n_left[who]; n++)
		run(s, 1);
	return n;
}

static uint32_t n_tokens(const struct request *r)
{
	uint32_t n = 0;
	for (uint32_t i = 0; i < r->n_items; i++)
		n += r->items[i].generation->n_tokens;
	return n;
}

static void one_sample_does_not_wait_for_a_thousand(void **state)
{
	(void)state;
	for (int apart = 0; apart < 2; apart++) {
		struct scene s;
		open_scene(&s, 64);
		for (int i = 0; i < 5; i++)
			ask(&s, 0, 200, apart, 12, 30);
		run(&s, 10);
		ask(&s, 1, 1, false, 12, 8);
		assert_in_range(run_until_back(&s, 1), 8, 9);      // the prompt's pass says the first token: 8 alone
		assert_in_range(s.n_left[0], 900, 1000);
		close_scene(&s);
	}
}

static void a_prompt_does_not_wait_for_many_long_ones(void **state)
{
	(void)state;
	struct scene s;
	open_scene(&s, 32);                        // a long prompt takes four passes
	ask(&s, 0, 50, true, 110, 2);
	run(&s, 5);
	ask(&s, 1, 1, false, 20, 1);
	assert_in_range(run_until_back(&s, 1), 1, 2);
	close_scene(&s);
}

static void samples_are_what_they_are_alone(void **state)
{
	(void)state;
	struct scene s;
	open_scene(&s, 64);
	struct request *crowd = ask(&s, 0, 10, true, 12, 20), *other = ask(&s, 1, 6, true, 12, 20);
	run_until_back(&s, 0);
	run_until_back(&s, 1);
	struct request *alone = ask(&s, 1, 6, true, 12, 20);          // the same prompts again
	run_until_back(&s, 1);
	for (uint32_t i = 0; i < other->n_items; i++) {
		assert_memory_equal(alone->items[i].generation->tokens, other->items[i].generation->tokens, 20 * sizeof(uint32_t));
		assert_memory_equal(alone->items[i].generation->lse, other->items[i].generation->lse, 20 * sizeof(float));
	}
	assert_int_equal(n_tokens(crowd), 200);
	close_scene(&s);
}

static void steps_are_shared_evenly(void **state)
{
	(void)state;
	struct scene s;
	open_scene(&s, 64);
	struct request *a = ask(&s, 0, 200, false, 12, 25), *b = ask(&s, 1, 200, false, 12, 40), *c = ask(&s, 2, 200, false, 12, 7);
	run(&s, 300);
	uint32_t n[] = {n_tokens(a), n_tokens(b), n_tokens(c)}, all = n[0] + n[1] + n[2];
	assert_in_range(all, 300 * MAX_ACTIVE - 30, 300 * MAX_ACTIVE + 100);       // no pass left a place empty
	for (int i = 0; i < 3; i++)
		assert_in_range(3 * n[i], all - all / 5, all + all / 5);
	close_scene(&s);
}

static void who_had_all_it_wanted_has_no_claim_later(void **state)
{
	(void)state;
	struct scene s;
	open_scene(&s, 64);
	struct request *heavy = ask(&s, 0, 200, false, 12, 50);
	ask(&s, 1, 1, false, 12, 100);
	run_until_back(&s, 1);                     // 100 steps, of 400
	struct request *more = ask(&s, 1, 50, false, 12, 50);
	uint32_t before = n_tokens(heavy);
	run(&s, 60);
	uint32_t one = n_tokens(heavy) - before, other = n_tokens(more);
	assert_in_range(one, 90, 140);
	assert_in_range(other, 90, 140);
	close_scene(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_sample_does_not_wait_for_a_thousand),
		cmocka_unit_test(a_prompt_does_not_wait_for_many_long_ones),
		cmocka_unit_test(samples_are_what_they_are_alone),
		cmocka_unit_test(steps_are_shared_evenly),
		cmocka_unit_test(who_had_all_it_wanted_has_no_claim_later),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
