// SPDX-License-Identifier: Apache-2.0
// What a request costs that asks the engine for nothing: bench_rpc ADDRESS KIND CONNECTIONS SECONDS [SERVER_PID]. ADDRESS is unix:PATH or
// What a request costs that asks the engine for nothing: bench_rpc ADDRESS KIND CONNECTIONS SECONDS [SERVER_PID]. ADDRESS is unix:PATH or
// Each connection has one request under way; one thread serves them all. One CSV row: requests for a second of the clock, the median and
// 99th percentile of the time to the reply, and processor time of the server and of this program for a request.
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "common/crc32c.h"
#include "common/cursor.h"
#include "common/frame.h"

#define MAX_CONNECTIONS 1024
#define MAX_SAMPLES (1u << 22)
#define HTTP_REQUEST "GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n"

struct connection {
	int fd;
	double sent;
	size_t n;                      // bytes of the reply so far
	uint8_t reply[4096];
};

struct load {
	bool http;
	uint8_t request[512];
	size_t request_bytes;
	struct connection *connections;
	int n_connections, poll_fd;
	float *samples;                // seconds
	uint64_t n_samples;
};

static void die(const char *what)
{
	fprintf(stderr, "bench_rpc: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
	exit(1);
}

static double clock_seconds(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int connect_to(const char *address)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(address)), .sin_addr = {htonl(INADDR_LOOPBACK)}};
	bool local = strncmp(address, "unix:", 5) == 0;
	int fd = socket(local ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	snprintf(un.sun_path, sizeof un.sun_path, "%s", local ? address + 5 : "");
	if (fd < 0 || connect(fd, local ? (void *)&un : (void *)&in, local ? sizeof un : sizeof in) < 0)
		die(address);
	return fd;
}

static void send_all(int fd, const void *bytes, size_t n)
{
	if (send(fd, bytes, n, MSG_NOSIGNAL) != (ssize_t)n)    // small: a socket that takes less is a fault
		die("send");
}

// A whole frame with the body that `w` holds; returns its bytes.
static size_t frame_make(uint8_t kind, uint64_t id, const uint8_t *body, size_t n, uint8_t *to)
{
	struct frame f = {.kind = kind, .request_id = id, .body_bytes = (uint32_t)n, .body_crc = crc32c(0, body, n)};
	frame_encode(&f, to);
	memcpy(to + FRAME_HEADER_BYTES, body, n);
	return FRAME_HEADER_BYTES + n;
}

static size_t call_make(uint8_t *to)
{
	struct frame_call call = {.method = "GET", .path = "/live"};
	uint8_t body[256];
	struct writer w = writer_init(body, sizeof body);
	frame_call_encode(&call, &w);
	return frame_make(FRAME_CALL, 1, body, w.position, to);
}

// Bytes of a whole reply at the front, 0 while it is not all there.
static size_t reply_whole(const struct load *l, const struct connection *c)
{
	struct frame f;
	if (!l->http) {
		if (c->n < FRAME_HEADER_BYTES)
			return 0;
		if (frame_decode(c->reply, sizeof c->reply - FRAME_HEADER_BYTES, &f, NULL))
			die("not a frame");
		if (f.kind != FRAME_PONG && f.kind != FRAME_REPLY && f.kind != FRAME_WELCOME)
			die(frame_kind_name(f.kind));
		return c->n >= FRAME_HEADER_BYTES + f.body_bytes ? FRAME_HEADER_BYTES + f.body_bytes : 0;
	}
	const char *text = (const char *)c->reply, *end = memmem(text, c->n, "\r\n\r\n", 4), *length;
	if (!end)
		return 0;
	length = memmem(text, (size_t)(end - text), "Content-Length: ", 16);
	if (strncmp(text, "HTTP/1.1 200", 12) != 0 || !length)
		die("not a reply with a length");
	size_t n = (size_t)(end + 4 - text) + strtoul(length + 16, NULL, 10);
	return c->n >= n ? n : 0;
}

// True once a whole reply is there, which is then taken away.
static bool reply_take(const struct load *l, struct connection *c)
{
	ssize_t k = recv(c->fd, c->reply + c->n, sizeof c->reply - c->n, 0);
	if (k <= 0)
		die("the server hung up");
	c->n += (size_t)k;
	size_t n = reply_whole(l, c);
	c->n -= n;
	memmove(c->reply, c->reply + n, c->n);
	return n;
}

static void connection_open(struct load *l, struct connection *c, const char *address)
{
	uint8_t hello[1024], body[512];
	c->fd = connect_to(address);
	if (!l->http) {
		struct writer w = writer_init(body, sizeof body);
		frame_hello_encode(&(struct frame_hello){.token = ""}, &w);
		send_all(c->fd, hello, frame_make(FRAME_HELLO, 0, body, w.position, hello));
		while (!reply_take(l, c))
			continue;
	}
	if (epoll_ctl(l->poll_fd, EPOLL_CTL_ADD, c->fd, &(struct epoll_event){.events = EPOLLIN, .data.ptr = c}) < 0)
		die("epoll_ctl");
}

static void request_send(const struct load *l, struct connection *c)
{
	c->sent = clock_seconds();
	send_all(c->fd, l->request, l->request_bytes);
}

// Until the time is up; returns how long it really was.
static double load_run(struct load *l, double seconds)
{
	struct epoll_event events[64];
	double begin = clock_seconds(), now = begin;
	l->n_samples = 0;
	while (now - begin < seconds) {
		int n = epoll_wait(l->poll_fd, events, 64, 1000);
		for (int i = 0; i < n; i++) {
			struct connection *c = events[i].data.ptr;
			if (!reply_take(l, c))
				continue;
			if (l->n_samples < MAX_SAMPLES)
				l->samples[l->n_samples] = (float)(clock_seconds() - c->sent);
			l->n_samples++;
			request_send(l, c);
		}
		now = clock_seconds();
	}
	return now - begin;
}

// Of all threads of a process, from its stat.
static double processor_seconds(const char *pid)
{
	char path[64], line[1024];
	unsigned long user = 0, system = 0;
	snprintf(path, sizeof path, "/proc/%s/stat", pid);
	FILE *file = fopen(path, "re");
	if (!file || !fgets(line, sizeof line, file))
		die(path);
	fclose(file);
	const char *rest = strrchr(line, ')');
	if (!rest || sscanf(rest, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) != 2)
		die(path);
	return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

static int compare(const void *a, const void *b)
{
	float x = *(const float *)a, y = *(const float *)b;
	return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
	if (argc < 5 || argc > 6 || atoi(argv[3]) < 1 || atoi(argv[3]) > MAX_CONNECTIONS) {
		fprintf(stderr, "usage: bench_rpc unix:PATH|PORT ping|call|http CONNECTIONS SECONDS [SERVER_PID]\n");
		return 2;
	}
	const char *pid = argc > 5 ? argv[5] : "self";
	struct load l = {.http = strcmp(argv[2], "http") == 0, .n_connections = atoi(argv[3]), .poll_fd = epoll_create1(EPOLL_CLOEXEC)};
	l.connections = calloc((size_t)l.n_connections, sizeof *l.connections);
	l.samples = calloc(MAX_SAMPLES, sizeof *l.samples);
	if (l.poll_fd < 0 || !l.connections || !l.samples)
		die("no memory");
	l.request_bytes = strcmp(argv[2], "call") == 0 ? call_make(l.request) : frame_make(FRAME_PING, 1, l.request, 0, l.request);
	if (l.http)
		l.request_bytes = (size_t)sprintf((char *)l.request, "%s", HTTP_REQUEST);
	for (int i = 0; i < l.n_connections; i++)
		connection_open(&l, &l.connections[i], argv[1]);
	for (int i = 0; i < l.n_connections; i++)
		request_send(&l, &l.connections[i]);
	load_run(&l, 0.2);             // warms up
	double server = processor_seconds(pid), own = processor_seconds("self"), seconds = load_run(&l, atof(argv[4]));
	server = processor_seconds(pid) - server;
	own = processor_seconds("self") - own;
	size_t n = l.n_samples < MAX_SAMPLES ? l.n_samples : MAX_SAMPLES;
	if (!n)
		die("no reply");
	qsort(l.samples, n, sizeof *l.samples, compare);
	printf("%s,%d,%.0f,%.1f,%.1f,%.2f,%.2f\n", argv[2], l.n_connections, (double)l.n_samples / seconds, 1e6 * (double)l.samples[n / 2],
	       1e6 * (double)l.samples[n - 1 - n / 100], 1e6 * server / (double)l.n_samples, 1e6 * own / (double)l.n_samples);
	return 0;
}
