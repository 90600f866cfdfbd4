// SPDX-License-Identifier: Apache-2.0
// GENERATE and TOKENS.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/cursor.h"
#include "common/frame.h"
#include "common/frame_internal.h"

static void write_ids(struct writer *w, const uint32_t *ids, size_t n)
{
	for (size_t i = 0; i < n; i++)
		writer_u32(w, ids[i]);
}

static void write_floats(struct writer *w, const float *x, size_t n)
{
	for (size_t i = 0; i < n; i++)
		writer_f32(w, x[i]);
}

void frame_generate_encode(const struct frame_generate *m, struct writer *w)
{
	const uint32_t head[] = {m->flags, m->deadline_ms, m->n, m->first_sample, m->max_tokens, m->rows};
	write_ids(w, head, sizeof head / sizeof *head);
	writer_f32(w, m->temperature);
	writer_u32(w, m->top_k);
	writer_f32(w, m->top_p);
	writer_f32(w, m->min_p);
	writer_f32(w, m->typical_p);
	writer_u64(w, m->flags & FRAME_GENERATE_SEED ? m->seed : 0);
	writer_u32(w, m->stop_ids.n_tokens);
	writer_u32(w, m->n_stops);
	writer_u32(w, m->forced.n_tokens);
	writer_u32(w, m->n_prompts);
	write_ids(w, m->stop_ids.tokens, m->stop_ids.n_tokens);
	for (uint32_t i = 0; i < m->n_stops; i++) {
		size_t n = strlen(m->stops[i]);
		writer_u16(w, (uint16_t)n);
		writer_bytes(w, m->stops[i], n);
	}
	write_ids(w, m->forced.tokens, m->forced.n_tokens);
	for (uint32_t i = 0; i < m->n_prompts; i++)
		writer_u32(w, m->prompts[i].n_tokens);
	for (uint32_t i = 0; i < m->n_prompts; i++)
		write_ids(w, m->prompts[i].tokens, m->prompts[i].n_tokens);
}

void frame_generate_done(struct frame_generate *m)
{
	if (!m)
		return;
	sequence_done(&m->stop_ids);
	sequence_done(&m->forced);
	for (uint32_t i = 0; i < m->n_stops; i++)
		free(m->stops[i]);
	for (uint32_t i = 0; m->prompts && i < m->n_prompts; i++)
		sequence_done(&m->prompts[i]);
	free(m->prompts);
	m->prompts = NULL;
	m->n_stops = m->n_prompts = 0;
}

// Tokens that are there: their bytes were counted before anything is made for them.
static int read_ids(struct reader *r, uint32_t n, const char *what, struct sequence *ret, struct error *err)
{
	if (n > reader_left(r) / 4)
		return error_set(err, ERROR_INVALID, what, "generate: %" PRIu32 " ids are more than was sent", n);
	uint32_t *ids = n ? malloc((size_t)n * sizeof *ids) : NULL;
	if (n && !ids)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for %" PRIu32 " ids", n);
	for (uint32_t i = 0; i < n; i++)
		ids[i] = reader_u32(r);
	*ret = (struct sequence){ids, n};
	return 0;
}

static int read_stops(struct reader *r, uint32_t n, struct frame_generate *m, struct error *err)
{
	if (n > FRAME_MAX_STOPS)
		return error_set(err, ERROR_TOO_LARGE, "stop", "generate: %" PRIu32 " stop strings, the limit is %d", n, FRAME_MAX_STOPS);
	for (uint32_t i = 0; i < n; i++) {
		uint16_t length = reader_u16(r);
		const uint8_t *bytes = reader_bytes(r, length);
		if (r->failed || !length || length > FRAME_MAX_STOP_BYTES || memchr(bytes, 0, length))
			return error_set(err, ERROR_INVALID, "stop",
				"generate: a stop string is empty, too long, holds a zero or is cut short");
		char *text = malloc((size_t)length + 1);
		if (!text)
			return error_set(err, ERROR_MEMORY, NULL, "no memory for a stop string");
		memcpy(text, bytes, length);
		text[length] = '\0';
		m->stops[m->n_stops++] = text;
	}
	return 0;
}

static int read_prompts(struct reader *r, uint32_t n, struct frame_generate *m, struct error *err)
{
	int e = 0;
	if (!n || n > FRAME_MAX_SEQUENCES)
		return error_set(err, n ? ERROR_TOO_LARGE : ERROR_INVALID, "prompts", "generate: %" PRIu32 " prompts, expected 1 to %d", n,
				 FRAME_MAX_SEQUENCES);
	struct reader lengths = reader_init(reader_bytes(r, 4 * (size_t)n), 4 * (size_t)n);
	if (r->failed)
		return error_set(err, ERROR_INVALID, "body", "generate: cut short");
	m->prompts = calloc(n, sizeof *m->prompts);
	if (!m->prompts)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for %" PRIu32 " prompts", n);
	m->n_prompts = n;
	for (uint32_t i = 0; i < n && e == 0; i++)
		e = read_ids(r, reader_u32(&lengths), "prompts", &m->prompts[i], err);
	return e;
}

static void read_head(struct reader *r, struct frame_generate *m)
{
	uint32_t *const head[] = {&m->flags, &m->deadline_ms, &m->n, &m->first_sample, &m->max_tokens, &m->rows};
	for (size_t i = 0; i < sizeof head / sizeof *head; i++)
		*head[i] = reader_u32(r);
	m->temperature = reader_f32(r);
	m->top_k = reader_u32(r);
	m->top_p = reader_f32(r);
	m->min_p = reader_f32(r);
	m->typical_p = reader_f32(r);
	m->seed = reader_u64(r);
}

static int check_head(const struct reader *r, const struct frame_generate *m, uint32_t n_stop_ids, struct error *err)
{
	const uint32_t known = FRAME_GENERATE_IGNORE_EOS | FRAME_GENERATE_STREAM | FRAME_GENERATE_SEED;
	if (r->failed)
		return error_set(err, ERROR_INVALID, "body", "generate: cut short");
	if (m->flags & ~known)
		return error_set(err, ERROR_UNSUPPORTED, "flags", "generate: unknown flags 0x%" PRIx32, m->flags);
	if (m->seed && !(m->flags & FRAME_GENERATE_SEED))
		return error_set(err, ERROR_INVALID, "seed", "generate: a seed that is not given is 0");
	if (n_stop_ids > FRAME_MAX_STOP_IDS)
		return error_set(err, ERROR_TOO_LARGE, "stop_ids", "generate: %" PRIu32 " stop ids, the limit is %d", n_stop_ids,
				 FRAME_MAX_STOP_IDS);
	return 0;
}

int frame_generate_decode(const void *body, size_t n, struct frame_generate *ret, struct error *err)
{
	struct reader r = reader_init(body, n);
	struct frame_generate m = {0};
	read_head(&r, &m);
	uint32_t n_stop_ids = reader_u32(&r), n_stops = reader_u32(&r), n_forced = reader_u32(&r), n_prompts = reader_u32(&r);
	int e = check_head(&r, &m, n_stop_ids, err);
	if (!e)
		e = read_ids(&r, n_stop_ids, "stop_ids", &m.stop_ids, err);
	if (!e)
		e = read_stops(&r, n_stops, &m, err);
	if (!e)
		e = read_ids(&r, n_forced, "response_prefix", &m.forced, err);
	if (!e)
		e = read_prompts(&r, n_prompts, &m, err);
	if (!e)
		e = frame_check_end(&r, "generate", err);
	if (e)
		frame_generate_done(&m);
	else
		*ret = m;
	return e;
}

void frame_tokens_encode(const struct frame_tokens *m, struct writer *w)
{
	const uint32_t head[] = {m->index, m->flags, m->first, m->n, m->rows, m->text_bytes},
		end[] = {m->finish, m->stop_id, m->stop, m->reused};
	size_t n_rows = (size_t)m->n * m->rows;
	write_ids(w, head, sizeof head / sizeof *head);
	write_ids(w, m->tokens, m->n);
	write_floats(w, m->logprobs, m->n);
	write_floats(w, m->sampled_logprobs, m->n);
	write_floats(w, m->lse, m->n);
	write_ids(w, m->ids, n_rows);
	write_floats(w, m->logits, n_rows);
	writer_bytes(w, m->text, m->text_bytes);
	if (!(m->flags & FRAME_TOKENS_LAST))
		return;
	write_ids(w, end, sizeof end / sizeof *end);
	writer_u64(w, m->seed);
}

void frame_tokens_done(struct frame_tokens *m)
{
	if (m)
		free(m->numbers);
	if (m)
		m->numbers = NULL;
}

static const uint32_t *take_ids(struct reader *r, void **at, size_t n)
{
	uint32_t *ids = *at;
	for (size_t i = 0; i < n; i++)
		ids[i] = reader_u32(r);
	*at = ids + n;
	return ids;
}

static const float *take_floats(struct reader *r, void **at, size_t n)
{
	float *x = *at;
	for (size_t i = 0; i < n; i++)
		x[i] = reader_f32(r);
	*at = x + n;
	return x;
}

// All arrays of numbers in one allocation: each number takes 4 bytes.
static int read_numbers(struct reader *r, struct frame_tokens *m, struct error *err)
{
	uint64_t each = 4 + 2 * (uint64_t)m->rows, total;
	if (__builtin_mul_overflow(each, (uint64_t)m->n, &total) || total > reader_left(r) / 4)
		return error_set(err, ERROR_INVALID, "body", "tokens: %" PRIu32 " tokens are more than was sent", m->n);
	void *at = m->numbers = malloc(total ? total * 4 : 1);
	if (!at)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for %" PRIu32 " tokens", m->n);
	m->tokens = take_ids(r, &at, m->n);
	m->logprobs = take_floats(r, &at, m->n);
	m->sampled_logprobs = take_floats(r, &at, m->n);
	m->lse = take_floats(r, &at, m->n);
	m->ids = take_ids(r, &at, (size_t)m->n * m->rows);
	m->logits = take_floats(r, &at, (size_t)m->n * m->rows);
	return 0;
}

static int read_end(struct reader *r, struct frame_tokens *m, struct error *err)
{
	m->finish = reader_u32(r);
	m->stop_id = reader_u32(r);
	m->stop = reader_u32(r);
	m->reused = reader_u32(r);
	m->seed = reader_u64(r);
	if (!r->failed && m->finish != FRAME_FINISH_STOP && m->finish != FRAME_FINISH_LENGTH)
		return error_set(err, ERROR_INVALID, "body", "tokens: finish is %" PRIu32, m->finish);
	return 0;
}

int frame_tokens_decode(const void *body, size_t n, struct frame_tokens *ret, struct error *err)
{
	struct reader r = reader_init(body, n);
	struct frame_tokens m = {0};
	uint32_t *const head[] = {&m.index, &m.flags, &m.first, &m.n, &m.rows, &m.text_bytes};
	for (size_t i = 0; i < sizeof head / sizeof *head; i++)
		*head[i] = reader_u32(&r);
	if (r.failed || m.flags & ~FRAME_TOKENS_LAST || m.index == FRAME_WHOLE_REQUEST)
		return error_set(err, ERROR_INVALID, "body", "tokens: cut short, or a value outside its range");
	int e = read_numbers(&r, &m, err);
	if (!e)
		m.text = (const char *)reader_bytes(&r, m.text_bytes);
	if (!e && m.flags & FRAME_TOKENS_LAST)
		e = read_end(&r, &m, err);
	if (!e)
		e = frame_check_end(&r, "tokens", err);
	if (e)
		frame_tokens_done(&m);
	else
		*ret = m;
	return e;
}
