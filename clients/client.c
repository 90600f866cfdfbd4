// SPDX-License-Identifier: Apache-2.0
// The connection's life.
#include "clients/client.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "clients/convert.h"
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

static int64_t deadline_of(int timeout_ms)
{
	return timeout_ms < 0 ? INT64_MAX : clock_ms() + timeout_ms;
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
	int r = received_decode_error(body, f->body_bytes, &refusal, err);
	if (r)
		return r;
	*err = refusal.error;
	return error_errno(err->code);
}

static int greet(struct kd_client *client, const struct kd_options *options, int64_t deadline, struct error *err)
{
	int r = send_hello(client, options, err);
	if (!r)
		r = connection_receive(&client->connection, deadline, err);
	if (r < 0)
		return r;
	struct frame f = client->connection.frame;
	const uint8_t *body = connection_release(&client->connection);
	r = read_welcome(client, &f, body, err);
	if (r)
		return r;
	const struct frame_welcome *w = &client->welcome;
	client->server = (struct kd_server){
		.vocab_size = w->limits.vocab_size, .max_tokens = w->limits.max_tokens, .max_top_k = w->limits.max_top_k,
		.max_sequences = w->max_sequences, .max_body_bytes = w->max_body_bytes, .credits = w->credits,
		.max_gather = w->limits.max_gather, .max_draws = w->limits.max_draws, .max_spans = w->limits.max_spans,
		.n_layers = w->limits.n_layers, .width = w->limits.width, .q_width = w->limits.q_width, .kv_width = w->limits.kv_width,
	};
	content_id_to_hex(&w->teacher, client->server.teacher);
	if (options->teacher && strcasecmp(options->teacher, client->server.teacher) != 0)
		return error_set(err, ERROR_CONFLICT, "teacher", "the server's teacher is %s", client->server.teacher);
	return 0;
}

static struct kd_client *client_new(const struct kd_options *options)
{
	struct kd_client *client = calloc(1, sizeof *client);
	if (!client)
		return NULL;
	connection_init(&client->connection);
	client->events_end = &client->events;
	client->timeout_ms = options->timeout_ms ? options->timeout_ms : DEFAULT_TIMEOUT_MS;
	client->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	pthread_mutex_init(&client->lock, NULL);
	pthread_cond_init(&client->callbacks.work, NULL);
	return client;
}

static int check_options(const struct kd_options *from, struct kd_options *ret, struct error *err)
{
	int r = convert_sized(ret, sizeof *ret, from, "options", err);
	if (!r && !ret->address)
		r = error_set(err, ERROR_INVALID, "server", "there is no address");
	if (!r && ret->flags)
		r = error_set(err, ERROR_INVALID, "flags", "unknown flags 0x%" PRIx32, ret->flags);
	return r;
}

int kd_open(const struct kd_options *asked, struct kd_client **ret_client, struct kd_error *err)
{
	struct error why = {0};
	struct kd_options o = KD_OPTIONS_INIT, *options = &o;
	int r = check_options(asked, options, &why);
	if (r)
		return report(err, &why, r);
	struct connection_peer peer = {options->address, options->ca, options->server_name};
	int connect_ms = options->connect_timeout_ms ? options->connect_timeout_ms : DEFAULT_CONNECT_TIMEOUT_MS;
	int64_t deadline = deadline_of(connect_ms);
	struct kd_client *client = client_new(options);
	if (!client)
		return report(err, &why, error_set(&why, ERROR_MEMORY, NULL, "no memory for a connection"));
	if (client->wake_fd < 0)
		r = error_system(&why, errno, NULL, "cannot make an eventfd");
	if (!r)
		r = connection_open(&client->connection, &peer, options->max_body_bytes ? options->max_body_bytes : DEFAULT_MAX_BODY,
				    deadline, &why);
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
	struct pending *p, *next_p;
	struct queued *q, *next_q;
	if (!client)
		return;
	callbacks_stop(client);
	for (p = client->pending; p; p = next_p) {
		next_p = p->next;
		pending_free(p);
	}
	for (q = client->events; q; q = next_q) {
		next_q = q->next;
		queued_free(q);
	}
	connection_done(&client->connection);
	if (client->wake_fd >= 0)
		close(client->wake_fd);
	pthread_cond_destroy(&client->callbacks.work);
	pthread_mutex_destroy(&client->lock);
	free(client);
}

const struct kd_server *kd_server(const struct kd_client *client)
{
	return &client->server;
}

bool kd_is_draining(const struct kd_client *client)
{
	return atomic_load(&client->draining);
}

int kd_fd(const struct kd_client *client)
{
	return client->connection.transport.fd;
}
