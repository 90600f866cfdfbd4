// SPDX-License-Identifier: Apache-2.0
// One client of the binary door from its first byte to its last: the real connection, the real service and its budget, over a socket pair;
// the teacher is a list of items that come back when the input says so, and the desk a place for the one call that may be there. Input:
// settings, then steps (enum step): bytes cut anywhere, frames with their checksums right, the teacher's answers, a client that takes
// slowly or leaves, time that passes. Whatever happens, the client hears what conversation.h allows, every question of an open connection
// is answered to its end, and nothing stays reserved.
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/crc32c.h"
#include "common/error.h"
#include "common/frame.h"
#include "common/record.h"
#include "daemon/clock.h"
#include "daemon/queue.h"
#include "daemon/server/auth.h"
#include "daemon/server/connection.h"
#include "daemon/server/control.h"
#include "daemon/server/desk.h"
#include "daemon/server/service.h"
#include "daemon/teacher/generation.h"
#include "daemon/teacher/request.h"
#include "daemon/teacher/teacher.h"
#include "tests/fuzz/conversation.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/letters.h"

#define MAX_WAITING 256
#define MAX_SEQUENCES 8
#define MAX_FRAMES 512                 // of one input
#define QUIET (1 << 7)                 // of a step: nothing else happens before the next

enum step { STEP_FRAME, STEP_RAW, STEP_TEACH, STEP_TAKE, STEP_TIME, STEP_GOAWAY, STEP_LEAVE, STEP_TOKENS };

struct bytes { const uint8_t *at, *end; };

// ---- the teacher, and what is not looked at

struct teacher { enum teacher_state state; struct teacher_info infos[2]; struct request_item *waiting[MAX_WAITING]; size_t n_waiting; };

enum teacher_state teacher_state(const struct teacher *t) { return t->state; }
const struct tokenizer *teacher_tokenizer(const struct teacher *t) { (void)t; return letters(); }

const struct teacher_info *teacher_infos(const struct teacher *t, uint32_t *ret_n)
{
	*ret_n = 2;
	return t->infos;
}

void teacher_submit(struct teacher *t, struct request_item *chain)
{
	for (struct queue_item *next, *item = &chain->link; item; item = next) {
		next = item->next;
		item->next = NULL;             // as the door pushes it by itself
		if (t->n_waiting == MAX_WAITING)
			abort();
		t->waiting[t->n_waiting++] = (struct request_item *)item;
	}
}

void control_call(struct service *s, struct principal *principal, const char *method, const char *path, const char *body, size_t n,
		  struct control_reply *ret_reply)
{
	(void)s, (void)principal, (void)body, (void)n;
	*ret_reply = (struct control_reply){.status = 200};
	buffer_printf(&ret_reply->body, "{\"asked\":\"%s %s\"}", method, path);
}

void control_refuse(struct control_reply *ret_reply, int status, const struct error *e, enum reply_errors shape)
{
	(void)status, (void)shape;
	ret_reply->status = error_http_status(e->code);
}

enum reply_errors control_errors(const char *path) { (void)path; return REPLY_ERRORS_OWN; }

// The body's length says where a call goes: it is answered on the spot, at the desk, or refused.
static struct desk_job *at_desk;

bool desk_has_time_to_call(const struct desk *d, const char *method, const char *path, uint64_t n_bytes)
{
	(void)d, (void)method, (void)path;
	return n_bytes % 3 == 0;
}

uint64_t desk_call_bytes(const char *method, const char *path, uint64_t n_body)
{
	(void)method, (void)path;
	return n_body;
}

int desk_check_room(struct desk *d, const void *who, uint64_t n_body, struct error *err)
{
	(void)d, (void)who;
	return n_body % 3 == 1 ? 0 : error_set(err, ERROR_OVERLOADED, NULL, "no room");
}

void desk_give(struct desk *d, struct desk_job *job)
{
	(void)d;
	if (at_desk)
		abort();
	at_desk = job;
}

static void desk_work(void)
{
	struct desk_job *job = at_desk;
	at_desk = NULL;
	if (job) {
		job->work(job);
		connection_worked(job);
	}
}

// ---- the world of one input

struct scene {
	struct bytes in;
	struct teacher *teacher;
	struct service *service;
	struct connection_context context;
	struct connection *connection;
	struct conversation talk;
	int client;                    // -1 = left
	uint32_t n_frames;
	bool leaving;                  // sends no more
};

static void require(bool holds)
{
	if (!holds)
		abort();
}

static uint32_t next(struct scene *s)
{
	return s->in.at < s->in.end ? *s->in.at++ : 0;
}

static struct teacher *teacher_make(void)
{
	static struct teacher t;
	for (int i = 0; i < 2; i++) {
		struct teacher_info *info = &t.infos[i];
		memset(&info->fingerprint, 0x11 * (i + 1), sizeof info->fingerprint);
		strcpy(info->name, i ? "b" : "a");
		info->architecture = (struct architecture){.vocab_size = LETTERS_VOCABULARY, .n_layers = 2, .width = 4, .n_heads = 2,
			.n_kv_heads = 1, .head_size = 2, .context_length = 64};
		info->max_tokens = 64;
		info->max_top_k = LETTERS_VOCABULARY;
	}
	return &t;
}

static struct service *service_make(struct teacher *t)
{
	static struct service *s;
	struct auth *auth = NULL;
	struct service_options o = {.max_sequences = MAX_SEQUENCES, .max_gather = 8, .max_draws = 8, .max_spans = 8, .max_samples = 4,
		.cache_tokens = 256, .limits = {4, 256, 1 << 20}};
	if (!s) {
		require(auth_open(NULL, &auth, NULL) == 0);
		o.auth = auth;
		require(service_open(&o, t, NULL, NULL, &s, NULL) == 0);
	}
	return s;
}

// Any record will do: the connection does not look into it.
static struct record *record_some(void)
{
	static struct record *record;
	struct content_id teacher = {{1}};
	struct sequence s = {(uint32_t[]){1, 2}, 2};
	struct query_span span = {1, 2};
	struct query q;
	struct record_rows *rows = NULL;
	if (!record) {
		query_init(&q);
		q.n_spans = 1;
		q.spans = &span;
		require(query_check(&q, &s, &(struct query_limits){.max_tokens = 2, .max_spans = 1, .vocab_size = 5}, NULL, NULL) == 0);
		require(record_rows_new(&teacher, 5, &s, &q, &rows, NULL) == 0);
		rows->span_sums[0] = -1;
		require(record_encode(rows, &record, NULL) == 0);
		record_rows_free(rows);
	}
	return record_ref(record);
}

// ---- the teacher's side

static void generation_grow(struct generation *g, const struct generation_query *q, uint32_t token)
{
	uint32_t n = atomic_load(&g->n_tokens);
	size_t n_bytes = 0;
	bool special = false;
	if (n == g->capacity)
		return;
	token = n < q->n_forced ? q->forced[n] : token % LETTERS_VOCABULARY;
	g->tokens[n] = token;
	g->logprobs[n] = g->sampled_logprobs[n] = -1;
	g->lse[n] = 1;
	for (uint32_t i = 0; i < q->top_k; i++) {
		g->ids[(size_t)n * q->top_k + i] = i;
		g->logits[(size_t)n * q->top_k + i] = -(float)i;
	}
	tokenizer_bytes(letters(), token, &n_bytes, &special);
	atomic_store(&g->n_text, atomic_load(&g->n_text) + (special ? 0 : n_bytes));
	atomic_store(&g->n_tokens, n + 1);
}

static void teach_tokens(struct scene *s, uint32_t which, uint32_t token)
{
	struct teacher *t = s->teacher;
	struct request_item *item = t->n_waiting ? t->waiting[which % t->n_waiting] : NULL;
	if (!item || !item->generation)
		return;
	generation_grow(item->generation, item->request->generate, token);
	if (item->request->generate->stream)
		request_item_tell(item, false);
}

static void answer(struct request_item *item, uint32_t how)
{
	bool cancelled = atomic_load(&item->request->cancelled);
	if (cancelled && how & 1) {
		error_set(&item->error, ERROR_CANCELLED, NULL, "nobody waits for it");
	} else if (how % 8 == 2) {
		error_set(&item->error, ERROR_INTERNAL, NULL, "the device failed");
	} else if (item->generation) {
		struct generation *g = item->generation;
		const struct generation_query *q = item->request->generate;
		while (atomic_load(&g->n_tokens) < q->n_forced + (how >> 3 & 1))
			generation_grow(g, q, how);
		g->finish = how & 4 ? GENERATION_STOP : GENERATION_LENGTH;
		g->stop_id = how & 4 ? 4 : -1;
		g->stop = -1;
	} else {
		item->record = record_some();
		item->not_finite = how & 4;
	}
	item->request->computed(item);
}

static void teach(struct scene *s, uint32_t which, uint32_t how)
{
	struct teacher *t = s->teacher;
	desk_work();
	if (!t->n_waiting)
		return;
	which %= (uint32_t)t->n_waiting;
	struct request_item *item = t->waiting[which];
	t->waiting[which] = t->waiting[--t->n_waiting];
	answer(item, how);
}

// ---- the client's side

static void client_take(struct scene *s, size_t most)
{
	uint8_t bytes[4096];
	ssize_t n = 1;
	while (s->client >= 0 && most && n > 0) {
		n = recv(s->client, bytes, most < sizeof bytes ? most : sizeof bytes, MSG_DONTWAIT);
		if (n > 0)
			conversation_received(&s->talk, bytes, (size_t)n);
		most -= n > 0 ? (size_t)n : 0;
	}
}

static void turn(struct scene *s);

static void client_send(struct scene *s, const uint8_t *bytes, size_t n)
{
	for (int tries = 0; n && tries < 64; tries++) {
		ssize_t k = s->client < 0 || s->leaving ? -1 : send(s->client, bytes, n, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (k < 0 && (errno != EAGAIN || s->client < 0 || s->leaving))
			return;
		if (k < 0) {
			client_take(s, SIZE_MAX);      // full: the server does not read before its answers are taken
			turn(s);
			continue;
		}
		conversation_sent(&s->talk, bytes, (size_t)k);
		bytes += k;
		n -= (size_t)k;
	}
}

static void send_raw(struct scene *s)
{
	size_t n = next(s), left = (size_t)(s->in.end - s->in.at);
	n = n < left ? n : left;
	client_send(s, s->in.at, n);
	s->in.at += n;
}

// Kind, id, length (2), where it is cut, body.
static void send_frame(struct scene *s)
{
	uint8_t kind = (uint8_t)(next(s) & 15), id = (uint8_t)(next(s) & 7);
	uint32_t n = next(s), cut;
	n |= next(s) << 8;
	cut = next(s);
	n = n < (size_t)(s->in.end - s->in.at) ? n : (uint32_t)(s->in.end - s->in.at);
	struct frame f = {.kind = kind, .request_id = id, .body_bytes = n, .body_crc = n ? crc32c(0, s->in.at, n) : 0};
	uint8_t *bytes = malloc(FRAME_HEADER_BYTES + n);
	require(bytes != NULL);
	frame_encode(&f, bytes);
	if (n)
		memcpy(bytes + FRAME_HEADER_BYTES, s->in.at, n);
	s->in.at += n;
	size_t first = cut < FRAME_HEADER_BYTES + n ? cut : FRAME_HEADER_BYTES + n;
	client_send(s, bytes, first);
	if (cut)
		turn(s);
	client_send(s, bytes + first, FRAME_HEADER_BYTES + n - first);
	free(bytes);
}

static void client_leave(struct scene *s, bool at_once)
{
	if (s->client < 0)
		return;
	s->leaving = true;
	if (!at_once) {
		shutdown(s->client, SHUT_WR);
		return;
	}
	close(s->client);
	s->client = -1;
}

// ---- the door's side: one turn of its loop

static void take_returned(struct scene *s)
{
	struct queue_item *item;
	while ((item = queue_pop(s->context.returned, false)))
		connection_returned((struct request_item *)item);
}

static void turn(struct scene *s)
{
	struct connection *c = s->connection;
	c->n_turn = 0;
	if (connection_wants_write(c))
		connection_write(c);
	if (connection_wants_read(c))
		connection_read(c);
	take_returned(s);
}

static void step(struct scene *s)
{
	uint32_t what = next(s);
	switch ((enum step)(what & 7)) {
	case STEP_FRAME:
		if (s->n_frames++ < MAX_FRAMES)
			send_frame(s);
		break;
	case STEP_RAW: send_raw(s); break;
	case STEP_TEACH: teach(s, next(s), next(s)); break;
	case STEP_TAKE: client_take(s, 1 + 8 * (size_t)next(s)); break;
	case STEP_TIME: connection_check_deadlines(s->connection, clock_ms() + 50 * next(s)); break;
	case STEP_GOAWAY: connection_goaway(s->connection); break;
	case STEP_LEAVE: client_leave(s, next(s) & 1); break;
	case STEP_TOKENS: teach_tokens(s, next(s), next(s)); break;
	}
	if (!(what & QUIET))
		turn(s);
}

// A turn ends with its share, a slow one after a frame.
static bool has_more(const struct connection *c)
{
	int n = 0;
	return connection_wants_read(c) && (connection_has_input(c) || (ioctl(c->transport.fd, FIONREAD, &n) == 0 && n > 0));
}

// Everything is answered and taken. What still waits then of an open connection, waits for ever.
static void settle(struct scene *s)
{
	for (int round = 0; round < 64; round++) {
		do {
			while (s->teacher->n_waiting || at_desk)
				teach(s, 0, 0);
			turn(s);
			client_take(s, SIZE_MAX);
		} while (at_desk || has_more(s->connection));      // the next call was read behind the one that was there
	}
	struct connection *c = s->connection;
	if (c->state == CONNECTION_OPEN)
		require(!s->talk.failed && !conversation_n_open(&s->talk) && !c->n_asks && !c->output && !c->n_output);
	require(c->state == CONNECTION_OPEN || s->leaving || s->talk.failed || c->state == CONNECTION_HELLO ||
		c->state == CONNECTION_CLOSED);
}

static void scene_end(struct scene *s)
{
	struct service_stats stats;
	connection_close(s->connection);
	while (s->teacher->n_waiting || at_desk)
		teach(s, 0, 0);
	take_returned(s);
	client_take(s, SIZE_MAX);
	require(connection_is_dead(s->connection) && !s->connection->n_output);
	connection_free(s->connection);
	service_stats(s->service, &stats);
	require(!stats.doors[REQUEST_SOCKET].in_flight && !stats.reserved.requests && !stats.reserved.tokens && !stats.reserved.bytes &&
		!stats.held_bytes);
	queue_close(s->context.returned);
	if (s->client >= 0)
		close(s->client);
	conversation_done(&s->talk);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct scene s;
	struct connection_complaints complaints = {0};
	int ends[2], small = 1;
	s = (struct scene){.in = {data, data + size}, .teacher = teacher_make()};
	s.service = service_make(s.teacher);
	uint32_t settings = next(&s);
	s.teacher->state = settings & 0xc0 ? TEACHER_READY : TEACHER_LOADING;
	s.context = (struct connection_context){.service = s.service, .complaints = &complaints, .settings = {
		.max_body = 4096u << (settings >> 4 & 3), .max_json = 8192, .credits = 1 + (settings & 3),
		.header_timeout_ms = 3000, .body_timeout_ms = 6000, .write_timeout_ms = 9000}};
	require(queue_open(NULL, -1, &s.context.returned) == 0 &&
		socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
	if (settings & 4)
		setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);      // the least there is
	s.client = ends[1];
	conversation_init(&s.talk);
	require(connection_new(&s.context, ends[0], false, &s.connection) == 0);
	while (s.in.at < s.in.end)
		step(&s);
	settle(&s);
	scene_end(&s);
	return 0;
}
