// SPDX-License-Identifier: Apache-2.0
// Bytes in and out of one client; what the frames mean is in connection_frame.c.
#include "daemon/server/connection.h"

#include <errno.h>
#include <linux/sockios.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "common/error.h"
#include "daemon/clock.h"
#include "daemon/log.h"
#include "daemon/server/address.h"
#include "daemon/server/auth.h"
#include "daemon/server/connection_internal.h"
#include "daemon/server/service.h"
#include "daemon/server/tls.h"
#include "daemon/teacher/request.h"

#define HELLO_MAX_BODY 1024          // before a client is known it gets no more
#define FIRST_BODY_BYTES 65536       // then doubled as bytes arrive: a length alone allocates nothing
#define READ_SHARE (1u << 20)        // bytes taken from one client before the others have their turn,
#define READ_SECONDS 0.001           // or as long as its frames take, of which that may be tens of thousands
#define WRITE_SHARE (1u << 20)       // bytes given to one client, however fast it takes them
#define OUTPUT_PAUSE (1u << 20)      // with more than this unsent, nothing more is read
#define SEVERAL_BYTES 4096           // of small frames that go out together
#define LINGER_MS 1000               // for the client to read our last frame before the descriptor goes
#define COMPLAINT_MS 10000           // between two lines about failed handshakes: anybody can cause them

int connection_new(const struct connection_context *context, int fd, bool encrypted, struct connection **ret_connection)
{
	struct connection *c = calloc(1, sizeof *c);
	if (!c)
		return -ENOMEM;
	struct tls *tls = encrypted ? tls_current_ref(context->tls) : NULL;
	int r = transport_open(fd, tls, NULL, &c->transport, NULL);
	tls_close(tls);
	if (r) {
		free(c);
		return -ENOMEM;
	}
	c->context = context;
	c->max_body = context->settings.max_body;
	c->credits = context->settings.credits;
	c->output_end = &c->output;
	c->input_deadline_ms = clock_ms() + context->settings.header_timeout_ms;
	*ret_connection = c;
	return 0;
}

void connection_output_free(struct connection *c, struct connection_output *o)
{
	if (o)
		service_hold(c->context->service, &o->held, 0, NULL);
	free(o);
}

static void output_drop(struct connection *c)
{
	struct connection_output *o = c->output;
	c->output = o->next;
	if (!c->output)
		c->output_end = &c->output;
	c->n_output -= o->n - o->n_sent;
	if (o->ask)
		connection_ask_done(c, o->ask, o->n_sent == o->n);
	connection_output_free(c, o);
}

static void body_free(struct connection *c)
{
	if (c->frame.kind == FRAME_HELLO && c->body) {        // with a token, which is not to be in core dumps
		explicit_bzero(c->body, c->n_body);
		explicit_bzero(c->ahead, c->ahead_at);
	}
	free(c->body);
	c->body = NULL;
	c->body_capacity = 0;
	service_hold(c->context->service, &c->body_held, 0, NULL);
}

static void body_done(struct connection *c)
{
	body_free(c);
	c->n_body = c->n_header = 0;
	c->refused = false;
}

struct connection *connection_free(struct connection *c)
{
	if (!c)
		return NULL;
	body_done(c);
	principal_unref(c->principal);
	free(c);
	return NULL;
}

void connection_close(struct connection *c)
{
	if (c->state == CONNECTION_CLOSED)
		return;
	c->state = CONNECTION_CLOSED;
	transport_close(&c->transport);
	connection_cancel_all(c);
	while (c->output)
		output_drop(c);
}

void connection_finish(struct connection *c)
{
	if (c->state >= CONNECTION_CLOSING)
		return;
	c->state = CONNECTION_CLOSING;
	body_done(c);
	connection_cancel_all(c);
	c->input_deadline_ms = 0;
	connection_write(c);
}

int connection_send(struct connection *c, struct connection_output *o)
{
	if (c->state == CONNECTION_CLOSED) {
		if (o->ask)
			connection_ask_done(c, o->ask, false);
		connection_output_free(c, o);
		return -ESHUTDOWN;
	}
	if (!c->output)
		c->output_deadline_ms = clock_ms() + c->context->settings.write_timeout_ms;
	*c->output_end = o;
	c->output_end = &o->next;
	c->n_output += o->n;
	return 0;
}

// Everything is sent and the conversation is over: tell the client, then wait for its end so that the last frame is not lost to a reset.
static void output_ended(struct connection *c)
{
	if (c->state == CONNECTION_CLOSING && !c->shut && transport_finish(&c->transport) == -EAGAIN)
		return;    // the output's deadline still holds
	c->output_deadline_ms = 0;
	if (c->state != CONNECTION_CLOSING || c->shut)
		return;
	c->shut = true;
	c->input_deadline_ms = clock_ms() + LINGER_MS;
}

// What goes out next: the rest of a frame or, while they are small, of several, so that an answer and its end are one call and wake the
// client once. After -EAGAIN it begins with the same bytes.
static const uint8_t *next_bytes(const struct connection *c, uint8_t several[SEVERAL_BYTES], size_t *ret_n)
{
	const struct connection_output *o = c->output;
	size_t n = o->n - o->n_sent;
	*ret_n = n;
	if (!o->next || n + o->next->n > SEVERAL_BYTES)
		return o->data + o->n_sent;
	for (n = 0; o && n + o->n - o->n_sent <= SEVERAL_BYTES; n += o->n - o->n_sent, o = o->next)
		memcpy(several + n, o->data + o->n_sent, o->n - o->n_sent);
	*ret_n = n;
	return several;
}

// Too much of it waits to be sent, or a call to be answered: nothing more is read.
static bool is_paused(const struct connection *c)
{
	return c->n_output > OUTPUT_PAUSE || c->call;
}

static void bytes_sent(struct connection *c, size_t n)
{
	bool paused = is_paused(c);
	c->output_deadline_ms = clock_ms() + c->context->settings.write_timeout_ms;
	while (n) {
		struct connection_output *o = c->output;
		size_t k = n < o->n - o->n_sent ? n : o->n - o->n_sent;
		o->n_sent += k;
		c->n_output -= k;
		n -= k;
		if (o->n_sent == o->n)
			output_drop(c);
	}
	if (paused && !is_paused(c) && c->input_deadline_ms)      // a frame is not late while it is not read
		c->input_deadline_ms = clock_ms() + c->context->settings.body_timeout_ms;
}

void connection_write(struct connection *c)
{
	uint8_t several[SEVERAL_BYTES];
	if (!transport_is_greeted(&c->transport)) {
		connection_read(c);
		return;
	}
	while (c->output && c->state != CONNECTION_CLOSED && c->n_turn < WRITE_SHARE) {
		size_t n, share = WRITE_SHARE - c->n_turn;
		const uint8_t *bytes = next_bytes(c, several, &n);
		ssize_t sent = transport_write(&c->transport, bytes, n < share ? n : share, NULL);
		if (sent == -EAGAIN)
			return;
		if (sent < 0) {
			connection_close(c);
			return;
		}
		c->n_turn += (size_t)sent;
		bytes_sent(c, (size_t)sent);
	}
	if (!c->output && c->state != CONNECTION_CLOSED)
		output_ended(c);
}

// Before TLS's handshake is over there is nobody to whom the reason could be said.
void connection_fail(struct connection *c, const struct error *e)
{
	if (!transport_is_greeted(&c->transport)) {
		connection_close(c);
		return;
	}
	connection_send_error(c, 0, FRAME_WHOLE_REQUEST, e);
	connection_finish(c);
}

static void complain(struct connection *c, const struct error *why)
{
	struct connection_complaints *told = c->context->complaints;
	uint64_t now = clock_ms();
	char who[ADDRESS_TEXT];
	if (now < told->next_ms) {
		told->n_untold++;
		return;
	}
	address_of_peer(c->transport.fd, who);
	log_warning("socket: no TLS with %s: %s%s", who, why->message, told->n_untold ? " (and others before)" : "");
	*told = (struct connection_complaints){.next_ms = now + COMPLAINT_MS};
}

// Bytes from the socket into `to`; 0 when there are none now or the connection ended.
static size_t receive_now(struct connection *c, void *to, size_t n)
{
	struct error err = {0};
	bool greeted = transport_is_greeted(&c->transport);
	ssize_t k = transport_read(&c->transport, to, n, &err);
	if (k > 0)
		return (size_t)k;
	if (k < 0 && k != -EAGAIN && !greeted)
		complain(c, &err);
	if (k != -EAGAIN)
		connection_close(c);
	return 0;
}

// The same, but what is small comes out of what is read ahead: so a small frame costs one call, not one for its header, one for its body
// and one to learn that there is no more.
static size_t receive(struct connection *c, void *to, size_t n)
{
	if (!c->n_ahead && n >= sizeof c->ahead)
		return receive_now(c, to, n);
	bool drained = c->drained;
	c->drained = false;
	if (!c->n_ahead && !drained) {
		c->ahead_at = 0;
		c->n_ahead = receive_now(c, c->ahead, sizeof c->ahead);
		c->drained = c->n_ahead && c->n_ahead < sizeof c->ahead && !c->transport.session;
	} else if (c->n_ahead) {
		c->drained = drained;
	}
	n = n < c->n_ahead ? n : c->n_ahead;
	memcpy(to, c->ahead + c->ahead_at, n);
	c->ahead_at += n;
	c->n_ahead -= n;
	return n;
}

static size_t read_header(struct connection *c)
{
	struct error err = {0};
	size_t n = receive(c, c->header + c->n_header, FRAME_HEADER_BYTES - c->n_header);
	uint32_t max_body = c->state == CONNECTION_HELLO ? HELLO_MAX_BODY : c->max_body;
	if (n && c->state == CONNECTION_OPEN && !c->n_header)
		c->input_deadline_ms = clock_ms() + c->context->settings.body_timeout_ms;
	c->n_header += n;
	if (c->n_header == FRAME_HEADER_BYTES && frame_decode(c->header, max_body, &c->frame, &err))
		connection_fail(c, &err);
	return n;
}

static int body_reserve(struct connection *c, struct error *err)
{
	size_t capacity = c->body_capacity ? 2 * c->body_capacity : FIRST_BODY_BYTES;
	capacity = capacity < c->frame.body_bytes ? capacity : c->frame.body_bytes;
	int r = service_hold(c->context->service, &c->body_held, capacity, err);
	if (r)
		return r;
	uint8_t *body = realloc(c->body, capacity);
	if (!body)
		return error_set(err, ERROR_MEMORY, "frame", "no memory for a body of %u bytes", c->frame.body_bytes);
	c->body = body;
	c->body_capacity = capacity;
	return 0;
}

// The rest of a body is dropped, where the frame's end is known and the connection's other requests go on.
static void refuse(struct connection *c, const struct error *e)
{
	c->refused = connection_refuse(c, &c->frame, e);
	if (c->refused)
		body_free(c);
	else if (c->state < CONNECTION_CLOSING)
		connection_fail(c, e);
}

static size_t read_body(struct connection *c)
{
	struct error err = {0};
	uint8_t dropped[4096];
	size_t left = c->frame.body_bytes - c->n_body;
	if (!c->refused && c->n_body == c->body_capacity && body_reserve(c, &err))
		refuse(c, &err);
	if (c->state >= CONNECTION_CLOSING)
		return 0;
	size_t n = c->refused ? receive(c, dropped, left < sizeof dropped ? left : sizeof dropped)
		: receive(c, c->body + c->n_body, c->body_capacity - c->n_body);
	if (c->state != CONNECTION_CLOSED)
		c->n_body += n;
	return n;
}

// Up to a fair share too: who sends faster than it is dropped would never let us go.
static void drop_input(struct connection *c)
{
	uint8_t bytes[4096];
	size_t n = 1;
	for (size_t share = 0; n && share < READ_SHARE && c->state == CONNECTION_CLOSING; share += n)
		n = receive(c, bytes, sizeof bytes);
}

void connection_read(struct connection *c)
{
	struct error err = {0};
	size_t share = 0, n = 1;
	double until = clock_seconds() + READ_SECONDS;
	while (n && share < READ_SHARE && !is_paused(c) && c->state < CONNECTION_CLOSING) {
		bool have_header = c->n_header == FRAME_HEADER_BYTES;
		if (!have_header)
			n = read_header(c);
		else if (c->n_body < c->frame.body_bytes)
			n = read_body(c);
		share += n;
		if (c->state >= CONNECTION_CLOSING || c->n_header < FRAME_HEADER_BYTES || c->n_body < c->frame.body_bytes)
			continue;
		if (!c->refused && frame_check_body(&c->frame, c->body, &err)) {
			connection_fail(c, &err);
			return;
		}
		c->input_deadline_ms = 0;
		if (!c->refused)
			connection_frame(c, &c->frame, c->body);
		if (c->state < CONNECTION_CLOSING)
			body_done(c);
		if (clock_seconds() >= until)
			break;
	}
	if (c->state == CONNECTION_CLOSING)
		drop_input(c);
}

void connection_goaway(struct connection *c)
{
	if (c->state == CONNECTION_OPEN) {
		connection_send_plain(c, FRAME_GOAWAY, 0, NULL, 0);
		connection_write(c);
	} else if (c->state == CONNECTION_HELLO) {
		struct error err = {0};
		error_set(&err, ERROR_UNAVAILABLE, NULL, "the server is stopping");
		connection_fail(c, &err);
	}
}

void connection_check_deadlines(struct connection *c, uint64_t now_ms)
{
	struct error err = {0};
	if (c->output_deadline_ms && now_ms >= c->output_deadline_ms) {
		connection_close(c);
	} else if (c->input_deadline_ms && now_ms >= c->input_deadline_ms && !is_paused(c)) {
		if (c->state == CONNECTION_CLOSING) {
			connection_close(c);
			return;
		}
		error_set(&err, ERROR_DEADLINE, "frame", "the frame did not come in time");
		connection_fail(c, &err);
	}
}

bool connection_wants_read(const struct connection *c)
{
	return c->state != CONNECTION_CLOSED && !transport_wants_write(&c->transport) &&
		(!is_paused(c) || c->state == CONNECTION_CLOSING);
}

bool connection_wants_write(const struct connection *c)
{
	return c->state != CONNECTION_CLOSED && (c->output || transport_wants_write(&c->transport) ||
						 (c->state == CONNECTION_CLOSING && !c->shut));
}

bool connection_has_input(const struct connection *c)
{
	return connection_wants_read(c) && (c->n_ahead || transport_has_input(&c->transport));
}

// Bytes that are ours until the client's kernel has them: were the descriptor closed, a word of the client's in between would be answered
// with a reset, and they were gone. The other end of a unix socket has them at once.
static bool is_on_its_way(const struct connection *c)
{
	int n = 0;
	return c->state != CONNECTION_CLOSED && !address_is_unix(c->transport.fd) && ioctl(c->transport.fd, SIOCOUTQ, &n) == 0 && n > 0;
}

bool connection_is_busy(const struct connection *c)
{
	return c->n_asks || c->call || c->output || c->state == CONNECTION_CLOSING || is_on_its_way(c);
}

bool connection_is_dead(const struct connection *c)
{
	return c->state == CONNECTION_CLOSED && !c->n_asks && !c->call;
}
