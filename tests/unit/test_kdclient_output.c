// SPDX-License-Identifier: Apache-2.0
// What libkdclient has to say while the server takes it slowly.
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#include "clients/client.h"

#define BODY_BYTES 65536
#define FRAME_BYTES (FRAME_HEADER_BYTES + BODY_BYTES)
#define N_WAITING 24             // frames: more than the socket's buffer holds, so that some always wait in the connection
#define N_FRAMES 2000

static void append(struct connection *c, uint64_t i)
{
	uint8_t body[BODY_BYTES];
	struct error err;
	bool progress;
	memset(body, (int)(i % 251), sizeof body);
	assert_int_equal(connection_append(c, FRAME_PING, i, body, sizeof body, &err), 0);
	assert_int_equal(connection_write(c, &progress, &err), 0);
}

// The server's end: frame i, whole.
static void take_frame(struct connection *c, int fd, enum frame_kind kind, uint64_t i, size_t n_body)
{
	uint8_t bytes[FRAME_BYTES];
	struct frame f;
	struct error err;
	bool progress;
	for (size_t n = 0; n < FRAME_HEADER_BYTES + n_body;) {
		ssize_t got = recv(fd, bytes + n, FRAME_HEADER_BYTES + n_body - n, 0);
		assert_true(got > 0);
		n += (size_t)got;
		assert_int_equal(connection_write(c, &progress, &err), 0);
	}
	assert_int_equal(frame_decode(bytes, BODY_BYTES, &f, &err), 0);
	assert_int_equal(frame_check_body(&f, bytes + FRAME_HEADER_BYTES, &err), 0);
	assert_int_equal(f.kind, kind);
	assert_int_equal(f.request_id, i);
	assert_int_equal(bytes[FRAME_HEADER_BYTES], i % 251);
}

static void take(struct connection *c, int fd, uint64_t i)
{
	take_frame(c, fd, FRAME_PING, i, BODY_BYTES);
}

static void open_pair(struct connection *c, int ends[2])
{
	struct error err;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	assert_int_equal(fcntl(ends[0], F_SETFL, O_NONBLOCK), 0);
	connection_init(c);
	assert_int_equal(transport_open(ends[0], NULL, NULL, &c->transport, &err), 0);
}

static void a_server_that_is_always_behind_costs_no_more_memory_the_longer_it_is(void **state)
{
	(void)state;
	int ends[2];
	struct connection c;
	open_pair(&c, ends);
	for (uint64_t i = 0; i < N_FRAMES; i++) {
		append(&c, i);
		if (i < N_WAITING)
			continue;
		take(&c, ends[1], i - N_WAITING);
		assert_true(connection_has_output(&c));
		assert_in_range(c.out_size, 0, 2 * (N_WAITING + 2) * FRAME_BYTES);
	}
	for (uint64_t i = N_FRAMES - N_WAITING; i < N_FRAMES; i++)
		take(&c, ends[1], i);
	assert_false(connection_has_output(&c));
	connection_done(&c);
	close(ends[1]);
}

// The server pings.
static void ping(struct kd_client *client, uint64_t i)
{
	const uint8_t body[] = {(uint8_t)(i % 251)};
	struct received m = {.frame = {.kind = FRAME_PING, .request_id = i, .body_bytes = sizeof body}, .body = body};
	struct error err;
	assert_int_equal(received_deliver(client, &m, &err), 0);
}

static void a_server_that_is_always_behind_gets_each_pong(void **state)
{
	(void)state;
	int ends[2];
	struct kd_client client = {.wake_fd = -1};
	struct connection *c = &client.connection;
	open_pair(c, ends);
	for (uint64_t i = 0; i < N_FRAMES; i++) {
		append(c, i);
		if (i % 2)
			ping(&client, i);
		if (i < N_WAITING)
			continue;
		take(c, ends[1], i - N_WAITING);
		if ((i - N_WAITING) % 2)
			take_frame(c, ends[1], FRAME_PONG, i - N_WAITING, 1);
		assert_true(connection_has_output(c));
	}
	connection_done(c);
	close(ends[1]);
}

static void a_server_that_never_reads_is_owed_no_more_than_some_pongs(void **state)
{
	(void)state;
	int ends[2];
	struct kd_client client = {.wake_fd = -1};
	struct connection *c = &client.connection;
	open_pair(c, ends);
	for (uint64_t i = 0; i < N_WAITING; i++)
		append(c, i);
	uint64_t before = connection_queued(c);
	for (uint64_t i = 0; i < 1000; i++)
		ping(&client, i);
	assert_int_equal(connection_queued(c) - before, CLIENT_MAX_PONGS * (FRAME_HEADER_BYTES + 1));
	connection_done(c);
	close(ends[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_server_that_is_always_behind_gets_each_pong),
		cmocka_unit_test(a_server_that_never_reads_is_owed_no_more_than_some_pongs),
		cmocka_unit_test(a_server_that_is_always_behind_costs_no_more_memory_the_longer_it_is),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
