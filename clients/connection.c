// SPDX-License-Identifier: Apache-2.0
#include "clients/connection.h"

#include <errno.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "common/crc32c.h"
#include "common/error.h"

#define BODY_KEPT (1u << 20)     // larger room is given up once a smaller body comes

int64_t clock_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

// 0 when something is ready, -ETIMEDOUT, or another -errno.
static int wait_for(struct pollfd *p, nfds_t n, int64_t deadline)
{
	for (;;) {
		int64_t left = deadline == INT64_MAX ? -1 : deadline - clock_ms();
		if (deadline != INT64_MAX && left < 0)
			left = 0;
		int r = poll(p, n, left > 1 << 30 ? 1 << 30 : (int)left);
		if (r > 0)
			return 0;
		if (r < 0 && errno != EINTR)
			return -errno;
		if (r == 0 && left >= 0 && clock_ms() >= deadline)
			return -ETIMEDOUT;
	}
}

static int connect_to(const struct sockaddr *address, socklen_t n, int family, int64_t deadline)
{
	int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	int r = connect(fd, address, n) == 0 ? 0 : -errno;
	// A Unix socket whose backlog is full says EAGAIN and cannot be polled for.
	while (r == -EAGAIN && clock_ms() < deadline) {
		nanosleep(&(struct timespec){.tv_nsec = 10 * 1000 * 1000}, NULL);
		r = connect(fd, address, n) == 0 ? 0 : -errno;
	}
	if (r == -EINPROGRESS || r == -EINTR) {
		int failure = 0;
		socklen_t size = sizeof failure;
		struct pollfd p = {.fd = fd, .events = POLLOUT};
		r = wait_for(&p, 1, deadline);
		if (!r && getsockopt(fd, SOL_SOCKET, SO_ERROR, &failure, &size) < 0)
			r = -errno;
		if (!r)
			r = -failure;
	}
	if (r) {
		close(fd);
		return r;
	}
	return fd;
}

static int connect_unix(const char *path, int64_t deadline, struct error *err)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	if (!*path || strlen(path) >= sizeof address.sun_path)
		return error_set(err, ERROR_INVALID, "server", "unix:%s: a path of 1 to %zu bytes is expected", path,
				 sizeof address.sun_path - 1);
	strcpy(address.sun_path, path);
	int fd = connect_to((struct sockaddr *)&address, sizeof address, AF_UNIX, deadline);
	return fd < 0 ? error_system(err, fd, "server", "cannot connect to unix:%s", path) : fd;
}

// "HOST:PORT" or "[V6]:PORT" into two strings.
static bool split_host(const char *text, char *host, size_t host_size, char *port, size_t port_size)
{
	const char *colon = strrchr(text, ':'), *begin = text, *end = colon;
	if (!colon || !colon[1] || strlen(colon + 1) >= port_size)
		return false;
	if (*text == '[') {
		begin++;
		end--;
		if (end <= begin || *end != ']')
			return false;
	}
	if (end <= begin || (size_t)(end - begin) >= host_size)
		return false;
	memcpy(host, begin, (size_t)(end - begin));
	host[end - begin] = '\0';
	strcpy(port, colon + 1);
	return true;
}

// "tcp:HOST:PORT", or "tls:" likewise.
static int connect_tcp(const char *text, int64_t deadline, struct error *err)
{
	char host[256], port[32];
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL;
	if (!split_host(text + 4, host, sizeof host, port, sizeof port))
		return error_set(err, ERROR_INVALID, "server", "%s: %.4sHOST:PORT is expected", text, text);
	int r = getaddrinfo(host, port, &hints, &found);
	if (r)
		return error_set(err, ERROR_INVALID, "server", "%s: %s", text, gai_strerror(r));
	int fd = -EHOSTUNREACH;
	for (struct addrinfo *a = found; a && fd < 0 && fd != -ETIMEDOUT; a = a->ai_next)
		fd = connect_to(a->ai_addr, a->ai_addrlen, a->ai_family, deadline);
	freeaddrinfo(found);
	if (fd < 0)
		return error_system(err, fd, "server", "cannot connect to %s", text);
	int on = 1;
	(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);    // frames are written whole: waiting only adds delay
	return fd;
}

static int greet(struct connection *c, int64_t deadline, struct error *err)
{
	for (;;) {
		int r = transport_greet(&c->transport, err);
		if (r != -EAGAIN)
			return r;
		r = connection_poll(c, transport_wants_write(&c->transport) ? POLLOUT : POLLIN, -1, deadline);
		if (r == -ETIMEDOUT)
			return error_set(err, ERROR_DEADLINE, "server", "the server did not finish the TLS handshake in time");
		if (r)
			return error_system(err, r, NULL, "cannot wait for the server");
	}
}

static int open_tls(struct connection *c, const struct connection_peer *peer, int64_t deadline, struct error *err)
{
	char host[TLS_NAME_BYTES], port[32];
	if (!split_host(peer->address + 4, host, sizeof host, port, sizeof port))
		return error_set(err, ERROR_INVALID, "server", "%s: tls:HOST:PORT is expected", peer->address);
	int r = tls_open_client(peer->ca, &c->tls, err);
	int fd = r ? r : connect_tcp(peer->address, deadline, err);
	if (fd < 0)
		return fd;
	r = transport_open(fd, c->tls, peer->server_name ? peer->server_name : host, &c->transport, err);
	if (r)
		close(fd);
	return r ? r : greet(c, deadline, err);
}

void connection_init(struct connection *c)
{
	*c = (struct connection){.transport.fd = -1};
	pthread_mutex_init(&c->session_lock, NULL);
}

int connection_open(struct connection *c, const struct connection_peer *peer, uint32_t max_body, int64_t deadline, struct error *err)
{
	const char *address = peer->address;
	int fd;
	c->max_body = max_body;
	if (strncmp(address, "tls:", 4) == 0)
		return open_tls(c, peer, deadline, err);
	if (peer->ca || peer->server_name)
		return error_set(err, ERROR_INVALID, peer->ca ? "ca" : "server_name",
				 "%s is not encrypted: tls:HOST:PORT is expected with it", address);
	if (strncmp(address, "unix:", 5) == 0)
		fd = connect_unix(address + 5, deadline, err);
	else if (strncmp(address, "tcp:", 4) == 0)
		fd = connect_tcp(address, deadline, err);
	else
		return error_set(err, ERROR_INVALID, "server", "%s: unix:PATH, tcp:HOST:PORT or tls:HOST:PORT is expected", address);
	return fd < 0 ? fd : transport_open(fd, NULL, NULL, &c->transport, err);
}

void connection_done(struct connection *c)
{
	transport_close(&c->transport);
	tls_close(c->tls);
	free(c->out);
	free(c->body);
	pthread_mutex_destroy(&c->session_lock);
}

// Room for n more bytes. The place of what was sent is used again once it is half of all: a server that reads slowly but steadily never
// lets the output run empty, and moving what is left costs no more than sending did.
static int out_reserve(struct connection *c, size_t n)
{
	size_t unsent = c->out_end - c->out_begin, need;
	if (c->out_size - c->out_end < n && unsent && c->out_begin >= unsent) {
		memmove(c->out, c->out + c->out_begin, unsent);
		c->out_begin = 0;
		c->out_end = unsent;
	}
	if (c->out_size - c->out_end >= n)
		return 0;
	uint8_t *larger = __builtin_add_overflow(c->out_end, n, &need) ? NULL : realloc(c->out, need);
	if (!larger)
		return -ENOMEM;
	c->out = larger;
	c->out_size = need;
	return 0;
}

int connection_append(struct connection *c, uint8_t kind, uint64_t request_id, const void *body, size_t n, struct error *err)
{
	struct frame f = {.kind = kind, .request_id = request_id, .body_bytes = (uint32_t)n, .body_crc = crc32c(0, body, n)};
	if (n > UINT32_MAX)
		return error_set(err, ERROR_TOO_LARGE, NULL, "a frame of %zu bytes", n);
	if (out_reserve(c, FRAME_HEADER_BYTES + n))
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a frame of %zu bytes", n);
	frame_encode(&f, c->out + c->out_end);
	if (n)
		memcpy(c->out + c->out_end + FRAME_HEADER_BYTES, body, n);
	c->out_end += FRAME_HEADER_BYTES + n;
	return 0;
}

bool connection_has_output(const struct connection *c)
{
	return c->out_begin < c->out_end && !c->write_failed;
}

uint64_t connection_queued(const struct connection *c)
{
	return c->n_sent + (c->out_end - c->out_begin);
}

static ssize_t write_some(struct connection *c, struct error *err)
{
	size_t n = c->out_end - c->out_begin;
	if (!c->tls)
		return transport_write(&c->transport, c->out + c->out_begin, n, err);
	pthread_mutex_lock(&c->session_lock);
	ssize_t k = transport_write(&c->transport, c->out + c->out_begin, n, err);
	pthread_mutex_unlock(&c->session_lock);
	return k;
}

// A closed peer is not an error here: what it said last is still to be read.
int connection_write(struct connection *c, bool *ret_progress, struct error *err)
{
	while (connection_has_output(c)) {
		ssize_t n = write_some(c, err);
		if (n > 0) {
			c->out_begin += (size_t)n;
			c->n_sent += (uint64_t)n;
			*ret_progress = true;
		} else if (n == -EAGAIN) {
			return 0;
		} else if (n == -EPIPE || n == -ECONNRESET) {
			c->write_failed = true;
		} else {
			return (int)n;
		}
	}
	c->out_begin = c->out_end = 0;
	return 0;
}

static int read_ended(const struct connection *c, struct error *err)
{
	if (!c->tls && c->header_filled && c->header[0] == TLS_ALERT)
		return error_set(err, ERROR_INVALID, "server", "the server speaks TLS there: tls:HOST:PORT is expected");
	return error_set(err, ERROR_UNAVAILABLE, NULL, "the server closed the connection%s",
			 c->header_filled ? " in the middle of a frame" : "");
}

// Up to n bytes; 0 = nothing there now.
static ssize_t read_some(struct connection *c, void *to, size_t n, struct error *err)
{
	if (c->tls)
		pthread_mutex_lock(&c->session_lock);
	ssize_t got = transport_read(&c->transport, to, n, err);
	if (c->tls)
		pthread_mutex_unlock(&c->session_lock);
	return got == 0 || got == -ECONNRESET ? read_ended(c, err) : got == -EAGAIN ? 0 : got;
}

// The header is complete: check it and make room for the body.
static int begin_body(struct connection *c, struct error *err)
{
	int r = frame_decode(c->header, c->max_body, &c->frame, err);
	if (r)
		return r;
	size_t n = c->frame.body_bytes;
	c->body_filled = 0;
	if (n <= c->body_size && (n > BODY_KEPT || c->body_size <= BODY_KEPT))
		return 0;
	// Memory that comes and goes with every answer is given back to the system and faulted in again:
	// most of an answer's processor time.
	free(c->body);
	c->body_size = n > BODY_KEPT ? n : BODY_KEPT;
	c->body = malloc(c->body_size);
	if (c->body)
		return 0;
	c->body_size = 0;
	return error_set(err, ERROR_MEMORY, NULL, "no memory for a frame of %zu bytes", n);
}

int connection_read(struct connection *c, bool *ret_progress, struct error *err)
{
	ssize_t n;
	while (c->header_filled < FRAME_HEADER_BYTES) {
		n = read_some(c, c->header + c->header_filled, FRAME_HEADER_BYTES - c->header_filled, err);
		if (n <= 0)
			return (int)n;
		*ret_progress = true;
		c->header_filled += (size_t)n;
		int r = c->header_filled == FRAME_HEADER_BYTES ? begin_body(c, err) : 0;
		if (r)
			return r;
	}
	while (c->body_filled < c->frame.body_bytes) {
		n = read_some(c, c->body + c->body_filled, c->frame.body_bytes - c->body_filled, err);
		if (n <= 0)
			return (int)n;
		*ret_progress = true;
		c->body_filled += (size_t)n;
	}
	int r = frame_check_body(&c->frame, c->body, err);
	return r ? r : 1;
}

int connection_poll(const struct connection *c, short events, int wake_fd, int64_t deadline)
{
	struct pollfd p[] = {{.fd = c->transport.fd, .events = events}, {.fd = wake_fd, .events = POLLIN}};
	return wait_for(p, wake_fd < 0 ? 1 : 2, deadline);
}

int connection_receive(struct connection *c, int64_t deadline, struct error *err)
{
	for (;;) {
		bool progress;
		int r = connection_write(c, &progress, err);
		if (!r)
			r = connection_read(c, &progress, err);
		if (r)
			return r;
		r = connection_poll(c, connection_has_output(c) ? POLLIN | POLLOUT : POLLIN, -1, deadline);
		if (r == -ETIMEDOUT)
			return error_set(err, ERROR_DEADLINE, NULL, "the server did not answer in time");
		if (r)
			return error_system(err, r, NULL, "cannot wait for the server");
	}
}

const uint8_t *connection_release(struct connection *c)
{
	c->header_filled = 0;
	return c->body;
}
