// SPDX-License-Identifier: Apache-2.0
// Who waits for whom at a door's desk. Jobs stay at work until the test lets them go, so that nothing depends on how fast anybody is.
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/server/desk.h"

#define LARGE (3u << 20)
#define SMALL 8192
#define PATIENCE_S 20
#define MOST 40

struct job {
	struct desk_job job;           // first
	char name;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static bool held;                      // large jobs stay at work
static char begun[MOST + 1];           // names, in order
static unsigned n_begun, n_ended;

static void work(struct desk_job *job)
{
	pthread_mutex_lock(&lock);
	begun[n_begun++] = ((struct job *)job)->name;
	pthread_cond_broadcast(&changed);
	while (held && job->n_bytes >= LARGE)
		pthread_cond_wait(&changed, &lock);
	n_ended++;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
}

static void expect(const unsigned *count, unsigned n)
{
	struct timespec until;
	int r = 0;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += PATIENCE_S;
	pthread_mutex_lock(&lock);
	while (*count < n && r == 0)
		r = pthread_cond_timedwait(&changed, &lock, &until);
	pthread_mutex_unlock(&lock);
	assert_int_equal(r, 0);
}

static void let_go(void)
{
	pthread_mutex_lock(&lock);
	held = false;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
}

static void give(struct desk *d, struct job *job, char name, const void *who, uint64_t n)
{
	*job = (struct job){.job = {.work = work, .who = who, .n_bytes = n, .n_body = n}, .name = name};
	desk_give(d, &job->job);
}

static int setup(void **state)
{
	struct error err;
	n_begun = n_ended = 0;
	held = true;
	return desk_open(-1, INFINITY, (struct desk **)state, &err);
}

static int teardown(void **state)
{
	struct desk *d = *state;
	let_go();
	while (!desk_is_empty(d))
		if (!desk_take(d))
			usleep(1000);
	desk_close(d);
	return 0;
}

static void what_is_small_does_not_wait_for_what_is_large(void **state)
{
	static struct job large[2], small[3];
	give(*state, &large[0], 'L', "one", LARGE);
	expect(&n_begun, 1);
	give(*state, &large[1], 'M', "one", LARGE);
	for (int i = 0; i < 3; i++)
		give(*state, &small[i], 's', "one", SMALL);
	expect(&n_ended, 3);
	let_go();
	expect(&n_ended, 5);
	assert_memory_equal(begun, "LsssM", 5);
}

static void those_who_ask_take_turns(void **state)
{
	static struct job heavy[6], light[2];
	give(*state, &heavy[0], 'a', "heavy", LARGE);
	expect(&n_begun, 1);
	for (int i = 1; i < 6; i++)
		give(*state, &heavy[i], (char)('a' + i), "heavy", LARGE);
	for (int i = 0; i < 2; i++)
		give(*state, &light[i], (char)('y' + i), "light", LARGE);
	let_go();
	expect(&n_ended, 8);
	assert_memory_equal(begun, "aybzcdef", 8);
}

static void nobody_fills_the_room_for_others(void **state)
{
	static struct job heavy[MOST];
	struct error err;
	unsigned n = 0;
	for (; n < MOST && desk_check_room(*state, "heavy", LARGE, &err) == 0; n++)
		give(*state, &heavy[n], 'h', "heavy", LARGE);
	assert_in_range(n, 8, 64 / 3 - 1);
	assert_int_equal(err.code, ERROR_OVERLOADED);
	assert_int_equal(desk_check_room(*state, "light", LARGE, &err), 0);
	assert_true(desk_check_room(*state, "light", 64u << 20, &err) < 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(what_is_small_does_not_wait_for_what_is_large, setup, teardown),
		cmocka_unit_test_setup_teardown(those_who_ask_take_turns, setup, teardown),
		cmocka_unit_test_setup_teardown(nobody_fills_the_room_for_others, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
