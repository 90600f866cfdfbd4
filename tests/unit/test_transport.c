// SPDX-License-Identifier: Apache-2.0
// common/transport.c: both ends of a pair of sockets, in one thread.
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <gnutls/gnutls.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"
#include "common/transport.h"
#include "tests/unit/certificate.h"

#define DAY 86400L
#define BIG (4u << 20)

static struct certificate_pair ca, other_ca, good;
static char directory[] = "/tmp/kdserved-transport-XXXXXX", ca_path[64], other_path[64];

static void write_file(const char *path, const char *text)
{
	FILE *f = fopen(path, "we");
	assert_non_null(f);
	assert_true(fputs(text, f) >= 0);
	assert_int_equal(fclose(f), 0);
}

static int set_up(void **state)
{
	(void)state;
	if (!mkdtemp(directory))
		return -1;
	certificate_make(&(struct certificate_kind){.name = "ca", .begin_s = -10 * DAY, .end_s = DAY}, NULL, &ca);
	certificate_make(&(struct certificate_kind){.name = "another", .begin_s = -DAY, .end_s = DAY}, NULL, &other_ca);
	certificate_make(&(struct certificate_kind){.name = "good", .dns = "teacher.example", .ip = "127.0.0.1", .begin_s = -DAY,
			 .end_s = DAY}, &ca, &good);
	snprintf(ca_path, sizeof ca_path, "%s/ca.pem", directory);
	snprintf(other_path, sizeof other_path, "%s/other.pem", directory);
	write_file(ca_path, ca.certificate);
	write_file(other_path, other_ca.certificate);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	unlink(ca_path);
	unlink(other_path);
	return rmdir(directory);
}

// ---- a pair of ends

struct ends { struct tls *server_tls, *client_tls; struct transport server, client; };

static void sockets(int fds[2])
{
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds), 0);
}

static void ends_open(struct ends *e, const struct certificate_pair *shown, const char *trusted, const char *name)
{
	struct error err = {0};
	int fds[2];
	*e = (struct ends){.server.fd = -1, .client.fd = -1};
	sockets(fds);
	assert_int_equal(tls_open_server(shown->certificate, shown->key, &e->server_tls, &err), 0);
	assert_int_equal(tls_open_client(trusted, &e->client_tls, &err), 0);
	assert_int_equal(transport_open(fds[0], e->server_tls, NULL, &e->server, &err), 0);
	assert_int_equal(transport_open(fds[1], e->client_tls, name, &e->client, &err), 0);
}

static void ends_close(struct ends *e)
{
	transport_close(&e->server);
	transport_close(&e->client);
	transport_close(&e->client);       // twice is fine
	tls_close(e->server_tls);
	tls_close(e->client_tls);
}

static int greet_both(struct ends *e, struct error *server_err, struct error *client_err, int *ret_server)
{
	int server = -EAGAIN, client = -EAGAIN;
	for (int i = 0; i < 100 && (server == -EAGAIN || client == -EAGAIN); i++) {
		if (client == -EAGAIN)
			client = transport_greet(&e->client, client_err);
		if (server == -EAGAIN)
			server = transport_greet(&e->server, server_err);
		if (client && client != -EAGAIN && server == -EAGAIN && i > 10)
			break;
	}
	*ret_server = server;
	return client;
}

static void greet(struct ends *e)
{
	struct error a = {0}, b = {0};
	int server;
	assert_int_equal(greet_both(e, &a, &b, &server), 0);
	assert_int_equal(server, 0);
	assert_true(transport_is_greeted(&e->server) && transport_is_greeted(&e->client));
}

// What a client says of a certificate that it does not take.
static void check_refused(const struct certificate_pair *shown, const char *trusted, const char *name, const char *said)
{
	struct ends e;
	struct error a = {0}, b = {0};
	int server;
	ends_open(&e, shown, trusted, name);
	int client = greet_both(&e, &a, &b, &server);
	if (client != -EACCES)
		fail_msg("%d, not refused because it %s: %s", client, said, b.message);
	assert_int_equal(b.code, ERROR_UNAUTHORIZED);
	if (!strstr(b.message, said))
		fail_msg("\"%s\" does not say \"%s\"", b.message, said);
	assert_int_not_equal(server, 0);
	ends_close(&e);
}

// ---- plain

static void test_plain_bytes_pass_and_end(void **state)
{
	(void)state;
	struct error err = {0};
	struct transport a, b;
	char bytes[16];
	int fds[2];
	sockets(fds);
	assert_int_equal(transport_open(fds[0], NULL, NULL, &a, &err), 0);
	assert_int_equal(transport_open(fds[1], NULL, NULL, &b, &err), 0);
	assert_int_equal(transport_greet(&a, &err), 0);
	assert_true(transport_is_greeted(&a) && !transport_wants_write(&a) && !transport_has_input(&a));
	assert_int_equal(transport_read(&a, bytes, sizeof bytes, &err), -EAGAIN);
	assert_int_equal(transport_write(&b, "hello", 5, &err), 5);
	assert_int_equal(transport_read(&a, bytes, sizeof bytes, &err), 5);
	assert_memory_equal(bytes, "hello", 5);
	assert_int_equal(transport_finish(&b), 0);
	assert_int_equal(transport_read(&a, bytes, sizeof bytes, &err), 0);
	transport_close(&b);
	assert_int_equal(transport_write(&a, "x", 1, &err), -EPIPE);       // and no signal
	transport_close(&a);
}

// ---- TLS

static void test_names_and_addresses_are_accepted(void **state)
{
	(void)state;
	struct ends e;
	ends_open(&e, &good, ca_path, "teacher.example");
	greet(&e);
	ends_close(&e);
	ends_open(&e, &good, ca_path, "127.0.0.1");
	greet(&e);
	ends_close(&e);
}

static void test_what_is_decrypted_is_told(void **state)
{
	(void)state;
	struct error err = {0};
	struct ends e;
	char bytes[128], got[128];
	ends_open(&e, &good, ca_path, "127.0.0.1");
	greet(&e);
	for (size_t i = 0; i < sizeof bytes; i++)
		bytes[i] = (char)i;
	assert_int_equal(transport_read(&e.server, got, sizeof got, &err), -EAGAIN);
	assert_int_equal(transport_write(&e.client, bytes, sizeof bytes, &err), sizeof bytes);
	assert_false(transport_has_input(&e.server));
	assert_int_equal(transport_read(&e.server, got, 28, &err), 28);
	assert_true(transport_has_input(&e.server));
	assert_int_equal(recv(e.server.fd, got, sizeof got, MSG_PEEK), -1);      // the descriptor shows nothing of it
	assert_int_equal(transport_read(&e.server, got + 28, 100, &err), 100);
	assert_false(transport_has_input(&e.server));
	assert_memory_equal(bytes, got, sizeof bytes);
	ends_close(&e);
}

// A queue that grows between two writes has its bytes elsewhere: half a record must go on all the same.
static void test_big_writes_go_on_from_another_place(void **state)
{
	(void)state;
	struct error err = {0};
	struct ends e;
	uint8_t *from = malloc(BIG), *to = malloc(BIG);
	size_t sent = 0, got = 0, n_full = 0;
	const int small = 4096;
	ends_open(&e, &good, ca_path, "127.0.0.1");
	greet(&e);
	setsockopt(e.server.fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
	for (size_t i = 0; i < BIG; i++)
		from[i] = (uint8_t)(i * 2654435761u >> 13);
	while (got < BIG) {
		ssize_t k = sent < BIG ? transport_write(&e.server, from + sent, BIG - sent, &err) : -EAGAIN;
		if (k == -EAGAIN && sent < BIG) {
			uint8_t *moved = malloc(BIG);
			memcpy(moved, from, BIG);
			memset(from, 0, sent);
			free(from);
			from = moved;
			n_full++;
		}
		assert_true(k > 0 || k == -EAGAIN);
		sent += k > 0 ? (size_t)k : 0;
		if (k > 0)
			continue;
		k = transport_read(&e.client, to + got, n_full % 2 ? 1000 : BIG - got, &err);
		assert_true(k > 0 || k == -EAGAIN);
		got += k > 0 ? (size_t)k : 0;
	}
	assert_true(n_full > 10);
	assert_memory_equal(from, to, BIG);
	free(from);
	free(to);
	ends_close(&e);
}

static void test_farewell_and_leaving_without_are_ends(void **state)
{
	(void)state;
	struct error err = {0};
	struct ends e;
	char bytes[8];
	ends_open(&e, &good, ca_path, "127.0.0.1");
	greet(&e);
	assert_int_equal(transport_write(&e.server, "last", 4, &err), 4);
	assert_int_equal(transport_finish(&e.server), 0);
	assert_int_equal(transport_read(&e.client, bytes, sizeof bytes, &err), 4);
	assert_int_equal(transport_read(&e.client, bytes, sizeof bytes, &err), 0);
	assert_int_equal(transport_write(&e.client, "still", 5, &err), 5);       // the other direction is open
	assert_int_equal(transport_read(&e.server, bytes, sizeof bytes, &err), 5);
	ends_close(&e);
	ends_open(&e, &good, ca_path, "127.0.0.1");
	greet(&e);
	shutdown(e.server.fd, SHUT_RDWR);
	assert_int_equal(transport_read(&e.client, bytes, sizeof bytes, &err), 0);
	ssize_t k = transport_write(&e.client, "x", 1, &err);
	assert_true(k == -EPIPE || k == -ECONNRESET);
	ends_close(&e);
}

static void test_bad_certificates_are_named(void **state)
{
	(void)state;
	struct certificate_pair c;
	check_refused(&good, other_path, "127.0.0.1", "is not trusted");
	check_refused(&good, ca_path, "127.0.0.2", "is for another name");
	check_refused(&good, ca_path, "example", "is for another name");
	check_refused(&good, other_path, "example", "is not trusted");
	certificate_make(&(struct certificate_kind){.name = "old", .ip = "127.0.0.1", .begin_s = -2 * DAY, .end_s = -DAY}, &ca, &c);
	check_refused(&c, ca_path, "127.0.0.1", "has expired");
	certificate_make(&(struct certificate_kind){.name = "young", .ip = "127.0.0.1", .begin_s = 3600, .end_s = DAY}, &ca, &c);
	check_refused(&c, ca_path, "127.0.0.1", "is not valid yet");
	certificate_make(&(struct certificate_kind){.name = "client", .ip = "127.0.0.1", .begin_s = -DAY, .end_s = DAY, .for_clients = 1},
		&ca, &c);
	check_refused(&c, ca_path, "127.0.0.1", "is not for servers");
	check_refused(&other_ca, ca_path, "127.0.0.1", "is not trusted");
}

static void test_who_speaks_no_tls_is_refused(void **state)
{
	(void)state;
	struct error err = {0};
	struct ends e;
	uint8_t alert[64];
	static const char plain[] = "KDDS\2\1, and more that is not TLS";
	ends_open(&e, &good, ca_path, "127.0.0.1");
	assert_int_equal(send(e.client.fd, plain, sizeof plain, 0), sizeof plain);
	assert_int_equal(transport_greet(&e.server, &err), -EINVAL);
	assert_string_equal(err.message, "what came is not TLS");
	assert_int_equal(transport_read(&e.server, alert, sizeof alert, &err), 0);
	assert_true(recv(e.client.fd, alert, sizeof alert, 0) > 0);
	assert_int_equal(alert[0], TLS_ALERT);
	ends_close(&e);
	ends_open(&e, &good, ca_path, "127.0.0.1");
	assert_int_equal(send(e.server.fd, plain, sizeof plain, 0), sizeof plain);
	assert_int_equal(transport_greet(&e.client, &err), -EINVAL);
	assert_non_null(strstr(err.message, "is not TLS"));
	ends_close(&e);
}

static void test_half_a_greeting_waits_and_may_be_left(void **state)
{
	(void)state;
	struct error err = {0};
	struct ends e;
	char hello[2048];
	int fds[2];
	ends_open(&e, &good, ca_path, "127.0.0.1");
	sockets(fds);
	assert_int_equal(transport_greet(&e.client, &err), -EAGAIN);
	ssize_t n = recv(e.server.fd, hello, sizeof hello, 0);
	assert_true(n > 100);
	assert_int_equal(send(e.client.fd, hello, 100, 0), 100);
	for (int i = 0; i < 3; i++)
		assert_int_equal(transport_greet(&e.server, &err), -EAGAIN);
	assert_false(transport_is_greeted(&e.server) || transport_wants_write(&e.server) || transport_has_input(&e.server));
	assert_int_equal(transport_read(&e.server, hello, sizeof hello, &err), -EAGAIN);
	assert_int_equal(transport_write(&e.server, "x", 1, &err), -EAGAIN);
	shutdown(e.client.fd, SHUT_RDWR);
	int r = transport_greet(&e.server, &err);
	if (r != -ECONNRESET)
		fail_msg("%d: %s", r, err.message);
	assert_int_equal(transport_read(&e.server, hello, sizeof hello, &err), 0);
	close(fds[0]);
	close(fds[1]);
	ends_close(&e);
}

static void test_a_greeting_that_finds_no_room_says_so(void **state)
{
	(void)state;
	struct error err = {0};
	struct ends e;
	static char nothing[65536];
	size_t n_filled = 0;
	ends_open(&e, &good, ca_path, "127.0.0.1");
	assert_int_equal(transport_greet(&e.client, &err), -EAGAIN);
	for (ssize_t k; (k = send(e.server.fd, nothing, sizeof nothing, 0)) > 0;)
		n_filled += (size_t)k;
	assert_int_equal(transport_greet(&e.server, &err), -EAGAIN);
	assert_true(transport_wants_write(&e.server));
	for (ssize_t k; n_filled && (k = recv(e.client.fd, nothing, n_filled < sizeof nothing ? n_filled : sizeof nothing, 0)) > 0;)
		n_filled -= (size_t)k;
	assert_int_equal(n_filled, 0);
	greet(&e);
	assert_false(transport_wants_write(&e.server));
	ends_close(&e);
}

static int greet_with(const char *priorities)
{
	struct ends e;
	struct error err = {0};
	gnutls_session_t s;
	gnutls_certificate_credentials_t anything;
	int client = GNUTLS_E_AGAIN, server = -EAGAIN;
	ends_open(&e, &good, ca_path, "127.0.0.1");
	assert_int_equal(gnutls_certificate_allocate_credentials(&anything), 0);
	assert_int_equal(gnutls_init(&s, GNUTLS_CLIENT | GNUTLS_NONBLOCK), 0);
	assert_int_equal(gnutls_priority_set_direct(s, priorities, NULL), 0);
	gnutls_credentials_set(s, GNUTLS_CRD_CERTIFICATE, anything);
	gnutls_transport_set_int(s, e.client.fd);
	for (int i = 0; i < 100 && server == -EAGAIN; i++) {
		if (client == GNUTLS_E_AGAIN)
			client = gnutls_handshake(s);
		server = transport_greet(&e.server, &err);
	}
	gnutls_deinit(s);
	gnutls_certificate_free_credentials(anything);
	ends_close(&e);
	return server;
}

static void test_old_versions_are_refused(void **state)
{
	(void)state;
	assert_int_equal(greet_with("NORMAL:-VERS-ALL:+VERS-TLS1.3"), 0);
	assert_int_equal(greet_with("NORMAL:-VERS-ALL:+VERS-TLS1.2"), 0);
	assert_int_equal(greet_with("NORMAL:-VERS-ALL:+VERS-TLS1.1"), -EINVAL);
	assert_int_equal(greet_with("NORMAL:-VERS-ALL:+VERS-TLS1.0"), -EINVAL);
}

static void test_bad_files_and_names_are_named(void **state)
{
	(void)state;
	struct error err = {0};
	struct tls *t = NULL;
	struct transport none;
	char nonsense[64], name[TLS_NAME_BYTES + 1];
	int fds[2];
	assert_int_equal(tls_open_server(good.certificate, other_ca.key, &t, &err), -EINVAL);
	assert_non_null(strstr(err.message, "its own key"));
	assert_int_equal(tls_open_server("nothing", good.key, &t, &err), -EINVAL);
	assert_int_equal(tls_open_client("/nonexistent/ca.pem", &t, &err), -ENOENT);
	assert_string_equal(err.field, "ca");
	snprintf(nonsense, sizeof nonsense, "%s/nonsense", directory);
	write_file(nonsense, "no certificate\n");
	assert_int_equal(tls_open_client(nonsense, &t, &err), -EINVAL);
	unlink(nonsense);
	assert_null(t);
	assert_int_equal(tls_open_client(ca_path, &t, &err), 0);
	memset(name, 'x', sizeof name);
	name[TLS_NAME_BYTES] = '\0';
	sockets(fds);
	assert_int_equal(transport_open(fds[0], t, name, &none, &err), -EINVAL);
	assert_string_equal(err.field, "server_name");
	assert_int_equal(transport_open(fds[0], t, "", &none, &err), -EINVAL);
	assert_int_equal(fcntl(fds[0], F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);       // still ours
	close(fds[0]);
	close(fds[1]);
	tls_close(t);
	assert_null(tls_close(NULL));
}

// A server takes up another certificate: who is connected goes on with what it began with.
static void test_a_session_outlives_what_it_was_opened_with(void **state)
{
	(void)state;
	struct certificate_pair renewed;
	struct error err = {0};
	struct ends e;
	struct tls *other = NULL;
	char bytes[8];
	certificate_make(&(struct certificate_kind){.name = "good", .dns = "teacher.example", .ip = "127.0.0.1", .begin_s = -DAY,
			 .end_s = 9 * DAY}, &ca, &renewed);
	ends_open(&e, &good, ca_path, "127.0.0.1");
	assert_int_equal(tls_open_server(renewed.certificate, renewed.key, &other, &err), 0);
	assert_true(tls_is_same(e.server_tls, e.server_tls) && !tls_is_same(e.server_tls, other));
	assert_true(tls_expiry(e.server_tls) - time(NULL) <= DAY && tls_expiry(e.server_tls) - time(NULL) > DAY - 600);
	assert_true(tls_expiry(other) - time(NULL) > 9 * DAY - 600);
	e.server_tls = tls_close(e.server_tls);          // in the middle of the handshake, too
	e.client_tls = tls_close(e.client_tls);
	greet(&e);
	assert_int_equal(transport_write(&e.server, "still", 5, &err), 5);
	assert_int_equal(transport_read(&e.client, bytes, sizeof bytes, &err), 5);
	ends_close(&e);
	assert_null(tls_close(tls_ref(other)));
	tls_close(other);
	assert_null(tls_ref(NULL));
}

// The one that vouches may end before the one that is vouched for.
static void test_the_first_of_a_chain_to_expire_counts(void **state)
{
	(void)state;
	struct certificate_pair above, leaf;
	struct error err = {0};
	struct tls *t = NULL;
	char chain[2 * CERTIFICATE_BYTES];
	certificate_make(&(struct certificate_kind){.name = "above", .begin_s = -DAY, .end_s = 3 * DAY}, NULL, &above);
	certificate_make(&(struct certificate_kind){.name = "leaf", .dns = "teacher.example", .begin_s = -DAY, .end_s = 30 * DAY}, &above,
		&leaf);
	snprintf(chain, sizeof chain, "%s%s", leaf.certificate, above.certificate);
	assert_int_equal(tls_open_server(chain, leaf.key, &t, &err), 0);
	assert_true(tls_expiry(t) - time(NULL) <= 3 * DAY);
	tls_close(t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_plain_bytes_pass_and_end),
		cmocka_unit_test(test_names_and_addresses_are_accepted),
		cmocka_unit_test(test_what_is_decrypted_is_told),
		cmocka_unit_test(test_big_writes_go_on_from_another_place),
		cmocka_unit_test(test_farewell_and_leaving_without_are_ends),
		cmocka_unit_test(test_bad_certificates_are_named),
		cmocka_unit_test(test_who_speaks_no_tls_is_refused),
		cmocka_unit_test(test_half_a_greeting_waits_and_may_be_left),
		cmocka_unit_test(test_a_greeting_that_finds_no_room_says_so),
		cmocka_unit_test(test_old_versions_are_refused),
		cmocka_unit_test(test_bad_files_and_names_are_named),
		cmocka_unit_test(test_a_session_outlives_what_it_was_opened_with),
		cmocka_unit_test(test_the_first_of_a_chain_to_expire_counts),
	};
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
