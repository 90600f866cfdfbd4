// SPDX-License-Identifier: Apache-2.0
// flood http PORT|frames PATH GREETING QUESTION CLIENTS ANSWERED REFUSED SECONDS: so many connections that send the bytes of the file
// QUESTION again and again, ANSWERED seconds after an answer and REFUSED after a refusal (GREETING: sent first, on the binary protocol; -
// for none). A program of its own and small, so that what is measured is the server. Prints one JSON object: answers, refusals, and the
// seconds at the 50th and 99th percentile of each. Any other reply ends it with status 1.
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "common/frame.h"

enum verdict { VERDICT_MORE, VERDICT_ANSWER, VERDICT_REFUSAL, VERDICT_WELCOME };

struct blob { char *bytes; size_t n; };

struct client {
	int fd;
	bool waits;                      // for a reply; else it sleeps until `at`
	double at;                       // when it asks next, or asked
	struct blob reply;
	size_t room;
};

struct times { double *seconds; size_t n, room; };

static struct blob greeting, question;
static double after_answer, after_refusal;
static struct times answers, refusals;

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static struct blob read_file(const char *path)
{
	struct blob b = {0};
	FILE *f = fopen(path, "rb");
	if (!f || fseek(f, 0, SEEK_END) || (b.n = (size_t)ftell(f)) > 1 << 26 || fseek(f, 0, SEEK_SET))
		err(2, "%s", path);
	b.bytes = malloc(b.n + 1);
	if (!b.bytes || fread(b.bytes, 1, b.n, f) != b.n)
		err(2, "%s", path);
	fclose(f);
	return b;
}

static void times_add(struct times *t, double seconds)
{
	if (t->n == t->room) {
		t->room = 2 * t->room + 1024;
		t->seconds = realloc(t->seconds, t->room * sizeof *t->seconds);
		if (!t->seconds)
			err(2, "memory");
	}
	t->seconds[t->n++] = seconds;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static double percentile(struct times *t, size_t p)
{
	if (!t->n)
		return 0;
	qsort(t->seconds, t->n, sizeof *t->seconds, compare);
	return t->seconds[t->n * p / 100];
}

static int connection_open(const char *door, const char *where)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(where)), .sin_addr = {htonl(INADDR_LOOPBACK)}};
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	bool http = strcmp(door, "http") == 0;
	snprintf(un.sun_path, sizeof un.sun_path, "%s", where);
	int fd = socket(http ? AF_INET : AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, http ? (struct sockaddr *)&in : (struct sockaddr *)&un, http ? sizeof in : sizeof un))
		err(2, "%s", where);
	return fd;
}

static void client_send(const struct client *c, const struct blob *b)
{
	for (size_t sent = 0; sent < b->n;) {
		ssize_t n = send(c->fd, b->bytes + sent, b->n - sent, MSG_NOSIGNAL);
		if (n < 0 && errno != EINTR)
			err(1, "send");
		sent += n > 0 ? (size_t)n : 0;
	}
}

// The last chunk's end is the reply's: nothing else is sent before the next question.
static bool http_complete(const struct blob *r, const char *body)
{
	const char *length = strcasestr(r->bytes, "\r\ncontent-length:");
	size_t n_body = r->n - (size_t)(body - r->bytes);
	if (length && length < body)
		return n_body >= strtoull(length + 17, NULL, 10);
	return n_body >= 5 && memcmp(r->bytes + r->n - 5, "0\r\n\r\n", 5) == 0;
}

static enum verdict http_verdict(const struct blob *r)
{
	const char *end = strstr(r->bytes, "\r\n\r\n");
	if (!end || !http_complete(r, end + 4))
		return VERDICT_MORE;
	int status = r->n > 12 ? atoi(r->bytes + 9) : 0;
	if (status == 200)
		return VERDICT_ANSWER;
	if ((status != 429 && status != 503) || !strcasestr(r->bytes, "\r\nretry-after:"))
		errx(1, "status %d: %s", status, end + 4);
	return VERDICT_REFUSAL;
}

// Which frame ends the reply; ANSWERs before it pass.
static enum verdict frames_verdict(const struct blob *r)
{
	struct frame f;
	struct error e;
	for (size_t at = 0; r->n - at >= FRAME_HEADER_BYTES; at += FRAME_HEADER_BYTES + f.body_bytes) {
		if (frame_decode((const uint8_t *)r->bytes + at, UINT32_MAX, &f, &e))
			errx(1, "not a frame");
		if (r->n - at - FRAME_HEADER_BYTES < f.body_bytes)
			return VERDICT_MORE;
		struct frame_error m;
		switch (f.kind) {
		case FRAME_ANSWER:
			continue;
		case FRAME_WELCOME:
			return VERDICT_WELCOME;
		case FRAME_DONE:
			return VERDICT_ANSWER;
		case FRAME_ERROR:
			if (frame_error_decode(r->bytes + at + FRAME_HEADER_BYTES, f.body_bytes, &m, &e) ||
			    (m.error.code != ERROR_OVERLOADED && m.error.code != ERROR_UNAVAILABLE))
				errx(1, "an error: %s", m.error.message);
			return VERDICT_REFUSAL;
		default:
			errx(1, "unexpected frame %s", frame_kind_name(f.kind));
		}
	}
	return VERDICT_MORE;
}

static void client_receive(struct client *c)
{
	if (c->room - c->reply.n < 65536) {
		c->room = 2 * c->room + 131072;
		c->reply.bytes = realloc(c->reply.bytes, c->room);
		if (!c->reply.bytes)
			err(2, "memory");
	}
	ssize_t n = recv(c->fd, c->reply.bytes + c->reply.n, c->room - c->reply.n - 1, 0);
	if (n <= 0)
		err(1, "the server hung up");
	c->reply.n += (size_t)n;
	c->reply.bytes[c->reply.n] = '\0';
}

static void client_take(struct client *c, enum verdict (*verdict)(const struct blob *))
{
	client_receive(c);
	enum verdict v = verdict(&c->reply);
	if (v == VERDICT_MORE)
		return;
	double t = now();
	if (v != VERDICT_WELCOME)
		times_add(v == VERDICT_ANSWER ? &answers : &refusals, t - c->at);
	c->reply.n = 0;
	c->waits = false;
	c->at = t + (v == VERDICT_REFUSAL ? after_refusal : v == VERDICT_ANSWER ? after_answer : 0);
}

// Asks for whom it is time, until `end`; when the next wants to.
static double ask_all(struct client *clients, size_t n, double t, double end)
{
	double next = end;
	for (size_t i = 0; i < n; i++) {
		struct client *c = &clients[i];
		if (!c->waits && c->at <= t) {
			c->waits = true;
			c->at = now();
			client_send(c, &question);
		}
		if (!c->waits && c->at < next)
			next = c->at;
	}
	return next;
}

static void take_all(struct client *clients, struct pollfd *fds, size_t n, double patience, enum verdict (*verdict)(const struct blob *))
{
	struct timespec t = {.tv_sec = (time_t)patience, .tv_nsec = (long)(1e9 * (patience - (double)(time_t)patience))};
	if (ppoll(fds, n, &t, NULL) < 0)
		err(2, "poll");
	for (size_t i = 0; i < n; i++)
		if (fds[i].revents)
			client_take(&clients[i], verdict);
}

static bool any_waits(const struct client *clients, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (clients[i].waits)
			return true;
	return false;
}

// The figures are of `seconds`; what is under way at their end is waited for, and not counted.
static void flood(struct client *clients, struct pollfd *fds, size_t n, double seconds, enum verdict (*verdict)(const struct blob *))
{
	double t = now(), end = t + seconds;
	for (size_t i = 0; i < n; i++)
		if (!clients[i].waits)
			clients[i].at = t + after_refusal * (double)i / (double)n;
	for (; t < end; t = now()) {
		double next = ask_all(clients, n, t, end);
		take_all(clients, fds, n, next > t ? next - t : 0, verdict);
	}
	size_t n_answers = answers.n, n_refusals = refusals.n;
	while (any_waits(clients, n))
		take_all(clients, fds, n, 1, verdict);
	answers.n = n_answers;
	refusals.n = n_refusals;
}

int main(int argc, char **argv)
{
	if (argc != 9)
		errx(2, "usage: flood http PORT|frames PATH GREETING QUESTION CLIENTS ANSWERED REFUSED SECONDS");
	size_t n = strtoul(argv[5], NULL, 10);
	struct client *clients = calloc(n, sizeof *clients);
	struct pollfd *fds = calloc(n, sizeof *fds);
	if (!n || !clients || !fds)
		errx(2, "no memory, or no clients");
	if (strcmp(argv[3], "-"))
		greeting = read_file(argv[3]);
	question = read_file(argv[4]);
	after_answer = strtod(argv[6], NULL);
	after_refusal = strtod(argv[7], NULL);
	for (size_t i = 0; i < n; i++) {
		clients[i].fd = fds[i].fd = connection_open(argv[1], argv[2]);
		fds[i].events = POLLIN;
		clients[i].waits = greeting.n > 0;        // for the WELCOME
		if (greeting.n)
			client_send(&clients[i], &greeting);
	}
	flood(clients, fds, n, strtod(argv[8], NULL), strcmp(argv[1], "http") == 0 ? http_verdict : frames_verdict);
	for (size_t i = 0; i < n; i++) {
		close(clients[i].fd);
		free(clients[i].reply.bytes);
	}
	free(clients);
	free(fds);
	printf("{\"answers\":%zu,\"answer_p50\":%.6f,\"answer_p99\":%.6f,\"refusals\":%zu,\"refusal_p50\":%.6f,\"refusal_p99\":%.6f}\n",
	       answers.n, percentile(&answers, 50), percentile(&answers, 99), refusals.n, percentile(&refusals, 50),
	       percentile(&refusals, 99));
	return 0;
}
