// SPDX-License-Identifier: Apache-2.0
// The connection's life, and waiting: everything that blocks goes through client_wait or client_flush.
#include "clients/client.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cursor.h"
#include "config.h"

#define DEFAULT_CONNECT_TIMEOUT_MS 10000
#define DEFAULT_TIMEOUT_MS 60000
#define DEFAULT_MAX_BODY (256u << 20)

const char *kd_version(void)
{
	return PACKAGE_VERSION;
}

int report(struct kd_error *to, const struct error *from, int r)
{
	if (to) {
		memset(to, 0, sizeof *to);
		snprintf(to->code, sizeof to->code, "%s", error_name(from->code));
		snprintf(to->field, sizeof to->field, "%s", from->field);
		snprintf(to->message, sizeof to->message, "%s", from->message);
	}
	return r;
}

struct pending *pending_new(struct kd_client *client, const void *owner, struct error *err)
{
	if (client->n_pending >= client->welcome.credits) {
		error_set(err, ERROR_OVERLOADED, NULL,
			  "%" PRIu32 " requests are in flight, the server allows no more: take their events first",
			  client->n_pending);
		return NULL;
	}
	struct pending *p = calloc(1, sizeof *p);
	if (!p) {
		error_set(err, ERROR_MEMORY, NULL, "no memory for a request");
		return NULL;
	}
	p->id = ++client->last_id;
	p->owner = owner;
	p->next = client->pending;
	client->pending = p;
	client->n_pending++;
	return p;
}

void pending_free(struct kd_client *client, struct pending *p)
{
	struct pending **at = &client->pending;
	while (*at && *at != p)
		at = &(*at)->next;
	if (*at) {
		*at = p->next;
		client->n_pending--;
	}
	free(p->keys);
	free(p->answered);
	free(p);
}

struct queued *queued_free(struct queued *q)
{
	if (q) {
		kd_answer_free(q->event.answer);
		frame_reply_done(&q->reply);
		free(q);
	}
	return NULL;
}

// The first event of the owner, taken off the queue.
static struct queued *take_event(struct kd_client *client, const void *owner)
{
	for (struct queued **at = &client->events; *at; at = &(*at)->next) {
		struct queued *q = *at;
		if (q->owner != owner)
			continue;
		*at = q->next;
		if (!*at)
			client->events_end = at;
		q->next = NULL;
		return q;
	}
	return NULL;
}

void pending_abandon(struct kd_client *client, const void *owner)
{
	for (struct pending *p = client->pending; p; p = p->next)
		if (p->owner == owner)
			p->abandoned = true;
	for (struct queued *q; (q = take_event(client, owner));)
		queued_free(q);
}

static bool owner_waits(const struct kd_client *client, const void *owner)
{
	for (const struct pending *p = client->pending; p; p = p->next)
		if (p->owner == owner && !p->abandoned)
			return true;
	return false;
}

static int64_t deadline_of(int timeout_ms)
{
	return timeout_ms < 0 ? INT64_MAX : clock_ms() + timeout_ms;
}

static int lose(struct kd_client *client, struct error *err, int r)
{
	client->broken = *err;
	return r;
}

// One step of the connection: 1 = a frame was received, 0 = flushed. A silence shorter than the deadline does not count when patient.
static int step(struct kd_client *client, bool flushing, int timeout_ms, bool patient, int64_t deadline, struct error *err)
{
	for (;;) {
		bool progress = false;
		int r = connection_step(&client->connection, flushing, deadline, &progress, err);
		if (r == -ETIMEDOUT && patient && progress) {
			deadline = deadline_of(timeout_ms);
			continue;
		}
		if (r == 1)
			r = receive_frame(client, err) ? lose(client, err, error_errno(err->code)) : 1;
		else if (r < 0 && r != -ETIMEDOUT)
			lose(client, err, r);
		return r;
	}
}

int client_flush(struct kd_client *client, struct error *err)
{
	int r = 1;
	while (r == 1)
		r = step(client, true, client->timeout_ms, true, deadline_of(client->timeout_ms), err);
	return r == -ETIMEDOUT ? lose(client, err, r) : r;    // half a frame may be out: nothing else can follow it
}

int client_wait(struct kd_client *client, const void *owner, int timeout_ms, bool patient, struct queued **ret_event, struct error *err)
{
	int64_t deadline = deadline_of(timeout_ms);
	for (;;) {
		*ret_event = take_event(client, owner);
		if (*ret_event)
			return 0;
		if (client->broken.code) {
			*err = client->broken;
			return error_errno(err->code);
		}
		if (!owner_waits(client, owner)) {
			error_set(err, ERROR_NOT_FOUND, NULL, "nothing is in flight");
			return -ENODATA;
		}
		int r = step(client, false, timeout_ms, patient, deadline, err);
		if (r == -ETIMEDOUT && !client->broken.code)
			return r;
		if (patient)
			deadline = deadline_of(timeout_ms);
	}
}

int client_wait_credit(struct kd_client *client, struct error *err)
{
	while (client->n_pending >= client->welcome.credits) {
		int r = step(client, false, client->timeout_ms, true, deadline_of(client->timeout_ms), err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int send_hello(struct kd_client *client, const struct kd_options *options, struct error *err)
{
	struct frame_hello hello = {.token = ""};
	uint8_t body[FRAME_TOKEN_MAX + 64];
	struct writer w = writer_init(body, sizeof body);
	if (options->token && strlen(options->token) > FRAME_TOKEN_MAX)
		return error_set(err, ERROR_INVALID, "token", "longer than %d characters", FRAME_TOKEN_MAX);
	if (options->token)
		strcpy(hello.token, options->token);
	if (options->teacher && content_id_from_hex(options->teacher, &hello.teacher))
		return error_set(err, ERROR_INVALID, "teacher", "64 hexadecimal digits are expected");
	frame_hello_encode(&hello, &w);
	return connection_append(&client->connection, FRAME_HELLO, 0, body, w.position, err);
}

// The server's first frame: welcome, or the reason why not.
static int read_welcome(struct kd_client *client, const struct frame *f, const uint8_t *body, struct error *err)
{
	struct frame_error refusal;
	if (f->kind == FRAME_WELCOME)
		return frame_welcome_decode(body, f->body_bytes, &client->welcome, err);
	if (f->kind != FRAME_ERROR)
		return error_set(err, ERROR_CORRUPT, NULL, "the server broke the protocol: %s before welcome", frame_kind_name(f->kind));
	int r = frame_error_decode(body, f->body_bytes, &refusal, err);
	if (r)
		return r;
	*err = refusal.error;
	return error_errno(err->code);
}

static int greet(struct kd_client *client, const struct kd_options *options, int64_t deadline, struct error *err)
{
	int r = send_hello(client, options, err);
	if (!r)
		r = connection_step(&client->connection, false, deadline, NULL, err);
	if (r < 0)
		return r;
	struct frame f = client->connection.frame;
	uint8_t *body = connection_release(&client->connection);
	r = read_welcome(client, &f, body, err);
	free(body);
	if (r)
		return r;
	const struct frame_welcome *w = &client->welcome;
	client->server = (struct kd_server){
		.vocab_size = w->limits.vocab_size, .max_tokens = w->limits.max_tokens, .max_top_k = w->limits.max_top_k,
		.max_sequences = w->max_sequences, .max_body_bytes = w->max_body_bytes, .credits = w->credits,
	};
	content_id_to_hex(&w->teacher, client->server.teacher);
	if (options->teacher && strcasecmp(options->teacher, client->server.teacher) != 0)
		return error_set(err, ERROR_CONFLICT, "teacher", "the server's teacher is %s", client->server.teacher);
	return 0;
}

int kd_open(const struct kd_options *options, struct kd_client **ret_client, struct kd_error *err)
{
	struct error why = {0};
	int connect_ms = options->connect_timeout_ms ? options->connect_timeout_ms : DEFAULT_CONNECT_TIMEOUT_MS;
	int64_t deadline = deadline_of(connect_ms);
	struct kd_client *client = calloc(1, sizeof *client);
	if (!client)
		return report(err, &why, error_set(&why, ERROR_MEMORY, NULL, "no memory for a connection"));
	client->connection.fd = -1;
	client->events_end = &client->events;
	client->timeout_ms = options->timeout_ms ? options->timeout_ms : DEFAULT_TIMEOUT_MS;
	int r = connection_open(options->address, options->max_body_bytes ? options->max_body_bytes : DEFAULT_MAX_BODY, deadline,
				&client->connection, &why);
	if (!r)
		r = greet(client, options, deadline, &why);
	if (r) {
		kd_close(client);
		return report(err, &why, r);
	}
	*ret_client = client;
	return 0;
}

void kd_close(struct kd_client *client)
{
	if (!client)
		return;
	while (client->pending)
		pending_free(client, client->pending);
	for (struct queued *q = client->events; q;) {
		struct queued *next = q->next;
		queued_free(q);
		q = next;
	}
	connection_done(&client->connection);
	free(client);
}

const struct kd_server *kd_server(const struct kd_client *client)
{
	return &client->server;
}

bool kd_is_draining(const struct kd_client *client)
{
	return client->draining;
}

int kd_fd(const struct kd_client *client)
{
	return client->connection.fd;
}

int kd_ping(struct kd_client *client, double *ret_ms, struct kd_error *err)
{
	struct error why = client->broken;
	if (why.code)
		return report(err, &why, error_errno(why.code));
	int64_t begin = clock_ms();
	client->ping_id = ++client->last_id;
	client->ponged = false;
	int r = connection_append(&client->connection, FRAME_PING, client->ping_id, "kdserved", 8, &why);
	if (!r)
		r = client_flush(client, &why);
	while (!r && !client->ponged) {
		r = step(client, false, client->timeout_ms, true, deadline_of(client->timeout_ms), &why);
		r = r == 1 ? 0 : r;
	}
	if (!r && ret_ms)
		*ret_ms = (double)(clock_ms() - begin);
	return r ? report(err, &why, r) : 0;
}
