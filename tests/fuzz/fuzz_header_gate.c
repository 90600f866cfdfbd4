// SPDX-License-Identifier: Apache-2.0
// The gate in front of the HTTP door, with libmicrohttpd itself: bytes go into a connection in pieces (first byte: how long), and whatever
// the gate lets pass must be a request by the letter of RFC 9112, read here a second time: each line ended by CR LF, no folded line, no
// control character, one Host, one way to say where the body ends; and as many bytes of body must have come as that says. A request with a
// chunked body ends its connection, because what the library makes of line ends between chunks cannot be seen by the gate.
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/server/http_internal.h"
#include "tests/fuzz/fuzz.h"

#define MAX_TURNS 200                  // of the library's loop for one input
#define MAX_HEADER_BYTES 16384

static void require(bool holds)
{
	if (!holds)
		abort();
}

// ---- the second reader

struct line { const char *at; size_t n; };
struct message {
	struct line method, target, version;
	unsigned n_hosts, n_lengths, n_codings, n_authorizations;
	struct line length, coding, authorization;
	const char *end;               // of the headers
};

static bool is_token(struct line l)
{
	for (size_t i = 0; i < l.n; i++)
		if (!isalnum((unsigned char)l.at[i]) && (!l.at[i] || !strchr("!#$%&'*+-.^_`|~", l.at[i])))
			return false;
	return l.n > 0;
}

static bool is_text(struct line l)
{
	for (size_t i = 0; i < l.n; i++)
		if (((unsigned char)l.at[i] < 0x20 && l.at[i] != '\t') || l.at[i] == 0x7f)
			return false;
	return true;
}

static bool is_word(struct line l, const char *word)
{
	return l.n == strlen(word) && strncasecmp(l.at, word, l.n) == 0;
}

// Up to CR LF, which is passed over; the library writes zeroes there, so that the gate cannot tell a zero byte and LF from it. False: there
// is no end.
static bool line_take(const char **at, const char *end, struct line *ret)
{
	for (const char *found = *at; (found = memchr(found, '\n', (size_t)(end - found))); found++) {
		if (found == *at || (found[-1] != '\r' && found[-1] != '\0'))
			continue;
		*ret = (struct line){*at, (size_t)(found - 1 - *at)};
		*at = found + 1;
		return true;
	}
	return false;
}

// The same for a line that is the last of the headers: the library ends a line at LF alone too, and takes one that begins with a zero byte,
// or with a colon (which it makes zero), for the empty one. So four other bytes are zeroes in its memory like CR LF CR LF.
static bool last_line_take(const char **at, const char *end, struct line *ret)
{
	static const char ends[][4] = {"\n\0\r\n", "\n\0\0\n", "\n:\r\n", "\n:\0\n", "\0\r\n\n", "\0\0\n\n", "\r\n:\n", "\0\n:\n"};
	const char *found = *at;
	while (found < end && *found && *found != '\r' && *found != '\n')
		found++;
	for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
		if (found - *at > 0 && end - found >= 4 && memcmp(found, ends[i], 4) == 0) {
			*ret = (struct line){*at, (size_t)(found - *at)};
			*at = found + 4;
			return true;
		}
	return false;
}

static bool first_line_read(struct line l, struct message *m)
{
	const char *blank = memchr(l.at, ' ', l.n), *last = memrchr(l.at, ' ', l.n);
	if (!blank || blank == last)
		return false;
	m->method = (struct line){l.at, (size_t)(blank - l.at)};
	m->target = (struct line){blank + 1, (size_t)(last - blank - 1)};
	m->version = (struct line){last + 1, (size_t)(l.at + l.n - last - 1)};
	return is_token(m->method) && m->target.n && is_text(m->target) && !memchr(m->target.at, ' ', m->target.n) &&
	       m->version.n == 8 && memcmp(m->version.at, "HTTP/1.", 7) == 0 && isdigit((unsigned char)m->version.at[7]);
}

static bool header_read(struct line l, struct message *m)
{
	const char *colon = memchr(l.at, ':', l.n);
	if (!colon)
		return false;
	struct line name = {l.at, (size_t)(colon - l.at)}, value = {colon + 1, (size_t)(l.at + l.n - colon - 1)};
	while (value.n && (*value.at == ' ' || *value.at == '\t'))
		value.at++, value.n--;
	while (value.n && (value.at[value.n - 1] == ' ' || value.at[value.n - 1] == '\t'))
		value.n--;
	m->n_hosts += is_word(name, "Host");
	if (is_word(name, "Content-Length"))
		m->n_lengths++, m->length = value;
	if (is_word(name, "Transfer-Encoding"))
		m->n_codings++, m->coding = value;
	if (is_word(name, "Authorization"))
		m->n_authorizations++, m->authorization = value;
	return is_token(name) && is_text(value);
}

// The lines behind the first, to the empty one.
static bool headers_read(const char **at, const char *end, struct message *m)
{
	struct line l;
	for (;;) {
		if (last_line_take(at, end, &l))
			return header_read(l, m);
		if (!line_take(at, end, &l) || (l.n && !header_read(l, m)))
			return false;
		if (!l.n)
			return true;
	}
}

// Whether a request stands at `at`, by the letter.
static bool message_read(const char *at, const char *end, struct message *m)
{
	struct line l;
	const char *begin = at;
	*m = (struct message){0};
	bool last = last_line_take(&at, end, &l);
	if ((!last && !line_take(&at, end, &l)) || !first_line_read(l, m) || (!last && !headers_read(&at, end, m)))
		return false;
	m->end = at;
	return at - begin <= MAX_HEADER_BYTES && m->n_hosts <= 1 && m->n_lengths <= 1 && m->n_authorizations <= 1 &&
	       m->n_codings <= 1 && !(m->n_codings && m->n_lengths) && (!m->n_codings || is_word(m->coding, "chunked")) &&
	       (!m->n_codings || memcmp(m->version.at, "HTTP/1.1", 8) == 0);
}

static bool length_read(struct line l, uint64_t *ret)
{
	uint64_t v = 0;
	for (size_t i = 0; i < l.n; i++)
		if (!isdigit((unsigned char)l.at[i]) || __builtin_mul_overflow(v, 10, &v) ||
		    __builtin_add_overflow(v, (uint64_t)(l.at[i] - '0'), &v))
			return false;
	*ret = v;
	return l.n > 0;
}

// ---- the door

struct world {
	struct MHD_Daemon *daemon;
	struct MHD_Response *good, *bad;       // what is answered; `bad` ends the connection
	const char *at, *end;                  // the input from the request on that comes next
	bool closed, last;                     // the connection's end; no request may follow
};
struct request_seen { struct http_target target; bool checked, accepted, chunked; uint64_t n_said, n_body; };

static struct world world;

static void *request_begin(void *arg, const char *target, struct MHD_Connection *mhd)
{
	struct request_seen *q = calloc(1, sizeof *q);
	(void)arg, (void)mhd;
	require(q != NULL);
	q->target = http_gate_target(target);
	return q;
}

static void request_end(void *arg, struct MHD_Connection *mhd, void **context, enum MHD_RequestTerminationCode why)
{
	(void)arg, (void)mhd, (void)why;
	free(*context);
	*context = NULL;
}

static void connection_changed(void *arg, struct MHD_Connection *mhd, void **context, enum MHD_ConnectionNotificationCode what)
{
	(void)arg, (void)mhd, (void)context;
	world.closed = what == MHD_CONNECTION_NOTIFY_CLOSED;
}

static void secret_check(struct MHD_Connection *mhd, const struct message *m)
{
	const char *secret = NULL;
	struct error err = {0};
	if (http_gate_secret(mhd, &secret, &err)) {
		require(err.code == ERROR_UNAUTHORIZED);
		return;
	}
	require(!secret == !m->n_authorizations);
	if (!secret)
		return;
	size_t n = strlen(secret);
	require(n <= m->authorization.n && memcmp(m->authorization.at + m->authorization.n - n, secret, n) == 0);
	require(strncasecmp(m->authorization.at, "Bearer ", 7) == 0 && !memchr(secret, ' ', n));
}

// Empty lines before a request may be passed over; to the library one that begins with a zero byte is empty, whatever follows in it.
static bool request_find(struct message *m)
{
	const char *lf;
	while ((lf = memchr(world.at, '\n', (size_t)(world.end - world.at)))) {
		if (*world.at && lf != world.at && !(lf == world.at + 1 && *world.at == '\r'))
			return message_read(world.at, world.end, m);
		world.at = lf + 1;
	}
	return false;
}

// The first call: all headers are there.
static void headers_check(struct request_seen *q, struct MHD_Connection *mhd, const char *method, const char *version)
{
	struct error err = {0};
	struct message m;
	uint64_t n = 0;
	q->checked = true;
	if (http_gate_check(mhd, method, q->target, version, &err) || http_gate_body(mhd, &q->n_said, &q->chunked, &err)) {
		require(err.code && err.message[0] && err.field[0]);
		return;
	}
	require(!world.last);
	require(request_find(&m));
	require(strlen(method) == m.method.n && memcmp(method, m.method.at, m.method.n) == 0);
	require(q->chunked == (m.n_codings != 0) && (!m.n_lengths || (length_read(m.length, &n) && n == q->n_said)));
	require(strcmp(method, "POST") == 0 || (!q->chunked && !n));
	secret_check(mhd, &m);
	(void)http_gate_is_json(mhd);
	q->accepted = true;
	world.last = q->chunked;
	world.at = n <= (size_t)(world.end - m.end) ? m.end + n : world.end;
}

static enum MHD_Result request_handle(void *arg, struct MHD_Connection *mhd, const char *path, const char *method, const char *version,
				      const char *data, size_t *n_data, void **context)
{
	struct request_seen *q = *context;
	(void)arg, (void)path, (void)data;
	if (!q->checked) {
		headers_check(q, mhd, method, version);
		return q->accepted ? MHD_YES : MHD_queue_response(mhd, 400, world.bad);
	}
	if (*n_data) {
		q->n_body += *n_data;
		require(q->chunked || q->n_body <= q->n_said);
		*n_data = 0;
		return MHD_YES;
	}
	if (!q->accepted)
		return MHD_YES;
	require(q->chunked || q->n_body == q->n_said);
	return MHD_queue_response(mhd, 200, q->chunked ? world.bad : world.good);
}

static void log_nothing(void *arg, const char *format, va_list arguments)
{
	(void)arg, (void)format, (void)arguments;
}

static void world_make(void)
{
	world.daemon = MHD_start_daemon(MHD_USE_EPOLL | MHD_USE_NO_LISTEN_SOCKET, 0, NULL, NULL, request_handle, NULL,
		MHD_OPTION_EXTERNAL_LOGGER, log_nothing, NULL, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)32768,
		MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_URI_LOG_CALLBACK, request_begin, NULL, MHD_OPTION_NOTIFY_COMPLETED, request_end,
		NULL, MHD_OPTION_NOTIFY_CONNECTION, connection_changed, NULL, MHD_OPTION_END);
	world.good = MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
	world.bad = MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
	require(world.daemon && world.good && world.bad &&
		MHD_add_response_header(world.bad, MHD_HTTP_HEADER_CONNECTION, "close") == MHD_YES);
}

static void turn(int client)
{
	char dropped[4096];
	MHD_run(world.daemon);
	while (recv(client, dropped, sizeof dropped, MSG_DONTWAIT) > 0)
		;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct sockaddr nobody = {.sa_family = AF_UNIX};
	int ends[2];
	if (!size)
		return 0;
	if (!world.daemon)
		world_make();
	size_t piece = data[0] ? data[0] : SIZE_MAX;
	world.at = (const char *)data + 1;
	world.end = (const char *)data + size;
	world.closed = world.last = false;
	require(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
	require(MHD_add_connection(world.daemon, ends[0], &nobody, sizeof nobody) == MHD_YES);
	for (size_t at = 1, n; at < size && !world.closed; at += n) {
		n = piece < size - at ? piece : size - at;
		ssize_t sent = send(ends[1], data + at, n, MSG_NOSIGNAL);
		if (sent < 0)
			break;
		n = (size_t)sent;
		turn(ends[1]);
	}
	shutdown(ends[1], SHUT_WR);
	for (int i = 0; i < MAX_TURNS && !world.closed; i++)
		turn(ends[1]);
	close(ends[1]);
	for (int i = 0; i < MAX_TURNS && !world.closed; i++)
		MHD_run(world.daemon);
	require(world.closed);
	return 0;
}
