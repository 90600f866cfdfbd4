// SPDX-License-Identifier: Apache-2.0
// Those who ask take turns: nobody waits for all of another's, and all get as many tokens computed.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "daemon/teacher/batch.h"
#include "daemon/teacher/turns.h"

#define MAX_ASKERS 100

struct scene {
	struct turns turns;
	struct batch_backlog backlog;
	struct batch batch;                // only its list of items is used
	struct batch_item items[64];
	struct request *requests[MAX_ASKERS];
};

static struct scene *scene_new(void)
{
	struct scene *s = calloc(1, sizeof *s);
	assert_non_null(s);
	batch_backlog_init(&s->backlog);
	s->batch.items = s->items;
	return s;
}

// Asker `who` (from 0) asks for n sequences of that many tokens.
static void ask(struct scene *s, uint32_t who, uint32_t n, uint32_t n_tokens)
{
	static char principals[MAX_ASKERS];
	assert_null(s->requests[who]);
	assert_int_equal(request_new(n, &s->requests[who], NULL), 0);
	s->requests[who]->principal = (struct principal *)&principals[who];
	for (uint32_t i = 0; i < n; i++) {
		s->requests[who]->items[i].sequence.n_tokens = n_tokens;
		batch_backlog_append(&s->backlog, &s->requests[who]->items[i].link);
	}
}

static uint32_t asker_of(const struct scene *s, const struct request_item *item)
{
	uint32_t who = 0;
	while (s->requests[who] != item->request)
		who++;
	return who;
}

// A pass that takes the first n; who they are of is counted.
static void pass(struct scene *s, uint32_t n, uint32_t counts[MAX_ASKERS])
{
	turns_order(&s->turns, &s->backlog, 1000);
	s->batch.n_items = 0;
	for (uint32_t i = 0; i < n; i++) {
		struct request_item *item = (struct request_item *)batch_backlog_pop(&s->backlog);
		if (!item)
			break;
		s->items[s->batch.n_items++].item = item;
		counts[asker_of(s, item)]++;
	}
	turns_charge(&s->turns, &s->batch);
}

static void scene_free(struct scene *s)
{
	for (uint32_t i = 0; i < MAX_ASKERS; i++) {
		for (uint32_t j = 0; s->requests[i] && j < s->requests[i]->n_items; j++)
			s->requests[i]->items[j].sequence.n_tokens = 0;
		request_free(s->requests[i]);
	}
	free(s);
}

static void one_who_asks_alone_keeps_the_order(void **state)
{
	(void)state;
	struct scene *s = scene_new();
	ask(s, 0, 50, 100);
	turns_order(&s->turns, &s->backlog, 1000);
	for (uint32_t i = 0; i < 50; i++)
		assert_ptr_equal(batch_backlog_pop(&s->backlog), &s->requests[0]->items[i].link);
	assert_null(batch_backlog_pop(&s->backlog));
	turns_order(&s->turns, &s->backlog, 1000);         // nothing at all
	scene_free(s);
}

static void one_sequence_does_not_wait_for_ten_thousand(void **state)
{
	(void)state;
	struct scene *s = scene_new();
	uint32_t counts[MAX_ASKERS] = {0};
	ask(s, 0, 10000, 10);
	pass(s, 8, counts);
	ask(s, 1, 1, 10);
	pass(s, 8, counts);
	assert_int_equal(counts[1], 1);
	assert_int_equal(counts[0], 15);
	scene_free(s);
}

static void tokens_are_shared_evenly_whatever_the_lengths(void **state)
{
	(void)state;
	struct scene *s = scene_new();
	uint32_t counts[MAX_ASKERS] = {0};
	ask(s, 0, 1000, 10);
	ask(s, 1, 1000, 40);
	ask(s, 2, 1000, 10);
	for (int i = 0; i < 30; i++)
		pass(s, 9, counts);
	assert_in_range(counts[0] * 10, counts[1] * 40 - 40, counts[1] * 40 + 40);
	assert_in_range(counts[0], counts[2] - 4, counts[2] + 4);
	scene_free(s);
}

static void time_away_is_no_claim(void **state)
{
	(void)state;
	struct scene *s = scene_new();
	uint32_t counts[MAX_ASKERS] = {0}, later[MAX_ASKERS] = {0};
	ask(s, 0, 2000, 10);
	ask(s, 1, 1, 10);
	for (int i = 0; i < 100; i++)
		pass(s, 10, counts);                       // 0 alone but for the one
	ask(s, 2, 500, 10);                                // a new one: it may be a pass ahead
	for (int i = 0; i < 10; i++)
		pass(s, 10, later);
	assert_in_range(later[0], 45, 55);
	assert_in_range(later[2], 45, 55);
	scene_free(s);
}

static void more_askers_than_lanes_are_all_served(void **state)
{
	(void)state;
	struct scene *s = scene_new();
	uint32_t counts[MAX_ASKERS] = {0};
	for (uint32_t i = 0; i < MAX_ASKERS; i++)
		ask(s, i, 3, 7);
	for (int i = 0; i < 6; i++)
		pass(s, 50, counts);
	for (uint32_t i = 0; i < MAX_ASKERS; i++)
		assert_int_equal(counts[i], 3);
	assert_null(s->backlog.first);
	scene_free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_who_asks_alone_keeps_the_order), cmocka_unit_test(one_sequence_does_not_wait_for_ten_thousand),
		cmocka_unit_test(tokens_are_shared_evenly_whatever_the_lengths), cmocka_unit_test(time_away_is_no_claim),
		cmocka_unit_test(more_askers_than_lanes_are_all_served),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
