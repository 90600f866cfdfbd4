// SPDX-License-Identifier: Apache-2.0
// libkdclient and a hostile server: a connection as kd_open leaves it, one question asked (first byte: what), and then whatever the input
// holds: raw bytes, frames with their checksums right, true answers in the wrong place. The caller hears of each sequence once, gets only
// answers to what was asked, and of everything else the reason why the connection is lost.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clients/client.h"
#include "common/crc32c.h"
#include "common/cursor.h"
#include "common/record_short.h"
#include "tests/fuzz/fuzz.h"

#define N_SEQUENCES 2
#define N_TOKENS 3
#define KIND_RAW 0
#define KIND_TRUE_ANSWER 15
#define MAX_STEPS 256

struct bytes { const uint8_t *at, *end; };

static const uint32_t tokens[N_SEQUENCES][N_TOKENS] = {{1, 2, 3}, {4, 5, 6}};
static const struct kd_span spans[] = {{1, 3}, {2, 3}};
static const struct query_limits limits = {
	.max_tokens = 64, .max_top_k = 8, .max_gather = 8, .max_draws = 8, .max_spans = 8, .vocab_size = 50};

static void require(bool holds)
{
	if (!holds)
		abort();
}

static uint32_t next(struct bytes *b)
{
	return b->at < b->end ? *b->at++ : 0;
}

static struct kd_client *client_make(int fd)
{
	struct kd_client *c = calloc(1, sizeof *c);
	require(c != NULL);
	connection_init(&c->connection);
	require(transport_open(fd, NULL, NULL, &c->connection.transport, NULL) == 0);
	c->connection.max_body = 1 << 16;
	c->events_end = &c->events;
	c->timeout_ms = 1000;
	c->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	require(c->wake_fd >= 0);
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->callbacks.work, NULL);
	c->welcome = (struct frame_welcome){.teacher = {{7}}, .limits = limits, .max_sequences = 8,
		.max_body_bytes = 1 << 16, .credits = 4};
	c->server = (struct kd_server){.vocab_size = 50, .max_tokens = 64, .max_top_k = 8, .max_sequences = 8, .max_body_bytes = 1 << 16,
		.credits = 4, .max_gather = 8, .max_draws = 8, .max_spans = 8};
	return c;
}

// ---- the server

static void server_send(int fd, const void *bytes, size_t n)
{
	require(n == 0 || send(fd, bytes, n, MSG_NOSIGNAL) == (ssize_t)n);
}

static void server_send_frame(int fd, uint8_t kind, uint64_t id, const uint8_t *body, size_t n)
{
	struct frame f = {.kind = kind, .request_id = id, .body_bytes = (uint32_t)n, .body_crc = n ? crc32c(0, body, n) : 0};
	uint8_t header[FRAME_HEADER_BYTES];
	frame_encode(&f, header);
	server_send(fd, header, sizeof header);
	server_send(fd, body, n);
}

static struct record *record_make(uint32_t i)
{
	struct content_id teacher = {{7}};
	struct sequence s = {(uint32_t *)(uintptr_t)tokens[i], N_TOKENS};
	struct query_span wanted[] = {{1, 3}, {2, 3}};
	struct record_rows *rows = NULL;
	struct record *record = NULL;
	struct query q;
	query_init(&q);
	q.n_spans = 2;
	q.spans = wanted;
	require(query_check(&q, &s, &limits, NULL, NULL) == 0 && record_rows_new(&teacher, 50, &s, &q, &rows, NULL) == 0);
	rows->span_sums[0] = rows->span_sums[1] = -1;
	require(record_encode(rows, &record, NULL) == 0);
	record_rows_free(rows);
	return record;
}

static void server_send_true_answer(int fd, uint64_t id, uint32_t of, uint32_t index, bool brief)
{
	static struct record *records[N_SEQUENCES];
	uint8_t body[1024];
	if (!records[of])
		records[of] = record_make(of);
	struct frame_answer m = {.index = index, .flags = brief ? FRAME_ANSWER_SHORT : FRAME_ANSWER_CACHED};
	m.record = record_bytes(records[of], &m.record_bytes);
	size_t n = brief ? record_short_bytes(records[of]) : m.record_bytes;
	require(n + FRAME_ANSWER_HEADER_BYTES <= sizeof body);
	struct writer w = writer_init(body, sizeof body);
	if (brief)
		m.record_bytes = 0;
	frame_answer_encode(&m, &w);
	if (brief)
		record_shorten(records[of], body + FRAME_ANSWER_HEADER_BYTES);
	server_send_frame(fd, FRAME_ANSWER, id, body, FRAME_ANSWER_HEADER_BYTES + n);
}

// Kind, id, then of a true answer whose and where; of anything else its length (2) and bytes.
static void server_step(struct bytes *in, int fd)
{
	uint8_t kind = (uint8_t)(next(in) & 15), id = (uint8_t)(next(in) & 3);
	if (kind == KIND_TRUE_ANSWER) {
		uint32_t v = next(in);
		server_send_true_answer(fd, id, v & 1, v >> 1 & 3, v & 8);
		return;
	}
	size_t n = next(in), left;
	n |= next(in) << 8;
	left = (size_t)(in->end - in->at);
	n = n < left ? n : left;
	if (kind == KIND_RAW)
		server_send(fd, in->at, n);
	else
		server_send_frame(fd, kind, id, in->at, n);
	in->at += n;
}

// ---- who asks

static void rows_check(struct kd_answer *answer, uint32_t index)
{
	const struct kd_rows *rows;
	if (kd_answer_rows(answer, &rows, NULL) == 0)
		require(rows->n_tokens == N_TOKENS && memcmp(rows->tokens, tokens[index], sizeof tokens[index]) == 0 && rows->n_spans == 2);
	kd_answer_free(answer);
}

// Events of two requests, each of two sequences.
static void try_score(struct kd_client *c)
{
	struct kd_query q = KD_QUERY_INIT;
	struct kd_request r = KD_REQUEST_INIT;
	struct kd_sequence sequences[N_SEQUENCES] = {
		{.tokens = tokens[0], .n_tokens = N_TOKENS}, {.tokens = tokens[1], .n_tokens = N_TOKENS}};
	uint64_t ids[2];
	unsigned seen[2] = {0}, ended[2] = {0};
	struct kd_event e;
	struct kd_error err;
	q.n_spans = 2;
	q.spans = spans;
	r.query = &q;
	r.sequences = sequences;
	r.n_sequences = N_SEQUENCES;
	for (int i = 0; i < 2; i++)
		if (kd_submit(c, &r, &ids[i], &err))
			return;
	while (kd_next(c, 0, &e, &err) == 0) {
		unsigned k = e.id == ids[1];
		require(e.id == ids[k] && !ended[k]);
		if (e.kind == KD_EVENT_DONE || e.kind == KD_EVENT_REQUEST_FAILED) {
			require(e.kind != KD_EVENT_DONE || seen[k] == 3);
			ended[k] = 1;
			continue;
		}
		require(e.index < N_SEQUENCES && !(seen[k] >> e.index & 1));
		seen[k] |= 1u << e.index;
		if (e.kind == KD_EVENT_ANSWER)
			rows_check(e.answer, e.index);
	}
	require(err.message[0] || (ended[0] && ended[1]));
}

static int piece_take(void *arg, const struct kd_piece *p)
{
	uint32_t *n = arg;
	require(p->index < 2 && p->first == n[p->index] && p->rows == 2);
	for (uint32_t i = 0; i < p->n; i++)
		n[2] += p->tokens[i] + (p->logprobs[i] < 0) + p->ids[2 * i];
	for (size_t i = 0; i < p->text_bytes; i++)
		n[2] += (unsigned char)p->text[i];
	n[p->index] += p->n;
	return 0;
}

static void try_generate(struct kd_client *c)
{
	struct kd_generation g = KD_GENERATION_INIT;
	struct kd_prompt prompts[] = {{tokens[0], N_TOKENS}, {tokens[1], N_TOKENS}};
	struct kd_error err;
	uint32_t n[3] = {0};
	g.prompts = prompts;
	g.n_prompts = 2;
	g.rows = 2;
	if (kd_generate(c, &g, piece_take, n, &err))
		require(err.message[0]);
}

static void try_call(struct kd_client *c)
{
	struct kd_error err;
	char *body = NULL;
	size_t n = 0;
	int status;
	if (kd_call(c, "GET", "/v1/status", NULL, 0, &status, &body, &n, &err) == 0)
		require(body && body[n] == '\0');
	else
		require(err.message[0]);
	free(body);
}

static void try_ping(struct kd_client *c)
{
	struct kd_error err;
	if (kd_ping(c, NULL, &err))
		require(err.message[0]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static void (*const tries[])(struct kd_client *) = {try_score, try_generate, try_call, try_ping};
	struct bytes in = {data, data + size};
	int ends[2], room = 1 << 20;
	if (size > 1 << 14)
		return 0;                      // all of it must fit into the socket
	require(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
	setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
	struct kd_client *c = client_make(ends[0]);
	uint32_t which = next(&in) & 3;
	for (int i = 0; i < MAX_STEPS && in.at < in.end; i++)
		server_step(&in, ends[1]);
	shutdown(ends[1], SHUT_WR);
	tries[which](c);
	(void)kd_is_draining(c);
	kd_close(c);
	close(ends[1]);
	return 0;
}
