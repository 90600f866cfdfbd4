// SPDX-License-Identifier: Apache-2.0
// One client, many threads; and callbacks.
#include <errno.h>
#include <linux/sockios.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "clients/kdclient.h"
#include "tests/unit/kdclient_fixture.h"

#define N_THREADS 8
#define N_ROUNDS 40
#define MAX_HELD 5

struct held { struct frame f; struct frame_score score; };

static bool input_waits(const struct fake_server *s)
{
	struct pollfd p = {.fd = s->fd, .events = POLLIN};
	return poll(&p, 1, 0) > 0;
}

// Answers of several requests mixed, the last request's first, the last sequence's first.
static void answer_held(struct fake_server *s, struct held *held, int n)
{
	for (uint32_t index = 4; index--;)
		for (int i = n; i--;)
			if (index < held[i].score.n_sequences)
				fake_server_send_answer(s, held[i].f.request_id, &held[i].score, index, index);
	for (int i = n; i--;) {
		fake_server_send(s, FRAME_DONE, held[i].f.request_id, NULL, 0);
		frame_score_done(&held[i].score);
	}
}

// Holds requests back while more come, so that they are answered out of order; pings and calls are answered at once.
static void play_shuffled(struct fake_server *s)
{
	struct held held[MAX_HELD];
	int n = 0;
	for (;;) {
		uint8_t *body;
		if (n && (n == MAX_HELD || !input_waits(s))) {
			answer_held(s, held, n);
			n = 0;
		}
		struct frame f = fake_server_read(s, &body);
		if (f.kind == FRAME_SCORE) {
			held[n].f = f;
			if (frame_score_decode(body, f.body_bytes, &held[n].score, NULL) == 0)
				n++;
		} else if (f.kind == FRAME_PING) {
			fake_server_send(s, FRAME_PONG, f.request_id, body, f.body_bytes);
		} else if (f.kind == FRAME_CALL) {
			fake_server_send(s, FRAME_REPLY, f.request_id, "\xc8\0\0\0\2\0\0\0{}", 10);
		}
		free(body);
		if (!f.kind)
			break;
	}
	while (n)
		frame_score_done(&held[--n].score);
}

static void shuffled_open(struct fake_server *s, struct kd_client **ret_client)
{
	*s = (struct fake_server){.play = play_shuffled, .welcome = {.teacher = {{0xab}}, .limits = {.max_tokens = 64, .max_top_k = 8,
		.vocab_size = 1000}, .max_sequences = 4, .max_body_bytes = 100000, .credits = 6}};
	*ret_client = kdclient_connect(s);
}

// cmocka's assertions belong to the main thread: others count what is wrong.
struct worker {
	struct kd_client *client;
	uint32_t number;
	int n_wrong;
	pthread_t thread;
};

static bool is_answer_to(struct kd_answer *answer, const struct kd_sequence *sequence)
{
	const struct kd_rows *rows;
	return answer && kd_answer_rows(answer, &rows, NULL) == 0 && rows->n_tokens == sequence->n_tokens &&
		memcmp(rows->tokens, sequence->tokens, 4 * (size_t)rows->n_tokens) == 0;
}

// Scores sequences that no other thread has, a different number of them each time.
static void *score_rounds(void *arg)
{
	struct worker *w = arg;
	uint32_t tokens[11];
	struct kd_sequence sequences[11];
	for (uint32_t round = 0; round < N_ROUNDS; round++) {
		uint32_t n = 1 + (round + w->number) % 11;
		struct kd_answer *answers[11];
		for (uint32_t i = 0; i < n; i++) {
			tokens[i] = (w->number * N_ROUNDS + round + 100 * i) % 1000;
			sequences[i] = (struct kd_sequence){.tokens = &tokens[i], .n_tokens = 1};
		}
		struct kd_request request = kdclient_ask(n);
		request.sequences = sequences;
		if (kd_score(w->client, &request, answers, NULL)) {
			w->n_wrong++;
			continue;
		}
		for (uint32_t i = 0; i < n; i++) {
			w->n_wrong += !is_answer_to(answers[i], &sequences[i]);
			kd_answer_free(answers[i]);
		}
	}
	return NULL;
}

static void *ping_and_call(void *arg)
{
	struct worker *w = arg;
	for (int i = 0; i < N_ROUNDS; i++) {
		int status = 0;
		char *body;
		size_t n;
		double ms = -1;
		w->n_wrong += kd_ping(w->client, &ms, NULL) != 0 || ms < 0;
		if (kd_call(w->client, "GET", "/v1/model", NULL, 0, &status, &body, &n, NULL)) {
			w->n_wrong++;
			continue;
		}
		w->n_wrong += status != 200 || strcmp(body, "{}") != 0;
		free(body);
	}
	return NULL;
}

static void threads_share_a_connection(void **state)
{
	(void)state;
	struct fake_server s;
	struct worker workers[N_THREADS] = {0};
	struct kd_client *client;
	shuffled_open(&s, &client);
	for (uint32_t i = 0; i < N_THREADS; i++) {
		workers[i] = (struct worker){.client = client, .number = i};
		assert_int_equal(pthread_create(&workers[i].thread, NULL, i ? score_rounds : ping_and_call, &workers[i]), 0);
	}
	for (int i = 0; i < N_THREADS; i++) {
		pthread_join(workers[i].thread, NULL);
		assert_int_equal(workers[i].n_wrong, 0);
	}
	struct kd_event e;
	assert_int_equal(kd_next(client, 0, &e, NULL), -ENODATA);
	kdclient_close(&s, client);
}

static atomic_int n_taken;

static void *take_events(void *arg)
{
	struct worker *w = arg;
	struct kd_event e;
	int r;
	while ((r = kd_next(w->client, -1, &e, NULL)) == 0) {
		if (e.kind == KD_EVENT_ANSWER)
			w->n_wrong += !is_answer_to(e.answer, &kdclient_sequences[e.index]);
		kd_answer_free(e.answer);
		atomic_fetch_add(&n_taken, 1);
	}
	w->n_wrong += r != -ENODATA;
	return NULL;
}

// Threads that take events end when nothing is in flight, however the last ones were shared out.
static void several_threads_take_events(void **state)
{
	(void)state;
	struct fake_server s;
	struct kd_client *client;
	struct kd_request three = kdclient_ask(3);
	struct worker workers[3];
	uint64_t id;
	shuffled_open(&s, &client);
	for (int round = 0; round < 20; round++) {
		atomic_store(&n_taken, 0);
		for (int i = 0; i < 5; i++)
			assert_int_equal(kd_submit(client, &three, &id, NULL), 0);
		for (int i = 0; i < 3; i++) {
			workers[i] = (struct worker){.client = client};
			assert_int_equal(pthread_create(&workers[i].thread, NULL, take_events, &workers[i]), 0);
		}
		for (int i = 0; i < 3; i++) {
			pthread_join(workers[i].thread, NULL);
			assert_int_equal(workers[i].n_wrong, 0);
		}
		assert_int_equal(atomic_load(&n_taken), 5 * 4);
	}
	kdclient_close(&s, client);
}

// ---- callbacks

struct tally {
	struct kd_client *client;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	int n_answers, n_wrong, n_done, n_failed, n_again;
	char code[32];
};

static void tally_event(void *arg, struct kd_event *event)
{
	struct tally *t = arg;
	struct kd_request three = kdclient_ask(3);
	uint64_t id;
	bool again = false;
	three.flags = KD_WAIT;       // others take the credit that has just come free
	pthread_mutex_lock(&t->lock);
	switch (event->kind) {
	case KD_EVENT_ANSWER:
		t->n_answers++;
		t->n_wrong += !is_answer_to(event->answer, &kdclient_sequences[event->index]);
		break;
	case KD_EVENT_DONE:
		t->n_done++;
		again = t->n_again-- > 0;
		break;
	case KD_EVENT_REQUEST_FAILED:
		t->n_failed++;
		memcpy(t->code, event->error.code, sizeof t->code);
		break;
	case KD_EVENT_SEQUENCE_FAILED:
		t->n_wrong++;
	}
	pthread_cond_signal(&t->changed);
	pthread_mutex_unlock(&t->lock);
	kd_answer_free(event->answer);
	if (again && kd_submit_callback(t->client, &three, tally_event, t, &id, NULL))
		t->n_wrong++;
}

static void tally_init(struct tally *t, struct kd_client *client)
{
	*t = (struct tally){.client = client};
	pthread_mutex_init(&t->lock, NULL);
	pthread_cond_init(&t->changed, NULL);
}

static void tally_wait(struct tally *t, int n_ended)
{
	struct timespec end;
	int r = 0;
	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += 30;
	pthread_mutex_lock(&t->lock);
	while (t->n_done + t->n_failed < n_ended && !r)
		r = pthread_cond_timedwait(&t->changed, &t->lock, &end);
	pthread_mutex_unlock(&t->lock);
	assert_int_equal(r, 0);
}

static void callbacks_get_every_event(void **state)
{
	(void)state;
	struct fake_server s;
	struct kd_client *client;
	struct kd_request three = kdclient_ask(3);
	struct kd_answer *answers[9];
	struct tally t;
	uint64_t id;
	shuffled_open(&s, &client);
	tally_init(&t, client);
	t.n_again = 10;
	three.flags = KD_WAIT;
	for (int i = 0; i < 30; i++)
		assert_int_equal(kd_submit_callback(client, &three, tally_event, &t, &id, NULL), 0);
	struct kd_request nine = kdclient_ask(9);
	assert_int_equal(kd_score(client, &nine, answers, NULL), 0);    // meanwhile
	for (uint32_t i = 0; i < 9; i++) {
		kdclient_check_answer(answers[i], i);
		kd_answer_free(answers[i]);
	}
	tally_wait(&t, 40);
	assert_int_equal(t.n_done, 40);
	assert_int_equal(t.n_answers, 120);
	assert_int_equal(t.n_wrong + t.n_failed, 0);
	kdclient_close(&s, client);
}

static void play_two_of_three(struct fake_server *s)
{
	struct frame_score score;
	for (int i = 0; i < 2; i++) {
		struct frame f = fake_server_read_score(s, &score);
		for (uint32_t k = i ? 1 : 3; k--;)
			fake_server_send_answer(s, f.request_id, &score, k, k);
		if (!i)
			fake_server_send(s, FRAME_DONE, f.request_id, NULL, 0);
		frame_score_done(&score);
	}
	uint8_t *body;
	if (s->piece == 1000)        // stay until the client hangs up
		for (struct frame f; f = fake_server_read(s, &body), free(body), f.kind;)
			;
}

// One request complete, one half answered. Then the server dies, or the client is closed: the second ends, once.
static void callbacks_are_told_of_the_end(void **state)
{
	(void)state;
	for (int closing = 0; closing < 2; closing++) {
		struct fake_server s = {.play = play_two_of_three, .piece = closing ? 1000 : 0};
		struct kd_client *client = kdclient_connect(&s);
		struct kd_request three = kdclient_ask(3);
		struct kd_error err;
		struct tally t;
		uint64_t id;
		tally_init(&t, client);
		assert_int_equal(kd_submit_callback(client, &three, tally_event, &t, &id, NULL), 0);
		assert_int_equal(kd_submit_callback(client, &three, tally_event, &t, &id, NULL), 0);
		tally_wait(&t, closing ? 1 : 2);
		if (!closing)
			assert_int_equal(kd_submit_callback(client, &three, tally_event, &t, &id, &err), -ESHUTDOWN);
		kdclient_close(&s, client);
		assert_int_equal(t.n_done, 1);
		assert_int_equal(t.n_failed, 1);
		assert_int_equal(t.n_wrong, 0);
		assert_string_equal(t.code, closing ? "cancelled" : "unavailable");
	}
}

static void play_nothing(struct fake_server *s)
{
	uint8_t *body;
	for (struct frame f; f = fake_server_read(s, &body), free(body), f.kind;)
		;
}

static void silence_ends_a_callback(void **state)
{
	(void)state;
	struct fake_server s = {.play = play_nothing};
	struct kd_options options = {.size = sizeof options, .address = s.address, .timeout_ms = 50};
	struct kd_request one = kdclient_ask(1);
	struct kd_client *client;
	struct tally t;
	uint64_t id;
	fake_server_open(&s);
	assert_int_equal(kd_open(&options, &client, NULL), 0);
	tally_init(&t, client);
	assert_int_equal(kd_submit_callback(client, &one, tally_event, &t, &id, NULL), 0);
	tally_wait(&t, 1);
	assert_int_equal(t.n_failed, 1);
	assert_string_equal(t.code, "deadline");
	kdclient_close(&s, client);
}

// The way of a program with a loop of its own: poll the descriptor, then take what is there.
static void poll_tells_when_there_is_something(void **state)
{
	(void)state;
	struct fake_server s;
	struct kd_client *client;
	struct kd_request three = kdclient_ask(3);
	struct kd_event e = {0};
	uint64_t id;
	shuffled_open(&s, &client);
	assert_int_equal(kd_submit(client, &three, &id, NULL), 0);
	for (int n = 0; n < 4;) {
		struct pollfd p = {.fd = kd_fd(client), .events = POLLIN};
		int r = kd_next(client, 0, &e, NULL);
		if (r == -ETIMEDOUT) {
			assert_int_equal(poll(&p, 1, 60000), 1);
			continue;
		}
		assert_int_equal(r, 0);
		kd_answer_free(e.answer);
		n++;
	}
	assert_int_equal(e.kind, KD_EVENT_DONE);
	kdclient_close(&s, client);
}

// ---- a request as long as several of the socket's buffers

#define N_LONG 500000

static sem_t may_read, submitted;
static bool submitted_late;

// Reads the first request, and no more until it is submitted.
static void play_slowly(struct fake_server *s)
{
	struct frame_score score;
	struct timespec end;
	sem_wait(&may_read);
	struct frame f = fake_server_read_score(s, &score);
	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += 20;
	submitted_late = sem_timedwait(&submitted, &end) != 0;
	fake_server_send_answer(s, f.request_id, &score, 0, 0);
	fake_server_send(s, FRAME_DONE, f.request_id, NULL, 0);
	frame_score_done(&score);
	kdclient_answer_all(s);
}

static struct kd_request ask_long(void)
{
	static uint32_t tokens[N_LONG];
	static const struct kd_sequence sequence = {.tokens = tokens, .n_tokens = N_LONG};
	static const struct kd_query query = {.size = sizeof query, .top_k = 1, .first = -1, .last = -1};
	return (struct kd_request){.size = sizeof(struct kd_request), .query = &query, .sequences = &sequence, .n_sequences = 1};
}

static void *submit_long(void *arg)
{
	struct worker *w = arg;
	struct kd_request one = ask_long();
	uint64_t id;
	w->n_wrong += kd_submit(w->client, &one, &id, NULL) != 0;
	sem_post(&submitted);
	return NULL;
}

static void drop_event(void *arg, struct kd_event *event)
{
	(void)arg;
	kd_answer_free(event->answer);
}

// Neither for its answer, nor for what another thread has queued behind it.
static void submitting_waits_for_the_request_to_leave_and_no_longer(void **state)
{
	(void)state;
	for (int behind = 0; behind < 2; behind++) {
		struct fake_server s = {.play = play_slowly, .welcome = {.teacher = {{0xab}}, .max_sequences = 4, .credits = 2,
			.max_body_bytes = 1 << 23, .limits = {.max_tokens = N_LONG, .max_top_k = 8, .vocab_size = 1000}}};
		struct worker w = {0};
		struct kd_request one = ask_long();
		struct kd_event e = {0};
		uint64_t id;
		sem_init(&may_read, 0, 0);
		sem_init(&submitted, 0, 0);
		w.client = kdclient_connect(&s);
		assert_int_equal(pthread_create(&w.thread, NULL, submit_long, &w), 0);
		for (int n = 0; n == 0;) {         // until it has begun to leave, and cannot go on
			assert_int_equal(ioctl(kd_fd(w.client), SIOCOUTQ, &n), 0);
			nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
		}
		if (behind)
			assert_int_equal(kd_submit_callback(w.client, &one, drop_event, NULL, &id, NULL), 0);
		sem_post(&may_read);
		pthread_join(w.thread, NULL);
		while (kd_next(w.client, -1, &e, NULL) == 0)
			kd_answer_free(e.answer);
		kdclient_close(&s, w.client);
		assert_int_equal(w.n_wrong, 0);
		assert_int_equal(e.kind, KD_EVENT_DONE);
		assert_false(submitted_late);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(threads_share_a_connection),
		cmocka_unit_test(several_threads_take_events),
		cmocka_unit_test(callbacks_get_every_event),
		cmocka_unit_test(callbacks_are_told_of_the_end),
		cmocka_unit_test(silence_ends_a_callback),
		cmocka_unit_test(poll_tells_when_there_is_something),
		cmocka_unit_test(submitting_waits_for_the_request_to_leave_and_no_longer),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
