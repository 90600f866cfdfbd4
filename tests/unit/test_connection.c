// SPDX-License-Identifier: Apache-2.0
// What one client of the binary door gets of a turn, however much it sends and however fast it takes. Its socket takes whatever is sent,
// and the clock moves by being read: so a turn's length is counted, not measured.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/server/connection_internal.h"

#define TICK_NS 100000               // of the clock, at each look
#define N_PINGS 2000                 // fit into the socket's buffer
#define REPLY_BYTES (20u << 20)
#define TURN_BYTES (1u << 20)

static struct timespec now = {.tv_sec = 1};
static uint8_t *sent;                // what the client was given
static size_t n_sent;

int __wrap_clock_gettime(clockid_t id, struct timespec *ret);
ssize_t __wrap_send(int fd, const void *bytes, size_t n, int flags);

int __wrap_clock_gettime(clockid_t id, struct timespec *ret)
{
	(void)id;
	now.tv_nsec += TICK_NS;
	now.tv_sec += now.tv_nsec / 1000000000;
	now.tv_nsec %= 1000000000;
	*ret = now;
	return 0;
}

ssize_t __wrap_send(int fd, const void *bytes, size_t n, int flags)
{
	(void)fd;
	(void)flags;
	sent = realloc(sent, n_sent + n);
	assert_non_null(sent);
	memcpy(sent + n_sent, bytes, n);
	n_sent += n;
	return (ssize_t)n;
}

static const struct connection_context context = {.settings = {.max_body = 1 << 20, .credits = 4, .write_timeout_ms = 1000}};
static int ends[2];

static int setup(void **state)
{
	struct connection *c = NULL;
	sent = NULL;
	n_sent = 0;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) || connection_new(&context, ends[0], false, &c))
		return -1;
	c->state = CONNECTION_OPEN;
	*state = c;
	return 0;
}

static int teardown(void **state)
{
	connection_close(*state);
	connection_free(*state);
	close(ends[1]);
	free(sent);
	return 0;
}

static void send_pings(void)
{
	static uint8_t frames[N_PINGS][FRAME_HEADER_BYTES];
	for (uint64_t i = 0; i < N_PINGS; i++)
		frame_encode(&(struct frame){.kind = FRAME_PING, .request_id = i}, frames[i]);
	assert_int_equal(write(ends[1], frames, sizeof frames), sizeof frames);
}

static void small_frames_take_their_time_in_turns(void **state)
{
	struct connection *c = *state;
	unsigned n_turns = 0;
	send_pings();
	while (n_sent < N_PINGS * FRAME_HEADER_BYTES) {
		size_t before = n_sent;
		assert_true(connection_wants_read(c));
		connection_read(c);
		c->n_turn = 0;
		assert_in_range(n_sent - before, 1, 20 * FRAME_HEADER_BYTES);
		n_turns++;
	}
	assert_true(n_turns >= N_PINGS / 20);
	for (uint64_t i = 0; i < N_PINGS; i++) {
		struct frame f;
		assert_int_equal(frame_decode(sent + i * FRAME_HEADER_BYTES, 64, &f, NULL), 0);
		assert_int_equal(f.kind, FRAME_PONG);
		assert_int_equal(f.request_id, i);
	}
}

static void a_large_reply_is_sent_in_turns(void **state)
{
	struct connection *c = *state;
	struct connection_output *o = malloc(sizeof *o + REPLY_BYTES);
	assert_non_null(o);
	*o = (struct connection_output){.n = REPLY_BYTES};
	for (size_t i = 0; i < REPLY_BYTES; i++)
		o->data[i] = (uint8_t)(i / 999 % 251);
	assert_int_equal(connection_send(c, o), 0);
	while (n_sent < REPLY_BYTES) {
		size_t before = n_sent;
		assert_true(connection_wants_write(c));
		connection_write(c);
		connection_write(c);            // a frame or an answer came meanwhile: the turn is the same
		c->n_turn = 0;
		assert_in_range(n_sent - before, 1, TURN_BYTES);
	}
	assert_false(connection_wants_write(c));
	assert_int_equal(n_sent, REPLY_BYTES);
	for (size_t i = 0; i < REPLY_BYTES; i += 97)
		assert_int_equal(sent[i], i / 999 % 251);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(small_frames_take_their_time_in_turns, setup, teardown),
		cmocka_unit_test_setup_teardown(a_large_reply_is_sent_in_turns, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
