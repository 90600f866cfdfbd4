// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/fake_server.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/crc32c.h"
#include "common/cursor.h"
#include "common/record_short.h"

// A test's helper that cannot go on has nothing better to do.
static void must(bool good, const char *what)
{
	if (!good) {
		perror(what);
		abort();
	}
}

static bool read_all(int fd, void *to, size_t n)
{
	for (size_t filled = 0; filled < n;) {
		ssize_t got = recv(fd, (char *)to + filled, n - filled, 0);
		if (got <= 0)
			return false;
		filled += (size_t)got;
	}
	return true;
}

struct frame fake_server_read(struct fake_server *s, uint8_t **ret_body)
{
	uint8_t header[FRAME_HEADER_BYTES];
	struct frame f = {0};
	*ret_body = NULL;
	if (!read_all(s->fd, header, sizeof header))
		return f;
	must(frame_decode(header, 1 << 26, &f, NULL) == 0, "the client's header");
	*ret_body = malloc(f.body_bytes + 1);
	must(*ret_body != NULL, "malloc");
	if (!read_all(s->fd, *ret_body, f.body_bytes)) {
		free(*ret_body);
		*ret_body = NULL;
		return (struct frame){0};
	}
	must(frame_check_body(&f, *ret_body, NULL) == 0, "the client's body");
	return f;
}

void fake_server_write(struct fake_server *s, const void *bytes, size_t n)
{
	size_t piece = s->piece ? s->piece : n;
	for (size_t at = 0; at < n;) {
		ssize_t sent = send(s->fd, (const char *)bytes + at, n - at < piece ? n - at : piece, MSG_NOSIGNAL);
		if (sent < 0)
			return;    // the client hung up: that may be the test
		at += (size_t)sent;
	}
}

void fake_server_send(struct fake_server *s, uint8_t kind, uint64_t id, const void *body, size_t n)
{
	struct frame f = {.kind = kind, .request_id = id, .body_bytes = (uint32_t)n, .body_crc = crc32c(0, body, n)};
	uint8_t header[FRAME_HEADER_BYTES];
	frame_encode(&f, header);
	fake_server_write(s, header, sizeof header);
	fake_server_write(s, body, n);
}

// The fake teacher: the logit of id v is 4 - v at every position, the lse of row i is 5 + i, the token that follows has 2.
static void fill_row(struct record_rows *rows, uint32_t row)
{
	const struct query *q = &rows->query;
	uint32_t n_dense = q->n_keep ? q->n_keep : rows->vocab_size, n;
	rows->max_logit[row] = 4 - (q->n_keep ? (float)q->keep[0] : 0);
	for (uint32_t t = 0; t < q->n_temperatures; t++)
		rows->lse[row * q->n_temperatures + t] = 5 + (float)row;
	for (uint32_t i = 0; i < q->top_k; i++) {
		rows->ids[row * q->top_k + i] = q->n_keep ? q->keep[i] : i;
		rows->logits[row * q->top_k + i] = 4 - (float)rows->ids[row * q->top_k + i];
	}
	if (rows->n_top)
		rows->n_top[row] = q->top_k;
	for (uint32_t i = 0; rows->dense && i < n_dense; i++)
		rows->dense[(size_t)row * n_dense + i] = 4 - (float)(q->n_keep ? q->keep[i] : i);
	if (rows->own_logit)
		rows->own_logit[row] = row + 1 < rows->n_rows ? 2 : NAN;
	if (rows->entropy)
		rows->entropy[row] = 1.5f;
	if (rows->max_prob)
		rows->max_prob[row] = 0.5f;
	if (rows->sum_squares)
		rows->sum_squares[row] = 0.25f;
	if (rows->argmax)
		rows->argmax[row] = q->n_keep ? q->keep[0] : 0;
	if (rows->tail)
		rows->tail[row] = -1;
	const uint32_t *ids = q->gather.n_lists ? record_gather_ids(rows, row, &n) : NULL;
	for (uint32_t i = 0; ids && i < n; i++)
		rows->gathered[record_gather_at(rows, row) + i] = 4 - (float)ids[i];
}

// Every draw of a row falls on the first id that may be drawn.
static void fill_draws(struct record_rows *rows)
{
	const struct query *q = &rows->query;
	must(record_rows_reserve_draws(rows, rows->n_rows, NULL) == 0, "draws");
	for (uint32_t row = 0; row < rows->n_rows; row++) {
		rows->draw_starts[row + 1] = row + 1;
		rows->draw_ids[row] = q->draws.tail ? q->top_k : 0;
		rows->draw_counts[row] = q->draws.n;
		if (rows->draw_log_ratios)
			rows->draw_log_ratios[row] = 0.5f;
	}
}

static void fill_features(const struct fake_server *s, struct record_rows *rows)
{
	const struct query *q = &rows->query;
	uint32_t n_rows = q->pooling == QUERY_POOLING_NONE ? rows->n_rows : 1;
	for (uint32_t f = 0; f < q->n_features; f++) {
		const struct query_limits *l = &s->welcome.limits;
		uint8_t kind = q->features[f].kind;
		uint32_t width = kind <= QUERY_FEATURE_FINAL ? l->width : kind == QUERY_FEATURE_Q ? l->q_width : l->kv_width;
		must(record_rows_add_feature(rows, f, width, NULL) == 0, "feature");
		for (uint32_t i = 0; i < n_rows * width; i++)
			rows->features[f][i] = (float)i;
	}
}

struct record *fake_server_record(struct fake_server *s, const struct frame_score *score, uint32_t index)
{
	struct query q;
	struct query_part none = {0};
	struct record_rows *rows;
	struct record *record;
	must(query_resolve(&score->query, score->parts ? &score->parts[index] : &none, &score->sequences[index], &s->welcome.limits, "", &q,
			   NULL) == 0, "query");
	must(record_rows_new(&s->welcome.teacher, s->welcome.limits.vocab_size, &score->sequences[index], &q, &rows, NULL) == 0, "rows");
	for (uint32_t row = 0; query_has_rows(&q) && row < rows->n_rows; row++)
		fill_row(rows, row);
	if (q.draws.n)
		fill_draws(rows);
	for (uint32_t i = 0; i < q.n_spans; i++)
		rows->span_sums[i] = -3 * (float)(q.spans[i].end - q.spans[i].begin);
	fill_features(s, rows);
	must(record_encode(rows, &record, NULL) == 0, "record");
	record_rows_free(rows);
	query_done(&q);
	return record;
}

void fake_server_send_answer(struct fake_server *s, uint64_t id, const struct frame_score *score, uint32_t index, uint32_t as_index)
{
	struct record *record = fake_server_record(s, score, index);
	struct frame_answer answer = {.index = as_index, .flags = index % 2 ? FRAME_ANSWER_CACHED : 0};
	answer.record = record_bytes(record, &answer.record_bytes);
	uint8_t *brief = NULL;
	if (score->flags & FRAME_SCORE_SHORT && !s->whole_records) {
		brief = malloc(record_short_bytes(record));
		must(brief != NULL, "malloc");
		record_shorten(record, brief);
		answer.record = brief;
		answer.record_bytes = record_short_bytes(record);
		answer.flags |= FRAME_ANSWER_SHORT;
	}
	uint8_t *body = malloc(answer.record_bytes + 8);
	must(body != NULL, "malloc");
	struct writer w = writer_init(body, answer.record_bytes + 8);
	frame_answer_encode(&answer, &w);
	fake_server_send(s, FRAME_ANSWER, id, body, w.position);
	free(body);
	free(brief);
	record_unref(record);
}

void fake_server_send_error(struct fake_server *s, uint64_t id, uint32_t index, enum error_code code, const char *field,
			    const char *message)
{
	struct frame_error m = {.index = index};
	uint8_t body[512];
	struct writer w = writer_init(body, sizeof body);
	error_set(&m.error, code, field, "%s", message);
	frame_error_encode(&m, &w);
	fake_server_send(s, FRAME_ERROR, id, body, w.position);
}

static void *serve(void *arg)
{
	struct fake_server *s = arg;
	uint8_t *body, welcome[128];
	struct writer w = writer_init(welcome, sizeof welcome);
	s->fd = accept(s->listener, NULL, NULL);
	if (s->fd < 0)
		return NULL;
	if (!s->silent) {
		struct frame f = fake_server_read(s, &body);
		must(f.kind == FRAME_HELLO && frame_hello_decode(body, f.body_bytes, &s->hello, NULL) == 0, "hello");
		free(body);
		frame_welcome_encode(&s->welcome, &w);
		fake_server_send(s, FRAME_WELCOME, 0, welcome, w.position);
	}
	if (s->play)
		s->play(s);
	close(s->fd);
	return NULL;
}

void fake_server_open(struct fake_server *s)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	if (!s->welcome.credits)
		s->welcome = (struct frame_welcome){.teacher = {{0xab}}, .limits = {.max_tokens = 64, .max_top_k = 8, .max_gather = 16,
			.max_draws = 16, .max_spans = 4, .vocab_size = 1000, .n_layers = 2, .width = 4, .q_width = 4, .kv_width = 2},
			.max_sequences = 4, .max_body_bytes = 100000, .credits = 2};
	strcpy(s->directory, "/tmp/kdserved-test-XXXXXX");
	must(mkdtemp(s->directory) != NULL, "mkdtemp");
	snprintf(address.sun_path, sizeof address.sun_path, "%s/socket", s->directory);
	snprintf(s->address, sizeof s->address, "unix:%s", address.sun_path);
	s->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	must(s->listener >= 0 && bind(s->listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(s->listener, 4) == 0,
	     "listen");
	must(pthread_create(&s->thread, NULL, serve, s) == 0, "pthread_create");
}

void fake_server_close(struct fake_server *s)
{
	shutdown(s->listener, SHUT_RDWR);    // wakes accept where no client came
	pthread_join(s->thread, NULL);
	close(s->listener);
	unlink(s->address + 5);
	rmdir(s->directory);
}
