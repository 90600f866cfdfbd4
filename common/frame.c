// SPDX-License-Identifier: Apache-2.0
// Frame headers and bodies of the binary protocol (kdserved-protocol.7). Lengths inside a body are checked against the body, and
// against each other, before anything is allocated or copied. SCORE and ANSWER are frame_score.c.
#include "common/frame.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/crc32c.h"
#include "common/cursor.h"
#include "common/frame_internal.h"

static const char *const kind_names[] = {
	[FRAME_HELLO] = "hello", [FRAME_WELCOME] = "welcome", [FRAME_SCORE] = "score", [FRAME_ANSWER] = "answer",
	[FRAME_DONE] = "done", [FRAME_ERROR] = "error", [FRAME_PING] = "ping", [FRAME_PONG] = "pong",
	[FRAME_GOAWAY] = "goaway", [FRAME_CALL] = "call", [FRAME_REPLY] = "reply", [FRAME_CANCEL] = "cancel",
	[FRAME_GENERATE] = "generate", [FRAME_TOKENS] = "tokens",
};

const char *frame_kind_name(uint8_t kind)
{
	return kind >= FRAME_HELLO && kind <= FRAME_TOKENS ? kind_names[kind] : "unknown";
}

void frame_encode(const struct frame *f, uint8_t ret_header[FRAME_HEADER_BYTES])
{
	struct writer w = writer_init(ret_header, FRAME_HEADER_BYTES);
	writer_u32(&w, FRAME_MAGIC);
	writer_u8(&w, FRAME_VERSION);
	writer_u8(&w, f->kind);
	writer_u16(&w, f->flags);
	writer_u64(&w, f->request_id);
	writer_u32(&w, f->body_bytes);
	writer_u32(&w, 0);
	writer_u32(&w, f->body_crc);
	writer_u32(&w, crc32c(0, ret_header, FRAME_HEADER_BYTES - 4));
}

int frame_decode(const uint8_t header[FRAME_HEADER_BYTES], uint32_t max_body, struct frame *ret_frame, struct error *err)
{
	struct reader r = reader_init(header, FRAME_HEADER_BYTES);
	struct frame f;
	uint32_t magic = reader_u32(&r);
	uint8_t version = reader_u8(&r);
	f.kind = reader_u8(&r);
	f.flags = reader_u16(&r);
	f.request_id = reader_u64(&r);
	f.body_bytes = reader_u32(&r);
	uint32_t reserved = reader_u32(&r);
	f.body_crc = reader_u32(&r);
	uint32_t crc = reader_u32(&r);
	if (magic != FRAME_MAGIC)
		return error_set(err, ERROR_INVALID, "frame", "this is not a kdserved frame (magic 0x%08" PRIx32 ")", magic);
	// The version comes before the checksum: another version may lay out the rest otherwise.
	if (version != FRAME_VERSION)
		return error_set(err, ERROR_UNSUPPORTED, "frame", "protocol version %d, this build speaks %d", version, FRAME_VERSION);
	if (crc != crc32c(0, header, FRAME_HEADER_BYTES - 4))
		return error_set(err, ERROR_CORRUPT, "frame", "header checksum is wrong");
	if (f.kind < FRAME_HELLO || f.kind > FRAME_TOKENS)
		return error_set(err, ERROR_UNSUPPORTED, "frame", "unknown frame kind %d", f.kind);
	if (f.flags || reserved)
		return error_set(err, ERROR_INVALID, "frame", "reserved bits are set");
	if (f.body_bytes > max_body)
		return error_set(err, ERROR_TOO_LARGE, "frame", "body of %" PRIu32 " bytes, the limit is %" PRIu32, f.body_bytes, max_body);
	*ret_frame = f;
	return 0;
}

int frame_check_body(const struct frame *f, const void *body, struct error *err)
{
	if (crc32c(0, body, f->body_bytes) != f->body_crc)
		return error_set(err, ERROR_CORRUPT, "frame", "body checksum is wrong (%s)", frame_kind_name(f->kind));
	return 0;
}

int frame_check_end(const struct reader *r, const char *kind, struct error *err)
{
	if (r->failed)
		return error_set(err, ERROR_INVALID, "body", "%s: cut short", kind);
	if (reader_left(r))
		return error_set(err, ERROR_INVALID, "body", "%s: %zu bytes too many", kind, reader_left(r));
	return 0;
}

// n printable ASCII bytes as a string in `to` (size bytes); false when they do not fit or are something else.
static bool copy_text(struct reader *r, size_t n, char *to, size_t size)
{
	const uint8_t *p = reader_bytes(r, n);
	if (!p || n >= size)
		return false;
	for (size_t i = 0; i < n; i++)
		if (p[i] < 0x20 || p[i] > 0x7e)
			return false;
	memcpy(to, p, n);
	to[n] = '\0';
	return true;
}

void frame_hello_encode(const struct frame_hello *m, struct writer *w)
{
	size_t n = strnlen(m->token, FRAME_TOKEN_MAX);
	writer_u16(w, FRAME_VERSION);    // lowest
	writer_u16(w, FRAME_VERSION);    // and highest version this side speaks
	writer_bytes(w, m->teacher.bytes, sizeof m->teacher.bytes);
	writer_u16(w, (uint16_t)n);
	writer_bytes(w, m->token, n);
}

int frame_hello_decode(const void *body, size_t n, struct frame_hello *ret, struct error *err)
{
	struct reader r = reader_init(body, n);
	struct frame_hello m = {0};
	uint16_t low = reader_u16(&r), high = reader_u16(&r);
	reader_copy(&r, m.teacher.bytes, sizeof m.teacher.bytes);
	uint16_t token_bytes = reader_u16(&r);
	// The token never goes into a message: errors are logged.
	if (!copy_text(&r, token_bytes, m.token, sizeof m.token) && !r.failed)
		return error_set(err, ERROR_INVALID, "token", "hello: at most %d printable ASCII characters", FRAME_TOKEN_MAX);
	int e = frame_check_end(&r, "hello", err);
	if (e)
		return e;
	if (low > FRAME_VERSION || high < FRAME_VERSION)
		return error_set(err, ERROR_UNSUPPORTED, "version", "hello: versions %d to %d, this build speaks %d", low, high,
				 FRAME_VERSION);
	*ret = m;
	return 0;
}

void frame_welcome_encode(const struct frame_welcome *m, struct writer *w)
{
	writer_u16(w, FRAME_VERSION);
	writer_u16(w, 0);
	writer_bytes(w, m->teacher.bytes, sizeof m->teacher.bytes);
	const struct query_limits *l = &m->limits;
	const uint32_t limits[] = {l->max_tokens, l->max_top_k, l->max_gather, l->max_draws, l->max_spans, l->vocab_size,
				   l->n_layers, l->width, l->q_width, l->kv_width};
	for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
		writer_u32(w, limits[i]);
	writer_u32(w, m->max_sequences);
	writer_u32(w, m->max_body_bytes);
	writer_u32(w, m->credits);
}

int frame_welcome_decode(const void *body, size_t n, struct frame_welcome *ret, struct error *err)
{
	struct reader r = reader_init(body, n);
	struct frame_welcome m = {0};
	uint16_t version = reader_u16(&r), reserved = reader_u16(&r);
	reader_copy(&r, m.teacher.bytes, sizeof m.teacher.bytes);
	struct query_limits *l = &m.limits;
	uint32_t *const limits[] = {&l->max_tokens, &l->max_top_k, &l->max_gather, &l->max_draws, &l->max_spans, &l->vocab_size,
				    &l->n_layers, &l->width, &l->q_width, &l->kv_width};
	for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
		*limits[i] = reader_u32(&r);
	m.max_sequences = reader_u32(&r);
	m.max_body_bytes = reader_u32(&r);
	m.credits = reader_u32(&r);
	int e = frame_check_end(&r, "welcome", err);
	if (e)
		return e;
	if (version != FRAME_VERSION)
		return error_set(err, ERROR_UNSUPPORTED, "version", "welcome: version %d, this build speaks %d", version, FRAME_VERSION);
	if (reserved || !m.credits || !l->vocab_size || l->vocab_size > QUERY_MAX_VOCABULARY || l->n_layers > UINT16_MAX)
		return error_set(err, ERROR_INVALID, "body", "welcome: a value outside its range");
	*ret = m;
	return 0;
}

void frame_error_encode(const struct frame_error *m, struct writer *w)
{
	const char *name = error_name(m->error.code);
	size_t name_bytes = strlen(name);
	size_t field_bytes = strnlen(m->error.field, sizeof m->error.field - 1);
	size_t message_bytes = strnlen(m->error.message, sizeof m->error.message - 1);
	writer_u32(w, m->index);
	writer_u8(w, (uint8_t)name_bytes);
	writer_u8(w, (uint8_t)field_bytes);
	writer_u16(w, (uint16_t)message_bytes);
	writer_bytes(w, name, name_bytes);
	writer_bytes(w, m->error.field, field_bytes);
	writer_bytes(w, m->error.message, message_bytes);
}

int frame_error_decode(const void *body, size_t n, struct frame_error *ret, struct error *err)
{
	struct reader r = reader_init(body, n);
	struct frame_error m = {0};
	char name[32];
	m.index = reader_u32(&r);
	uint8_t name_bytes = reader_u8(&r), field_bytes = reader_u8(&r);
	uint16_t message_bytes = reader_u16(&r);
	bool good = copy_text(&r, name_bytes, name, sizeof name) && copy_text(&r, field_bytes, m.error.field, sizeof m.error.field) &&
		    copy_text(&r, message_bytes, m.error.message, sizeof m.error.message);
	if (!good && !r.failed)
		return error_set(err, ERROR_INVALID, "body", "error: a text is too long or not printable ASCII");
	int e = frame_check_end(&r, "error", err);
	if (e)
		return e;
	m.error.code = error_from_name(name);    // a name of a later version: internal
	if (m.error.code == ERROR_NONE || (m.index >= FRAME_MAX_SEQUENCES && m.index != FRAME_WHOLE_REQUEST))
		return error_set(err, ERROR_INVALID, "body", "error: a value outside its range");
	*ret = m;
	return 0;
}

// The n bytes left as an owned, NUL-terminated copy.
static int copy_body(struct reader *r, size_t n, char **ret_body, struct error *err)
{
	const uint8_t *p = reader_bytes(r, n);
	char *body = p ? malloc(n + 1) : NULL;    // n <= what is left of a body, so n + 1 cannot wrap
	if (!p)
		return error_set(err, ERROR_INVALID, "body", "cut short");
	if (!body)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for %zu bytes", n);
	memcpy(body, p, n);
	body[n] = '\0';
	*ret_body = body;
	return 0;
}

void frame_call_encode(const struct frame_call *m, struct writer *w)
{
	size_t method_bytes = strnlen(m->method, sizeof m->method - 1), path_bytes = strnlen(m->path, sizeof m->path - 1);
	writer_u8(w, (uint8_t)method_bytes);
	writer_u8(w, 0);
	writer_u16(w, (uint16_t)path_bytes);
	writer_u32(w, (uint32_t)m->body_bytes);
	writer_bytes(w, m->method, method_bytes);
	writer_bytes(w, m->path, path_bytes);
	writer_bytes(w, m->body, m->body_bytes);
}

static bool method_is_valid(const char *method)
{
	return *method && strspn(method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == strlen(method);
}

int frame_call_decode(const void *body, size_t n, struct frame_call *ret, struct error *err)
{
	struct reader r = reader_init(body, n);
	struct frame_call m = {0};
	uint8_t method_bytes = reader_u8(&r), reserved = reader_u8(&r);
	uint16_t path_bytes = reader_u16(&r);
	m.body_bytes = reader_u32(&r);
	bool good = copy_text(&r, method_bytes, m.method, sizeof m.method) && copy_text(&r, path_bytes, m.path, sizeof m.path);
	if (r.failed || m.body_bytes != reader_left(&r))
		return error_set(err, ERROR_INVALID, "body", "call: lengths do not add up to the body");
	if (!good || reserved || !method_is_valid(m.method) || m.path[0] != '/' || strchr(m.path, ' '))
		return error_set(err, ERROR_INVALID, "body", "call: not a method and a path");
	int e = copy_body(&r, m.body_bytes, &m.body, err);
	if (!e)
		*ret = m;
	return e;
}

void frame_call_done(struct frame_call *m)
{
	if (!m)
		return;
	free(m->body);
	m->body = NULL;
	m->body_bytes = 0;
}

void frame_reply_encode(const struct frame_reply *m, struct writer *w)
{
	writer_u32(w, m->status);
	writer_u32(w, (uint32_t)m->body_bytes);
	writer_bytes(w, m->body, m->body_bytes);
}

int frame_reply_decode(const void *body, size_t n, struct frame_reply *ret, struct error *err)
{
	struct reader r = reader_init(body, n);
	struct frame_reply m = {0};
	m.status = reader_u32(&r);
	m.body_bytes = reader_u32(&r);
	if (r.failed || m.body_bytes != reader_left(&r))
		return error_set(err, ERROR_INVALID, "body", "reply: lengths do not add up to the body");
	if (m.status < 100 || m.status > 599)
		return error_set(err, ERROR_INVALID, "body", "reply: status %" PRIu32 " is not an HTTP status", m.status);
	int e = copy_body(&r, m.body_bytes, &m.body, err);
	if (!e)
		*ret = m;
	return e;
}

void frame_reply_done(struct frame_reply *m)
{
	if (!m)
		return;
	free(m->body);
	m->body = NULL;
	m->body_bytes = 0;
}
