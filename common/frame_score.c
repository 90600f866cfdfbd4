// SPDX-License-Identifier: Apache-2.0
// SCORE and ANSWER. One question, many sequences; what only one of them asks (its rows, ids to gather, spans) comes behind the tokens.
#include <inttypes.h>
#include <stdlib.h>

#include "common/cursor.h"
#include "common/frame.h"
#include "common/frame_internal.h"

enum part_bit { PART_ROWS = 1, PART_GATHER = 2, PART_SPANS = 4 };

static void encode_part(const struct query_part *p, struct writer *w)
{
	writer_u8(w, (uint8_t)((p->has_rows ? PART_ROWS : 0) | (p->gather.n_lists ? PART_GATHER : 0) | (p->n_spans ? PART_SPANS : 0)));
	if (p->has_rows) {
		writer_u32(w, (uint32_t)p->first);
		writer_u32(w, (uint32_t)p->last);
	}
	if (p->gather.n_lists)
		query_encode_gather(&p->gather, w);
	if (p->n_spans)
		query_encode_spans(p->spans, p->n_spans, w);
}

static int decode_part(struct reader *r, struct query_part *p, struct error *err)
{
	uint8_t bits = reader_u8(r);
	int e = 0;
	if (bits & ~(PART_ROWS | PART_GATHER | PART_SPANS))
		return error_set(err, ERROR_UNSUPPORTED, "body", "score: unknown bits 0x%02x of a sequence's own part", bits);
	if (bits & PART_ROWS) {
		p->has_rows = true;
		p->first = (int32_t)reader_u32(r);
		p->last = (int32_t)reader_u32(r);
	}
	if (bits & PART_GATHER)
		e = query_decode_gather(r, &p->gather, err);
	if (!e && bits & PART_SPANS)
		e = query_decode_spans(r, &p->spans, &p->n_spans, err);
	return e;
}

void frame_score_encode(const struct frame_score *m, struct writer *w)
{
	struct writer count = writer_init(NULL, 0);
	query_encode(&m->query, &count);
	writer_u32(w, (m->flags & ~FRAME_SCORE_PARTS) | (m->parts ? FRAME_SCORE_PARTS : 0));
	writer_u32(w, m->deadline_ms);
	writer_u32(w, (uint32_t)count.position);
	writer_u32(w, m->n_sequences);
	query_encode(&m->query, w);
	for (uint32_t i = 0; i < m->n_sequences; i++)
		writer_u32(w, m->sequences[i].n_tokens);
	for (uint32_t i = 0; i < m->n_sequences; i++)
		for (uint32_t j = 0; j < m->sequences[i].n_tokens; j++)
			writer_u32(w, m->sequences[i].tokens[j]);
	for (uint32_t i = 0; m->parts && i < m->n_sequences; i++)
		encode_part(&m->parts[i], w);
}

void frame_score_done(struct frame_score *m)
{
	if (!m)
		return;
	for (uint32_t i = 0; m->sequences && i < m->n_sequences; i++)
		sequence_done(&m->sequences[i]);
	for (uint32_t i = 0; m->parts && i < m->n_sequences; i++)
		query_part_done(&m->parts[i]);
	free(m->sequences);
	free(m->parts);
	m->sequences = NULL;
	m->parts = NULL;
	m->n_sequences = 0;
	query_done(&m->query);
}

// The lengths must add up to exactly the tokens that follow, before any is believed.
static int read_sequences(struct reader *r, struct frame_score *m, struct error *err)
{
	uint32_t n = m->n_sequences;
	if (!n)
		return error_set(err, ERROR_INVALID, "sequences", "score: there are none");
	if (n > FRAME_MAX_SEQUENCES)
		return error_set(err, ERROR_TOO_LARGE, "sequences", "score: %" PRIu32 " sequences, the limit is %d", n,
				 FRAME_MAX_SEQUENCES);
	struct reader lengths = reader_init(reader_bytes(r, 4 * (size_t)n), 4 * (size_t)n);
	uint64_t n_tokens = 0;
	for (uint32_t i = 0; !r->failed && i < n; i++)
		n_tokens += reader_u32(&lengths);
	uint64_t bytes = n_tokens * 4;     // n_tokens < 2^48: no overflow
	if (r->failed || (m->flags & FRAME_SCORE_PARTS ? bytes > reader_left(r) : bytes != reader_left(r)))
		return error_set(err, ERROR_INVALID, "sequences", "score: lengths do not add up to the tokens sent");
	m->sequences = calloc(n, sizeof *m->sequences);
	if (!m->sequences)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for %" PRIu32 " sequences", n);
	lengths.position = 0;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t length = reader_u32(&lengths);
		uint32_t *tokens = malloc(length ? (size_t)length * 4 : 1);
		if (!tokens)
			return error_set(err, ERROR_MEMORY, NULL, "no memory for %" PRIu32 " tokens", length);
		for (uint32_t j = 0; j < length; j++)
			tokens[j] = reader_u32(r);
		m->sequences[i] = (struct sequence){tokens, length};
	}
	return 0;
}

// Each part takes a byte at least, so the sequences bound what is allocated.
static int read_parts(struct reader *r, struct frame_score *m, struct error *err)
{
	int e = 0;
	m->parts = calloc(m->n_sequences, sizeof *m->parts);
	if (!m->parts)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for %" PRIu32 " sequences", m->n_sequences);
	for (uint32_t i = 0; !e && i < m->n_sequences; i++)
		e = decode_part(r, &m->parts[i], err);
	return e;
}

int frame_score_decode(const void *body, size_t n, struct frame_score *ret, struct error *err)
{
	struct reader r = reader_init(body, n);
	struct frame_score m = {0};
	m.flags = reader_u32(&r);
	m.deadline_ms = reader_u32(&r);
	uint32_t query_bytes = reader_u32(&r);
	m.n_sequences = reader_u32(&r);
	struct reader q = reader_init(reader_bytes(&r, query_bytes), query_bytes);
	if (r.failed)
		return error_set(err, ERROR_INVALID, "body", "score: cut short");
	if (m.flags & ~FRAME_SCORE_FLAGS)
		return error_set(err, ERROR_UNSUPPORTED, "flags", "score: unknown flags 0x%" PRIx32, m.flags);
	int e = query_decode(&q, &m.query, err);
	if (!e && reader_left(&q))
		e = error_set(err, ERROR_INVALID, "query", "%zu bytes too many", reader_left(&q));
	if (!e)
		e = read_sequences(&r, &m, err);
	if (!e && m.flags & FRAME_SCORE_PARTS)
		e = read_parts(&r, &m, err);
	if (!e)
		e = frame_check_end(&r, "score", err);
	if (e)
		frame_score_done(&m);
	else
		*ret = m;
	return e;
}

void frame_answer_encode(const struct frame_answer *m, struct writer *w)
{
	writer_u32(w, m->index);
	writer_u32(w, m->flags);
	writer_bytes(w, m->record, m->record_bytes);
}

int frame_answer_decode(const void *body, size_t n, struct frame_answer *ret, struct error *err)
{
	struct reader r = reader_init(body, n);
	struct frame_answer m = {0};
	m.index = reader_u32(&r);
	m.flags = reader_u32(&r);
	m.record_bytes = reader_left(&r);
	m.record = reader_bytes(&r, m.record_bytes);
	int e = frame_check_end(&r, "answer", err);
	if (e)
		return e;
	if (!m.record_bytes || m.index >= FRAME_MAX_SEQUENCES || m.flags & ~(FRAME_ANSWER_CACHED | FRAME_ANSWER_SHORT))
		return error_set(err, ERROR_INVALID, "body", "answer: a value outside its range");
	*ret = m;
	return 0;
}
