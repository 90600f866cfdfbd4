// SPDX-License-Identifier: Apache-2.0
// The queue between threads, its budget, and the packing of sequences into forward passes.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/queue.h"
#include "daemon/teacher/batch.h"

static void items_leave_in_order_and_chains_stay_together(void **state)
{
	(void)state;
	struct queue *q;
	struct queue_item items[4] = {{&items[1]}, {&items[2]}, {NULL}, {NULL}};
	assert_int_equal(queue_open(NULL, -1, &q), 0);
	assert_null(queue_pop(q, false));
	queue_push(q, &items[0]);
	queue_push(q, &items[3]);
	for (int i = 0; i < 4; i++)
		assert_ptr_equal(queue_pop(q, false), &items[i]);
	assert_null(queue_pop(q, false));
	queue_push(q, &items[2]);    // still good after having been emptied
	assert_ptr_equal(queue_pop(q, false), &items[2]);
	queue_close(q);
}

static void the_budget_is_all_or_nothing(void **state)
{
	(void)state;
	struct queue *q;
	struct error err;
	struct queue_cost reserved;
	uint64_t waiting;
	assert_int_equal(queue_open(&(struct queue_cost){2, 100, 1000}, -1, &q), 0);
	assert_int_equal(queue_reserve(q, &(struct queue_cost){1, 101, 1}, NULL, &err), error_errno(ERROR_TOO_LARGE));
	assert_int_equal(queue_reserve(q, &(struct queue_cost){1, 1, UINT64_MAX}, NULL, &err), error_errno(ERROR_TOO_LARGE));
	assert_int_equal(queue_reserve(q, &(struct queue_cost){1, 60, 600}, NULL, &err), 0);
	assert_int_equal(queue_reserve(q, &(struct queue_cost){1, 41, 1}, NULL, &err), error_errno(ERROR_OVERLOADED));
	assert_int_equal(queue_reserve(q, &(struct queue_cost){1, 1, 401}, NULL, &err), error_errno(ERROR_OVERLOADED));
	assert_int_equal(queue_reserve(q, &(struct queue_cost){1, 40, 400}, NULL, &err), 0);
	assert_int_equal(queue_reserve(q, &(struct queue_cost){1, 0, 0}, NULL, &err), error_errno(ERROR_OVERLOADED));
	queue_usage(q, &reserved, &waiting);
	assert_int_equal(reserved.tokens, 100);
	queue_release(q, &(struct queue_cost){1, 60, 600});
	assert_int_equal(queue_reserve(q, &(struct queue_cost){1, 60, 600}, NULL, &err), 0);
	queue_close(q);
}

static void one_asker_leaves_room_for_the_next(void **state)
{
	(void)state;
	struct queue *q;
	struct error err = {0};
	struct queue_cost limits = {1000, 1000, 1000}, one = {1, 10, 1}, held[2] = {{0}}, large = {1, 900, 1};
	uint32_t n[2] = {0};
	assert_int_equal(queue_open(&limits, -1, &q), 0);
	for (int who = 0; who < 2; who++)
		for (; queue_reserve(q, &one, &held[who], &err) == 0; n[who]++, held[who].requests++, held[who].bytes++)
			held[who].tokens += 10;
	assert_int_equal(err.code, ERROR_OVERLOADED);
	assert_in_range(n[0], 75, 76);                   // three quarters, then three quarters of the rest
	assert_in_range(n[1], 18, 20);
	assert_int_equal(queue_reserve(q, &one, &(struct queue_cost){0}, &err), 0);
	queue_release(q, &one);
	for (int who = 0; who < 2; who++)
		queue_release(q, &held[who]);
	assert_int_equal(queue_reserve(q, &large, &(struct queue_cost){0}, &err), 0);      // all they have: as much as fits
	queue_release(q, &large);
	queue_close(q);
}

static void other_limits_hold_from_then_on(void **state)
{
	(void)state;
	struct queue *q;
	struct queue_cost reserved;
	uint64_t waiting;
	assert_int_equal(queue_open(&(struct queue_cost){10, 100, 1000}, -1, &q), 0);
	assert_int_equal(queue_reserve(q, &(struct queue_cost){1, 80, 800}, NULL, NULL), 0);
	queue_limit(q, &(struct queue_cost){10, 50, 1000});                                   // less than what is reserved
	assert_int_equal(queue_reserve(q, &(struct queue_cost){1, 1, 1}, NULL, NULL), error_errno(ERROR_OVERLOADED));
	assert_int_equal(queue_reserve(q, &(struct queue_cost){1, 51, 1}, NULL, NULL), error_errno(ERROR_TOO_LARGE));
	queue_release(q, &(struct queue_cost){1, 80, 800});
	assert_int_equal(queue_reserve(q, &(struct queue_cost){1, 50, 1}, NULL, NULL), 0);
	queue_limit(q, &(struct queue_cost){10, 200, 1000});
	assert_int_equal(queue_reserve(q, &(struct queue_cost){1, 150, 1}, NULL, NULL), 0);
	queue_usage(q, &reserved, &waiting);
	assert_int_equal(reserved.tokens, 200);
	queue_close(q);
}

static void a_push_wakes_the_eventfd(void **state)
{
	(void)state;
	struct queue *q;
	struct queue_item item = {NULL}, next = {NULL};
	uint64_t n = 0;
	int fd = eventfd(0, EFD_NONBLOCK);
	assert_int_equal(queue_open(NULL, fd, &q), 0);
	queue_push(q, &item);
	queue_push(q, &next);                              // who is woken pops until there is nothing
	assert_int_equal(read(fd, &n, sizeof n), sizeof n);
	assert_int_equal(n, 1);
	assert_ptr_equal(queue_pop(q, false), &item);
	assert_ptr_equal(queue_pop(q, false), &next);
	assert_null(queue_pop(q, false));
	queue_push(q, &item);
	assert_int_equal(read(fd, &n, sizeof n), sizeof n);
	assert_ptr_equal(queue_pop(q, false), &item);
	queue_close(q);
	close(fd);
}

#define N_ITEMS 1000

static void *pop_all(void *arg)
{
	size_t n = 0;
	while (queue_pop(arg, true))
		n++;
	return (void *)n;
}

static void a_stopped_queue_gives_what_it_holds_and_then_nothing(void **state)
{
	(void)state;
	struct queue *q;
	pthread_t threads[2];
	static struct queue_item items[N_ITEMS];
	size_t total = 0;
	assert_int_equal(queue_open(NULL, -1, &q), 0);
	for (int i = 0; i < 2; i++)
		pthread_create(&threads[i], NULL, pop_all, q);
	for (int i = 0; i < N_ITEMS; i++) {
		items[i].next = NULL;
		queue_push(q, &items[i]);
	}
	queue_stop(q);
	for (int i = 0; i < 2; i++) {
		void *n;
		pthread_join(threads[i], &n);
		total += (size_t)n;
	}
	assert_int_equal(total, N_ITEMS);
	queue_close(q);
}

// The receiver that waits comes back with nothing, once each time it is asked to, and goes on.
static void *count_pokes(void *arg)
{
	size_t n = 0;
	while (!queue_pop(arg, true) && !queue_is_stopped(arg))
		n++;
	return (void *)n;
}

static void a_poke_wakes_who_waits_and_loses_nothing(void **state)
{
	(void)state;
	struct queue *q;
	pthread_t thread;
	struct queue_item item = {NULL};
	void *n;
	assert_int_equal(queue_open(NULL, -1, &q), 0);
	queue_poke(q);
	assert_null(queue_pop(q, true));    // poked before it waited
	queue_push(q, &item);
	queue_poke(q);
	assert_ptr_equal(queue_pop(q, true), &item);
	pthread_create(&thread, NULL, count_pokes, q);
	queue_poke(q);
	queue_stop(q);
	pthread_join(thread, &n);
	assert_true((size_t)n <= 1);
	assert_true(queue_is_stopped(q));
	queue_close(q);
}

static void *push_one(void *arg)
{
	static struct queue_item item;
	item.next = NULL;
	queue_push(arg, &item);
	return NULL;
}

// The receiver closes as soon as it has what it waited for; the pusher must be done with queue and descriptor by then (TSan sees it).
static void a_queue_may_be_closed_once_the_last_item_is_popped(void **state)
{
	(void)state;
	for (int i = 0; i < 200; i++) {
		struct queue *q;
		pthread_t thread;
		int fd = eventfd(0, EFD_NONBLOCK);
		assert_int_equal(queue_open(NULL, fd, &q), 0);
		pthread_create(&thread, NULL, push_one, q);
		assert_non_null(queue_pop(q, true));
		queue_close(q);
		close(fd);
		pthread_join(thread, NULL);
	}
}

// ---- packing

struct packing { struct request *request; struct batch *batch; struct batch_backlog backlog; };

static void start(struct packing *p, const uint32_t *lengths, uint32_t n, uint32_t capacity)
{
	assert_int_equal(request_new(n, &p->request, NULL), 0);
	assert_int_equal(batch_new(capacity, &p->batch, NULL), 0);
	batch_backlog_init(&p->backlog);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t *tokens = calloc(lengths[i], sizeof *tokens);
		for (uint32_t j = 0; j < lengths[i]; j++)
			tokens[j] = 1000 * i + j;
		p->request->items[i].sequence = (struct sequence){tokens, lengths[i]};
		batch_backlog_append(&p->backlog, &p->request->items[i].link);
	}
}

static void stop(struct packing *p)
{
	request_free(p->request);
	batch_free(p->batch);
}

static void fill(struct packing *p, uint32_t budget)
{
	struct batch_terms terms = {.budget = budget, .oldest = true};
	batch_clear(p->batch);
	batch_fill(p->batch, &p->backlog, &terms);
}

static void sequences_lie_side_by_side(void **state)
{
	(void)state;
	struct packing p;
	start(&p, (uint32_t[]){3, 2, 4}, 3, 16);
	fill(&p, 16);
	struct layout l;
	assert_int_equal(batch_seal(p.batch, NULL, &l, NULL), 0);
	assert_null(l.slots);
	assert_int_equal(l.n_sequences, 3);
	assert_int_equal(l.n_positions, 9);
	assert_memory_equal(l.starts, ((uint32_t[]){0, 3, 5, 9}), 16);
	assert_memory_equal(l.positions, ((uint32_t[]){0, 1, 2, 0, 1, 0, 1, 2, 3}), 36);
	assert_memory_equal(l.tokens, ((uint32_t[]){0, 1, 2, 1000, 1001, 2000, 2001, 2002, 2003}), 36);
	assert_null(batch_backlog_pop(&p.backlog));
	assert_false(batch_is_mixed(p.batch));
	stop(&p);
}

static void smaller_ones_pass_one_that_does_not_fit_which_goes_next(void **state)
{
	(void)state;
	struct packing p;
	start(&p, (uint32_t[]){6, 5, 2, 3, 1}, 5, 10);
	fill(&p, 10);    // 6, (5 does not fit), 2, (3 does not fit), 1
	assert_int_equal(p.batch->n_items, 3);
	assert_int_equal(p.batch->items[1].item->index, 2);
	assert_int_equal(p.batch->items[2].item->index, 4);
	fill(&p, 10);
	assert_int_equal(p.batch->n_items, 2);
	assert_int_equal(p.batch->items[0].item->index, 1);
	assert_int_equal(p.batch->items[1].item->index, 3);
	fill(&p, 10);
	assert_int_equal(p.batch->n_items, 0);
	stop(&p);
}

static void one_over_the_budget_goes_alone(void **state)
{
	(void)state;
	struct packing p;
	start(&p, (uint32_t[]){2, 12, 2}, 3, 12);
	fill(&p, 8);
	assert_int_equal(p.batch->n_items, 2);
	fill(&p, 8);
	assert_int_equal(p.batch->n_items, 1);
	assert_int_equal(p.batch->n_rows, 12);
	stop(&p);
}

static void the_backlog_stays_whole_when_its_end_leaves(void **state)
{
	(void)state;
	struct packing p;
	start(&p, (uint32_t[]){7, 6, 1}, 3, 8);
	fill(&p, 8);    // takes the first and the last
	assert_int_equal(p.batch->n_items, 2);
	batch_backlog_append(&p.backlog, &p.batch->items[1].item->link);
	assert_ptr_equal(batch_backlog_pop(&p.backlog), &p.request->items[1].link);
	assert_ptr_equal(batch_backlog_pop(&p.backlog), &p.request->items[2].link);
	assert_null(batch_backlog_pop(&p.backlog));
	stop(&p);
}

static void sequences_of_two_requests_make_a_mixed_batch(void **state)
{
	(void)state;
	struct packing a, b;
	start(&a, (uint32_t[]){2}, 1, 8);
	start(&b, (uint32_t[]){3}, 1, 8);
	batch_backlog_append(&a.backlog, batch_backlog_pop(&b.backlog));
	fill(&a, 8);
	assert_true(batch_is_mixed(a.batch));
	stop(&a);
	stop(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(items_leave_in_order_and_chains_stay_together),
		cmocka_unit_test(the_budget_is_all_or_nothing),
		cmocka_unit_test(other_limits_hold_from_then_on),
		cmocka_unit_test(one_asker_leaves_room_for_the_next), cmocka_unit_test(a_push_wakes_the_eventfd),
		cmocka_unit_test(a_stopped_queue_gives_what_it_holds_and_then_nothing),
		cmocka_unit_test(a_poke_wakes_who_waits_and_loses_nothing),
		cmocka_unit_test(a_queue_may_be_closed_once_the_last_item_is_popped),
		cmocka_unit_test(sequences_lie_side_by_side),
		cmocka_unit_test(smaller_ones_pass_one_that_does_not_fit_which_goes_next),
		cmocka_unit_test(one_over_the_budget_goes_alone),
		cmocka_unit_test(the_backlog_stays_whole_when_its_end_leaves),
		cmocka_unit_test(sequences_of_two_requests_make_a_mixed_batch),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
